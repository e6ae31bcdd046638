"""A data set with the same classes everywhere as one of retrieval among classes never seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.partition import TestShare, carve_classes, carving
from noisyml.errors import UserError
from noisyml.targets import SINGLE


class UnseenClasses(DatasetSource):
    """Training images of some classes, and test images of the other ones.

    Args:
        source: a data set with one label per image and the same classes in all splits.
        test_fraction: share of the classes for ``test``, in (0, 1); two at least.
        seed: which of the classes; unrelated to the seed of a run.
    """

    def __init__(
        self, source: DatasetSource, test_fraction: TestShare = 0.3, seed: WholeNonNegative = 0
    ) -> None:
        self.source = source
        self.test_fraction = test_fraction
        self.seed = seed
        self.labels_are_true = source.labels_are_true
        self.clean_val = source.clean_val

    @property
    def description(self) -> str:  # type: ignore[override]
        """That of the data set."""
        return f"{self.source.description}; other classes for the test"

    @property
    def how_to_get(self) -> str:  # type: ignore[override]
        """That of the data set."""
        return self.source.how_to_get

    def missing(self) -> str | None:
        """None, or the first file that the data set lacks."""
        return self.source.missing()

    def splits(self) -> dict[str, Split]:
        """``train`` and ``val``, if the data set has one, of the classes to learn, and ``test``.

        Raises:
            UserError: files missing, several labels per image, or too few classes.
        """
        given = self.source.splits()
        self.left_out = self.source.left_out
        train = given["train"]
        if train.target is not SINGLE or "test" not in given:
            raise UserError(
                f"Classes are kept apart where every image has one and there is a test split; the "
                f"data set gives {train.target.words} and the splits {', '.join(given)}."
            )
        unseen = carve_classes(train.class_names, 0.0, self.test_fraction, self.seed) == 2
        self.split_origin = f"classes {carving(0.0, self.test_fraction, self.seed)}"
        return {
            name: _of_classes(split, np.flatnonzero(unseen == (name == "test")))
            for name, split in given.items()
        }


def _of_classes(split: Split, classes: NDArray[np.int64]) -> Split:
    """The samples of some classes [M], in ascending order, which are numbered anew."""
    rows = np.flatnonzero(np.isin(split.labels, classes))
    taken = split.take(rows, f"{split.fingerprint}[classes {classes.tolist()}]")
    return replace(
        taken,
        labels=np.searchsorted(classes, taken.labels).astype(np.int64),
        class_names=[split.class_names[number] for number in classes.tolist()],
    )
