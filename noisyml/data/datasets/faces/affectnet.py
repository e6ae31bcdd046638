"""AffectNet, manually annotated (Mollahosseini, Hasani, Mahoor, IEEE TAC 2019)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.readers.closed_set import ClosedSetFiles, Listed, check_range
from noisyml.data.readers.layout import (
    first_missing,
    first_missing_of_layouts,
    whole_numbers,
)
from noisyml.errors import UserError
from noisyml.storage.text import read_table

CLASS_NAMES = (
    "Neutral", "Happiness", "Sadness", "Surprise", "Fear", "Disgust", "Anger", "Contempt",
)  # fmt: skip
#: Annotations of the lists from 8 on: none, uncertain, no face.
ANNOTATIONS = 11
SETS = {"train": "train_set", "test": "val_set"}
LISTS = {"train": "training.csv", "test": "validation.csv"}
LIST_FOLDER, LIST_IMAGES = "Manually_Annotated_file_lists", "Manually_Annotated_Images"
#: Images by class; the test has 500 of each, of which the newer release lacks one of contempt.
TRAIN = (74_874, 134_415, 25_459, 14_090, 6_378, 3_803, 24_882, 3_750)
TEST = (500, 500, 500, 500, 500, 500, 500, 500)
TEST_OF_SETS = (500, 500, 500, 500, 500, 500, 500, 499)


class AffectNet(ClosedSetFiles):
    """Faces from the web; the official validation images are the test.

    Two layouts are read.

    * ``sets``: ``train_set/images/<id>.jpg`` with ``train_set/annotations/<id>_exp.npy``, and the
      same in ``val_set`` (the release with eight expressions).
    * ``lists``: ``training.csv`` and ``validation.csv`` (there, or in
      ``Manually_Annotated_file_lists/``) and ``Manually_Annotated_Images/<folder>/<file>``.

    Args:
        root: folder of the data set.
        classes: 8, or 7 without contempt.
        layout: one of the two, or ``auto`` for the first that is there.
        val_fraction: see `ClosedSetFiles`.
        seed: see `ClosedSetFiles`.
        check_counts: see `ClosedSetFiles`; here of every class.

    Raises:
        UserError: a choice that does not exist.
    """

    description: ClassVar[str] = "AffectNet: 291,650 faces from the web, 8 or 7 expressions"
    how_to_get: ClassVar[str] = (
        "ask the authors for it (mohammadmahoor.com/affectnet; 291,650 images, 4 GB), fetch and "
        "unpack both sets, and set dataset.root to the folder with train_set/{images,annotations} "
        "and val_set/{images,annotations}, or with training.csv, validation.csv and "
        "Manually_Annotated_Images/."
    )
    name = "affectnet"

    def __init__(
        self,
        root: str,
        classes: Literal[8, 7] = 8,
        layout: Literal["auto", "sets", "lists"] = "auto",
        val_fraction: OpenShare = 0.1,
        seed: WholeNonNegative = 0,
        check_counts: bool = True,
    ) -> None:
        super().__init__(root, val_fraction, seed, check_counts)
        self.classes = classes
        self.layout = layout

    def missing(self) -> str | None:
        """None, or what the layout lacks, or the one of which most is there."""
        layouts = ("sets", "lists") if self.layout == "auto" else (self.layout,)
        return first_missing_of_layouts(self.root, *map(self._needed, layouts))

    def _needed(self, layout: str) -> list[str]:
        """Names below the root that a layout needs."""
        if layout == "sets":
            return [
                f"{part}/{kind}" for part in SETS.values() for kind in ("images", "annotations")
            ]
        folder = self._list_folder.relative_to(self.root)
        return [*(str(folder / name) for name in LISTS.values()), LIST_IMAGES]

    @property
    def _list_folder(self) -> Path:
        inner = self.root / LIST_FOLDER
        return inner if inner.is_dir() else self.root

    def _layout_found(self) -> str:
        if self.layout != "auto":
            return self.layout
        lacking = first_missing(self.root, *self._needed("sets"))
        return "sets" if lacking is None else "lists"

    def class_names(self) -> Sequence[str]:
        """The expressions in the order of the official numbers."""
        return CLASS_NAMES[: self.classes]

    def published(self) -> dict[str, int | Sequence[int]]:
        """Counts by class of the layout that is read."""
        test = TEST_OF_SETS if self._layout_found() == "sets" else TEST
        return {"train": TRAIN[: self.classes], "test": test[: self.classes]}

    def parts(self) -> dict[str, Listed]:
        """Images of the chosen expressions."""
        read = self._from_set if self._layout_found() == "sets" else self._from_list
        parts = {}
        left_out: list[str] = []
        for part in ("train", "test"):
            paths, labels = read(part)
            parts[part] = Listed(paths, labels).take(np.flatnonzero(labels < self.classes))
            others = [
                path for path, label in zip(paths, labels, strict=True) if label >= self.classes
            ]
            left_out += others
        self.left_out = {"images of no chosen expression": left_out} if left_out else {}
        return parts

    def _from_set(self, part: str) -> tuple[list[str], NDArray[np.int64]]:
        folder = self.root / SETS[part]
        annotated = sorted(
            name.removesuffix("_exp.npy")
            for name in os.listdir(folder / "annotations")
            if name.endswith("_exp.npy")
        )
        labels = [_read_expression(folder / "annotations" / f"{i}_exp.npy") for i in annotated]
        array = np.array(labels, dtype=np.int64)
        check_range(array, len(CLASS_NAMES), folder / "annotations")
        return [f"{SETS[part]}/images/{image}.jpg" for image in annotated], array

    def _from_list(self, part: str) -> tuple[list[str], NDArray[np.int64]]:
        path = self._list_folder / LISTS[part]
        rows = read_table(path, header=False).rows
        # Only the training list has a header; the columns are the same.
        rows = rows[1:] if rows and rows[0][0] == "subDirectory_filePath" else rows
        short = next((i for i, row in enumerate(rows) if len(row) < 7), None)
        if short is not None:
            raise UserError(
                f"{path}, row {short + 1}: expected 9 columns, found {len(rows[short])}."
            )
        labels = whole_numbers([row[6] for row in rows], path)
        check_range(labels, ANNOTATIONS, path)
        return [f"{LIST_IMAGES}/{row[0]}" for row in rows], labels


def _read_expression(path: Path) -> int:
    """The number in an annotation file, an array without dimensions of text or number."""
    try:
        return int(np.load(path, allow_pickle=False).item())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no expression ({error}); unpack it again.") from error
