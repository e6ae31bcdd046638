"""A table of image paths and labels: the user's own data."""

from __future__ import annotations

import csv
import io
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.layout import (
    class_order,
    parts_to_splits,
    require_files,
    stat_files,
)
from noisyml.data.readers.partition import (
    SPLIT_NAMES,
    SplitKind,
    arrange,
    check_fractions,
    origin,
)
from noisyml.errors import UserError
from noisyml.storage.text import read_text

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
    have several (or none): in a column of labels separated by semicolons or bars. A text table is
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
        split_column: column that says ``train``, ``val``, ``test``, ``query`` or ``gallery``;
            ``auto``: the column ``split`` if there is one; None to carve the splits. A missing
            ``val`` is carved from ``train``.
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
        split_column: str | None = "auto",
        split: SplitKind = "closed_set",
        val_fraction: OpenShare = 0.1,
        test_fraction: OpenShare = 0.2,
        seed: WholeNonNegative = 0,
        labels_are_true: bool = False,
        clean_val: bool = False,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        self.path = Path(path)
        if self.path.suffix.lower() not in TABLE_SUFFIXES:
            raise UserError(
                f"dataset.path={path} is no table: its name must end in "
                f"{', '.join(TABLE_SUFFIXES)}."
            )
        self.root = self.path.parent if root is None else Path(root)
        self.path_column = path_column
        self.label_column = label_column
        self.labels_column = labels_column
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
        paths = self._column(table, self.path_column, "dataset.path_column")
        several = self._several(table)
        if several is None:
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
            wrong = next((row for row, part in enumerate(given) if part not in SPLIT_NAMES), None)
            if wrong is not None:
                raise UserError(
                    f"{self.path}, row {wrong + 1}: the split is '{given[wrong]}' in the column "
                    f"'{split_column}'; write one of: {', '.join(SPLIT_NAMES)} (or set "
                    "dataset.split_column=null to carve the splits)."
                )
        self._check_paths(paths)
        class_names = class_order(name for row in names for name in row)
        if len(class_names) < 2:
            raise UserError(
                f"{self.path} has {len(class_names)} different labels in its column "
                f"'{several or self.label_column}'; two at least are needed."
            )
        number = {name: i for i, name in enumerate(class_names)}
        labels: Labels
        if several is None:
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
        from pyarrow import ArrowException

        suffix = self.path.suffix.lower()
        try:
            if suffix == ".parquet":
                return pd.read_parquet(self.path)
            # As text, so that labels like NA, 007 and 1.0 stay what they are.
            return self._read_text()
        except UnicodeDecodeError as error:
            raise UserError(
                f"The table {self.path} is not UTF-8 text; save it as UTF-8 (spreadsheets call it "
                "'CSV UTF-8')."
            ) from error
        except (OSError, ValueError, csv.Error, ArrowException) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(f"The table {self.path} cannot be read: {reason}.") from error

    def _read_text(self) -> pd.DataFrame:
        """The rows as text; empty cells beyond the last column (trailing commas) are left out."""
        import pandas as pd

        text = read_text(self.path)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self._separator(text))
        header = next(reader, [])
        rows = []
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if any(cell.strip() for cell in row[len(header) :]):
                raise ValueError(
                    f"line {reader.line_num} has {len(row)} cells where the header has "
                    f"{len(header)}; put quotation marks around text that holds a separator"
                )
            rows.append(row[: len(header)] + [""] * (len(header) - len(row)))
        if not header:
            raise ValueError("it is empty")
        twice = {name for name in header if name and header.count(name) > 1}
        if twice:
            raise ValueError(f"the column '{min(twice)}' occurs twice")
        return pd.DataFrame(rows, columns=header, dtype=str)

    def _separator(self, text: str) -> str:
        """Separator of the columns, by the first line: the suffix's separator wins ties."""
        promised = SEPARATORS[self.path.suffix.lower()]
        header = io.StringIO(text, newline="").readline()
        separators = (promised, *(other for other in OTHER_SEPARATORS if other != promised))
        wanted = {self.path_column, self.label_column, LABELS_COLUMN, self.labels_column}

        def fit(separator: str) -> tuple[int, int]:
            columns = next(csv.reader([header], delimiter=separator), [])
            return len(wanted & set(columns)), len(columns)

        found = max(separators, key=fit)
        if found != promised:
            log.info("%s: the columns are separated by %r", self.path, found)
        return found

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
        for value in table[column]:
            if isinstance(value, list | tuple | np.ndarray):
                parts = [str(part) for part in value]
            else:
                text = "" if value is None or value != value else str(value)
                parts = re.split(LABEL_SEPARATORS, text)
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
                f"{self.path} has no column '{column}' but: {', '.join(map(str, table.columns))}; "
                f"set {key} to one of them."
            )
        empty = table[column].isna().to_numpy()
        values = [str(value).strip() for value in table[column]]
        for row, value in enumerate(values):
            if empty[row] or not value:
                raise UserError(
                    f"{self.path}, row {row + 1}: the column '{column}' is empty; fill it or "
                    "remove the row."
                )
        return values

    def _check_paths(self, paths: list[str]) -> None:
        first: dict[str, int] = {}
        for row, path in enumerate(paths):
            before = first.setdefault(path, row)
            if before != row:
                raise UserError(
                    f"{self.path}, row {row + 1}: {path} stands in row {before + 1} already; an "
                    "image must have one row."
                )
        absent = [row for row, stat in enumerate(stat_files(self.root, paths)) if stat is None]
        if absent:
            raise UserError(
                f"{self.path}, row {absent[0] + 1}: there is no file "
                f"{self.root / paths[absent[0]]} ({len(absent)} of {len(paths)} are missing); "
                "correct the paths or set dataset.root."
            )
