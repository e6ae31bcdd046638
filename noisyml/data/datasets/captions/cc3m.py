"""Conceptual Captions (Sharma et al., ACL 2018) and WIT (Srinivasan et al., SIGIR 2021) as tables.

The files are those that the code of OTTER reads (github.com/facebookresearch/OTTER).
"""

from __future__ import annotations

import csv
import io
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.captions import wit_row
from noisyml.data.readers.layout import first_missing, parts_to_splits, require_files
from noisyml.data.readers.partition import arrange, check_fractions
from noisyml.errors import UserError
from noisyml.storage.text import read_lines, read_text


class CaptionTable(DatasetSource):
    """Images below a folder, listed with their captions; ``val`` and ``test`` are carved.

    Args:
        root: the folder.
        val_fraction: share for ``val``.
        test_fraction: share for ``test``.
        seed: which of the possible carvings; unrelated to the seed of a run.
    """

    #: Name of the data set in messages, and of its table below the root.
    name: ClassVar[str]
    table: ClassVar[str]
    labels_are_true = False

    def __init__(
        self,
        root: str,
        val_fraction: OpenShare = 0.02,
        test_fraction: OpenShare = 0.02,
        seed: WholeNonNegative = 0,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        self.root = Path(root).expanduser()
        self.fractions = val_fraction, test_fraction
        self.seed = seed

    def missing(self) -> str | None:
        """None, or the table."""
        return first_missing(self.root, self.table)

    @abstractmethod
    def rows(self) -> list[tuple[str, str]]:
        """Path below the root and caption of every image."""

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` and ``test``, carved by the paths.

        Raises:
            UserError: files missing, or a row without a caption.
        """
        require_files(self, self.name)
        rows = self.rows()
        empty = next((path for path, caption in rows if not caption.strip()), None)
        if empty is not None:
            raise UserError(f"{self.root / self.table}: {empty} has no caption; remove the row.")
        paths = [path for path, _ in rows]
        captions = np.array([caption for _, caption in rows], dtype=object)
        parts = arrange(
            captions,
            [],
            paths,
            None,
            "closed_set",
            *self.fractions,
            self.seed,
            str(self.root / self.table),
        )
        return parts_to_splits(self.root, paths, captions, [], parts, share_classes=True)


class CC3M(CaptionTable):
    """Conceptual Captions 3M: ``processed_labels.csv`` with the columns ``filename``, ``caption``.

    Args:
        root, val_fraction, test_fraction, seed: see `CaptionTable`.
    """

    name: ClassVar[str] = "cc3m"
    table: ClassVar[str] = "processed_labels.csv"
    description: ClassVar[str] = "Conceptual Captions: 3 million web images with cleaned captions"
    how_to_get: ClassVar[str] = (
        "fetch Train-GCC-training.tsv (3.3 million urls) from ai.google.com/research/"
        "ConceptualCaptions, download the images (about 430 GB), write processed_labels.csv "
        "with the columns filename (below the folder) and caption, and set dataset.root to it."
    )

    def rows(self) -> list[tuple[str, str]]:
        """Rows of the table.

        Raises:
            UserError: it lacks a column; with its first line.
        """
        path = self.root / self.table
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        columns = reader.fieldnames or []
        if not {"filename", "caption"} <= set(columns):
            first = next(iter(read_text(path).splitlines()), "")
            raise UserError(
                f"{path} must have the columns filename and caption, separated by commas: its "
                f"first line is {first[:80]!r}, read as {', '.join(map(repr, columns))}."
            )
        return [(row["filename"] or "", row["caption"] or "") for row in reader]


class WIT(CaptionTable):
    """Wikipedia images: ``process_labels.csv`` without a header, a path and texts between tabs.

    Args:
        root, val_fraction, test_fraction, seed: see `CaptionTable`.
        released_captions: join the texts of a row by nothing and keep the line end, as the release
            of OTTER does; else by a blank.
    """

    name: ClassVar[str] = "wit"
    table: ClassVar[str] = "process_labels.csv"
    description: ClassVar[str] = "WIT: Wikipedia's images with the texts beside them"
    how_to_get: ClassVar[str] = (
        "fetch wit_v1.train.all-*.tsv.gz (25 GB, github.com/google-research-datasets/wit) and the "
        "images, write process_labels.csv (a line per image: its path and its texts, separated by "
        "tabs, no header), and set dataset.root to the folder."
    )

    def __init__(
        self,
        root: str,
        val_fraction: OpenShare = 0.02,
        test_fraction: OpenShare = 0.02,
        seed: WholeNonNegative = 0,
        released_captions: bool = False,
    ) -> None:
        super().__init__(root, val_fraction, test_fraction, seed)
        self.released_captions = released_captions

    def rows(self) -> list[tuple[str, str]]:
        """Lines of the table."""
        lines = read_lines(self.root / self.table)
        return [wit_row(f"{line}\n", self.released_captions) for line in lines]
