"""Comparisons of groups of runs: paired differences, intervals, wins, ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Share of intervals that contain the true value.
CONFIDENCE = 0.95
#: Fewest values of which a bootstrap says something; below that Student's t is used.
FEWEST = 8


@dataclass(frozen=True)
class Difference:
    """A mean with its interval.

    Attributes:
        mean: of the values.
        low: lower end of the interval; -inf for a single value.
        high: upper end; inf for a single value.
        count: number of values.
    """

    mean: float
    low: float
    high: float
    count: int


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Difference:
    """Mean of values with Student's interval.

    Args:
        values: [n], finite.
        confidence: share of such intervals that contain the mean they are drawn from.
    """
    from scipy.special import stdtrit

    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return Difference(mean, -math.inf, math.inf, len(x))
    half = float(stdtrit(len(x) - 1, 0.5 + confidence / 2)) * x.std(ddof=1) / math.sqrt(len(x))
    return Difference(mean, mean - half, mean + half, len(x))


def paired_difference(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> Difference:
    """Mean of ``first - second``, pair by pair, with Student's interval.

    Args:
        first, second: [n] values of pairs, in the same order.
        confidence: as for `mean_interval`.

    Raises:
        ValueError: the numbers of values differ.
    """
    return mean_interval(_paired(first, second), confidence)


def bootstrap_interval(
    values: ArrayLike, confidence: float = CONFIDENCE, resamples: int = 9999, seed: int = 0
) -> Difference:
    """Mean of values with the interval of the bias-corrected accelerated bootstrap.

    Args:
        values: [n], finite.
        confidence: as for `mean_interval`.
        resamples: draws with replacement.
        seed: of the draws.
    """
    from scipy.stats import bootstrap

    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return mean_interval(x, confidence)
    if np.ptp(x) == 0:
        return Difference(float(x[0]), float(x[0]), float(x[0]), len(x))
    found = bootstrap(
        (x,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Difference(float(x.mean()), float(found.low), float(found.high), len(x))


def _paired(first: Sequence[float], second: Sequence[float]) -> NDArray[np.float64]:
    if len(first) != len(second):
        raise ValueError(f"pairs of {len(first)} and {len(second)} values")
    return np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)


def interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Difference:
    """Mean with its interval: of the bootstrap from `FEWEST` values on, else Student's."""
    enough = len(np.asarray(values)) >= FEWEST
    return bootstrap_interval(values, confidence) if enough else mean_interval(values, confidence)


@dataclass(frozen=True)
class Rank:
    """The place of one method among several.

    Attributes:
        name: of the method.
        mean: of its ranks, 1 the best.
        letters: methods that share a letter are not told apart.
    """

    name: str
    mean: float
    letters: str


def average_ranks(
    values: NDArray[np.float64],
    names: Sequence[str],
    *,
    lower_is_better: bool = False,
    significance: float = 1 - CONFIDENCE,
) -> list[Rank]:
    """Mean ranks over blocks, the best first, with letters by Nemenyi's critical difference.

    Args:
        values: [blocks, methods], finite; ties share their mean rank.
        names: of the methods.
        lower_is_better: True for errors.
        significance: probability that chance alone would part two methods so far.

    Source: Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 2006.
    """
    from scipy.stats import rankdata, studentized_range

    blocks, methods = values.shape
    ranks = rankdata(values if lower_is_better else -values, axis=1).mean(axis=0)
    order = np.argsort(ranks, kind="stable")
    if methods < 2:
        return [Rank(names[0], float(ranks[0]), "a")]
    quantile = float(studentized_range.ppf(1 - significance, methods, np.inf)) / math.sqrt(2)
    critical = quantile * math.sqrt(methods * (methods + 1) / (6 * blocks))
    letters = [""] * methods
    last_end, letter = -1, 0
    for start in range(methods):
        near = [
            e for e in range(start, methods) if ranks[order[e]] - ranks[order[start]] < critical
        ]
        if near[-1] > last_end:
            for place in near:
                letters[place] += chr(ord("a") + letter % 26)
            last_end, letter = near[-1], letter + 1
    return [Rank(names[m], float(ranks[m]), letters[p]) for p, m in enumerate(order)]


def wins(values: NDArray[np.float64], *, lower_is_better: bool = False) -> NDArray[np.float64]:
    """Share of blocks in which the row's method is ahead of the column's, [methods, methods].

    Args:
        values: [blocks, methods], finite; a tie counts half.
        lower_is_better: True for errors.
    """
    signed = -values if lower_is_better else values
    gap = signed[:, :, None] - signed[:, None, :]
    return ((gap > 0) + 0.5 * (gap == 0)).mean(axis=0)
