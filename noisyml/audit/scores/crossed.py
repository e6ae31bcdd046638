"""Views of a row that have not heard of its label, not even by way of the trust in other labels.

A second round that learns from the judgements of a first one has heard of every label: each took
part in judging its neighbours. Here the rows are dealt into parts; the labels of all parts but one
are judged among themselves, and what these judgements teach judges the rows of the one left out.
Such views are nearer to the truth than those that learn from the labels as they are, and as
unbiased: by them the noise rate and the level of all probabilities are estimated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyml.audit.scores.channel import choose_exponents, fit_channel, product_of_sources
from noisyml.audit.scores.folds import (
    Progress,
    logistic_regression,
    out_of_fold_probabilities,
    predicted,
    stratified_folds,
)
from noisyml.audit.scores.neighbours import BLOCK

#: Parts that the rows are dealt into, and folds among all parts but one.
PARTS, FOLDS = 4, 3
#: Rows below which parts are too small to judge anything by.
FEWEST = 200
#: A classifier sees so many rows at most.
MAX_ROWS = 50_000
#: Votes that every class is given beforehand.
PRIOR_VOTES = 0.3


def neighbour_sums(
    index: NDArray[Any], targets: NDArray[np.float32], allowed: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Sums of the targets [N, C] of those neighbours [n, k] that are allowed [N].

    Example:
        >>> targets = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
        >>> neighbour_sums(np.array([[0, 1]]), targets, np.array([True, False])).tolist()
        [[1.0, 0.0]]
    """
    found = np.empty((len(index), targets.shape[1]), dtype=np.float32)
    step = max(1, BLOCK // (index.shape[1] * targets.shape[1]))
    for start in range(0, len(index), step):
        near = index[start : start + step]
        light = allowed[near].astype(np.float32)
        found[start : start + step] = np.matmul(light[:, None, :], targets[near])[:, 0]
    return found


def judged_by_channel(
    sources: list[NDArray[Any]], labels: NDArray[Any], known: NDArray[Any] | None
) -> NDArray[np.float32]:
    """Posteriors of true classes [n, C] by one channel, see `noisyml.audit.scores.channel`."""
    exponents = choose_exponents(sources, labels, known)
    return fit_channel(product_of_sources(sources, exponents), labels, known=known).posterior


def crossed_views(
    rows: Tensor,
    labels: NDArray[Any],
    index: NDArray[Any],
    num_classes: int,
    known: NDArray[Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Two views of each row by what the judgements of the other parts teach.

    Args:
        rows: projected features [N, d].
        labels: [N] int64, observed.
        index: neighbours [N, k].
        num_classes: C.
        known: true classes [N] of rows that were looked at, -1 for others; None: none.
        seed: of the parts.
        progress: called after each part.

    Returns:
        ``probabilities`` [N, C] of a classifier, and ``votes`` [N, C]: sums over the neighbours in
        other parts.
    """
    n = len(labels)
    given = labels if known is None else np.where(known >= 0, known, labels)
    marks = np.zeros((n, num_classes), dtype=np.float32)
    marks[np.arange(n), given] = 1
    part = stratified_folds(labels, PARTS, seed + 17)
    found = {name: np.empty((n, num_classes), np.float32) for name in ("probabilities", "votes")}
    rng = np.random.default_rng(seed)
    for number in range(PARTS):
        allowed = part != number
        inside, out = np.flatnonzero(allowed), np.flatnonzero(~allowed)
        shown = out_of_fold_probabilities(
            rows[torch.from_numpy(inside)], given[inside], num_classes, folds=FOLDS, seed=seed
        )
        votes = neighbour_sums(index[inside], marks, allowed)
        sources = [np.log(shown + 1e-6), np.log(votes + PRIOR_VOTES)]
        told = None if known is None else known[inside]
        posterior = np.zeros((n, num_classes), dtype=np.float32)
        posterior[inside] = judged_by_channel(sources, labels[inside], told)
        seen = inside
        if len(seen) > MAX_ROWS:
            seen = np.sort(rng.choice(seen, MAX_ROWS, replace=False))
        target = torch.from_numpy(posterior[seen])
        matrix = logistic_regression(
            rows[torch.from_numpy(seen)], target, num_classes, torch.ones(len(seen))
        )
        found["probabilities"][out] = predicted(rows, out, matrix)
        found["votes"][out] = neighbour_sums(index[out], posterior, allowed)
        if progress is not None:
            progress(number + 1, PARTS)
    return found
