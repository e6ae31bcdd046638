"""A smaller training split: every class gives the same share, whatever the order of the samples."""

from __future__ import annotations

import numpy as np

from noisyml.data.base import Split
from noisyml.data.readers.partition import hash_ranks
from noisyml.errors import UserError


def subset(split: Split, size: int, seed: int) -> Split:
    """`size` samples of a split, in their order.

    A class of n among N samples gives ``size * n / N`` of them, rounded down; what is left over
    goes to the largest fractions. Samples of several labels are drawn without regard to them. The
    choice depends on keys and seed alone.

    Args:
        split: to choose from.
        size: samples wanted, from 1 to ``len(split)``.
        seed: which of the possible choices.

    Raises:
        UserError: the split has fewer samples.
    """
    if not 1 <= size <= len(split):
        raise UserError(
            f"data.train_size={size} must lie between 1 and the {len(split)} samples of the "
            f"{split.name} split; leave it null for all."
        )
    if size == len(split):
        return split
    labels = split.target.strata(split.labels)
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    shares = counts * (size / len(split))
    quota = np.floor(shares).astype(np.int64)
    largest = np.argsort(quota - shares, kind="stable")
    quota[largest[: size - int(quota.sum())]] += 1
    order = np.lexsort((hash_ranks(split.keys, seed), member))
    place = np.empty(len(split), dtype=np.int64)
    place[order] = np.arange(len(split)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.flatnonzero(place < quota[member])
    return split.take(rows, f"{split.fingerprint}[{size} by {seed}]")
