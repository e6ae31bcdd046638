"""FER+ (Barsoum, Zhang, Canton Ferrer, Zhang, ICMI 2016): new labels for the faces of FER2013."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.readers.closed_set import ClosedSetFiles, Listed
from noisyml.data.readers.layout import check_count, first_missing, whole_numbers
from noisyml.errors import UserError

CLASS_NAMES = (
    "Neutral", "Happiness", "Surprise", "Sadness", "Anger", "Disgust", "Fear", "Contempt",
)  # fmt: skip
#: Columns of votes that name no expression.
OTHERS = ("unknown", "NF")
FOLDERS = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
PARTS = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}
TABLE = "fer2013new.csv"
#: Rows of the table by usage; those without a face have no image.
ROWS = {"Training": 28_709, "PublicTest": 3_589, "PrivateTest": 3_589}


class FERPlus(ClosedSetFiles):
    """Faces with ten votes each, 48x48 grey; the label is the majority's.

    Args:
        root: folder with ``fer2013new.csv`` and ``FER2013Train/``, ``FER2013Valid/`` and
            ``FER2013Test/`` with their ``fer*.png``, below it or below its folder ``images``.
        classes: 8, or 7 without contempt.
        majority: ``absolute``: single votes are struck out and the winner needs more than half of
            the others, as in the release; ``plurality``: the most votes win, ties go to the
            expression that comes first.
        val: ``official`` (the public test of FER2013) or ``carved`` from train by `val_fraction`.
        val_fraction: share of each training class for ``val``, with ``val=carved``.
        seed: which of the possible carvings; unrelated to the seed of a run.
        check_counts: compare the numbers of rows of the table with the published ones.

    Raises:
        UserError: a choice that does not exist.
    """

    description: ClassVar[str] = "FER+: 35,887 faces, 48x48 grey, 8 or 7 expressions by ten votes"
    how_to_get: ClassVar[str] = (
        "fetch fer2013.csv (Kaggle, Challenges in Representation Learning; 35,887 images) and "
        "fer2013new.csv (github.com/microsoft/FERPlus), write the images with that repository's "
        "src/generate_training_data.py, and set dataset.root to the folder with fer2013new.csv, "
        "FER2013Train/, FER2013Valid/ and FER2013Test/."
    )
    name = "ferplus"

    def __init__(
        self,
        root: str,
        classes: Literal[8, 7] = 8,
        majority: Literal["absolute", "plurality"] = "absolute",
        val: Literal["official", "carved"] = "official",
        val_fraction: OpenShare = 0.1,
        seed: WholeNonNegative = 0,
        check_counts: bool = True,
    ) -> None:
        super().__init__(root, val_fraction, seed, check_counts)
        self.classes = classes
        self.majority = majority
        self.val = val

    def missing(self) -> str | None:
        """None, or the table or folder that is not there."""
        return first_missing(self.root, TABLE) or first_missing(self._images, *FOLDERS.values())

    @property
    def _images(self) -> Path:
        inner = self.root / "images"
        return inner if inner.is_dir() else self.root

    def class_names(self) -> Sequence[str]:
        """The expressions in the order of the table's columns."""
        return CLASS_NAMES[: self.classes]

    def published(self) -> dict[str, int | Sequence[int]]:
        """Nothing: how many images have a majority is not published, the rows are counted."""
        return {}

    def parts(self) -> dict[str, Listed]:
        """Rows with an image and a majority for one of the expressions, by usage."""
        usages, images, votes = _read_table(self.root / TABLE)
        if self.check_counts:
            for usage, expected in ROWS.items():
                what = f"Rows of {TABLE} with the usage {usage}"
                check_count(what, int((usages == usage).sum()), expected)
        labels = majority_vote(votes, self.majority == "absolute")
        used = (labels >= 0) & (labels < self.classes) & (images != "")
        prefix = "images/" if self._images != self.root else ""
        parts = {}
        for part, usage in PARTS.items():
            rows = np.flatnonzero(used & (usages == usage))
            paths = [f"{prefix}{FOLDERS[usage]}/{images[row]}" for row in rows]
            parts[part] = Listed(paths, labels[rows])
        if self.val == "carved":
            del parts["val"]
        return parts


def majority_vote(votes: NDArray[np.int64], absolute: bool) -> NDArray[np.int64]:
    """The expression of each face, -1 where there is none; int64 [N].

    Args:
        votes: int64 [N, 10], the expressions first, then unknown and no face.
        absolute: whether single votes are struck out and more than half of the rest is needed.
    """
    expressions = votes.shape[1] - len(OTHERS)
    if not absolute:
        some = votes[:, :expressions].max(axis=1) > 0
        return np.where(some, votes[:, :expressions].argmax(axis=1), -1)
    counted = np.where(votes > 1, votes, 0)
    winner = counted.argmax(axis=1)
    most = counted.max(axis=1)
    elected = (2 * most > counted.sum(axis=1)) & (winner < expressions)
    return np.where(elected, winner, -1)


def _read_table(path: Path) -> tuple[NDArray[np.str_], NDArray[np.str_], NDArray[np.int64]]:
    """Usage [N], image name [N] (empty without a face) and votes int64 [N, 10]."""
    wanted = ["Usage", "Image name", *(name.lower() for name in CLASS_NAMES), *OTHERS]
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or any(name not in rows[0] for name in wanted):
        raise UserError(f"{path} lacks one of the columns {', '.join(wanted)}; fetch it again.")
    usages = np.array([row["Usage"] for row in rows])
    odd = np.flatnonzero(~np.isin(usages, list(FOLDERS)))
    if len(odd):
        raise UserError(
            f"{path}, line {odd[0] + 2}: the usage is '{usages[odd[0]]}', which is none of "
            f"{', '.join(FOLDERS)}."
        )
    names = np.array([(row["Image name"] or "").strip() for row in rows])
    numbers = whole_numbers([row[name] or "" for row in rows for name in wanted[2:]], path)
    return usages, names, numbers.reshape(len(rows), -1)
