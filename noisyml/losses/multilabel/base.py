"""Losses on the entries of multi-label samples: one sigmoid per class."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from noisyml.checks import NonNegative, Share
from noisyml.losses.base import ScoreLoss
from noisyml.losses.links import SIGMOID
from noisyml.targets.entries import by_entry

Reduction = Literal["mean", "class_sum"]


def bce_entries(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of each entry.

    Args:
        logits: [B, C] float.
        labels: [B, C] float in [0, 1].

    Returns:
        [B, C], in nats.

    Example:
        >>> logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]])
        >>> bce_entries(logits, labels)
        tensor([[0.6931, 2.1269]])
    """
    return SIGMOID.entropy(logits, labels)


def focal_entries(
    logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of each entry (Lin et al., ICCV 2017, arXiv 1708.02002, equation 5).

    Args:
        logits: [B, C] float.
        labels: [B, C] float in [0, 1].
        alpha: weight of positives, in [0, 1]; negatives weigh ``1 - alpha``.
        gamma: exponent of the modulating factor, at least 0.

    Returns:
        [B, C].

    Example:
        >>> logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]])
        >>> focal_entries(logits, labels)
        tensor([[0.0433, 1.2376]])
    """
    loss: Tensor = sigmoid_focal_loss(logits, labels.to(logits.dtype), alpha=alpha, gamma=gamma)
    return loss


def reduce_entries(
    entry_loss: Tensor,
    keep: Tensor,
    reduction: Reduction = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """One number of the kept entries; 0 with a gradient of 0 if nothing is kept.

    Args:
        entry_loss: [B, C]; what is left out may be infinite.
        keep: [B] bool (samples) or [B, C] (entries).
        reduction: ``mean`` over the kept entries, or ``class_sum``: the sum over classes, then the
            mean over the samples of which anything is kept.
        weight: [B, C] or what expands to it, at least 0, a factor of each entry; the divisor counts
            the kept entries, whatever they weigh. None: all weigh 1.

    Example:
        >>> losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> reduce_entries(losses, torch.tensor([True, False]))
        tensor(1.5000)
        >>> reduce_entries(losses, torch.tensor([True, False]), "class_sum")
        tensor(3.)
        >>> weight = torch.tensor([[1.0, 0.0]])
        >>> reduce_entries(losses, torch.tensor([True, True]), weight=weight)
        tensor(1.)
    """
    if weight is not None:
        entry_loss = entry_loss * weight.to(entry_loss.dtype)
    entries = by_entry(keep).expand_as(entry_loss)
    total = torch.where(entries, entry_loss, torch.zeros_like(entry_loss)).sum()
    count = entries.sum() if reduction == "mean" else entries.any(dim=1).sum()
    mean: Tensor = total / count.clamp(min=1)
    return mean


class MultiLabelLoss(ScoreLoss):
    """Loss of each entry, and how entries become one number per sample and per batch.

    Args:
        reduction: see `reduce_entries`. A sum over C classes is C times the mean: terms beside the
            loss (a regulariser, a discrepancy) weigh less against it.

    Raises:
        ArgumentError: an unknown reduction.
    """

    kind: ClassVar[str] = "a loss on several labels per image"

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.reduction: Reduction = reduction

    @abstractmethod
    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """The loss of each entry.

        Args:
            logits: [B, C] with gradient, float32 or better.
            labels: [B, C] in [0, 1], observed.
            index: [B] int64, positions in the training split.
            epoch: epochs done so far.

        Returns:
            [B, C] attached to the graph.
        """

    def per_sample(self, entry_loss: Tensor) -> Tensor:
        """The loss of each sample [B]: mean or sum over its classes."""
        return entry_loss.mean(dim=1) if self.reduction == "mean" else entry_loss.sum(dim=1)

    def reduce(self, entry_loss: Tensor, keep: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of the batch, of what is kept: [B] samples or [B, C] entries.

        Args:
            entry_loss: [B, C].
            keep: [B] bool, or [B, C].
            weight: a factor of each entry, see `reduce_entries`; of all terms of the loss alike.
        """
        return reduce_entries(entry_loss, keep, self.reduction, weight)


class BinaryCrossEntropy(MultiLabelLoss):
    """Negative log-probability of every observed entry.

    Example:
        >>> logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]])
        >>> BinaryCrossEntropy()(logits, labels, torch.tensor([0]), epoch=0)
        tensor([[0.6931, 2.1269]])
    """

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """[B, C], see `MultiLabelLoss`."""
        return bce_entries(logits, labels)


class Focal(MultiLabelLoss):
    """Focal loss: entries that are right already weigh little.

    Args:
        alpha: weight of positives, in [0, 1]; negatives weigh ``1 - alpha``.
        gamma: exponent of the modulating factor, at least 0.
        reduction: see `MultiLabelLoss`.

    Raises:
        ArgumentError: a value out of range.

    Example:
        >>> logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]])
        >>> Focal()(logits, labels, torch.tensor([0]), epoch=0)
        tensor([[0.0433, 1.2376]])
    """

    def __init__(
        self, alpha: Share = 0.25, gamma: NonNegative = 2.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(reduction)
        self.alpha = alpha
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """[B, C], see `MultiLabelLoss`."""
        return focal_entries(logits, labels, self.alpha, self.gamma)
