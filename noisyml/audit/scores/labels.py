"""Scores of given labels by class probabilities or shares of votes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def own_share(shares: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Probability or share of votes [N] of each row's label: its self-confidence.

    Args:
        shares: [N, C].
        labels: [N] int64.
    """
    return shares[np.arange(len(labels)), labels]


def label_margin(shares: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Share of each row's label less the largest share of another class [N].

    Northcutt et al., "Confident Learning", JAIR 2021 (arXiv 1911.00068), section 3.3; cleanlab's
    ``normalized_margin`` is ``(margin + 1) / 2`` of it.

    Args:
        shares: [N, C], C at least 2.
        labels: [N] int64.

    Returns:
        In [-1, 1] for shares that sum to 1.

    Example:
        >>> label_margin(np.array([[0.75, 0.25], [1.0, 0.0]]), np.array([0, 1])).tolist()
        [0.5, -1.0]
    """
    rows = np.arange(len(labels))
    others = shares.copy()
    others[rows, labels] = -np.inf
    return np.asarray(shares[rows, labels] - others.max(axis=1))


def best_other(shares: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.int64]:
    """The class [N] int64 of the largest share that is not the row's label.

    Example:
        >>> best_other(np.array([[0.75, 0.25], [1.0, 0.0]]), np.array([0, 1])).tolist()
        [1, 0]
    """
    others = shares.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return np.asarray(others.argmax(axis=1), dtype=np.int64)


def ranks(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Mid-ranks [N] of scores [N], from 0 for the smallest to 1; equals share theirs.

    Example:
        >>> ranks(np.array([5.0, 1.0, 5.0, 9.0])).tolist()
        [0.5, 0.0, 0.5, 1.0]
    """
    from scipy.stats import rankdata

    return (rankdata(scores) - 1) / max(1, len(scores) - 1)
