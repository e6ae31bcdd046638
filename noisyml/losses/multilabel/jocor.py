"""JoCoR for several labels: two networks, one joint loss, and only its smallest entries teach.

Wei et al., "Combating Noisy Labels by Agreement: A Joint Training Method with Co-Regularization",
CVPR 2020 (arXiv 2003.02752), with sigmoids in place of the softmax as in the study of Burgert et
al., IEEE TGRS 2022 (arXiv 2207.13975).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from noisyml.losses.links import SIGMOID, Sigmoid, joint_loss

Unit = Literal["entry", "sample", "class"]
Divergence = Literal["symmetric_kl", "released"]


def joint_losses(
    first: Tensor,
    second: Tensor,
    labels: Tensor,
    co_lambda: float = 0.6,
    divergence: Divergence = "symmetric_kl",
) -> Tensor:
    """(1 - lambda) of both cross-entropies plus lambda of the networks' disagreement.

    Args:
        first: logits [B, C] of one network; computed in float32 at least.
        second: of the other.
        labels: [B, C] in [0, 1].
        co_lambda: lambda, in [0, 1].
        divergence: ``symmetric_kl`` between the Bernoulli distributions; ``released``: the formula
            of a re-implementation whose logarithms are missing on one side, negative at times and
            no divergence at all.

    Returns:
        [B, C], with gradient to both networks.

    Example:
        >>> first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> joint_losses(first, second, torch.tensor([[1, 0]]), co_lambda=0.5)
        tensor([[0.7908, 0.6931]])
    """
    dtype = torch.promote_types(first.dtype, torch.float32)
    first, second, labels = first.to(dtype), second.to(dtype), labels.to(dtype)
    link = SIGMOID if divergence == "symmetric_kl" else _RELEASED
    return joint_loss(first, second, labels, co_lambda, link)


class _Released(Sigmoid):
    """Sigmoids with the disagreement of the re-implementation."""

    def divergence(self, first: Tensor, second: Tensor) -> Tensor:
        """[B, C], negative at times."""
        p, q = self.clamped(first), self.clamped(second)
        return -_entropy(p) - _entropy(q) - 2 * p * q - 2 * (1 - p) * (1 - q)


_RELEASED = _Released()


def _entropy(p: Tensor) -> Tensor:
    """Of Bernoulli distributions, in nats."""
    return -(p * p.log() + (1 - p) * (1 - p).log())


@torch.no_grad()
def small_losses(losses: Tensor, rate: float, unit: Unit = "entry") -> Tensor:
    """Mask of the entries that teach: a share of the smallest losses, of equals the first.

    Args:
        losses: [B, C].
        rate: share that is kept, in (0, 1]; counts are cut to whole numbers, at least one.
        unit: ``entry``: of all B C entries; ``sample``: of the samples, by their mean; ``class``:
            of each class's entries.

    Returns:
        [B, C] bool.

    Example:
        >>> losses = torch.tensor([[0.1, 0.4], [0.3, 0.2]])
        >>> small_losses(losses, rate=0.5)
        tensor([[ True, False],
                [False,  True]])
        >>> small_losses(losses, rate=0.5, unit="sample")
        tensor([[ True,  True],
                [False, False]])
    """
    size, classes = losses.shape
    if unit == "entry":
        chosen = _smallest(losses.flatten()[:, None], int(rate * size * classes))
        return chosen.view(size, classes)
    if unit == "sample":
        return _smallest(losses.mean(dim=1, keepdim=True), int(rate * size)).expand(-1, classes)
    return _smallest(losses, int(rate * size))


def _smallest(losses: Tensor, count: int) -> Tensor:
    """Mask of the `count` smallest of each column of [n, m]."""
    order = losses.argsort(dim=0, stable=True)[: max(1, count)]
    return torch.zeros_like(losses, dtype=torch.bool).scatter(0, order, True)


def jocor_loss(losses: Tensor, keep: Tensor) -> Tensor:
    """Mean of the kept entries; every unit of `small_losses` keeps equally many of each class or
    counts entries alone, so that this is its mean of means.

    Args:
        losses: [B, C] with gradient.
        keep: [B, C] bool with at least one true.

    Example:
        >>> losses = torch.tensor([[0.5, 1.0], [2.0, 4.0]])
        >>> jocor_loss(losses, small_losses(losses, rate=0.5))
        tensor(0.7500)
    """
    return torch.where(keep, losses, torch.zeros_like(losses)).sum() / keep.sum()


def keep_rate(epoch: int, tau: float, gradual_epochs: int) -> float:
    """R, falling from 1 to 1 - `tau` in equal steps, then constant.

    Args:
        epoch: epochs done, from 0.
        tau: share left out in the end, in [0, 1).
        gradual_epochs: T_k, epochs until then; 0: from the start.

    Example:
        >>> [keep_rate(epoch, tau=0.2, gradual_epochs=2) for epoch in range(4)]
        [1.0, 0.9, 0.8, 0.8]
    """
    return 1 - tau * (min(1.0, epoch / gradual_epochs) if gradual_epochs > 0 else 1.0)
