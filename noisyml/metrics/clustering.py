"""Agreement of clusters with labels: normalised and adjusted mutual information."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from noisyml.checks import checked

Normaliser = Literal["arithmetic", "geometric", "max"]


def _sizes(labels: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cell counts of the contingency table (non-empty cells) and both marginals.

    Returns:
        cells int64 [k, 3] (class, cluster, count), class sizes [Y], cluster sizes [C].
    """
    if labels.shape != clusters.shape or labels.ndim != 1:
        raise ValueError(
            f"labels {tuple(labels.shape)} and clusters {tuple(clusters.shape)} must both be [N]"
        )
    if len(labels) == 0:
        raise ValueError("the agreement of clusters with labels needs at least one sample")
    _, y = labels.cpu().unique(return_inverse=True)
    _, c = clusters.cpu().unique(return_inverse=True)
    n_clusters = int(c.max()) + 1
    codes, counts = (y * n_clusters + c).unique(return_counts=True)
    cells = torch.stack([codes // n_clusters, codes % n_clusters, counts], dim=1)
    return cells, torch.bincount(y), torch.bincount(c)


def _entropy(sizes: Tensor) -> float:
    """Entropy in nats of non-empty parts of the given sizes."""
    if len(sizes) == 1:
        return 0.0
    share = sizes.to(torch.float64) / sizes.sum()
    return float(-(share * share.log()).sum())


def _mutual_information(cells: Tensor, y_sizes: Tensor, c_sizes: Tensor) -> float:
    """Mutual information in nats."""
    n = float(y_sizes.sum())
    count = cells[:, 2].to(torch.float64)
    y, c = y_sizes[cells[:, 0]].to(torch.float64), c_sizes[cells[:, 1]].to(torch.float64)
    return float((count / n * (count.log() + math.log(n) - y.log() - c.log())).sum())


@checked
def nmi(labels: Tensor, clusters: Tensor, normaliser: Normaliser = "arithmetic") -> float:
    """Normalised mutual information I(Y; C) / mean(H(Y), H(C)) of two labellings, in [0, 1].

    Not adjusted for chance: it grows with the number of clusters; see `ami`.

    Args:
        labels: [N] int.
        clusters: [N] int.
        normaliser: mean of the entropies: ``arithmetic``, ``geometric`` or ``max``. One constant
            side gives 0 and two give 1; under ``geometric`` both are 0/0 and give NaN.

    Raises:
        ValueError: shapes that differ or no samples.

    Example:
        >>> round(nmi(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2])), 4)
        0.8
    """
    cells, y_sizes, c_sizes = _sizes(labels, clusters)
    h_y, h_c = _entropy(y_sizes), _entropy(c_sizes)
    if normaliser == "geometric":
        if h_y == 0 or h_c == 0:
            return math.nan
        mean = math.sqrt(h_y * h_c)
    elif normaliser == "arithmetic":
        mean = (h_y + h_c) / 2
    else:
        mean = max(h_y, h_c)
    if h_y == 0 or h_c == 0:
        return 1.0 if h_y == h_c else 0.0
    return max(0.0, _mutual_information(cells, y_sizes, c_sizes)) / mean


def _expected_mutual_information(y_sizes: Tensor, c_sizes: Tensor) -> float:
    """Expected mutual information in nats of two random labellings with the given sizes.

    Vinh, Epps and Bailey, JMLR 2010, eq. 24a. Parts of equal size share their term, so the cost
    depends on the number of distinct sizes (at most about sqrt(2N)), not on that of the parts.
    """
    n = int(y_sizes.sum())
    a_sizes, a_times = np.unique(y_sizes.numpy(), return_counts=True)
    b_sizes, b_times = np.unique(c_sizes.numpy(), return_counts=True)
    total = 0.0
    for a, a_count in zip(a_sizes.tolist(), a_times.tolist(), strict=True):
        low = np.maximum(1, a + b_sizes - n)
        lengths = np.minimum(a, b_sizes) - low + 1
        b = np.repeat(b_sizes, lengths).astype(np.float64)
        times = np.repeat(b_times, lengths)
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        both = np.repeat(low, lengths) + np.arange(len(b)) - starts
        information = both / n * (np.log(n) + np.log(both) - np.log(a) - np.log(b))
        log_probability = (
            gammaln(a + 1) + gammaln(b + 1) + gammaln(n - a + 1) + gammaln(n - b + 1)
        ) - (
            gammaln(n + 1)
            + gammaln(both + 1)
            + gammaln(a - both + 1)
            + gammaln(b - both + 1)
            + gammaln(n - a - b + both + 1)
        )
        total += a_count * float((times * information * np.exp(log_probability)).sum())
    return total


def ami(labels: Tensor, clusters: Tensor) -> float:
    """Adjusted mutual information: 0 in expectation for random clusters, 1 for a perfect match.

    (I - E[I]) / (mean(H(Y), H(C)) - E[I]) with the arithmetic mean (Vinh et al., JMLR 2010).

    Args:
        labels: [N] int.
        clusters: [N] int.

    Raises:
        ValueError: shapes that differ or no samples.

    Example:
        >>> round(ami(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2])), 4)
        0.5714
    """
    cells, y_sizes, c_sizes = _sizes(labels, clusters)
    h_y, h_c = _entropy(y_sizes), _entropy(c_sizes)
    if h_y == 0 or h_c == 0:
        return 1.0 if h_y == h_c else 0.0
    information = _mutual_information(cells, y_sizes, c_sizes)
    expected = _expected_mutual_information(y_sizes, c_sizes)
    room = (h_y + h_c) / 2 - expected
    # All-singleton labellings on both sides leave no room above chance and match perfectly.
    if abs(room) < 1e-12:
        return 1.0 if len(cells) == len(y_sizes) == len(c_sizes) else 0.0
    return (information - expected) / room
