"""Out-of-fold probabilities: each row judged by a classifier that has not seen its label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from noisyml.checks import Count, Positive, Seed, checked
from noisyml.errors import UserError

#: Rows that are projected or classified at a time.
BLOCK = 16_384
#: Strengths of the data against the penalty that are tried, and rows and folds that they are tried
#: on: as many folds as it takes to judge `TRIED_WITH` rows.
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
TRIED_ON, TRIED_WITH, TRIED_FOLDS = 10_000, 500, 5
#: Called with (folds done, folds in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Projection:
    """A map of rows to few columns of comparable size.

    Attributes:
        mean: [D] float32 of the rows of length 1.
        basis: [D, d] float32, principal directions by falling variance, over the common scale.
    """

    mean: NDArray[np.float32]
    basis: NDArray[np.float32]

    def __call__(self, rows: Any) -> Tensor:
        """Rows [n, D] as float32 [n, d]."""
        unit = unit_rows(rows) - self.mean
        return torch.from_numpy(unit @ self.basis)


def unit_rows(rows: Any) -> NDArray[np.float32]:
    """Rows [n, D] brought to length 1, float32; rows of zeros stay.

    Example:
        >>> unit_rows([[3.0, 4.0], [0.0, 0.0]]).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    found = np.asarray(rows, dtype=np.float32)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(length > 0, length, 1), dtype=np.float32)


def principal_projection(
    rows: Any, components: int, sample: int = 50_000, seed: int = 0
) -> Projection:
    """Principal components of rows of length 1, from blocks of at most `sample` of them.

    Args:
        rows: [N, D], read in blocks.
        components: columns to keep, at most D.
        sample: rows that the directions are computed from.
        seed: which of them.
    """
    n, width = rows.shape
    chosen = np.arange(n)
    if n > sample:
        chosen = np.sort(np.random.default_rng(seed).choice(n, sample, replace=False))
    total, square = np.zeros(width), np.zeros((width, width))
    for start in range(0, len(chosen), BLOCK):
        part = unit_rows(rows[chosen[start : start + BLOCK]])
        total += part.sum(axis=0, dtype=np.float64)
        square += part.T @ part
    mean = total / len(chosen)
    values, vectors = np.linalg.eigh(square / len(chosen) - np.outer(mean, mean))
    kept = min(components, width)
    basis = vectors[:, ::-1][:, :kept]
    scale = np.sqrt(max(float(values[::-1][:kept].clip(0).mean()), 1e-12))
    return Projection(mean.astype(np.float32), (basis / scale).astype(np.float32))


def stratified_folds(labels: NDArray[Any], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """The fold [N] int64 in ``0 .. folds - 1`` that each row is held out in.

    The rows of each class are dealt out in turn in random order, one class after another where the
    last one ended, so that folds have equal sizes and each has its share of each class.

    Example:
        >>> stratified_folds(np.array([0, 0, 1, 1]), folds=2).tolist()
        [0, 1, 0, 1]
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


@checked
def out_of_fold_probabilities(
    features: Any,
    labels: NDArray[Any] | None,
    num_classes: Count,
    *,
    folds: int | None = 10,
    strength: Positive = 1.0,
    balanced: bool = False,
    weights: NDArray[Any] | None = None,
    targets: NDArray[Any] | None = None,
    exclusive: bool = True,
    components: Count = 256,
    max_iterations: Count = 100,
    max_rows: Count = 50_000,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Class probabilities [N, C] by logistic regression on the rows of the other folds.

    Multinomial, with a bias and an L2 penalty; rows are brought to length 1, centred, projected on
    their principal directions and divided by one common scale. The minimum is unique, so that the
    result depends on data and seed alone.

    Args:
        features: [N, D], read in blocks; a tensor: rows that are projected already.
        labels: [N] int64, observed; None: `targets` are learnt and folds are drawn at random.
        num_classes: C.
        folds: K; each row is judged by a classifier of the K - 1 others. None: no row is held out,
            probabilities are in-sample.
        strength: of the data against the penalty, scikit-learn's ``C``: the penalty is
            ``|W|^2 / (2 strength)`` beside a sum of losses.
        balanced: weigh rows so that all classes weigh the same.
        weights: [N] of the rows; None: 1 each.
        targets: distributions [N, C] to learn in place of the labels; None: the labels.
        exclusive: False: classes do not exclude each other; `targets` are probabilities of each,
            and every class gets a logistic regression of its own.
        components: principal directions kept.
        max_iterations: of L-BFGS, of each fold.
        max_rows: a classifier sees so many rows at most, drawn at random.
        seed: of folds and draws.
        progress: called after each fold.

    Raises:
        UserError: fewer rows than folds.
    """
    n = len(features)
    if labels is None and targets is None:
        raise ValueError("labels or targets are needed")
    if folds is not None and not 2 <= folds <= n:
        raise UserError(f"folds={folds} must be from 2 to the {n} rows there are.")
    rows = features
    if not isinstance(features, Tensor):
        rows = projected_rows(features, components, seed)
    strata = np.zeros(n, dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
    given = torch.tensor(strata)
    weight = torch.ones(n) if weights is None else torch.tensor(weights, dtype=torch.float32)
    if balanced:
        mass = torch.zeros(num_classes).index_add_(0, given, weight)
        weight = weight * (mass.sum() / num_classes / mass.clamp(min=1e-12))[given]
    aim = None if targets is None else torch.from_numpy(np.asarray(targets, dtype=np.float32))
    held = np.zeros(n, np.int64) if folds is None else stratified_folds(strata, folds, seed)
    found = np.empty((n, num_classes), dtype=np.float32)
    generator = np.random.default_rng(seed)
    count = 1 if folds is None else folds
    for fold in range(count):
        out = np.flatnonzero(held == fold)
        seen = np.arange(n) if folds is None else np.flatnonzero(held != fold)
        if len(seen) > max_rows:
            seen = np.sort(generator.choice(seen, max_rows, replace=False))
        some = torch.from_numpy(seen)
        target = given[some] if aim is None else aim[some]
        matrix = logistic_regression(
            rows[some], target, num_classes, weight[some], strength, max_iterations, exclusive
        )
        found[out] = predicted(rows, out, matrix, exclusive)
        if progress is not None:
            progress(fold + 1, count)
    return found


def chosen_strength(
    rows: Tensor,
    targets: NDArray[np.float32],
    exclusive: bool = True,
    seed: int = 0,
) -> float:
    """The strength of `STRENGTHS` under which a classifier best predicts labels of other rows.

    Wrong labels call for more penalty than clean ones do: the more directions a classifier may use,
    the more of them it learns by heart.

    Args:
        rows: projected features [N, d].
        targets: probabilities of the classes [N, C], zeros and ones for labels.
        exclusive: see `out_of_fold_probabilities`.
        seed: of rows and folds.
    """
    some = np.random.default_rng(seed).permutation(len(rows))[:TRIED_ON]
    rows, target = rows[torch.from_numpy(some)], torch.from_numpy(targets[some])
    strata = targets[some].argmax(axis=1) if exclusive else np.zeros(len(some), dtype=np.int64)
    folds = min(TRIED_FOLDS, len(some))
    held = stratified_folds(strata, folds, seed)
    used = min(folds, -(-TRIED_WITH * folds // len(some)))
    starts: list[Tensor | None] = [None] * used
    best, least = STRENGTHS[0], np.inf
    for strength in STRENGTHS:
        total = 0.0
        for fold in range(used):
            out = torch.from_numpy(held == fold)
            matrix = logistic_regression(
                rows[~out],
                target[~out],
                target.shape[1],
                torch.ones(int((~out).sum())),
                strength,
                exclusive=exclusive,
                start=starts[fold],
            )
            starts[fold] = matrix
            scores = rows[out] @ matrix[:-1] + matrix[-1]
            if exclusive:
                total -= float((target[out] * scores.log_softmax(dim=1)).sum())
            else:
                softplus = torch.nn.functional.softplus(scores)
                total += float((softplus - target[out] * scores).sum())
        if total >= least:
            break
        best, least = strength, total
    return best


def projected_rows(features: Any, components: int = 256, seed: int = 0) -> Tensor:
    """All rows by `principal_projection`, float32 [N, d]."""
    project = principal_projection(features, components, seed=seed)
    found = torch.empty(len(features), project.basis.shape[1])
    for start in range(0, len(features), BLOCK):
        found[start : start + BLOCK] = project(features[start : start + BLOCK])
    return found


def predicted(
    rows: Tensor, chosen: NDArray[np.int64], matrix: Tensor, exclusive: bool = True
) -> NDArray[np.float32]:
    """Class probabilities [n, C] of the chosen rows [n] by a `logistic_regression`."""
    found = np.empty((len(chosen), matrix.shape[1]), dtype=np.float32)
    for start in range(0, len(chosen), BLOCK):
        part = torch.from_numpy(chosen[start : start + BLOCK])
        scores = rows[part] @ matrix[:-1] + matrix[-1]
        found[start : start + BLOCK] = scores.softmax(dim=1) if exclusive else scores.sigmoid()
    return found


def logistic_regression(
    rows: Tensor,
    target: Tensor,
    num_classes: int,
    weights: Tensor,
    strength: float = 1.0,
    max_iterations: int = 100,
    exclusive: bool = True,
    start: Tensor | None = None,
) -> Tensor:
    """Weights [d + 1, C] of a logistic regression, multinomial or one a class; the biases last.

    Args:
        rows: [n, d] float32.
        target: [n] int64, or distributions [n, C].
        num_classes: C.
        weights: [n].
        strength: see `out_of_fold_probabilities`; biases are not penalised.
        max_iterations: of L-BFGS.
        exclusive: False: `target` are probabilities of classes that do not exclude each other.
        start: weights to begin with; None: zeros.
    """
    width = rows.shape[1]
    total = float(weights.sum()) or 1.0
    share = weights / total
    if target.ndim == 1:
        target = torch.nn.functional.one_hot(target, num_classes).to(rows.dtype)
    wanted = target * share[:, None]
    mass = wanted.sum(dim=1)
    penalty = 1 / (strength * total)
    transposed = rows.T.contiguous()
    # Principal directions are uncorrelated: at zero the curvature is a diagonal, by which the
    # coordinates are scaled. A small fraction of the steps is then enough.
    even = 1 / max(num_classes, 2) * (1 - 1 / max(num_classes, 2))
    curvature = even * (rows.square() * share[:, None]).sum(dim=0) + penalty
    scale = torch.cat([curvature, torch.tensor([even])]).double().rsqrt()[:, None].numpy()

    def value(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        matrix = torch.from_numpy(flat.reshape(width + 1, num_classes) * scale).to(rows.dtype)
        scores = rows @ matrix[:-1] + matrix[-1]
        if exclusive:
            log_p = scores.log_softmax(dim=1)
            loss = -(wanted * log_p).sum(dtype=torch.float64)
            error = log_p.exp() * mass[:, None] - wanted
        else:
            all_of_them = torch.nn.functional.softplus(scores) * share[:, None]
            loss = (all_of_them - wanted * scores).sum(dtype=torch.float64)
            error = scores.sigmoid() * share[:, None] - wanted
        slope = torch.cat([transposed @ error + penalty * matrix[:-1], error.sum(0)[None]])
        loss = loss + 0.5 * penalty * matrix[:-1].double().square().sum()
        return float(loss), (slope.double().numpy() * scale).ravel()

    begin = np.zeros((width + 1) * num_classes)
    if start is not None:
        begin = (start.double().numpy() / scale).ravel()
    best = minimize(
        value,
        begin,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iterations, "ftol": 1e-7, "gtol": 1e-6, "maxcor": 20},
    )
    return torch.from_numpy(best.x.reshape(width + 1, num_classes) * scale).to(rows.dtype)
