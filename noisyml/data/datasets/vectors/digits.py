"""Handwritten digits as vectors of 64 grey levels: tiny, embedded, for tests and first steps."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split, TestSet
from noisyml.data.datasets.vectors.files import Gallery, Source, test_sets, vector_splits
from noisyml.data.readers.partition import TestShare, check_fractions


class DigitVectors(DatasetSource):
    """1,797 digits as vectors of 64 grey levels (scikit-learn's `load_digits`).

    Args:
        val_fraction: share of each class for ``val``, in [0, 1).
        test_fraction: share of each class for ``test``, in (0, 1).
        seed: which of the possible carvings; unrelated to the seed of a run.
        centre: subtract the mean of the training vectors.
        unit_norm: bring vectors to length 1, after that.
        gallery: what a test searches: the other ``test`` vectors, or those of ``train``.
    """

    description: ClassVar[str] = "scikit-learn's 1,797 digits as vectors of 64; no download"
    vector_size: ClassVar[int] = 64

    def __init__(
        self,
        val_fraction: OpenShare = 0.1,
        test_fraction: TestShare = 0.3,
        seed: WholeNonNegative = 0,
        centre: bool = True,
        unit_norm: bool = True,
        gallery: Gallery = "test",
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.centre = centre
        self.unit_norm = unit_norm
        self.gallery = gallery

    def missing(self) -> str | None:
        """None: scikit-learn brings them."""
        return None

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if its fraction is positive) and ``test``."""
        from sklearn.datasets import load_digits

        data = load_digits()
        names = [f"digit/{i:04d}" for i in range(len(data.target))]
        vectors = data.data.astype(np.float32)
        source = Source(vectors, names, data.target.astype(np.int64), "digits")
        splits, _, self.split_origin = vector_splits(
            {"train": source},
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.seed,
            centre=self.centre,
            unit_norm=self.unit_norm,
        )
        return splits

    def test_sets(self, names: Any) -> dict[str, TestSet]:
        """``test`` by itself, or searched among the training vectors."""
        return test_sets(self.gallery)
