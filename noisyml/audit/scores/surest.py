"""A floor under the noise rate: how often labels contradict views where these are surest.

Labels alone cannot tell mistakes that follow the features from classes that overlap: a view that is
flexible enough explains both. But where classes overlap there still are rows that lie apart from
all other classes, and views are sure of these; where labels are wrong at a rate, no view is surer
of any label than that rate allows. So the share of wrong labels among the surest rows is a floor of
the share among all, unless mistakes prefer rows that are easy to tell. Rates of mistakes are taken
from such rows by Liu and Tao (TPAMI 2016, arXiv 1411.7718) and Patrini et al. (CVPR 2017, arXiv
1609.03683, "perfect examples"), there as the rates themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyml.audit.scores.channel import CONCENTRATIONS, product_of_sources, weigh_sources

#: Share of the rows of each fold that counts as surest.
SUREST = 0.2


def surest_of_sources(
    sources: Sequence[NDArray[Any]],
    labels: NDArray[Any],
    fold: NDArray[Any],
    known: NDArray[Any] | None = None,
    seed: int = 0,
) -> NDArray[np.int8]:
    """`marked_surest` by sources that are weighed under the least even matrix, without a floor.

    Args:
        sources, labels, known, seed: see `noisyml.audit.scores.channel.weigh_sources`.
        fold: see `marked_surest`.
    """
    exponents = weigh_sources(sources, labels, known, CONCENTRATIONS[-1], seed).exponents
    return marked_surest(product_of_sources(sources, exponents), labels, fold)


def marked_surest(
    probabilities: NDArray[Any], labels: NDArray[Any], fold: NDArray[Any]
) -> NDArray[np.int8]:
    """Mark the surest rows, and those among them whose label is not the likeliest class.

    Rows are compared with those of their own fold alone, which the same classifier has judged:
    among all, those come first whose own label, which their classifier lacks, is another one.

    Args:
        probabilities: of whatever has not seen the row's label [N, C].
        labels: [N] int64, observed.
        fold: in which each row was left out [N] int64.

    Returns:
        [N]: 1 for a surest row with another label, 0 for one with that label, -1 for other rows.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.5, 0.5], [0.6, 0.4]])
        >>> marked_surest(p, np.array([1, 0, 0, 1, 1]), np.zeros(5, dtype=int)).tolist()
        [1, -1, -1, -1, -1]
    """
    marks = np.full(len(labels), -1, dtype=np.int8)
    largest = probabilities.max(axis=1)
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        most = max(1, round(SUREST * len(rows)))
        chosen = rows[np.argsort(-largest[rows], kind="stable")[:most]]
        marks[chosen] = probabilities[chosen].argmax(axis=1) != labels[chosen]
    return marks


def least_share(marks: NDArray[np.int8], weights: NDArray[Any] | None = None) -> float:
    """Share of wrong labels among the surest rows, less its standard error.

    Args:
        marks: of `marked_surest` [N].
        weights: of the rows [N]; None: 1 each.

    Returns:
        In [0, 1); 0 where no row is marked.

    Example:
        >>> least_share(np.array([1, 0, -1, 0, 0], dtype=np.int8)).__round__(4)
        0.0335
    """
    there = marks >= 0
    if not there.any():
        return 0.0
    power = np.ones(len(marks)) if weights is None else weights
    share = float(power[marks == 1].sum() / power[there].sum())
    return max(0.0, share - float(np.sqrt(share * (1 - share) / there.sum())))
