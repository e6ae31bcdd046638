"""Zero-shot retrieval sets of image files: an official list of images, classes and halves."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.layout import (
    check_archives,
    check_count,
    file_split,
    require_files,
)
from noisyml.data.readers.partition import DevelopmentSplit, held_out_classes


@dataclass(frozen=True)
class Rows:
    """Images of one split with their official class ids.

    Attributes:
        paths: N paths relative to the root.
        ids: int64 [N], official class ids.
        names: name of each id.
        extras: further arrays [N].
    """

    paths: list[str]
    ids: NDArray[np.int64]
    names: dict[int, str]
    extras: dict[str, NDArray] = field(default_factory=dict)

    def take(self, chosen: NDArray[np.bool_]) -> Rows:
        """The rows where `chosen` [N] is true."""
        paths = [path for path, keep in zip(self.paths, chosen, strict=True) if keep]
        extras = {key: values[chosen] for key, values in self.extras.items()}
        return Rows(paths, self.ids[chosen], self.names, extras)

    def to_split(self, name: str, root: Path) -> Split:
        """A split whose labels number the ids that occur, in their order."""
        present, labels = np.unique(self.ids, return_inverse=True)
        names = [self.names[int(value)] for value in present]
        labels = labels.astype(np.int64)
        return file_split(name, root, self.paths, labels, names, self.extras)


class ZeroShotFiles(DatasetSource):
    """A data set whose test classes are not among its training classes.

    Args:
        root: folder of the data set.
        val_classes: number of training classes, the last ones, to hold out as ``val``; the papers
            hold out none.
        check_counts: compare the numbers of images and classes with the published ones.
        split: ``official``; or ``dev``, with the second half of the training classes as ``val``
            (the first stage of proxynca_pp), while ``test`` stays what it is.
        archives: folder of the downloaded archives, whose MD5 sums are then compared with the
            published ones at every start; None: not.
    """

    #: The name of the data set in messages.
    name: ClassVar[str]
    #: Published (images, classes) of ``train`` and ``test``.
    published: ClassVar[dict[str, tuple[int, int]]]
    #: Published MD5 sums of the archives by file name.
    archive_md5: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        root: str,
        val_classes: WholeNonNegative = 0,
        check_counts: bool = True,
        split: DevelopmentSplit = "official",
        archives: str | None = None,
    ) -> None:
        self.root = Path(root)
        self.val_classes = val_classes
        self.check_counts = check_counts
        self.split = split
        self.archives = None if archives is None else Path(archives)

    @abstractmethod
    def rows(self) -> dict[str, Rows]:
        """The official ``train`` and ``test`` rows.

        Raises:
            UserError: the files contradict the official layout.
        """

    def available(self, part: str, rows: Rows) -> Rows:
        """The rows to use; a set of crawled images leaves out those that are gone."""
        return rows

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (with `val_classes` or ``split=dev``) and ``test``.

        Raises:
            UserError: files missing, contents that contradict the published layout or counts, or
                settings that do not fit them.
        """
        require_files(self, self.name)
        if self.archives is not None:
            check_archives(self.archives, self.archive_md5, self.name)
        official = self.rows()
        if self.check_counts:
            for part, (images, classes) in self.published.items():
                where = f"of the {part} split of {self.name}"
                check_count(f"Images {where}", len(official[part].paths), images)
                check_count(f"Classes {where}", len(np.unique(official[part].ids)), classes)
        official = {part: self.available(part, rows) for part, rows in official.items()}
        train = official["train"]
        held_out = held_out_classes(train.ids, self.split, self.val_classes, self.name)
        parts = {"train": train.take(~held_out)}
        if held_out.any():
            parts["val"] = train.take(held_out)
        parts["test"] = official["test"]
        return {part: rows.to_split(part, self.root) for part, rows in parts.items()}
