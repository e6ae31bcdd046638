"""A table of image paths and labels: the user's own data."""

from __future__ import annotations

import ast
import glob
import logging
import os
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.folders import split_of
from noisyml.data.readers.layout import (
    class_order,
    parts_to_splits,
    require_files,
    say_look_alikes,
    stat_files,
    user_path,
)
from noisyml.data.readers.partition import (
    SPLIT_NAMES,
    SplitKind,
    arrange,
    check_fractions,
    origin,
)
from noisyml.errors import UserError
from noisyml.storage.text import read_table, read_text

if TYPE_CHECKING:
    import pandas as pd

    from noisyml.targets import Labels

log = logging.getLogger(__name__)

#: The separator a suffix promises; spreadsheets in half of Europe write another one.
SEPARATORS = {".csv": ",", ".tsv": "\t"}
OTHER_SEPARATORS = (",", ";", "\t", "|")
#: Column of splits that ``split_column=auto`` looks for.
SPLIT_COLUMN = "split"
#: Column of several labels that ``labels_column=auto`` looks for, and what stands between them.
LABELS_COLUMN = "labels"
LABEL_SEPARATORS = r"[;|]"
TABLE_SUFFIXES = (*SEPARATORS, ".parquet")


class CsvTable(DatasetSource):
    """A ``.csv``, ``.tsv`` or ``.parquet`` table with a row per image.

    Labels may be any text; labels that are all numbers are ordered as numbers. An image may
    have several (or none): in a column of labels separated by semicolons or bars, or of lists as
    Python and JSON write them. A text table is
    UTF-8 (or has a byte-order mark), its columns separated by commas, semicolons, tabs or bars:
    its first line tells.

    Args:
        path: the table.
        root: folder that relative image paths start from; None for the table's own folder.
        path_column: column of image paths.
        label_column: column of labels, one per image.
        labels_column: column of labels, several per image (in a ``.parquet`` table also as lists);
            ``auto``: the column ``labels`` if there is one and no `label_column`; None: one label
            per image.
        caption_column: column of captions, which then are what is learnt; None: labels are. A
            caption of ``test`` is what zero-shot recognition takes for the name of its class.
        split_column: column that says ``train``, ``val``, ``test``, ``query`` or ``gallery`` (or
            ``Training``, ``valid`` and the like); ``auto``: the column ``split`` if there is one;
            None to carve the splits. A missing ``val`` is carved from ``train``.
        split: ``closed_set`` (same classes everywhere) or ``zero_shot`` (disjoint classes).
        val_fraction: share of each class (or of the classes) for ``val``, in [0, 1).
        test_fraction: the same for ``test``; unused with a column of splits.
        seed: which of the possible carvings; unrelated to the seed of a run.
        labels_are_true: whether the labels are known to be right, so that the labels changed by an
            injector are the only wrong ones and selection can be scored against them.
        clean_val: whether ``val`` is your own and clean; injected noise then leaves it alone.
    """

    description: ClassVar[str] = "Your images, listed in a table of paths and labels"
    how_to_get: ClassVar[str] = (
        "set dataset.path to a .csv, .tsv or .parquet table with a column of image paths and one "
        "of labels."
    )

    def __init__(
        self,
        path: str,
        root: str | None = None,
        path_column: str = "path",
        label_column: str = "label",
        labels_column: str | None = "auto",
        caption_column: str | None = None,
        split_column: str | None = "auto",
        split: SplitKind = "closed_set",
        val_fraction: OpenShare = 0.1,
        test_fraction: OpenShare = 0.2,
        seed: WholeNonNegative = 0,
        labels_are_true: bool = False,
        clean_val: bool = False,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        self.path = user_path(path)
        if self.path.suffix.lower() not in TABLE_SUFFIXES:
            raise UserError(
                f"dataset.path={path} is no table: its name must end in "
                f"{', '.join(TABLE_SUFFIXES)}."
            )
        self.root = self.path.parent if root is None else user_path(root)
        self.path_column = path_column
        self.label_column = label_column
        self.labels_column = labels_column
        self.caption_column = caption_column
        self.split_column = split_column
        self.split = split
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.labels_are_true = labels_are_true
        self.clean_val = clean_val

    def missing(self) -> str | None:
        """None, or the table or the folder of images."""
        if not self.path.is_file():
            return f"the table {self.path}"
        return None if self.root.is_dir() else f"the folder {self.root} (dataset.root)"

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if there is one) and ``test`` (or ``query`` and ``gallery``).

        Raises:
            UserError: a column, label or file is missing, a path is listed twice, or the classes
                contradict `split`; the sentence names file and row.
        """
        require_files(self, "csv")
        table = self._read()
        paths = self._paths(table)
        several = self._several(table)
        captions: list[str] | None = None
        names: list[list[str]] = []
        if self.caption_column is not None:
            captions = self._column(table, self.caption_column, "dataset.caption_column")
        elif several is None:
            names = [
                [name] for name in self._column(table, self.label_column, "dataset.label_column")
            ]
        else:
            names = self._label_lists(table, several)
        given = None
        split_column = self.split_column
        if split_column == "auto" and "auto" not in table.columns:
            split_column = SPLIT_COLUMN if SPLIT_COLUMN in table.columns else None
        if split_column is not None:
            given = self._column(table, split_column, "dataset.split_column")
            given = [split_of(word) or word for word in given]
            wrong = next((row for row, part in enumerate(given) if part not in SPLIT_NAMES), None)
            if wrong is not None:
                raise UserError(
                    f"{self.path}, row {wrong + 1}: the split is '{given[wrong]}' in the column "
                    f"'{split_column}'; write one of: {', '.join(SPLIT_NAMES)} (or set "
                    "dataset.split_column=null to carve the splits)."
                )
        class_names = class_order(name for row in names for name in row)
        if captions is None and len(class_names) < 2:
            raise UserError(
                f"{self.path} has {len(class_names)} different labels in its column "
                f"'{several or self.label_column}'; two at least are needed."
            )
        say_look_alikes(class_names, str(self.path))
        number = {name: i for i, name in enumerate(class_names)}
        labels: Labels
        if captions is not None:
            labels = np.array(captions, dtype=object)
        elif several is None:
            labels = np.array([number[name] for (name,) in names], dtype=np.int64)
        else:
            labels = np.zeros((len(names), len(class_names)), dtype=np.uint8)
            for row, own in enumerate(names):
                labels[row, [number[name] for name in own]] = 1
        rows = arrange(
            labels,
            class_names,
            paths,
            given,
            self.split,
            self.val_fraction,
            self.test_fraction,
            self.seed,
            str(self.path),
        )
        self.split_origin = origin(
            None if given is None else f"the column '{split_column}' of {self.path}",
            given is not None and "val" in given,
            self.val_fraction,
            self.test_fraction,
            self.seed,
        )
        log.info("splits: %s", self.split_origin)
        share = self.split == "closed_set"
        return parts_to_splits(self.root, paths, labels, class_names, rows, share)

    def _read(self) -> pd.DataFrame:
        import pandas as pd

        suffix = self.path.suffix.lower()
        if suffix == ".parquet":
            return self._read_parquet()
        promised = SEPARATORS[suffix]
        separators = (promised, *(other for other in OTHER_SEPARATORS if other != promised))
        label_columns = {self.label_column, LABELS_COLUMN, self.labels_column}
        columns = {self.path_column, *label_columns, self.caption_column}
        wanted = [name for name in columns if name]
        # As text, so that labels like NA, 007 and 1.0 stay what they are.
        table = read_table(self.path, separators, wanted)
        self.left_out = {"lines without a cell": [f"line {n}" for n in table.blank]}
        if table.blank:
            log.info("%s: left out %d lines without a cell", self.path, len(table.blank))
        return pd.DataFrame(table.rows, columns=table.header, dtype=str)

    def _read_parquet(self) -> pd.DataFrame:
        import pandas as pd
        from pyarrow import ArrowException

        try:
            return pd.read_parquet(self.path)
        except (OSError, ValueError, ArrowException) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(f"The table {self.path} cannot be read: {reason}.") from error

    def _seen(self, table: pd.DataFrame) -> str:
        """The first line of a text table and the number of columns it was read as, for messages."""
        if self.path.suffix.lower() == ".parquet":
            return ""
        first = next(iter(read_text(self.path).splitlines()), "")
        number = f"{len(table.columns)} column{'s' if len(table.columns) != 1 else ''}"
        return f" (first line {first[:80]!r}, read as {number})"

    def _several(self, table: pd.DataFrame) -> str | None:
        """The column of several labels per image, None where there is one label."""
        if self.labels_column != "auto":
            return self.labels_column
        there = LABELS_COLUMN in table.columns and self.label_column not in table.columns
        return LABELS_COLUMN if there else None

    def _label_lists(self, table: pd.DataFrame, column: str) -> list[list[str]]:
        """The labels of each row; an empty cell says that the image has none."""
        if column not in table.columns:
            raise UserError(
                f"{self.path} has no column '{column}' but: {', '.join(map(str, table.columns))}; "
                "set dataset.labels_column to one of them."
            )
        rows = []
        cells = table[column].astype(object)
        for value in cells.where(cells.notna(), None):
            if isinstance(value, list | tuple | np.ndarray):
                parts = [_text(part) for part in value]
            else:
                text = _text(value)
                written = _written_list(text)
                parts = re.split(LABEL_SEPARATORS, text) if written is None else written
            rows.append(list(dict.fromkeys(part.strip() for part in parts if part.strip())))
        if all(len(row) < 2 for row in rows):
            for other in ",/+":
                like = [row[0] for row in rows if row and other in row[0]]
                if like:
                    log.warning(
                        "%s: '%s' in the column '%s' is read as one label (as are %d like it): "
                        "several are separated by ; or |",
                        self.path, like[0], column, len(like),
                    )  # fmt: skip
        return rows

    def _column(self, table: pd.DataFrame, column: str, key: str) -> list[str]:
        """The column as text without surrounding blanks; no empty cell."""
        if column not in table.columns:
            raise UserError(
                f"{self.path}{self._seen(table)} has no column '{column}' but: "
                f"{', '.join(map(str, table.columns))}; "
                f"set {key} to one of them."
            )
        cells = table[column].astype(object)
        values = [_text(cell).strip() for cell in cells.where(cells.notna(), None)]
        for row, value in enumerate(values):
            if not value:
                raise UserError(
                    f"{self.path}, row {row + 1}: the column '{column}' is empty; fill it or "
                    "remove the row."
                )
        return values

    def _paths(self, table: pd.DataFrame) -> list[str]:
        """The paths of the images; blanks around one are kept where a file has that name."""
        paths = self._column(table, self.path_column, "dataset.path_column")
        for row, typed in enumerate(map(_text, table[self.path_column])):
            if typed != paths[row] and os.path.isfile(self.root / typed):
                paths[row] = typed
        self._check_paths(paths)
        return paths

    def _check_paths(self, paths: list[str]) -> None:
        first: dict[str, int] = {}
        for row, path in enumerate(paths):
            before = first.setdefault(os.path.normpath(path), row)
            if before != row:
                raise UserError(
                    f"{self.path}, row {row + 1}: {path} stands in row {before + 1} already; an "
                    "image must have one row."
                )
        absent = [row for row, stat in enumerate(stat_files(self.root, paths)) if stat is None]
        if absent:
            path = paths[absent[0]]
            raise UserError(
                f"{self.path}, row {absent[0] + 1}: there is no file {self.root / path} "
                f"({len(absent)} of {len(paths)} are missing); {_advice(self.root, path)}."
            )


def _text(cell: Any) -> str:
    """A cell as text, empty where there is none; whole numbers without a point."""
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "replace")
    if cell is None or cell != cell:
        return ""
    whole = isinstance(cell, float) and cell.is_integer()
    return str(int(cell)) if whole else str(cell)


def _written_list(text: str) -> list[str] | None:
    """The labels of ``['cat', 'dog']``, as lists are written into tables; None of other text."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return [_text(label) for label in found] if isinstance(found, list) else None


def _advice(root: Path, path: str) -> str:
    """Advice on the path of an image that is not there."""
    if "\\" in path and os.path.isfile(root / path.replace("\\", "/")):
        return "it is there with / in place of \\: write the paths with /"
    folder = (root / path).parent
    if os.path.lexists(root / path):
        return "what has that name is a folder, a pipe or a link to nothing: correct the paths"
    for form in ("NFC", "NFD"):
        if os.path.isfile(root / unicodedata.normalize(form, path)):
            return f"a file whose name looks the same is there: write the paths in the form {form}"
    if not Path(path).suffix and folder.is_dir():
        named = sorted(folder.glob(f"{glob.escape(Path(path).name)}.*"))
        if named:
            return f"there is {named[0].name}: write the paths with their suffix"
    return "correct the paths or set dataset.root"
