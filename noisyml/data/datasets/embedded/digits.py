"""Handwritten digits that come with scikit-learn: tiny, embedded, for tests and first steps."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.layout import array_split
from noisyml.data.readers.partition import (
    SplitKind,
    TestShare,
    carve,
    carving,
    check_fractions,
)


class Digits(DatasetSource):
    """1,797 digits, 8x8 grey (scikit-learn's `load_digits`, test part of UCI's optical digits).

    Args:
        split: ``closed_set`` (all ten classes in every split) or ``zero_shot`` (disjoint classes).
        val_fraction: share of each class (or of the classes) for ``val``, in [0, 1).
        test_fraction: share of each class (or of the classes) for ``test``, in (0, 1).
        seed: which of the possible carvings; unrelated to the seed of a run.
        mirrored: mirror each image with probability 0.5, once and for all, so that orientation
            tells nothing of the class: for methods that rely on mirroring (eac).
    """

    description: ClassVar[str] = "scikit-learn's 1,797 digits, 8x8 grey, 10 classes; no download"

    def __init__(
        self,
        split: SplitKind = "closed_set",
        val_fraction: OpenShare = 0.1,
        test_fraction: TestShare = 0.3,
        seed: WholeNonNegative = 0,
        mirrored: bool = False,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        self.split = split
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.mirrored = mirrored

    def missing(self) -> str | None:
        """None: scikit-learn brings the images."""
        return None

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if its fraction is positive) and ``test``."""
        from sklearn.datasets import load_digits

        data = load_digits()
        # Grey levels run from 0 to 16.
        pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
        if self.mirrored:
            chosen = np.random.default_rng([self.seed, 0x313]).random(len(pixels)) < 0.5
            pixels[chosen] = pixels[chosen, :, ::-1]
        labels = data.target.astype(np.int64)
        keys = [f"digit/{i:04d}" for i in range(len(labels))]
        names = [str(digit) for digit in range(10)]
        zero_shot = self.split == "zero_shot"
        parts = carve(
            labels, names, keys, self.split, self.val_fraction, self.test_fraction, self.seed
        )
        self.split_origin = carving(self.val_fraction, self.test_fraction, self.seed)
        splits = {}
        for number, name in enumerate(("train", "val", "test")):
            rows = np.flatnonzero(parts == number)
            if not len(rows):
                continue
            present, renumbered = np.unique(labels[rows], return_inverse=True)
            own = renumbered.astype(np.int64) if zero_shot else labels[rows]
            own_names = [names[i] for i in present] if zero_shot else names
            own_keys = [keys[row] for row in rows]
            splits[name] = array_split(name, pixels[rows], own, own_names, own_keys)
        return splits
