"""Nearest rows by lists, and scores of labels by the votes of the nearest: kNN, WANN, SimiFeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyml.audit.scores.folds import unit_rows
from noisyml.audit.scores.labels import own_share
from noisyml.checks import Count, Seed, checked
from noisyml.similarity.kmeans import kmeans

#: Votes that are counted at a time, and cosines that are held.
BLOCK = 1 << 22
#: Rows of a list that the centroids are learnt from, and turns of their learning.
LEARNT_FROM, TURNS = 50, 10
#: Rows that are read at a time.
READ = 16_384


@checked
def neighbours_by_lists(
    features: Any,
    k: Count,
    lists: Count,
    probes: Count,
    seed: Seed = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """About the k nearest other rows of each: row numbers and cosines [N, k], the nearest first.

    Every row lies in the list of its nearest centroid and looks into those of its `probes` nearest
    (Jégou, Douze and Schmid, TPAMI 2011, section IV, without codes). All rows that look into a list
    do so at once, by one product of matrices, so that a list is read once and not once a row.

    Args:
        features: [N, D], read in blocks, `probes` times and a few.
        k: rows wanted.
        lists: of all rows, at most N; centroids by spherical k-means on a sample.
        probes: lists that each row looks into.
        seed: of the sample and the centroids.
        progress: called with rows looked at and in all, over all lists, from their being made on.

    Returns:
        Where fewer than k rows were found: -1, and a cosine of -2.

    Example:
        >>> rows = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> neighbours_by_lists(rows, 1, lists=2, probes=1)[0].ravel().tolist()
        [1, 0, 3, 2]
    """
    n = len(features)
    looked_into = _lists_of(features, lists, min(probes, lists), seed)
    index = torch.full((n, k), -1, dtype=torch.int64)
    cosine = torch.full((n, k), -2.0)
    by_list = np.argsort(looked_into.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(looked_into.ravel(), minlength=lists))
    members_by_list = np.argsort(looked_into[:, 0], kind="stable")
    member_ends = np.cumsum(np.bincount(looked_into[:, 0], minlength=lists))
    done = 0
    if progress is not None:
        progress(done, by_list.size)
    for number in range(lists):
        asking = by_list[ends[number - 1] if number else 0 : ends[number]] // looked_into.shape[1]
        inside = members_by_list[member_ends[number - 1] if number else 0 : member_ends[number]]
        for begin in range(0, len(inside), READ):
            members = inside[begin : begin + READ]
            theirs = torch.from_numpy(unit_rows(features[members]))
            step = max(1, min(READ, BLOCK // len(members)))
            for start in range(0, len(asking), step):
                rows = asking[start : start + step]
                _offer(features, rows, members, theirs, index, cosine)
        done += len(asking)
        if progress is not None:
            progress(done, by_list.size)
    return index.numpy(), cosine.numpy()


def _lists_of(features: Any, lists: int, probes: int, seed: int) -> NDArray[np.int32]:
    """Numbers of the lists that each row looks into [N, probes], its own first."""
    n = len(features)
    learnt = np.random.default_rng(seed).permutation(n)[: LEARNT_FROM * lists]
    learnt.sort()
    sample = np.concatenate(
        [unit_rows(features[learnt[i : i + READ]]) for i in range(0, len(learnt), READ)]
    )
    centroids = kmeans(
        torch.from_numpy(sample),
        lists,
        metric="cosine",
        init="random",
        max_iterations=TURNS,
        seed=seed,
        backend="torch",
    ).centroids
    found = np.empty((n, probes), dtype=np.int32)
    for start in range(0, n, READ):
        near = torch.from_numpy(unit_rows(features[start : start + READ])) @ centroids.T
        found[start : start + READ] = near.topk(probes, dim=1).indices
    return found


def _offer(
    features: Any,
    rows: NDArray[np.int64],
    members: NDArray[np.int64],
    theirs: Tensor,
    index: Tensor,
    cosine: Tensor,
) -> None:
    """Take the members of a list among the nearest of rows where they are."""
    scores = torch.from_numpy(unit_rows(features[rows])) @ theirs.T
    # Both are in rising order: a row that is a member is none of its own neighbours.
    place = np.searchsorted(members, rows).clip(max=len(members) - 1)
    own = np.flatnonzero(members[place] == rows)
    scores[torch.from_numpy(own), torch.from_numpy(place[own])] = -2
    near, at = scores.topk(min(index.shape[1], len(members)), dim=1)
    numbers = torch.from_numpy(members)[at].masked_fill(near < -1.5, -1)
    asking = torch.from_numpy(rows)
    best, order = torch.cat([cosine[asking], near], dim=1).topk(index.shape[1], dim=1)
    cosine[asking] = best
    index[asking] = torch.cat([index[asking], numbers], dim=1).gather(1, order)


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
