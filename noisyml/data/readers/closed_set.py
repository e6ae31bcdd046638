"""Classification sets of image files: official lists of images and labels, same classes in all."""

from __future__ import annotations

import dataclasses
import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.layout import check_count, file_split, require_files, stat_files
from noisyml.data.readers.partition import (
    carve_labelled,
    carve_samples,
    carving,
)
from noisyml.errors import UserError
from noisyml.targets import Labels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """Images of one official part.

    Attributes:
        paths: N paths relative to the root.
        labels: int64 [N], indices into the data set's class names, or multi-hot uint8 [N, C].
        extras: further arrays [N].
        keys: N unique names, by which lists of labels are joined; None: the paths.
        strata: int64 [N], groups of which each gives its share to a carved split; None: the
            labels, see `carve_labelled`.
    """

    paths: Sequence[str]
    labels: Labels
    extras: dict[str, NDArray] = field(default_factory=dict)
    keys: Sequence[str] | None = None
    strata: NDArray[np.int64] | None = None

    def carved(self, val_fraction: float, test_fraction: float, seed: int) -> dict[str, Listed]:
        """``train``, ``val`` and ``test`` by shares of the strata, see `carve_samples`."""
        keys = self.paths if self.keys is None else self.keys
        shares = (keys, val_fraction, test_fraction, seed)
        if self.strata is None:
            parts = carve_labelled(self.labels, *shares)
        else:
            parts = carve_samples(self.strata, *shares)
        names = ("train", "val", "test")
        return {name: self.take(np.flatnonzero(parts == i)) for i, name in enumerate(names)}

    def take(self, rows: NDArray[np.int64]) -> Listed:
        """The images at `rows`."""
        keys = None if self.keys is None else [self.keys[row] for row in rows]
        extras = {name: values[rows] for name, values in self.extras.items()}
        strata = None if self.strata is None else self.strata[rows]
        return Listed([self.paths[row] for row in rows], self.labels[rows], extras, keys, strata)

    def to_split(self, name: str, root: Path, class_names: Sequence[str]) -> Split:
        """A split of image files, which must all be there."""
        split = file_split(name, root, self.paths, self.labels, class_names, self.extras)
        return split if self.keys is None else dataclasses.replace(split, keys=list(self.keys))


class ClosedSetFiles(DatasetSource):
    """A data set of image files whose test images show the training classes.

    Args:
        root: folder of the data set.
        val_fraction: share of each training class for ``val``, in [0, 1); unused where the data
            set has an official one.
        seed: which of the possible carvings; unrelated to the seed of a run.
        check_counts: compare the numbers of images with the published ones.

    Raises:
        UserError: a fraction out of range.
    """

    #: The name of the data set in messages.
    name: ClassVar[str]

    def __init__(
        self,
        root: str,
        val_fraction: OpenShare = 0.1,
        seed: WholeNonNegative = 0,
        check_counts: bool = True,
    ) -> None:
        self.root = Path(root)
        self.val_fraction = val_fraction
        self.seed = seed
        self.check_counts = check_counts

    @abstractmethod
    def class_names(self) -> Sequence[str]:
        """The names of the classes, in the order of the labels."""

    @abstractmethod
    def parts(self) -> dict[str, Listed]:
        """The official ``train`` and ``test``, and ``val`` where there is one.

        Raises:
            UserError: the files contradict the official layout.
        """

    @abstractmethod
    def published(self) -> dict[str, int | Sequence[int]]:
        """The published number of images of some parts, or their numbers by class."""

    def usable(self, parts: dict[str, Listed]) -> dict[str, Listed]:
        """The images of the counted parts to train and test on; everything, if not overridden."""
        return parts

    def available(self, train: Listed, max_missing: float) -> Listed:
        """The training images whose files are there; the others are told by `left_out`.

        Args:
            train: the official training images.
            max_missing: share of them that may be gone; 0: none may, which the split itself checks.

        Raises:
            UserError: more of them are gone.
        """
        if max_missing == 0:
            return train
        there = np.array([stat is not None for stat in stat_files(self.root, train.paths)], bool)
        gone = [train.paths[row] for row in np.flatnonzero(~there).tolist()]
        if not gone:
            return train
        report = (
            f"{len(gone)} of {len(there)} training images of {self.name} are missing, the first is "
            f"{gone[0]}"
        )
        if len(gone) > max_missing * len(there):
            raise UserError(
                f"{report}; fetch them, or raise dataset.max_missing (now {max_missing}) to train "
                "without them."
            )
        logger.warning("%s; training goes on without them.", report)
        self.left_out = {**self.left_out, "listed images that are not there": gone}
        return train.take(np.flatnonzero(there))

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (official, or unless its fraction is 0) and ``test``.

        Raises:
            UserError: files missing, or contents that contradict the published layout or counts.
        """
        require_files(self, self.name)
        names = list(self.class_names())
        parts = self.parts()
        if self.check_counts:
            for part, expected in self.published().items():
                self._check(part, parts[part], names, expected)
        parts = self.usable(parts)
        if "val" not in parts and self.val_fraction > 0:
            self.split_origin = f"val {carving(self.val_fraction, 0.0, self.seed)} out of train"
            carved = parts["train"].carved(self.val_fraction, 0.0, self.seed)
            parts = {"train": carved["train"], "val": carved["val"], "test": parts["test"]}
            if not len(parts["val"].paths):
                del parts["val"]
        return {part: self.to_split(part, listed, names) for part, listed in parts.items()}

    def to_split(self, part: str, listed: Listed, names: Sequence[str]) -> Split:
        """A split of image files; a data set of other images than PIL reads overrides it."""
        return listed.to_split(part, self.root, names)

    def _check(
        self, part: str, listed: Listed, names: Sequence[str], expected: int | Sequence[int]
    ) -> None:
        where = f"of the {part} split of {self.name}"
        if isinstance(expected, int):
            check_count(f"Images {where}", len(listed.paths), expected)
            return
        check_count(f"Images {where}", len(listed.paths), sum(expected))
        found = np.bincount(listed.labels, minlength=len(names)).tolist()
        for name, here, published in zip(names, found, expected, strict=True):
            check_count(f"Images of class '{name}' {where}", here, published)


def check_range(labels: NDArray[np.int64], classes: int, path: Path, first: int = 0) -> None:
    """Raise unless all labels lie in ``0 .. classes - 1``.

    Args:
        labels: int64 [N], counted from 0.
        classes: number of classes C.
        path: where they stand, for the message.
        first: what the file writes for label 0.

    Raises:
        UserError: one does not.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise UserError(
            f"{path} has the label {labels[wrong[0]] + first}, but labels run from {first} to "
            f"{classes - 1 + first}; fetch it again."
        )
