"""Agreement of clusters with labels: normalised and adjusted mutual information."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from noisyml.errors import UserError

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


def nmi(labels: Tensor, clusters: Tensor, normaliser: Normaliser = "arithmetic") -> float:
    """Normalised mutual information I(Y; C) / mean(H(Y), H(C)) of two labellings, in [0, 1].

    Not adjusted for chance: it grows with the number of clusters; see `ami`.

    Args:
        labels: [N] int.
        clusters: [N] int.
        normaliser: mean of the entropies: ``arithmetic``, ``geometric`` or ``max``. One constant
            side gives 0 and two give 1; under ``geometric`` both are 0/0 and give NaN.

    Raises:
        ValueError: shapes that differ, no samples, or an unknown normaliser.
    """
    cells, y_sizes, c_sizes = _sizes(labels, clusters)
    h_y, h_c = _entropy(y_sizes), _entropy(c_sizes)
    if normaliser == "geometric":
        if h_y == 0 or h_c == 0:
            return math.nan
        mean = math.sqrt(h_y * h_c)
    elif normaliser == "arithmetic":
        mean = (h_y + h_c) / 2
    elif normaliser == "max":
        mean = max(h_y, h_c)
    else:
        raise ValueError(f"normaliser must be arithmetic, geometric or max, got {normaliser!r}")
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


def cluster_embeddings(
    embeddings: Tensor, n_clusters: int, *, seed: int = 0, n_iterations: int = 20
) -> Tensor:
    """k-means clusters of the embeddings (faiss, Euclidean), from a seeded initialisation.

    Args:
        embeddings: [N, D] float; normalise first for cosine.
        n_clusters: at least 1, at most N.
        seed: of the initial centroids.
        n_iterations: Lloyd iterations.

    Returns:
        Cluster numbers [N] int64 on the CPU.

    Raises:
        UserError: NaN or infinite embeddings.
        ValueError: `n_clusters` out of range.
    """
    import faiss

    if not 1 <= n_clusters <= len(embeddings):
        raise ValueError(f"n_clusters must be in 1..{len(embeddings)}, got {n_clusters}")
    points = np.ascontiguousarray(embeddings.detach().to("cpu", torch.float32).numpy())
    if not np.isfinite(points).all():
        raise UserError(
            "The embeddings to cluster hold NaN or infinite values; look for a diverged loss, "
            "lower the learning rate or evaluate an earlier checkpoint."
        )
    # Every point counts, and small clusters are no reason to complain: faiss samples 256 points
    # per centroid and warns below 39 otherwise.
    kmeans = faiss.Kmeans(
        points.shape[1],
        n_clusters,
        niter=n_iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    kmeans.train(points)
    _, nearest = kmeans.index.search(points, 1)
    return torch.from_numpy(nearest[:, 0].astype(np.int64))
