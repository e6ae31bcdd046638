"""Ranking, exchange and discrepancy of two multi-label networks (RCML and CCML).

Aksoy, Ravanbakhsh and Demir, "Multi-Label Noise Robust Collaborative Learning for Remote Sensing
Image Classification", IEEE TNNLS 2022 (arXiv 2012.10715), and its predecessor CCML (Aksoy et al.,
ICIP 2021, arXiv 2105.05496). Everything here is a function of tensors; the step that puts them
together is `noisyml.methods.multilabel.rcml`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from noisyml.losses.second_order import recorded_gradient
from noisyml.similarity.exact import kernels

#: Keeps the root of an empty group differentiable; the released value.
GROUP_FLOOR = 1e-10

Bandwidth = float | Literal["median"]


class Ranking(NamedTuple):
    """Contradictions between a network and the labels of each sample.

    Attributes:
        errors: e_n [B]; the larger, the more likely a label is wrong.
        suspected: [B] int64, the class whose label contradicts most.
        missing: [B, C], one group for each absent class: it may have been forgotten.
        extra: [B, C], one group for each present class: it may be false.
    """

    errors: Tensor
    suspected: Tensor
    missing: Tensor
    extra: Tensor


def ranking_errors(
    probabilities: Tensor, labels: Tensor, miss_alpha: float = 0.2, extra_beta: float = 0.8
) -> Ranking:
    """Group lasso over the pairs of an absent and a present class that are ranked wrongly.

    A pair costs max(0, 1 + 2 (p_absent - p_present))^2: nothing once the present class leads by one
    half. A group is the root of its pairs' sum, and a sample's error is `miss_alpha` times its
    missing groups plus `extra_beta` times its extra groups. A sample with all classes or with none
    has no pair and thus the smallest error there is.

    Args:
        probabilities: [B, C] float in [0, 1], or hard decisions 0 and 1 (CCML).
        labels: [B, C], 1 present, 0 absent.
        miss_alpha: alpha, factor of the missing groups.
        extra_beta: beta, factor of the extra groups.

    Returns:
        A `Ranking`, in float32 at least. The suspected class is the largest missing group if that
        exceeds the largest extra group, else the largest extra group; the first of equals.

    Example:
        >>> ranking = ranking_errors(torch.tensor([[0.9, 0.1]]), torch.tensor([[0, 1]]))
        >>> ranking.errors, ranking.suspected
        (tensor([2.6000]), tensor([1]))
    """
    present = labels > 0
    if _compiled(probabilities):
        factors = miss_alpha, extra_beta
        return Ranking(*kernels.rank_samples(probabilities, present, GROUP_FLOOR, *factors))
    with torch.autocast(probabilities.device.type, enabled=False):
        p = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
        missing, extra = ((sums + GROUP_FLOOR).sqrt() for sums in _pair_sums(p, present))
    errors = miss_alpha * missing.sum(dim=1) + extra_beta * extra.sum(dim=1)
    # Of equal groups the first, as PyTorch promises of `max`.
    most_missing, most_extra = missing.max(dim=1), extra.max(dim=1)
    suspected = torch.where(
        most_missing.values > most_extra.values, most_missing.indices, most_extra.indices
    )
    return Ranking(errors, suspected, missing, extra)


def _compiled(p: Tensor) -> bool:
    """True if a compiled loop may rank: it visits only pairs of an absent and a present class, and
    takes one call where PyTorch takes some twenty."""
    plain = p.device.type == "cpu" and p.dtype == torch.float32 and p.numel() > 0
    recorded = torch.is_grad_enabled() and p.requires_grad
    return plain and not recorded and not torch.compiler.is_compiling() and kernels.available()


def _pair_sums(p: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [B, C] of max(0, 1 + 2 (p_absent - p_present))^2: of each absent class over the present
    ones, and of each present class over the absent ones; 0 elsewhere."""
    # The infinities leave 0 of every pair that is none, so that no mask is needed.
    absent_side = (1 + 2 * p).masked_fill(present, -math.inf)
    present_side = (2 * p).masked_fill(~present, math.inf)
    squares = (absent_side[:, :, None] - present_side[:, None, :]).relu().square()
    return squares.sum(dim=2), squares.sum(dim=1)


class _SquaredMMD(torch.autograd.Function):
    """The statistic and its gradient, each with one product of the stacked rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bandwidth: Bandwidth) -> Tensor:
        rows = torch.cat([x, y])
        # Distances do not change, but differences of squared norms lose fewer digits.
        rows -= rows.mean(dim=0)
        products = rows @ rows.T
        norms = products.diagonal()
        squares = (norms[:, None] + norms[None, :] - 2 * products).clamp_(min=0)
        width: float | Tensor
        if bandwidth == "median":
            # Every pair stands there twice, and each row's distance to itself, 0, comes first.
            pairs = squares.numel() - len(rows)
            width = squares.flatten().kthvalue(len(rows) + (pairs + 1) // 2).values
            width = torch.where(width > 0, width, torch.ones_like(width))
        else:
            width = float(bandwidth)
        exponents = -squares / width
        weights = torch.cat([x.new_full((len(x),), 1 / len(x)), y.new_full((len(y),), -1 / len(y))])
        # The weights sum to zero: leaving out the kernel's 1 changes nothing but the rounding.
        value = weights @ exponents.expm1() @ weights
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            slopes = exponents.exp() * weights[:, None] * weights[None, :] * (-4 / width)
            ctx.save_for_backward(x, y, rows, slopes)
            ctx.width = width
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, y, rows, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            plain = partial(_plain_squared_mmd, width=ctx.width)
            for_x, for_y = recorded_gradient(plain, [x, y], grads[0])
            return for_x, for_y, None
        pull = torch.diag(slopes.sum(dim=1)) - slopes
        gradient = (grads[0] * pull) @ rows
        return gradient[: len(x)], gradient[len(x) :], None


def _plain_squared_mmd(x: Tensor, y: Tensor, width: float | Tensor) -> Tensor:
    """The statistic in operations that autograd can follow."""
    rows = torch.cat([x, y])
    rows = rows - rows.mean(dim=0)
    products = rows @ rows.T
    norms = products.diagonal()
    squares = norms[:, None] + norms[None, :] - 2 * products
    weights = torch.cat([x.new_full((len(x),), 1 / len(x)), y.new_full((len(y),), -1 / len(y))])
    return weights @ torch.expm1(-squares / width) @ weights


def squared_mmd(x: Tensor, y: Tensor, bandwidth: Bandwidth = 1e4) -> Tensor:
    """Squared maximum mean discrepancy with the kernel exp(-||a - b||^2 / bandwidth).

    The biased estimate: means over all pairs, each row's pair with itself included.

    Args:
        x: [B, ...] float with at least one row; computed in float32 at least.
        y: [M, ...], likewise.
        bandwidth: sigma, in units of squared distance; ``median``: the (lower) median squared
            distance between different rows of both, without a gradient.

    Returns:
        Scalar in [0, 2].

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> squared_mmd(x, x).round(decimals=4)
        tensor(0.)
        >>> squared_mmd(x, x + 2, bandwidth=1.0).round(decimals=4)
        tensor(1.1656)
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        value: Tensor = _SquaredMMD.apply(x.flatten(1).to(dtype), y.flatten(1).to(dtype), bandwidth)
    return value


def swap_rate(
    epoch: int, epochs: int, start: float = 0.6, end: float = 0.6, final_full: bool = False
) -> float:
    """Share of a batch that is kept in an epoch.

    Linear from `start` towards `end`, cut to whole hundredths; `end` in the last tenth of the run.

    Args:
        epoch: from 1 to `epochs`.
        epochs: E, of the run.
        start: share in the first epoch, in (0, 1].
        end: share in the last tenth, in (0, 1].
        final_full: keep everything in the last tenth instead.

    Example:
        >>> [swap_rate(epoch, epochs=10, start=1.0, end=0.5) for epoch in (1, 5, 10)]
        [1.0, 0.8, 0.5]
    """
    if epoch > epochs - int(0.1 * epochs):
        return 1.0 if final_full else end
    percent = 100 * start + (epoch - 1) * 100 * (end - start) / epochs
    # 100 * 0.57 is a little less than 57.
    return int(percent + 1e-9) / 100


def kept_count(rate: float, batch_size: int) -> int:
    """K, how many samples of a batch are kept: the share cut to a whole number, at least one.

    Args:
        rate: in (0, 1].
        batch_size: the nominal size of the global batch, also for a shorter last one.

    Example:
        >>> kept_count(0.6, batch_size=32)
        19
    """
    return max(1, int(batch_size * rate))


def flip_agreed(labels: Tensor, first: Ranking, second: Ranking, share: float) -> Tensor:
    """CCML's correction: invert the label that both networks suspect, for the worst samples.

    Args:
        labels: [B, C], 1 present, 0 absent.
        first: one network's ranking; its `errors` may hold CCML's scores.
        second: the other's.
        share: of the samples with a common suspect that are corrected, rounded up; in [0, 1].

    Returns:
        Labels [B, C]; of the agreeing samples, those with the largest mean error are changed.

    Example:
        >>> labels, p = torch.tensor([[0, 1]]), torch.tensor([[0.9, 0.1]])
        >>> ranking = ranking_errors(p, labels)
        >>> flip_agreed(labels, ranking, ranking, share=1.0)
        tensor([[0, 0]])
    """
    agree = first.suspected == second.suspected
    # Without reading the count from the device; a tenth of 10 is 1, not a little more than 1.
    number = (agree.sum() * share - 1e-6).ceil()
    worst = (first.errors + second.errors).masked_fill(~agree, -math.inf)
    place = worst.argsort(descending=True, stable=True).argsort()
    flip = agree & (place < number)
    at = torch.zeros_like(labels, dtype=torch.bool).scatter(
        1, first.suspected[:, None], flip[:, None]
    )
    return torch.where(at, 1 - labels, labels)
