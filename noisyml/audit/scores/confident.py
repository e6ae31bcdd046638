"""Confident learning: wrong labels counted and found from out-of-fold probabilities.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR
2021 (arXiv 1911.00068). Thresholds, confident joint, its calibration and the rules of pruning are
those that cleanlab publishes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.audit.scores.labels import best_other, label_margin, own_share
from noisyml.checks import checked

#: Threshold of a class without rows: no probability reaches it.
_UNREACHABLE = 2.0
#: Thresholds are at least this, and a probability counts from so much below its threshold.
_LOWEST, _SLACK = 2e-6, 1e-6

Rule = Literal["confident_learning", "noise_rate", "class", "both"]


def confident_thresholds(probabilities: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Mean probability of each class over the rows that carry its label, t_j [C] (eq. 2).

    Example:
        >>> confident_thresholds(np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 0])).tolist()
        [0.5, 2.0]
    """
    classes = probabilities.shape[1]
    own = own_share(probabilities, labels).astype(np.float64)
    count = np.bincount(labels, minlength=classes)
    total = np.bincount(labels, own, minlength=classes)
    mean = total / np.maximum(count, 1)
    return np.where(count > 0, mean.clip(_LOWEST), _UNREACHABLE)


def confident_classes(probabilities: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.int64]:
    """The class that each row is confidently counted in [N]; -1 for none (eq. 1).

    Of several classes above their thresholds the likeliest.
    """
    reached = probabilities >= confident_thresholds(probabilities, labels) - _SLACK
    several = reached.sum(axis=1) > 1
    chosen = np.where(several, probabilities.argmax(axis=1), reached.argmax(axis=1))
    return np.where(reached.any(axis=1), chosen, -1)


def confident_joint(
    probabilities: NDArray[Any], labels: NDArray[Any], calibrated: bool = True
) -> NDArray[np.int64]:
    """Rows by given label (first axis) and confident class (second) [C, C] int64.

    Args:
        probabilities: [N, C], out of fold.
        labels: [N] int64, observed.
        calibrated: scale each line to the number of rows with its label (eq. 3), in whole numbers.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8]])
        >>> confident_joint(p, np.array([0, 0, 0, 1])).tolist()
        [[2, 1], [0, 1]]
    """
    classes = probabilities.shape[1]
    found = confident_classes(probabilities, labels)
    sure = found >= 0
    flat = labels[sure] * classes + found[sure]
    joint = np.bincount(flat, minlength=classes**2).reshape(classes, classes)
    np.fill_diagonal(joint, joint.diagonal().clip(min=1))
    if not calibrated:
        return joint
    counts = np.bincount(labels, minlength=classes)
    shares = joint / joint.sum(axis=1, keepdims=True)
    scaled = shares * counts[:, None]
    return _whole_lines(scaled * (counts.sum() / scaled.sum()))


def _whole_lines(counts: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers near `counts` [C, C] whose lines have the same sums.

    What rounding leaves over goes where it was nearest to being rounded the other way.
    """
    whole = np.rint(counts)
    left = np.rint(counts.sum(axis=1)).astype(np.int64) - whole.sum(axis=1).astype(np.int64)
    difference = counts - whole
    # Lines that lack some get them where rounding took most, the last of equals first; lines that
    # have too many give them where it gave most.
    order = np.argsort(difference, axis=1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(len(counts))[None, :], axis=1)
    place = np.where(left[:, None] > 0, len(counts) - 1 - place, place)
    whole += np.sign(left)[:, None] * (place < np.abs(left)[:, None])
    return whole.astype(np.int64)


@checked
def confident_issues(
    probabilities: NDArray[Any], labels: NDArray[Any], rule: Rule = "confident_learning"
) -> NDArray[np.bool_]:
    """Labels that confident learning calls wrong [N] bool.

    Args:
        probabilities: [N, C], out of fold.
        labels: [N] int64, observed.
        rule: ``confident_learning``: rows counted off the diagonal of the joint; ``noise_rate``: of
            each pair of classes as many rows as the calibrated joint has, those of the largest
            margin (the paper's best, PBNR); ``class``: of each class those with the lowest
            probability of their label (PBC); ``both``: what these two agree on.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8]])
        >>> confident_issues(p, np.array([0, 0, 0, 1])).tolist()
        [False, False, True, False]
    """
    if rule == "confident_learning":
        found = confident_classes(probabilities, labels)
        # As published: rows whose label is the likeliest class are not called wrong.
        likely = probabilities.argmax(axis=1) == labels
        return (found >= 0) & (found != labels) & ~likely
    joint = confident_joint(probabilities, labels)
    if rule == "both":
        return confident_issues(probabilities, labels, "noise_rate") & confident_issues(
            probabilities, labels, "class"
        )
    marked = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        own = probabilities[rows, label]
        if rule == "class":
            wanted = len(rows) - int(joint[label, label])
            marked[rows[np.argsort(own, kind="stable")[: max(wanted, 0)]]] = True
            continue
        margins = own[:, None] - probabilities[rows]
        for other in np.flatnonzero(joint[label]):
            if other != label:
                lowest = np.argsort(margins[:, other], kind="stable")[: joint[label, other]]
                marked[rows[lowest]] = True
    return marked & (probabilities.argmax(axis=1) != labels)


def confident_noise_rate(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of the calibrated joint off its diagonal."""
    joint = confident_joint(probabilities, labels)
    return 1 - float(joint.trace() / joint.sum())


def self_confidence(probabilities: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Probability of the label [N]: cleanlab's ``self_confidence``."""
    return own_share(probabilities, labels)


def normalised_margin(probabilities: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Half of one plus the margin [N] in [0, 1]: cleanlab's ``normalized_margin``."""
    return (label_margin(probabilities, labels) + 1) / 2


def confident_suggestion(probabilities: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.int64]:
    """The likeliest other class [N] int64."""
    return best_other(probabilities, labels)
