"""Accuracy of clusters once they are matched to classes, and on old and new classes apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


class Matching(NamedTuple):
    """Clusters matched to classes.

    Attributes:
        counts: samples by cluster and class, int64 [K, C].
        classes: the class of each cluster [K] int64, -1 where none is left.
    """

    counts: Tensor
    classes: Tensor


class DiscoveryAccuracy(NamedTuple):
    """Shares of samples whose cluster is matched to their class; NaN without samples.

    Attributes:
        all: of all samples.
        old: of those of old classes.
        new: of the others.
    """

    all: float
    old: float
    new: float


def match(clusters: Tensor, labels: Tensor) -> Matching:
    """One assignment of clusters to classes that matches the most samples (Hungarian algorithm).

    Args:
        clusters: [N] int64, at least 0.
        labels: true classes [N] int64, at least 0.

    Raises:
        ValueError: shapes that differ, or no samples.

    Example:
        >>> import torch
        >>> match(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 1])).classes.tolist()
        [1, 0]
    """
    if clusters.shape != labels.shape or clusters.ndim != 1 or not len(labels):
        raise ValueError(
            f"clusters {list(clusters.shape)} and labels {list(labels.shape)} must both be [N], N>0"
        )
    k, c = int(clusters.max()) + 1, int(labels.max()) + 1
    counts = torch.bincount(clusters * c + labels, minlength=k * c).reshape(k, c).cpu()
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    classes = torch.full((k,), -1, dtype=torch.int64)
    classes[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return Matching(counts, classes)


def discovery_accuracy(clusters: Tensor, labels: Tensor, old: Tensor) -> DiscoveryAccuracy:
    """Accuracy on all, old and new samples by one assignment over all of them.

    Args:
        clusters: [N] int64.
        labels: true classes [N] int64.
        old: bool [N], samples of old classes.

    Source: the second evaluation of GCD's code, in which published figures are compared.

    Example:
        >>> import torch
        >>> clusters, labels = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 0])
        >>> tuple(discovery_accuracy(clusters, labels, labels == 0))
        (0.75, 0.6666666666666666, 1.0)
    """
    classes = match(clusters, labels).classes.to(clusters.device)
    right = (classes[clusters] == labels).double()
    # A class counts as old if any of its samples does.
    of_old = torch.isin(labels, labels[old].unique())
    of_new = torch.isin(labels, labels[~old].unique())
    return DiscoveryAccuracy(*(float(right[part].mean()) for part in (..., of_old, of_new)))


def split_discovery_accuracy(clusters: Tensor, labels: Tensor, old: Tensor) -> DiscoveryAccuracy:
    """The same by assignments of their own for old and for new samples: optimistic, older.

    Args:
        clusters: [N] int64.
        labels: true classes [N] int64.
        old: bool [N], samples of old classes.

    Source: the first evaluation of GCD's code; ``all`` is the mean weighted by samples.

    Example:
        >>> import torch
        >>> clusters, labels = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 0])
        >>> tuple(split_discovery_accuracy(clusters, labels, labels == 0))
        (0.75, 0.6666666666666666, 1.0)
    """
    parts = []
    for part in (old, ~old):
        if not bool(part.any()):
            parts.append(float("nan"))
            continue
        classes = match(clusters[part], labels[part]).classes.to(clusters.device)
        parts.append(float((classes[clusters[part]] == labels[part]).double().mean()))
    share = float(old.double().mean())
    shares = torch.tensor([share, 1 - share], dtype=torch.float64)
    values = torch.tensor(parts, dtype=torch.float64)
    total = torch.where(shares > 0, values * shares, 0.0).sum()
    return DiscoveryAccuracy(float(total), *parts)
