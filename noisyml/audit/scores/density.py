"""Density of each class on frozen features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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


def class_cosines(
    rows: Tensor, targets: NDArray[np.float32], chosen: NDArray[Any] | None = None
) -> NDArray[np.float32]:
    """Cosine of rows with the mean direction of each class, to which they themselves do not add.

    Up to a factor, the concentration, the log-density of a von Mises-Fisher distribution.

    Args:
        rows: projected features [N, d], centred.
        targets: share of each row in each class [N, C].
        chosen: numbers of the rows that are asked about [n]; None: all.

    Returns:
        [n, C] in [-1, 1]; 0 for a class without other rows.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
        >>> class_cosines(rows, np.eye(2, dtype=np.float32)[[0, 1, 1]]).round(3).tolist()
        [[0.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    """
    n, count = targets.shape
    sums = torch.zeros(count, rows.shape[1], dtype=torch.float64)
    for start in range(0, n, BLOCK):
        unit = torch.nn.functional.normalize(rows[start : start + BLOCK], dim=1)
        sums += torch.from_numpy(targets[start : start + BLOCK]).T @ unit
    means, squares = sums.float(), sums.square().sum(dim=1).float()
    asked = np.arange(n) if chosen is None else chosen
    found = np.empty((len(asked), count), dtype=np.float32)
    for start in range(0, len(asked), BLOCK):
        part = asked[start : start + BLOCK]
        share = torch.from_numpy(targets[part])
        along = torch.nn.functional.normalize(rows[torch.from_numpy(part)], dim=1) @ means.T
        length = squares - 2 * share * along + share.square()
        cosine = (along - share) / length.clamp(min=1e-12).sqrt()
        found[start : start + BLOCK] = torch.where(length > 1e-6, cosine, 0.0)
    return found
