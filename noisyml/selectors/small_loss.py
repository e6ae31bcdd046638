"""Samples of small loss are trusted: quotas, their schedule, and the exchange between two networks.

Networks learn what is regular before they learn wrong labels by heart, so that early on a wrong
label shows by its loss (Han et al., "Co-teaching", NeurIPS 2018, arXiv 1804.06872). The functions
look at the *global* batch.
"""

from __future__ import annotations

import math
from typing import overload

import torch
from torch import Tensor


def forget_rate(epoch: int, noise_rate: float, num_gradual: int, exponent: float = 1.0) -> float:
    """The share of a batch to leave out, f_t: rises in equal steps, then stays at `noise_rate`.

    The released codes of co-teaching, co-teaching+ and JoCoR: ``num_gradual`` epochs lead from 0 to
    ``noise_rate ** exponent``, both included (a single one has 0), and every later epoch has
    ``noise_rate``; with an exponent other than 1 there is a step in between.

    Args:
        epoch: epochs done so far.
        noise_rate: share of wrong labels, in [0, 1).
        num_gradual: epochs of the rise, T_k, at least 1.
        exponent: c, above 0.

    Returns:
        A share in [0, 1).

    Example:
        >>> [forget_rate(epoch, noise_rate=0.4, num_gradual=3) for epoch in range(4)]
        [0.0, 0.2, 0.4, 0.4]
    """
    if epoch >= num_gradual:
        return noise_rate
    return noise_rate**exponent * epoch / max(1, num_gradual - 1)


@overload
def quota(size: int, forget: float) -> int: ...


@overload
def quota(size: Tensor, forget: float) -> Tensor: ...


def quota(size: int | Tensor, forget: float) -> int | Tensor:
    """Number of samples to keep of `size`: floor((1 - `forget`) * `size`), at least 1 of any.

    Args:
        size: a number of samples; a tensor [] int64 where only the device knows.
        forget: share to leave out, in [0, 1).

    Example:
        >>> quota(10, 0.2), quota(1, 0.9), quota(0, 0.5)
        (8, 1, 0)
    """
    # 0.2 * 10 must be 2, whatever 1 - 0.8 is in binary.
    if isinstance(size, Tensor):
        kept = ((1 - forget) * size.double() + 1e-9).floor().long()
        return torch.maximum(kept, size.clamp(max=1))
    return max(math.floor((1 - forget) * size + 1e-9), min(size, 1))


@torch.no_grad()
def small_loss(losses: Tensor, keep: int | Tensor, candidates: Tensor | None = None) -> Tensor:
    """The `keep` samples of smallest loss; equal losses in the order of the batch, NaN last.

    Args:
        losses: [B] float.
        keep: how many, at most as many as there are candidates; a tensor [] where only the device
            knows.
        candidates: [B] bool, who may be kept; None: all.

    Returns:
        [B] bool.

    Example:
        >>> import torch
        >>> small_loss(torch.tensor([0.3, 0.1, 2.0]), keep=2).tolist()
        [True, True, False]
    """
    order = losses.argsort(stable=True)
    if candidates is not None:
        order = order[candidates[order].logical_not().to(torch.uint8).argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank < keep


@torch.no_grad()
def trust_of_losses(losses: Tensor) -> tuple[Tensor, Tensor]:
    """P = exp(-loss), for cross-entropy the posterior of the label, and log P / (1 - P).

    Args:
        losses: any shape, float; below 0 they count as 0.

    Returns:
        Two tensors like `losses`. The second tells losses apart whose P is 0 or 1 in their
        precision; only a loss of 0 is infinite.

    Example:
        >>> import torch
        >>> p, log_odds = trust_of_losses(torch.tensor([0.6931472, 200.0, 210.0]))
        >>> p.numpy().round(4).tolist(), log_odds.round().abs().tolist()
        ([0.5, 0.0, 0.0], [0.0, 200.0, 210.0])
    """
    losses = losses.clamp(min=0)
    # log(exp(l) - 1) without the overflow of exp.
    return torch.exp(-losses), -losses - torch.log(-torch.expm1(-losses))


def exchange(
    first: Tensor, second: Tensor, keep: int | Tensor, candidates: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Each network teaches the other its samples of small loss.

    Args:
        first: losses [B] of the first network.
        second: losses [B] of the second.
        keep: how many samples each hands over, see `small_loss`.
        candidates: see `small_loss`.

    Returns:
        [B] bool, what the first network learns from (chosen by the second), and [B] bool, what the
        second learns from (chosen by the first).

    Example:
        >>> import torch
        >>> first, second = torch.tensor([0.1, 2.0, 0.3]), torch.tensor([1.0, 0.2, 0.1])
        >>> [taught.tolist() for taught in exchange(first, second, keep=2)]
        [[False, True, True], [True, False, True]]
    """
    return small_loss(second, keep, candidates), small_loss(first, keep, candidates)
