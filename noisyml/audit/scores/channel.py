"""A noise channel behind labels: which class each row has, and how classes are mistaken.

Rows have probabilities ``q`` of their true class, from whatever sees them without their label, and
a matrix ``T`` says how often a true class is given as another one. Given its label, a row has class
c with probability proportional to ``q_c T_c,label``. `T` is estimated by expectation and
maximisation (Dawid and Skene, Applied Statistics 1979, with one annotator and `q` for the prior).

Classes that overlap and classes that are mistaken look alike to a matrix with a parameter for each
pair. So its lines are shrunk towards mistakes that are spread evenly over all classes, at a rate
that is estimated too. How strongly, the likelihood of labels decides that the matrix has not been
fitted to, and where it cannot tell, the stronger is taken; how far each source of `q` is to be
trusted, the likelihood of all labels.

Mistakes that follow the features look like overlap to any likelihood. A floor under the noise rate,
known from elsewhere (`noisyml.audit.scores.surest`), tells them apart: posteriors are then the
nearest ones, by Kullback-Leibler divergence, under which so many labels are wrong (posterior
regularisation; Ganchev, Graça, Gillenwater and Taskar, JMLR 2010).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csc_array

from noisyml.audit.scores.folds import stratified_folds

#: Prior rows with a right and with a wrong label, of all classes together.
PRIOR_RIGHT, PRIOR_WRONG = 4.0, 1.0
#: Rows that the prior of a line of the matrix may count for.
CONCENTRATIONS = (1000.0, 100.0, 10.0, 1.0)
#: Rows on which sources are weighed, and bootstrap replicates are drawn; and entries, rows times
#: classes, that are held for it.
CHOSEN_ON, CHOSEN_ENTRIES = 20_000, 4_000_000
#: Rows and exponents with which the search for the exponents starts.
STARTED_ON, STARTS = 4000, (0.5, 1.0, 2.0, 4.0)
#: The largest exponent.
LARGEST = 10.0
#: Folds of the rows among which concentrations are compared, and standard errors that make one
#: clearly worse (5 %, one-sided).
FOLDS, SURE = 5, 1.64
#: Log-odds by which a floor may raise all mistakes, and steps of Newton's method that look for it.
HIGHEST, STEPS = 10.0, 30
#: Entries that are held at a time.
BLOCK = 1 << 22


@dataclass(frozen=True)
class Channel:
    """A fitted noise channel.

    Attributes:
        posterior: probability of each true class given the row and its label [N, C] float32.
        transition: ``T[c, g]``: share of the rows of class c that carry label g [C, C].
        log_likelihood: mean log-probability of the labels, less the divergence that a floor costs.
    """

    posterior: NDArray[np.float32]
    transition: NDArray[np.float64]
    log_likelihood: float


@dataclass(frozen=True)
class Weighing:
    """Weights of sources in a channel.

    Attributes:
        exponents: of each source.
        concentration: rows that the prior of a line of the matrix counts for.
    """

    exponents: NDArray[np.float64]
    concentration: float


def fit_channel(
    classes: NDArray[Any],
    labels: NDArray[Any],
    iterations: int = 50,
    weights: NDArray[Any] | None = None,
    known: NDArray[Any] | None = None,
    concentration: float = CONCENTRATIONS[-1],
    start: NDArray[Any] | None = None,
    floor: float = 0.0,
) -> Channel:
    """Posterior of the true classes and the transition matrix, by EM.

    Args:
        classes: ``q`` [N, C], rows sum to 1.
        labels: [N] int64, observed.
        iterations: of EM.
        weights: of the rows in the estimate of the matrix [N]; None: 1 each.
        known: true classes [N] int64 of rows that were looked at, -1 for others; None: none.
        concentration: rows that the prior of each line counts for.
        start: matrix [C, C] to begin with; None: a fifth of all labels is wrong.
        floor: share of wrong labels that the posteriors have at least.

    Example:
        >>> q = np.array([[0.99, 0.01]] * 9 + [[0.01, 0.99]] * 10)
        >>> channel = fit_channel(q, np.array([0] * 8 + [1] * 11))
        >>> channel.posterior[[8, 0, 18], 0].round(2).astype(str).tolist()
        ['0.91', '1.0', '0.0']
    """
    n, count = classes.shape
    rate = PRIOR_WRONG / (PRIOR_RIGHT + PRIOR_WRONG)
    matrix = even_mistakes(rate, count) if start is None else start
    fixed = np.flatnonzero(known >= 0) if known is not None else np.zeros(0, dtype=np.int64)
    posterior = np.empty((n, count), dtype=np.float32)
    total = np.empty(n)
    step = max(1, BLOCK // count)
    blocks = [slice(begin, min(begin + step, n)) for begin in range(0, n, step)]
    power = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)

    rows = np.arange(n)
    raised = 0.0

    def expect() -> float:
        nonlocal raised
        columns = np.ascontiguousarray(matrix.T)
        for block in blocks:
            joint = classes[block] * columns[labels[block]]
            total[block] = np.maximum(joint.sum(axis=1), 1e-300)
            np.divide(joint, total[block, None], out=posterior[block], casting="same_kind")
        if len(fixed):
            posterior[fixed] = 0
            posterior[fixed, known[fixed]] = 1  # type: ignore[index]
        if floor <= 0:
            return 0.0
        own = posterior[rows, labels].astype(np.float64)
        raised = raised_log_odds(1 - own, floor, power, raised)
        if raised == 0:
            return 0.0
        # Both shares of a row are divided by their sum, after mistakes were raised.
        factor = np.exp(raised)
        whole = own + factor * (1 - own)
        posterior[:] *= (factor / whole)[:, None].astype(np.float32)
        posterior[rows, labels] = own / whole
        cost = raised * (1 - own / whole) - np.log(whole)
        return float((power * cost).sum() / power.sum())

    for _ in range(iterations):
        expect()
        counts = counted(posterior, labels, power)
        right = counts.trace() + PRIOR_RIGHT
        rate = 1 - right / (counts.sum() + PRIOR_RIGHT + PRIOR_WRONG)
        updated = counts + concentration * even_mistakes(rate, count)
        updated /= updated.sum(axis=1, keepdims=True)
        done = np.abs(updated - matrix).max() < 1e-5
        matrix = updated
        if done:
            break
    cost = expect()
    likely = float((power * np.log(total)).sum() / power.sum())
    return Channel(posterior, matrix, likely - cost)


def raised_log_odds(
    wrong: NDArray[np.float64], floor: float, weights: NDArray[Any], start: float = 0.0
) -> float:
    """Addition to the log-odds of all probabilities that brings their mean up to a floor.

    Args:
        wrong: probabilities [N]; zeros and ones stay as they are.
        floor: in [0, 1).
        weights: of the rows [N].
        start: to look from.

    Returns:
        In ``0 .. HIGHEST``; 0 if the mean is there already.

    Example:
        >>> round(raised_log_odds(np.array([0.5, 0.5]), 0.75, np.ones(2)), 4)  # log 3
        1.0986
    """
    share = weights / weights.sum()
    if float(share @ wrong) >= floor:
        return 0.0
    added = start
    for _ in range(STEPS):
        factor = np.exp(added)
        now = factor * wrong / (1 - wrong + factor * wrong)
        mean, slope = float(share @ now), float(share @ (now * (1 - now)))
        step = np.clip((floor - mean) / max(slope, 1e-9), -1.0, 1.0)
        added = float(np.clip(added + step, 0.0, HIGHEST))
        if abs(floor - mean) < 1e-6:
            break
    return added


def counted(
    posterior: NDArray[np.float32], labels: NDArray[Any], weights: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Rows by true class (first axis) and label [C, C].

    Args:
        posterior: probabilities of the true classes [N, C].
        labels: [N] int64, observed.
        weights: of the rows [N]; None: 1 each.

    Example:
        >>> counted(np.array([[0.5, 0.5], [1.0, 0.0]], dtype=np.float32), np.array([0, 1])).tolist()
        [[0.5, 1.0], [0.5, 0.0]]
    """
    n, count = posterior.shape
    power = np.ones(n) if weights is None else weights
    found = np.zeros((count, count))
    step = max(1, BLOCK // count)
    for start in range(0, n, step):
        part = labels[start : start + step]
        # One entry a column: made without the sorting that rows would need.
        entries = power[start : start + step], part, np.arange(len(part) + 1)
        marks = csc_array(entries, shape=(count, len(part)))
        found += marks @ posterior[start : start + step]
    return found.T


def even_mistakes(rate: float, count: int) -> NDArray[np.float64]:
    """The matrix [C, C] of labels that are wrong at a rate, as any other class alike.

    Example:
        >>> even_mistakes(0.5, 2).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    matrix = np.full((count, count), rate / max(1, count - 1))
    np.fill_diagonal(matrix, 1 - rate)
    return matrix


def product_of_sources(
    sources: Sequence[NDArray[Any]], exponents: NDArray[Any]
) -> NDArray[np.float32]:
    """Class probabilities [N, C] proportional to a product of powers.

    Args:
        sources: log-probabilities [N, C] each, up to a constant of the row.
        exponents: one for each.
    """
    total = np.zeros(sources[0].shape, dtype=np.float32)
    for exponent, source in zip(exponents, sources, strict=True):
        total += np.float32(exponent) * source
    total -= total.max(axis=1, keepdims=True)
    np.exp(total, out=total)
    total /= total.sum(axis=1, keepdims=True)
    return total


def fit_sources(
    sources: Sequence[NDArray[Any]],
    labels: NDArray[Any],
    known: NDArray[Any] | None = None,
    concentration: float | None = None,
    seed: int = 0,
    floor: float = 0.0,
) -> tuple[NDArray[np.float32], Channel, float]:
    """Weigh sources and fit the channel: class probabilities [N, C], channel, concentration.

    Args:
        sources, labels, known, concentration, seed, floor: see `weigh_sources`.
    """
    weighing = weigh_sources(sources, labels, known, concentration, seed, floor)
    classes = product_of_sources(sources, weighing.exponents)
    chosen = weighing.concentration
    channel = fit_channel(classes, labels, known=known, concentration=chosen, floor=floor)
    return classes, channel, chosen


def weigh_sources(
    sources: Sequence[NDArray[Any]],
    labels: NDArray[Any],
    known: NDArray[Any] | None = None,
    concentration: float | None = None,
    seed: int = 0,
    floor: float = 0.0,
) -> Weighing:
    """Exponents of the sources under which the channel makes the labels likeliest.

    A source that is too sure of itself gets an exponent below 1, one that says nothing gets 0. The
    sources must not have seen the label of the row that they speak of.

    Args:
        sources: log-probabilities [N, C] each, up to a constant of the row.
        labels: [N] int64, observed.
        known: see `fit_channel`.
        concentration: see `fit_channel`; None: the largest of `CONCENTRATIONS` under which labels
            that the matrix was not fitted to are not clearly less likely than under the best.
        seed: of the rows it is chosen on, `CHOSEN_ON` at most, and of folds.
        floor: see `fit_channel`.
    """
    n, count = sources[0].shape
    most = min(CHOSEN_ON, max(STARTED_ON, CHOSEN_ENTRIES // count))
    rows = np.random.default_rng(seed).permutation(n)[:most]
    some = [np.asarray(source[rows], dtype=np.float32) for source in sources]
    given, told = labels[rows], None if known is None else known[rows]
    ways = CONCENTRATIONS if concentration is None else (concentration,)
    found = [Weighing(_exponents(some, given, told, way, floor), way) for way in ways]
    if len(found) == 1:
        return found[0]
    told_of = [_held_out(some, given, told, one, seed, floor) for one in found]
    best = max(told_of, key=lambda one: float(one.mean()))
    for one, likely in zip(found, told_of, strict=True):
        behind = best - likely
        if behind.mean() <= SURE * behind.std() / len(rows) ** 0.5:
            return one
    raise AssertionError("the best is as likely as itself")


def _exponents(
    sources: list[NDArray[np.float32]],
    labels: NDArray[Any],
    known: NDArray[Any] | None,
    concentration: float,
    floor: float,
) -> NDArray[np.float64]:
    """Exponents of the largest likelihood, by its gradient, from the best of several starts."""

    def fit(
        exponents: NDArray[Any], iterations: int, rows: int | None, start: NDArray[Any] | None
    ) -> tuple[NDArray[np.float32], Channel]:
        q = product_of_sources([source[:rows] for source in sources], exponents)
        told = None if known is None else known[:rows]
        given = labels[:rows]
        return q, fit_channel(q, given, iterations, None, told, concentration, start, floor)

    # Soft probabilities and a channel without noise are a maximum too, and not always the largest.
    width = len(sources)
    axes = [*np.eye(width), *([np.ones(width)] if width > 1 else [])]
    starts = [power * axis for power, axis in itertools.product(STARTS, axes)]
    best = max(starts, key=lambda start: fit(start, 10, STARTED_ON, None)[1].log_likelihood)
    latest: NDArray[Any] | None = fit(best, 15, None, None)[1].transition

    def value(exponents: NDArray[Any]) -> tuple[float, NDArray[np.float64]]:
        nonlocal latest
        q, channel = fit(exponents, 6, None, latest)
        latest = channel.transition
        error = channel.posterior - q
        slope = [float(np.vdot(error, source)) / len(labels) for source in sources]
        return -channel.log_likelihood, -np.array(slope)

    found = minimize(
        value,
        best,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, LARGEST)] * width,
        options={"maxiter": 25, "ftol": 1e-6},
    )
    return np.asarray(found.x)


def _held_out(
    sources: list[NDArray[np.float32]],
    labels: NDArray[Any],
    known: NDArray[Any] | None,
    weighing: Weighing,
    seed: int,
    floor: float,
) -> NDArray[np.float64]:
    """Log-probability of each label under the matrix fitted to those of the other folds [N]."""
    q = product_of_sources(sources, weighing.exponents)
    fold = stratified_folds(labels, FOLDS, seed)
    found = np.empty(len(labels))
    for number in range(FOLDS):
        out = fold == number
        matrix = fit_channel(
            q, labels, 30, (~out).astype(float), known, weighing.concentration, floor=floor
        ).transition
        found[out] = np.log((q[out] * matrix.T[labels[out]]).sum(axis=1).clip(1e-300))
    return found
