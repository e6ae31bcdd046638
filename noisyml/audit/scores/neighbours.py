"""Scores of labels by the votes of the nearest rows: kNN, WANN, SimiFeat."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.audit.scores.labels import own_share
from noisyml.checks import Count, checked

#: Votes that are counted at a time.
BLOCK = 1 << 22


def neighbour_votes(
    index: NDArray[Any],
    labels: NDArray[Any],
    num_classes: int,
    weights: NDArray[Any] | None = None,
) -> NDArray[np.float32]:
    """Shares of the votes [N, C] float32 that each row's neighbours give to each class.

    Args:
        index: neighbours [N, k] int64, without the row itself; -1 has no vote.
        labels: [M] int64 of the rows that are voted with.
        num_classes: C.
        weights: of their votes [M]; None: 1 each.

    Returns:
        Rows sum to 1; a row without any vote has equal shares.

    Example:
        >>> neighbour_votes(np.array([[1, 2], [0, 2]]), np.array([0, 1, 1]), 2).tolist()
        [[0.0, 1.0], [0.5, 0.5]]
    """
    n, k = index.shape
    found = np.empty((n, num_classes), dtype=np.float32)
    step = max(1, BLOCK // max(k, num_classes))
    for start in range(0, n, step):
        part = np.asarray(index[start : start + step])
        rows = np.arange(len(part))[:, None] * num_classes
        power = np.ones(part.shape) if weights is None else np.asarray(weights)[part]
        power = np.where(part >= 0, power, 0.0)
        flat = np.bincount(
            (rows + labels[part]).ravel(), power.ravel(), minlength=len(part) * num_classes
        ).reshape(len(part), num_classes)
        total = flat.sum(axis=1, keepdims=True)
        equal = 1 / num_classes
        found[start : start + step] = np.where(
            total > 0, flat / np.where(total > 0, total, 1), equal
        )
    return found


@checked
def wann_reliability(
    index: NDArray[Any],
    labels: NDArray[Any],
    num_classes: Count,
    k_min: Count = 11,
    k_max: Count = 51,
) -> NDArray[np.float64]:
    """Reliability of labels: one over the smallest neighbourhood that votes for them.

    Di Salvo et al., "An Embedding is Worth a Thousand Noisy Labels", TMLR 2025 (arXiv 2408.14358),
    eq. 2: the smallest k in ``[k_min, k_max]`` for which the k nearest rows agree with the label;
    of classes with equally many votes the first one wins.

    Args:
        index: neighbours [N, k] int64 of all rows, the nearest first, without the row itself.
        labels: [N] int64, observed.
        num_classes: C.
        k_min: smallest neighbourhood that counts.
        k_max: largest one; at most as many as there are neighbours.

    Returns:
        [N] in ``[1 / k_max, 1 / k_min]``; 0 where no neighbourhood agrees.

    Example:
        >>> index = np.array([[1, 2, 3], [0, 2, 3], [3, 1, 0], [2, 1, 0]])
        >>> wann_reliability(index, np.array([0, 0, 1, 1]), 2, k_min=1, k_max=3).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    n, largest = len(index), min(k_max, index.shape[1])
    found = np.zeros(n)
    step = max(1, BLOCK // num_classes)
    for start in range(0, n, step):
        part = np.asarray(index[start : start + step, :largest])
        own = labels[start : start + step]
        rows = np.arange(len(part))
        votes = np.zeros((len(part), num_classes), dtype=np.int32)
        result = np.zeros(len(part))
        for place in range(largest):
            seen = part[:, place] >= 0
            votes[rows[seen], labels[part[seen, place]]] += 1
            if place + 1 >= min(k_min, largest):
                agrees = (votes.argmax(axis=1) == own) & (result == 0)
                result[agrees] = 1 / (place + 1)
        found[start : start + step] = result
    return found


@checked
def wann_votes(
    index: NDArray[Any],
    labels: NDArray[Any],
    num_classes: Count,
    k_min: Count = 11,
    k_max: Count = 51,
) -> NDArray[np.float32]:
    """Shares of votes [N, C] weighted by reliability, in neighbourhoods as large as is needed.

    The rule by which WANN classifies a new row (arXiv 2408.14358, section 3), applied to each row
    beside itself: ``1 / reliability`` of its nearest row is the number of neighbours, `k_max` where
    that has none, and each votes with its own reliability.

    Args:
        index, labels, num_classes, k_min, k_max: see `wann_reliability`.
    """
    trust = wann_reliability(index, labels, num_classes, k_min, k_max)
    nearest = trust[index[:, 0]]
    size = np.where(nearest > 0, np.rint(1 / np.where(nearest > 0, nearest, 1)), k_max)
    places = np.arange(index.shape[1])
    within = np.where(places[None, :] < size[:, None], index, -1)
    return neighbour_votes(within, labels, num_classes, trust)


@checked
def simifeat(
    votes: NDArray[Any],
    labels: NDArray[Any],
    rule: Literal["vote", "rank"] = "rank",
    wrong_share: NDArray[Any] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """SimiFeat: labels that the soft label of the neighbourhood contradicts.

    Zhu, Dong and Liu, "Detecting Corrupted Labels Without Training a Model to Predict", ICML 2022
    (arXiv 2110.06283), algorithm 1, one round. ``vote``: a label is corrupted where it is not the
    class with most votes. ``rank``: rows of a class are ordered by the cosine of the soft label
    with their label, and the lowest are corrupted, as many as are expected to be wrong. The paper
    takes the votes of 10 neighbours, expects shares from its HOC estimate, and repeats with
    augmented images; here shares are an argument.

    Args:
        votes: shares of the neighbours' votes [N, C], see `neighbour_votes`.
        labels: [N] int64, observed.
        rule: ``vote`` or ``rank``.
        wrong_share: of ``rank``: expected share of wrong labels in each observed class [C].

    Returns:
        The cosine [N] in [0, 1], larger for labels believed right; and [N] bool, the corrupted.

    Raises:
        ValueError: ``rank`` without shares.

    Example:
        >>> votes = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> score, corrupted = simifeat(votes, np.array([0, 0]), "vote")
        >>> score.tolist(), corrupted.tolist()
        ([1.0, 0.0], [False, True])
    """
    length = np.linalg.norm(votes, axis=1)
    score = np.asarray(own_share(votes, labels) / length, dtype=np.float64)
    if rule == "vote":
        return score, votes.argmax(axis=1) != labels
    if wrong_share is None:
        raise ValueError("rule='rank' needs wrong_share, a share for each class")
    counts = np.bincount(labels, minlength=votes.shape[1])
    quota = np.rint(wrong_share * counts).astype(np.int64)
    order = np.lexsort((score, labels))
    place = np.empty(len(labels), dtype=np.int64)
    starts = np.cumsum(counts) - counts
    place[order] = np.arange(len(labels)) - starts[labels[order]]
    return score, place < quota[labels]
