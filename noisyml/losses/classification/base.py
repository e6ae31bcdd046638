"""Losses of a classifier, one number per sample: the contract, cross-entropy, its generalisation.

Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
Labels", NeurIPS 2018 (arXiv 1805.07836).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.checks import Interval, OpenShare, WholeNonNegative
from noisyml.losses.base import ScoreLoss
from noisyml.losses.links import SOFTMAX


class ClassificationLoss(ScoreLoss):
    """A loss per sample, of which each has one label."""

    kind: ClassVar[str] = "a loss on class scores"

    @abstractmethod
    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """The loss of each sample.

        Args:
            logits: [B, C] with gradient, float32 or better.
            labels: [B] int64, observed.
            index: [B] int64, positions in the training split.
            epoch: epochs done so far.

        Returns:
            [B] attached to the graph.
        """


class CrossEntropy(ClassificationLoss):
    """Negative log-probability of the observed label.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> index = torch.tensor([0, 1])
        >>> CrossEntropy()(logits, labels, index, epoch=0)
        tensor([0.1269, 1.3133])
    """

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """[B], see `ClassificationLoss`."""
        return SOFTMAX.entropy(logits, labels)


def generalised_cross_entropy(
    logits: Tensor, labels: Tensor, q: float, truncation: float | None = None
) -> Tensor:
    """``(1 - p_y^q) / q`` (NeurIPS 2018, eq. 6), constant where ``p_y <= k`` (eq. 8).

    Args:
        logits: [B, C] float.
        labels: [B] int64.
        q: in (0, 1]; 1 is the mean absolute error, towards 0 it becomes cross-entropy.
        truncation: k in [0, 1); None: no sample is cut off.

    Returns:
        [B].

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> generalised_cross_entropy(logits, labels, q=0.7)
        tensor([0.1215, 0.8589])
        >>> generalised_cross_entropy(logits, labels, q=0.7, truncation=0.5)  # p_y <= 0.5: cut off
        tensor([0.1215, 0.5492])
    """
    log_p = -F.cross_entropy(logits, labels, reduction="none")
    loss = -torch.expm1(q * log_p) / q
    if truncation is None:
        return loss
    return torch.where(log_p.exp() > truncation, loss, (1 - truncation**q) / q)


class GeneralisedCrossEntropy(ClassificationLoss):
    """Between cross-entropy and the mean absolute error, which no wrong label can dominate.

    Args:
        q: in (0, 1]; larger resists more noise and learns more slowly.
        truncation: k, probability up to which a sample teaches nothing; None: all teach. The paper
            fixes the samples left out for several epochs; here each step decides anew.
        truncation_epoch: epochs before the truncation sets in.

    Raises:
        ArgumentError: a value out of range.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> index = torch.tensor([0, 1])
        >>> GeneralisedCrossEntropy(q=1)(logits, labels, index, epoch=0)  # 1 - p
        tensor([0.1192, 0.7311])
    """

    def __init__(
        self,
        q: Annotated[float, Interval(gt=0, le=1)] = 0.7,
        truncation: OpenShare | None = None,
        truncation_epoch: WholeNonNegative = 40,
    ) -> None:
        super().__init__()
        self.q = q
        self.truncation = truncation
        self.truncation_epoch = truncation_epoch

    @property
    def warmup_epochs(self) -> int:
        """Epochs before the truncation."""
        return 0 if self.truncation is None else self.truncation_epoch

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """[B], see `ClassificationLoss`."""
        truncation = self.truncation if epoch >= self.truncation_epoch else None
        return generalised_cross_entropy(logits, labels, self.q, truncation)
