"""Softmax and sigmoid: two ways in which class scores become probabilities and losses.

Losses that exist for one label per sample and for several are written once, in terms of a `Link`.
With the softmax a sample has one loss, [B]; with sigmoids each of its entries has one, [B, C].
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

#: Probabilities are kept this far from 0 and 1 where they are compared.
CLAMP = 1e-4


class Link(Protocol):
    """Operations on class scores that depend on whether classes exclude each other."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class probabilities [B, C]."""
        ...

    def clamped(self, logits: Tensor) -> Tensor:
        """Class probabilities [B, C] in ``[1e-4, 1 - 1e-4]``; beyond, they carry no gradient."""
        ...

    def shares(self, clamped: Tensor) -> Tensor:
        """Clamped probabilities [B, C] as targets: of one sum again where classes exclude."""
        ...

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Observed labels as targets [B, C]."""
        ...

    def entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the observed labels, in nats."""
        ...

    def soft_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of soft targets [B, C], with the weights of self-adaptive training."""
        ...

    def overlap(self, targets: Tensor, probabilities: Tensor) -> Tensor:
        """Agreement of targets [B, C] and probabilities [B, C], in [0, 1]."""
        ...

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """KL(p || q) + KL(q || p) of the distributions of two networks' scores, in nats."""
        ...


class Softmax:
    """Classes exclude each other: labels [B] int64, losses [B].

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> Softmax().entropy(logits, torch.tensor([0, 0])).numpy().round(4).tolist()
        [0.6930999755859375, 0.12690000236034393]
    """

    def probabilities(self, logits: Tensor) -> Tensor:
        """Rows [B, C] that sum to 1."""
        return F.softmax(logits, dim=1)

    def clamped(self, logits: Tensor) -> Tensor:
        """Rows [B, C] in ``[1e-4, 1 - 1e-4]``, no longer summing to 1 exactly."""
        return F.softmax(logits, dim=1).clamp(CLAMP, 1.0 - CLAMP)

    def shares(self, clamped: Tensor) -> Tensor:
        """Rows [B, C] that sum to 1 again, without gradient."""
        return clamped.detach() / clamped.detach().sum(dim=1, keepdim=True)

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """One-hot rows [B, C]."""
        return F.one_hot(labels, classes)

    def entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[B], see `Link`."""
        return F.cross_entropy(logits, labels, reduction="none")

    def soft_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B], samples weighted by their largest target, the weights of a mean of 1.

        See algorithm 1 of arXiv 2002.10319.
        """
        weight = targets.amax(dim=1)
        weight = weight / weight.mean()
        return -weight * (targets * F.log_softmax(logits, dim=1)).sum(dim=1)

    def overlap(self, targets: Tensor, probabilities: Tensor) -> Tensor:
        """``<t, p>`` [B]."""
        return (targets * probabilities).sum(dim=1)

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """[B], at least 0; gradients reach both."""
        first, second = first.log_softmax(dim=1), second.log_softmax(dim=1)
        return ((first.exp() - second.exp()) * (first - second)).sum(dim=1)


class Sigmoid:
    """Any number of classes at a time: labels [B, C] in [0, 1], losses [B, C].

    Example:
        >>> logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 1]])
        >>> Sigmoid().entropy(logits, labels).numpy().round(4).tolist()
        [[0.6930999755859375, 0.12690000236034393]]
    """

    def probabilities(self, logits: Tensor) -> Tensor:
        """Entries [B, C], each a probability of its own."""
        return logits.sigmoid()

    def clamped(self, logits: Tensor) -> Tensor:
        """Entries [B, C] in ``[1e-4, 1 - 1e-4]``."""
        return logits.sigmoid().clamp(CLAMP, 1 - CLAMP)

    def shares(self, clamped: Tensor) -> Tensor:
        """The same entries, without gradient."""
        return clamped.detach()

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """The labels themselves."""
        return labels

    def entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[B, C], see `Link`."""
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")

    def soft_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B, C], without weights of samples."""
        return self.entropy(logits, targets)

    def overlap(self, targets: Tensor, probabilities: Tensor) -> Tensor:
        """``t p`` of each entry [B, C]."""
        return targets * probabilities

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """[B, C] of Bernoulli distributions, their probabilities clamped; at least 0."""
        p, q = self.clamped(first), self.clamped(second)
        return (p - q) * (torch.logit(p) - torch.logit(q))


SOFTMAX = Softmax()
SIGMOID = Sigmoid()


def joint_loss(
    first: Tensor, second: Tensor, labels: Tensor, co_lambda: float, link: Link = SOFTMAX
) -> Tensor:
    """(1 - lambda) (CE_1 + CE_2) + lambda (KL(p_1 || p_2) + KL(p_2 || p_1)): JoCoR's loss.

    Wei et al., "Combating noisy labels by agreement: a joint training method with
    co-regularization", CVPR 2020 (arXiv 2003.02752), equations 2 to 5.

    Args:
        first: class scores [B, C] of the first network.
        second: of the second.
        labels: [B] int64, or [B, C] in [0, 1] with sigmoids.
        co_lambda: weight of the agreement, lambda, in [0, 1].
        link: softmax or sigmoids.

    Returns:
        [B], or [B, C] with sigmoids; at least 0.

    Example:
        >>> first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> round(float(joint_loss(first, second, torch.tensor([0]), 0.5)), 4)
        0.7908
    """
    supervised = link.entropy(first, labels) + link.entropy(second, labels)
    return (1 - co_lambda) * supervised + co_lambda * link.divergence(first, second)
