"""Tiny ImageNet (Stanford CS231n, 2015): 200 classes of ImageNet at 64x64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from noisyml.data.readers.closed_set import ClosedSetFiles, Listed
from noisyml.data.readers.folders import LeftOut, image_files
from noisyml.data.readers.layout import first_missing, read_columns
from noisyml.errors import UserError
from noisyml.storage.text import read_lines


class TinyImageNet(ClosedSetFiles):
    """100,000 photographs to train on; the official validation images are the test.

    The labels of the official test images have not been published. Classes are numbered in the
    order of their WordNet ids, as in loaders that go by folders; ``wnids.txt`` has another order.

    Args:
        root: the folder ``tiny-imagenet-200``.
        val_fraction: see `ClosedSetFiles`.
        seed: see `ClosedSetFiles`.
        check_counts: see `ClosedSetFiles`.
    """

    description: ClassVar[str] = "Tiny ImageNet: 110,000 photographs, 64x64, 200 classes"
    how_to_get: ClassVar[str] = (
        "fetch tiny-imagenet-200.zip (248 MB; cs231n.stanford.edu/tiny-imagenet-200.zip), unpack "
        "it, and set dataset.root to the folder tiny-imagenet-200 with wnids.txt, words.txt, "
        "train/ and val/."
    )
    name = "tiny_imagenet"

    def missing(self) -> str | None:
        """None, or the first official file that is not there."""
        return first_missing(
            self.root, "wnids.txt", "words.txt", "train", "val/images", "val/val_annotations.txt"
        )

    def published(self) -> dict[str, int | Sequence[int]]:
        """500 training and 50 test images of each class."""
        return {"train": [500] * 200, "test": [50] * 200}

    def class_names(self) -> Sequence[str]:
        """The first word of each class, with its id where two classes share it."""
        path = self.root / "words.txt"
        words = {row[0]: row[1].partition(",")[0] for row in read_columns(path, 2, tabs=True)}
        ids = self._ids()
        unnamed = next((wnid for wnid in ids if wnid not in words), None)
        if unnamed is not None:
            raise UserError(f"{path} has no word for {unnamed} of wnids.txt; unpack it again.")
        names = [words[wnid] for wnid in ids]
        return [
            name if names.count(name) == 1 else f"{name} ({wnid})"
            for name, wnid in zip(names, ids, strict=True)
        ]

    def parts(self) -> dict[str, Listed]:
        """Folders of classes, and the table of the official validation images."""
        ids = self._ids()
        number = {wnid: i for i, wnid in enumerate(ids)}
        lacking = first_missing(self.root / "train", *(f"{wnid}/images" for wnid in ids))
        if lacking is not None:
            raise UserError(f"{lacking} is missing for a class of wnids.txt; unpack it again.")
        left_out = LeftOut()
        files = [image_files(self.root / "train" / wnid / "images", left_out) for wnid in ids]
        self.left_out = left_out.by_kind
        paths = [
            f"train/{wnid}/images/{name}"
            for wnid, found in zip(ids, files, strict=True)
            for name in found
        ]
        labels = np.repeat(np.arange(len(ids)), [len(found) for found in files])
        table = self.root / "val" / "val_annotations.txt"
        rows = read_columns(table, 3)
        unknown = next((i for i, row in enumerate(rows) if row[1] not in number), None)
        if unknown is not None:
            raise UserError(
                f"{table}, line {unknown + 1}: class '{rows[unknown][1]}' is not in wnids.txt."
            )
        test = np.array([number[row[1]] for row in rows], dtype=np.int64)
        return {
            "train": Listed(paths, labels.astype(np.int64)),
            "test": Listed([f"val/images/{row[0]}" for row in rows], test),
        }

    def _ids(self) -> list[str]:
        return sorted(line.strip() for line in read_lines(self.root / "wnids.txt"))
