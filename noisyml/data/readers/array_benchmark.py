"""Benchmarks of small images held in memory, with an official training and test half."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.layout import array_split, check_count, require_files
from noisyml.data.readers.partition import bare_protocol, carve_samples, carving

ArraySplit = Literal["official", "bare"]
#: How ``val`` is taken from the training half.


@dataclass(frozen=True)
class LabelledArrays:
    """Images of one official half.

    Attributes:
        pixels: uint8 [N, H, W] or [N, H, W, 3].
        labels: int64 [N].
        class_names: C names.
        extras: further arrays [N].
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: Sequence[str]
    extras: dict[str, NDArray] = field(default_factory=dict)


class ArrayBenchmark(DatasetSource):
    """A data set of small images whose official halves are ``train`` and ``test``.

    The key of a sample is its half and its official number, ``train/00017``: label files in the
    order of the official training half are joined by it, whatever part of it is ``train``.

    Args:
        root: folder of the data set.
        val_fraction: share of each training class for ``val``, in [0, 1).
        seed: which of the possible carvings; unrelated to the seed of a run.
        check_counts: compare the numbers of images with the published ones.
        split: ``official``: the training half without ``val``, in its order; ``bare``: the
            protocol of `bare_protocol`, which leaves `val_fraction` unused.

    Raises:
        UserError: a fraction out of range, or a split that does not exist.
    """

    #: The name of the data set in messages.
    name: ClassVar[str]
    #: Published number of images of ``train`` and ``test``.
    published: ClassVar[dict[str, int]]

    def __init__(
        self,
        root: str,
        val_fraction: OpenShare = 0.1,
        seed: WholeNonNegative = 0,
        check_counts: bool = True,
        split: ArraySplit = "official",
    ) -> None:
        self.root = Path(root)
        self.val_fraction = val_fraction
        self.seed = seed
        self.check_counts = check_counts
        self.split = split

    @abstractmethod
    def read(self, part: str) -> LabelledArrays:
        """The official ``train`` or ``test`` half.

        Raises:
            UserError: the files contradict the official layout.
        """

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (unless its fraction is 0) and ``test``."""
        require_files(self, self.name)
        train, test = self._counted("train"), self._counted("test")
        if self.split == "bare":
            self.split_origin = f"80 : 20 as in bare, val of 100 a class by seed={self.seed}"
            rows = bare_protocol(train.labels, self.seed)
        else:
            self.split_origin = f"val {carving(self.val_fraction, 0.0, self.seed)} out of train"
            parts = carve_samples(
                train.labels, _keys("train", train), self.val_fraction, 0.0, self.seed
            )
            rows = {name: np.flatnonzero(parts == i) for i, name in enumerate(("train", "val"))}
        splits = {
            name: _take(name, "train", train, chosen)
            for name, chosen in rows.items()
            if len(chosen)
        }
        return splits | {"test": _take("test", "test", test, np.arange(len(test.labels)))}

    def _counted(self, part: str) -> LabelledArrays:
        found = self.read(part)
        if self.check_counts:
            what = f"Images of the {part} split of {self.name}"
            check_count(what, len(found.labels), self.published[part])
        return found


def _keys(part: str, arrays: LabelledArrays) -> list[str]:
    return [f"{part}/{i:05d}" for i in range(len(arrays.labels))]


def _take(name: str, part: str, arrays: LabelledArrays, rows: NDArray[np.int64]) -> Split:
    return array_split(
        name,
        arrays.pixels[rows],
        arrays.labels[rows],
        arrays.class_names,
        [f"{part}/{row:05d}" for row in rows.tolist()],
        {key: values[rows] for key, values in arrays.extras.items()},
    )
