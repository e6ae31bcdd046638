"""FER+ (Barsoum, Zhang, Canton Ferrer, Zhang, ICMI 2016): new labels for the faces of FER2013."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.readers.closed_set import ClosedSetFiles, Listed
from noisyml.data.readers.layout import check_count, first_missing, whole_numbers
from noisyml.errors import UserError
from noisyml.storage.text import read_table

CLASS_NAMES = (
    "Neutral", "Happiness", "Surprise", "Sadness", "Anger", "Disgust", "Fear", "Contempt",
)  # fmt: skip
#: Columns of votes that name no expression.
OTHERS = ("unknown", "NF")
FOLDERS = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
PARTS = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}
TABLE = "fer2013new.csv"
LIST = "label.csv"
#: Rows of the table by usage; those without a face have no image.
ROWS = {"Training": 28_709, "PublicTest": 3_589, "PrivateTest": 3_589}
#: Rows of the lists, counted in the released files.
LISTED = {"Training": 28_558, "PublicTest": 3_579, "PrivateTest": 3_573}
#: Faces of the lists with an absolute majority for one of the eight expressions.
ELECTED = {"train": 25_045, "val": 3_191, "test": 3_137}

#: Columns of a list: image, box of the face, ten votes.
WIDTH = 2 + len(CLASS_NAMES) + len(OTHERS)

log = logging.getLogger(__name__)


class _Rows(NamedTuple):
    """Usage [N], image name [N] (empty without a face), votes int64 [N, 10], line numbers [N]."""

    usages: NDArray[np.str_]
    images: NDArray[np.str_]
    votes: NDArray[np.int64]
    lines: NDArray[np.int64]

    def named(self, chosen: NDArray[np.bool_]) -> list[str]:
        """The chosen rows for a reader: their image, or the line where there is none."""
        names = zip(self.images[chosen], self.lines[chosen], strict=True)
        return [f"line {line} {image}".rstrip() for image, line in names]


class FERPlus(ClosedSetFiles):
    """Faces with ten votes each, 48x48 grey; the label is the majority's.

    Two files have the votes, and they differ in hundreds of rows: the lists ``label.csv`` beside
    the images, which the authors train from, and the table ``fer2013new.csv``. The table names four
    pictures in two rows each; the row that stands in the order of the names is kept, as in the
    lists.

    Args:
        root: folder with ``FER2013Train/``, ``FER2013Valid/`` and ``FER2013Test/`` with their
            ``fer*.png`` and ``label.csv``, below it or below its folder ``images``, and
            ``fer2013new.csv`` if the votes are read from that.
        votes: ``lists``, ``table``, or ``auto`` for the lists where all three are there.
        classes: 8, or 7 without contempt.
        majority: ``absolute``: single votes are struck out and the winner needs more than half of
            the others, as in the release; ``plurality``: the most votes win, ties go to the
            expression that comes first.
        val: ``official`` (the public test of FER2013) or ``carved`` from train by `val_fraction`.
        val_fraction: share of each training class for ``val``, with ``val=carved``.
        seed: which of the possible carvings; unrelated to the seed of a run.
        check_counts: compare the numbers of rows, and of elected faces of the lists, with those of
            the release.

    Raises:
        UserError: a choice that does not exist.
    """

    description: ClassVar[str] = "FER+: 35,887 faces, 48x48 grey, 8 or 7 expressions by ten votes"
    how_to_get: ClassVar[str] = (
        "fetch fer2013.csv (Kaggle, Challenges in Representation Learning; 35,887 images) and "
        "fer2013new.csv (github.com/microsoft/FERPlus), write the images with that repository's "
        "src/generate_training_data.py, and set dataset.root to the folder with fer2013new.csv, "
        "FER2013Train/, FER2013Valid/ and FER2013Test/ (and, as in the repository's folder data, "
        "label.csv in each)."
    )
    name = "ferplus"

    def __init__(
        self,
        root: str,
        votes: Literal["auto", "lists", "table"] = "auto",
        classes: Literal[8, 7] = 8,
        majority: Literal["absolute", "plurality"] = "absolute",
        val: Literal["official", "carved"] = "official",
        val_fraction: OpenShare = 0.1,
        seed: WholeNonNegative = 0,
        check_counts: bool = True,
    ) -> None:
        super().__init__(root, val_fraction, seed, check_counts)
        self.votes = votes
        self.classes = classes
        self.majority = majority
        self.val = val

    def missing(self) -> str | None:
        """None, or the table, list or folder that is not there."""
        folders = first_missing(self._images, *FOLDERS.values())
        if self._from_lists:
            return folders or self._lacking_lists
        return folders or first_missing(self.root, TABLE)

    @property
    def _images(self) -> Path:
        inner = self.root / "images"
        return inner if inner.is_dir() else self.root

    @property
    def _lacking_lists(self) -> str | None:
        return first_missing(self._images, *(f"{folder}/{LIST}" for folder in FOLDERS.values()))

    @property
    def _from_lists(self) -> bool:
        if self.votes == "auto":
            return self._lacking_lists is None
        return self.votes == "lists"

    def class_names(self) -> Sequence[str]:
        """The expressions in the order of the columns of votes."""
        return CLASS_NAMES[: self.classes]

    def published(self) -> dict[str, int | Sequence[int]]:
        """Faces that the authors' rule elects from the lists; else only the rows are counted."""
        if not self._from_lists or self.majority != "absolute" or self.classes != 8:
            return {}
        return {part: count for part, count in ELECTED.items() if self._is_part(part)}

    def _is_part(self, part: str) -> bool:
        return part != "val" or self.val == "official"

    def parts(self) -> dict[str, Listed]:
        """Rows with an image and a majority for one of the expressions, by usage."""
        rows = self._lists() if self._from_lists else _read_table(self.root / TABLE)
        log.info("the votes of ferplus are those of %s", LIST if self._from_lists else TABLE)
        if self.check_counts:
            for usage, expected in (LISTED if self._from_lists else ROWS).items():
                what = f"Rows of {LIST if self._from_lists else TABLE} with the usage {usage}"
                check_count(what, int((rows.usages == usage).sum()), expected)
        labels = majority_vote(rows.votes, self.majority == "absolute")
        elected = (labels >= 0) & (labels < self.classes)
        again = _repeated(rows.images)
        faces = (rows.images != "") & ~again
        left_out = {
            "rows without a picture": rows.named(rows.images == ""),
            "second rows of a picture": rows.named(again),
            "faces without a majority for a chosen class": rows.named(faces & ~elected),
        }
        self.left_out = {kind: those for kind, those in left_out.items() if those}
        prefix = "images/" if self._images != self.root else ""
        parts = {}
        for part, usage in PARTS.items():
            if self._is_part(part):
                chosen = np.flatnonzero(faces & elected & (rows.usages == usage))
                paths = [f"{prefix}{FOLDERS[usage]}/{rows.images[row]}" for row in chosen]
                parts[part] = Listed(paths, labels[chosen])
        return parts

    def _lists(self) -> _Rows:
        """The rows of the three lists: image, face box, votes."""
        usages: list[str] = []
        cells: list[list[str]] = []
        lines: list[int] = []
        for usage, folder in FOLDERS.items():
            path = self._images / folder / LIST
            table = read_table(path, header=False)
            short = next((i for i, row in enumerate(table.rows) if len(row) != WIDTH), None)
            if short is not None:
                raise UserError(
                    f"{path}, line {table.lines[short]}: expected {WIDTH} columns, found "
                    f"{len(table.rows[short])}; fetch it again."
                )
            usages += [usage] * len(table.rows)
            cells += table.rows
            lines += table.lines
        votes = whole_numbers([cell for row in cells for cell in row[2:]], self._images / LIST)
        images = np.array([row[0].strip() for row in cells])
        return _Rows(np.array(usages), images, votes.reshape(len(cells), -1), np.array(lines))


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


def _repeated(images: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Mask of the rows to pass over because another row names their picture too, bool [N].

    Names ascend down the table but for the second rows: a row in its place stands between a
    smaller and a greater name. If both rows of a picture do, or none, the first one is kept.

    Args:
        images: names [N], empty where there is none.
    """
    named = np.flatnonzero(images != "")
    own = images[named]
    edges = np.concatenate([[""], own, ["\U0010ffff"]])
    in_place = (edges[:-2] <= own) & (own <= edges[2:])
    # The rows of one name together, those in their place first.
    order = np.lexsort((named, ~in_place, own))
    again = np.zeros(len(own), dtype=bool)
    again[order[1:]] = own[order][1:] == own[order][:-1]
    passed = np.zeros(len(images), dtype=bool)
    passed[named] = again
    return passed


def _read_table(path: Path) -> _Rows:
    """The rows of the table."""
    table = read_table(path)
    wanted = ["Usage", "Image name", *(name.lower() for name in CLASS_NAMES), *OTHERS]
    if not set(wanted) <= set(table.header):
        raise UserError(f"{path} lacks one of the columns {', '.join(wanted)}; fetch it again.")
    usages = np.array(table.column("Usage"))
    odd = np.flatnonzero(~np.isin(usages, list(FOLDERS)))
    if len(odd):
        raise UserError(
            f"{path}, line {table.lines[odd[0]]}: the usage is '{usages[odd[0]]}', which is none "
            f"of {', '.join(FOLDERS)}."
        )
    images = np.array([name.strip() for name in table.column("Image name")])
    votes = np.stack([whole_numbers(table.column(name), path) for name in wanted[2:]], axis=1)
    return _Rows(usages, images, votes, np.array(table.lines))
