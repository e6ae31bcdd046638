"""Multi-label noise draw for draw as released codes make it, from NumPy's legacy generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def add_and_remove(
    labels: NDArray[np.uint8], added: NDArray[np.int64], removed: NDArray[np.int64], seed: int
) -> NDArray[np.uint8]:
    """Labels of each class added, then removed (nar_mlc, ``add_mixed_noise``).

    Args:
        labels: uint8 [N, C], clean.
        added: [C], how many.
        removed: [C], how many.
        seed: of the generator.
    """
    rng = np.random.RandomState(seed)
    observed = labels.copy()
    for label in range(labels.shape[1]):
        # A draw of nothing moves the generator too.
        for value, many in ((1, added[label]), (0, removed[label])):
            pool = np.flatnonzero(labels[:, label] != value)
            if len(pool):
                observed[rng.choice(pool, many, replace=False), label] = value
    return observed


def share_of_entries(
    pools: Sequence[NDArray[np.bool_]], rate: float, seed: int
) -> NDArray[np.bool_]:
    """A truncated share of each pool of entries, bool [N, C] (noisifier).

    Args:
        pools: bool [N, C] each, in the order of the draws.
        rate: the share.
        seed: of the generator; 0 in the release.
    """
    rng = np.random.RandomState(seed)
    flipped = np.zeros(pools[0].shape, dtype=bool)
    for pool in pools:
        inside = np.flatnonzero(pool)
        chosen = rng.choice(inside, int(len(inside) * rate), replace=False)
        flipped.flat[chosen] = True
    return flipped


def classwise(shape: tuple[int, ...], rate: float, seed: int) -> NDArray[np.bool_]:
    """A truncated share of the samples for each class, bool [N, C] (noisifier)."""
    rng = np.random.RandomState(seed)
    samples, classes = shape
    flipped = np.zeros(shape, dtype=bool)
    for label in range(classes):
        flipped[rng.choice(samples, int(samples * rate), replace=False), label] = True
    return flipped


def per_sample(
    shape: tuple[int, ...], sample_rate: float, class_rate: float, seed: int
) -> NDArray[np.bool_]:
    """Samples, then classes of each in the order drawn, truncated counts; bool [N, C] (RCML)."""
    rng = np.random.RandomState(seed)
    samples, classes = shape
    flipped = np.zeros(shape, dtype=bool)
    for row in rng.choice(samples, int(samples * sample_rate), replace=False):
        flipped[row, rng.choice(classes, int(classes * class_rate), replace=False)] = True
    return flipped


def per_batch(
    shape: tuple[int, ...], sample_rate: float, class_rate: float, seed: int
) -> NDArray[np.bool_]:
    """Samples, then one set of classes for all of them, rounded counts; bool [N, C] (CCML)."""
    rng = np.random.RandomState(seed)
    samples, classes = shape
    flipped = np.zeros(shape, dtype=bool)
    rows = rng.choice(samples, round(samples * sample_rate), replace=False)
    columns = rng.choice(classes, round(classes * class_rate), replace=False)
    flipped[np.ix_(rows, columns)] = True
    return flipped
