"""Density of each class on frozen features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyml.audit.scores.folds import BLOCK, unit_rows
from noisyml.checks import Positive, checked
from noisyml.selectors.von_mises_fisher import (
    kappa_from_resultant,
    log_vmf_ratio,
    resultant_statistics,
    vmf_log_odds,
)


@checked
def density_log_odds(
    features: Any,
    labels: NDArray[Any],
    num_classes: int,
    centre: bool = True,
    kappa_max: Positive = 1e4,
) -> NDArray[np.float64]:
    """Log-odds [N] of each label by von Mises-Fisher densities of the classes.

    The density of PRISM's vMF-Sim (Liu et al., CVPR 2021, arXiv 2103.16047, eq. 5) on features that
    do not move: mean direction of each class, one concentration for all, a uniform prior. The row
    itself is left out of the mean of its own class.

    Args:
        features: [N, D], D at least 2, read in blocks.
        labels: [N] int64, observed.
        num_classes: C.
        centre: subtract the mean of the rows of length 1 first; features of a network lie in a
            narrow cone, where directions differ little.
        kappa_max: upper bound of the concentration.

    Returns:
        Larger for labels believed right; NaN for the only row of a class.
    """
    n, width = features.shape
    counts = np.bincount(labels, minlength=num_classes)
    mean = np.zeros(width, dtype=np.float64)
    blocks = [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
    if centre:
        mean = sum((unit_rows(features[b]).sum(0, dtype=np.float64) for b in blocks), mean) / n

    def rows_of(block: slice) -> NDArray[np.float32]:
        return unit_rows(unit_rows(features[block]) - mean)

    sums = torch.zeros(num_classes, width, dtype=torch.float64)
    for block in blocks:
        rows = torch.from_numpy(rows_of(block)).double()
        sums.index_add_(0, torch.tensor(labels[block]), rows)
    directions, r_bar = resultant_statistics(sums, torch.from_numpy(counts), bias_correction=True)
    weight = torch.from_numpy(counts * (counts > 1)).double()
    pooled = (r_bar * weight).sum() / weight.sum().clamp(min=1)
    kappa = kappa_from_resultant(pooled, width, kappa_max=kappa_max)
    log_ratio = log_vmf_ratio(kappa, width)
    squares = sums.square().sum(dim=1)
    log_prior = torch.from_numpy(np.where(counts > 0, 0.0, -np.inf))
    found = np.empty(n)
    for block in blocks:
        rows = torch.from_numpy(rows_of(block)).double()
        own = torch.tensor(labels[block])
        similarity = rows @ directions.T
        with_own = (rows * sums[own]).sum(dim=1)
        length = rows.square().sum(dim=1)
        left = (squares[own] - 2 * with_own + length).clamp(min=1e-12).sqrt()
        similarity.scatter_(1, own[:, None], ((with_own - length) / left)[:, None])
        odds = vmf_log_odds(log_ratio + kappa * similarity, own, log_prior)
        found[block] = torch.where(torch.from_numpy(counts[labels[block]] > 1), odds, torch.nan)
    return found
