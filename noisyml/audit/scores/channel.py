"""A noise channel behind labels: which class each row has, and how classes are mistaken.

Rows have probabilities ``q`` of their true class, from whatever sees them without their label, and
a matrix ``T`` says how often a true class is given as another one. Given its label, a row has class
c with probability proportional to ``q_c T_c,label``. `T` is estimated by expectation and
maximisation (Dawid and Skene, Applied Statistics 1979, with one annotator and `q` for the prior),
and how far the sources of `q` are to be trusted by the likelihood of the labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

#: Prior rows per class: right ones, and wrong ones spread over the other classes.
PRIOR_RIGHT, PRIOR_WRONG = 4.0, 1.0
#: Rows on which the exponents of the sources are chosen, and bootstrap replicates are drawn.
CHOSEN_ON = 20_000
#: Rows and exponents with which the search for the exponents starts.
STARTED_ON, STARTS = 4000, (0.0, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Channel:
    """A fitted noise channel.

    Attributes:
        posterior: probability of each true class given the row and its label [N, C] float32.
        transition: ``T[c, g]``: share of the rows of class c that carry label g [C, C].
        log_likelihood: mean log-probability of the labels.
    """

    posterior: NDArray[np.float32]
    transition: NDArray[np.float64]
    log_likelihood: float


def fit_channel(
    classes: NDArray[Any],
    labels: NDArray[Any],
    iterations: int = 50,
    weights: NDArray[Any] | None = None,
    known: NDArray[Any] | None = None,
) -> Channel:
    """Posterior of the true classes and the transition matrix, by EM.

    Args:
        classes: ``q`` [N, C], rows sum to 1.
        labels: [N] int64, observed.
        iterations: of EM.
        weights: of the rows in the estimate of the matrix [N]; None: 1 each.
        known: true classes [N] int64 of rows that were looked at, -1 for others; None: none.

    Example:
        >>> q = np.array([[0.99, 0.01]] * 9 + [[0.01, 0.99]] * 10)
        >>> channel = fit_channel(q, np.array([0] * 8 + [1] * 11))
        >>> channel.posterior[8].round(1).tolist(), channel.posterior[0].round(1).tolist()
        ([0.9, 0.1], [1.0, 0.0])
    """
    n, count = classes.shape
    spread = PRIOR_WRONG / max(1, count - 1)
    prior = np.full((count, count), spread)
    np.fill_diagonal(prior, PRIOR_RIGHT)
    matrix = prior / prior.sum(axis=1, keepdims=True)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(labels[order]) != 0]) if n else np.zeros(0, int)
    present = labels[order[starts]]
    fixed = np.flatnonzero(known >= 0) if known is not None else np.zeros(0, dtype=np.int64)
    posterior = np.empty((n, count), dtype=np.float32)
    total = np.empty(n)

    def expect() -> None:
        joint = classes * matrix.T[labels]
        total[:] = joint.sum(axis=1)
        posterior[:] = joint / np.maximum(total, 1e-300)[:, None]
        if len(fixed):
            posterior[fixed] = 0
            posterior[fixed, known[fixed]] = 1  # type: ignore[index]

    for _ in range(iterations):
        expect()
        mass = posterior if weights is None else posterior * weights[:, None]
        counts = prior.copy()
        counts[:, present] += np.add.reduceat(mass[order], starts, axis=0, dtype=np.float64).T
        updated = counts / counts.sum(axis=1, keepdims=True)
        done = np.abs(updated - matrix).max() < 1e-5
        matrix = updated
        if done:
            break
    expect()
    weight = np.ones(n) if weights is None else weights
    mean = float((weight * np.log(np.maximum(total, 1e-300))).sum() / weight.sum())
    return Channel(posterior, matrix, mean)


def product_of_sources(
    sources: Sequence[NDArray[Any]], exponents: NDArray[Any]
) -> NDArray[np.float32]:
    """Class probabilities [N, C] proportional to a product of powers.

    Args:
        sources: log-probabilities [N, C] each.
        exponents: one for each.
    """
    total = sum(e * s for e, s in zip(exponents, sources, strict=True))
    total = np.asarray(total - np.max(total, axis=1, keepdims=True), dtype=np.float32)
    np.exp(total, out=total)
    total /= total.sum(axis=1, keepdims=True)
    return total


def choose_exponents(
    sources: Sequence[NDArray[Any]],
    labels: NDArray[Any],
    known: NDArray[Any] | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Exponents of the sources under which the channel makes the labels likeliest.

    A source that is too sure of itself gets an exponent below 1, one that says nothing gets 0. The
    sources must not have seen the label of the row that they speak of.

    Args:
        sources: log-probabilities [N, C] each, the best first.
        labels: [N] int64, observed.
        known: see `fit_channel`.
        seed: of the rows it is chosen on, `CHOSEN_ON` at most.
    """
    n = len(labels)
    rows = np.arange(n)
    if n > CHOSEN_ON:
        rows = np.sort(np.random.default_rng(seed).choice(n, CHOSEN_ON, replace=False))
    some = [source[rows] for source in sources]
    given, told = labels[rows], None if known is None else known[rows]

    def loss(exponents: NDArray[Any], rows: int | None = None) -> float:
        q = product_of_sources([source[:rows] for source in some], np.abs(exponents))
        seen = None if told is None else told[:rows]
        return -fit_channel(q, given[:rows], iterations=15, known=seen).log_likelihood

    # Soft probabilities and a channel without noise are a maximum too, and not always the largest.
    few = np.random.default_rng(seed).permutation(len(rows))
    some, given = [source[few] for source in some], given[few]
    told = None if told is None else told[few]
    starts = itertools.product(STARTS, repeat=len(sources))
    start = min((np.array(e) for e in starts if any(e)), key=lambda e: loss(e, STARTED_ON))
    best = minimize(
        loss,
        start,
        method="Nelder-Mead",
        options={
            "maxiter": 40,
            "xatol": 0.02,
            "fatol": 1e-5,
            "initial_simplex": [start, *(start + 0.4 * row for row in np.eye(len(start)))],
        },
    )
    return np.abs(best.x)
