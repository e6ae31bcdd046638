"""Noise channels behind the entries of several labels per row, one for each class.

A row has a class or not, and its label says so or not: for each class a channel of two by two, as
`noisyml.audit.scores.channel` has one of C by C. All are fitted at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from noisyml.audit.scores.channel import CHOSEN_ON, PRIOR_RIGHT, PRIOR_WRONG

#: Exponents with which the search starts.
STARTS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class EntryChannels:
    """Fitted channels of C classes.

    Attributes:
        posterior: probability that each row has each class, given its labels [N, C] float32.
        flips: share of the rows without (first line) and with a class (second) whose label says
            otherwise [2, C].
        log_likelihood: mean log-probability of an entry.
    """

    posterior: NDArray[np.float32]
    flips: NDArray[np.float64]
    log_likelihood: float


def fit_entry_channels(
    present: NDArray[Any],
    labels: NDArray[Any],
    iterations: int = 50,
    known: NDArray[Any] | None = None,
) -> EntryChannels:
    """Posterior of the true entries and the shares of wrong ones, by EM.

    Args:
        present: probability of each class, of those who have not seen the label [N, C].
        labels: [N, C] zeros and ones, observed.
        iterations: of EM.
        known: true entries [N, C], 0 or 1, -1 where nobody looked; None: nobody did anywhere.

    Example:
        >>> p = np.array([[0.99]] * 9 + [[0.01]] * 10)
        >>> found = fit_entry_channels(p, np.array([[1]] * 8 + [[0]] * 11))
        >>> found.posterior[[8, 18], 0].round(1).astype(str).tolist()
        ['0.9', '0.0']
    """
    q = np.clip(np.asarray(present, dtype=np.float64), 1e-6, 1 - 1e-6)
    given = np.asarray(labels, dtype=bool)
    wrong_prior, whole_prior = PRIOR_WRONG, PRIOR_WRONG + PRIOR_RIGHT
    start = wrong_prior / whole_prior
    flips = np.full((2, q.shape[1]), start)
    looked = None if known is None else known >= 0

    def expect() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        with_it = q * np.where(given, 1 - flips[1], flips[1])
        without = (1 - q) * np.where(given, flips[0], 1 - flips[0])
        total = np.maximum(with_it + without, 1e-300)
        posterior = with_it / total
        if looked is not None and known is not None:
            posterior = np.where(looked, known, posterior)
        return posterior, total

    for _ in range(iterations):
        posterior, _ = expect()
        has = posterior.sum(axis=0)
        lost = np.where(given, 0, posterior).sum(axis=0)
        gained = np.where(given, 1 - posterior, 0).sum(axis=0)
        updated = np.stack(
            [
                (gained + wrong_prior) / (len(q) - has + whole_prior),
                (lost + wrong_prior) / (has + whole_prior),
            ]
        )
        done = np.abs(updated - flips).max() < 1e-5
        flips = updated
        if done:
            break
    posterior, total = expect()
    return EntryChannels(posterior.astype(np.float32), flips, float(np.log(total).mean()))


def product_of_log_odds(
    sources: Sequence[NDArray[Any]], exponents: NDArray[Any]
) -> NDArray[np.float32]:
    """Probabilities [N, C] whose log-odds are weighted sums.

    Args:
        sources: log-odds [N, C] each.
        exponents: one for each.
    """
    total = sum(e * s for e, s in zip(exponents, sources, strict=True))
    return np.asarray(expit(total), dtype=np.float32)


def choose_entry_exponents(
    sources: Sequence[NDArray[Any]],
    labels: NDArray[Any],
    known: NDArray[Any] | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Exponents of the sources under which the channels make the entries likeliest.

    Args:
        sources: log-odds [N, C] each, of those who have not seen the row's labels.
        labels: [N, C] zeros and ones, observed.
        known: see `fit_entry_channels`.
        seed: of the rows it is chosen on, `CHOSEN_ON` entries at most.
    """
    n, classes = labels.shape
    rows = np.random.default_rng(seed).permutation(n)[: max(200, CHOSEN_ON // classes)]
    some = [source[rows] for source in sources]
    given, told = labels[rows], None if known is None else known[rows]

    def loss(exponents: NDArray[Any]) -> float:
        q = product_of_log_odds(some, np.abs(exponents))
        return -fit_entry_channels(q, given, iterations=15, known=told).log_likelihood

    starts = (np.array(e) for e in itertools.product(STARTS, repeat=len(sources)))
    start = min(starts, key=loss)
    simplex = [start, *(start + 0.3 * row for row in np.eye(len(start)))]
    options = {"maxiter": 30, "xatol": 0.02, "fatol": 1e-5, "initial_simplex": simplex}
    return np.abs(minimize(loss, start, method="Nelder-Mead", options=options).x)
