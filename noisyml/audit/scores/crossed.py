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

from noisyml.audit.scores.channel import fit_sources
from noisyml.audit.scores.density import class_cosines
from noisyml.audit.scores.folds import (
    Progress,
    logistic_regression,
    out_of_fold_probabilities,
    predicted,
    stratified_folds,
)
from noisyml.audit.scores.neighbours import BLOCK
from noisyml.audit.scores.surest import least_share, surest_of_sources

#: Parts that the rows are dealt into, and folds among all parts but one.
PARTS, FOLDS = 4, 3
#: Rows below which parts are too small to judge anything by.
FEWEST = 200
#: A classifier sees so many rows at most.
MAX_ROWS = 50_000
#: Votes that every class is given beforehand.
PRIOR_VOTES = 0.3
#: Concentration of the densities of classes, which exponents correct.
CONCENTRATION = 10.0


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


def log_sources(
    probabilities: NDArray[Any], votes: NDArray[Any], cosines: NDArray[Any]
) -> list[NDArray[np.float32]]:
    """Three views of rows as log-probabilities [N, C], up to a constant of the row.

    Args:
        probabilities: of a classifier [N, C].
        votes: numbers of the neighbours' votes [N, C].
        cosines: see `class_cosines` [N, C].
    """
    return [
        np.log(probabilities + np.float32(1e-6)),
        np.log(votes + np.float32(PRIOR_VOTES)),
        cosines * np.float32(CONCENTRATION),
    ]


def parts_of(labels: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """The part [N] in ``0 .. PARTS - 1`` of each row."""
    return stratified_folds(labels, PARTS, seed + 17)


def crossed_views(
    rows: Tensor,
    labels: NDArray[Any],
    index: NDArray[Any],
    num_classes: int,
    known: NDArray[Any] | None = None,
    concentration: float | None = None,
    strength: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Three views of each row by what the judgements of the other parts teach.

    Args:
        rows: projected features [N, d].
        labels: [N] int64, observed.
        index: neighbours [N, k].
        num_classes: C.
        known: true classes [N] of rows that were looked at, -1 for others; None: none.
        concentration: see `weigh_sources`.
        strength: of the classifiers, see `out_of_fold_probabilities`.
        seed: of the parts.
        progress: called after each part.

    Returns:
        ``probabilities`` [N, C] of a classifier; ``votes`` [N, C]: sums over the neighbours in
        other parts; ``cosines`` [N, C] with the classes' mean directions.
    """
    n = len(labels)
    given = labels if known is None else np.where(known >= 0, known, labels)
    marks = np.zeros((n, num_classes), dtype=np.float32)
    part = parts_of(labels, seed)
    names = ("probabilities", "votes", "cosines")
    found = {name: np.empty((n, num_classes), np.float32) for name in names}
    rng = np.random.default_rng(seed)
    for number in range(PARTS):
        allowed = part != number
        inside, out = np.flatnonzero(allowed), np.flatnonzero(~allowed)
        marks[:] = 0
        marks[inside, given[inside]] = 1
        sources = log_sources(
            out_of_fold_probabilities(
                rows[torch.from_numpy(inside)],
                given[inside],
                num_classes,
                folds=FOLDS,
                strength=strength,
                seed=seed,
            ),
            neighbour_sums(index[inside], marks, allowed),
            class_cosines(rows, marks, inside),
        )
        told = None if known is None else known[inside]
        held = stratified_folds(given[inside], FOLDS, seed)
        floor = least_share(surest_of_sources(sources, labels[inside], held, told, seed))
        _, channel, _ = fit_sources(sources, labels[inside], told, concentration, seed, floor)
        marks[inside] = channel.posterior
        del sources, channel
        seen = inside
        if len(seen) > MAX_ROWS:
            seen = np.sort(rng.choice(seen, MAX_ROWS, replace=False))
        matrix = logistic_regression(
            rows[torch.from_numpy(seen)],
            torch.from_numpy(marks[seen]),
            num_classes,
            torch.ones(len(seen)),
            strength,
        )
        found["probabilities"][out] = predicted(rows, out, matrix)
        found["votes"][out] = neighbour_sums(index[out], marks, allowed)
        found["cosines"][out] = class_cosines(rows, marks, out)
        if progress is not None:
            progress(number + 1, PARTS)
    return found
