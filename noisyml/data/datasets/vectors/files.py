"""Vectors in files: the user's own features, with or without labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split, TestSet
from noisyml.data.readers.layout import class_order, files_digest, require_files, stat_files
from noisyml.data.readers.matrices import open_matrix, read_labels
from noisyml.data.readers.partition import carve_samples, carving, check_fractions
from noisyml.data.vectors import VectorInputs, VectorRows
from noisyml.errors import UserError

#: Rows of a split that are read for its fingerprint, beside size and time of its file.
SAMPLED_ROWS = 64
#: Name of the one class of vectors without labels.
UNLABELLED = "unlabelled"

Gallery = Literal["test", "train"]


class RowNames(Sequence[str]):
    """Names of N rows by number, made when asked for: ``vectors.npy:12``.

    Args:
        prefix: what stands before the number.
        rows: N, or the numbers [N] int64.
    """

    def __init__(self, prefix: str, rows: int | NDArray[np.int64]) -> None:
        self._prefix = prefix
        self._rows: Any = range(rows) if isinstance(rows, int) else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return [self[at] for at in range(*key.indices(len(self)))]
        return f"{self._prefix}:{self._rows[key]}"


@dataclass(frozen=True)
class Source:
    """Vectors of a split as they lie.

    Attributes:
        stored: [N, D] numbers, read when indexed.
        names: N of them.
        labels: numbers or words [N]; None: there are none.
        digest: of where they come from.
    """

    stored: Any
    names: Sequence[str]
    labels: NDArray[Any] | None
    digest: str


def vector_splits(
    sources: dict[str, Source],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    centre: bool,
    unit_norm: bool,
) -> tuple[dict[str, Split], bool, str]:
    """Splits of vectors; ``val`` and ``test`` are carved from ``train`` where they are missing.

    Args:
        sources: by name of the split, with ``train``.
        val_fraction: share for a missing ``val``.
        test_fraction: share for a missing ``test``.
        seed: which of the possible carvings.
        centre: subtract the mean of the training rows from all.
        unit_norm: then bring rows to length 1.

    Returns:
        The splits, whether they have labels, and where a carving came from (else empty).

    Raises:
        UserError: splits of different widths, some of them without labels or without rows.
    """
    numbers, class_names, labelled = _numbered(sources)
    parts = {name: np.arange(len(source.stored)) for name, source in sources.items()}
    own = {"test": test_fraction, "val": val_fraction}
    missing = {name: share if name not in sources else 0.0 for name, share in own.items()}
    origin = ""
    if any(missing.values()):
        train = sources["train"]
        part = carve_samples(numbers["train"], train.names, missing["val"], missing["test"], seed)
        parts["train"] = np.flatnonzero(part == 0)
        carved = {"val": np.flatnonzero(part == 1), "test": np.flatnonzero(part == 2)}
        parts |= {name: rows for name, rows in carved.items() if len(rows)}
        origin = carving(missing["val"], missing["test"], seed)
    if "test" not in parts:
        raise UserError("There are no vectors to test on: name them, or raise test_fraction.")
    whole = {name: VectorRows(source.stored) for name, source in sources.items()}
    rows = {
        name: whole[name] if name in sources and len(part) == len(whole[name])
        else whole[name if name in sources else "train"].take(part)
        for name, part in parts.items()
    }  # fmt: skip
    widths = {name: matrix.shape[1] for name, matrix in rows.items()}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise UserError(f"The vectors of the splits have different numbers of columns: {told}.")
    mean = rows["train"].column_means() if centre else None
    splits: dict[str, Split] = {}
    for name in (part for part in ("train", "val", "test") if part in rows):
        source = sources.get(name, sources["train"])
        chosen, matrix = parts[name], rows[name].prepared(mean, unit_norm)
        if not len(matrix):
            raise UserError(f"The {name} split has no vectors.")
        labels = numbers[name if name in sources else "train"][chosen]
        names = source.names
        if len(chosen) != len(names):
            names = [names[row] for row in chosen.tolist()]
        facts = (source.digest, name, len(matrix), origin, centre, unit_norm, sampled(matrix))
        splits[name] = Split(
            name,
            VectorInputs(matrix),
            labels,
            class_names,
            names,
            hashlib.sha256(repr(facts).encode()).hexdigest(),
        )
    return splits, labelled, origin


def sampled(rows: VectorRows) -> str:
    """Digest of a few rows that are spread over a matrix."""
    some = np.unique(np.linspace(0, len(rows) - 1, SAMPLED_ROWS).round().astype(np.int64))
    return hashlib.sha256(np.ascontiguousarray(rows[some]).tobytes()).hexdigest()


def _numbered(
    sources: dict[str, Source],
) -> tuple[dict[str, NDArray[np.int64]], list[str], bool]:
    """Labels as numbers of classes, the classes' names, and whether there are labels at all."""
    without = [name for name, source in sources.items() if source.labels is None]
    if len(without) == len(sources):
        zeros = {n: np.zeros(len(s.stored), dtype=np.int64) for n, s in sources.items()}
        return zeros, [UNLABELLED], False
    if without:
        raise UserError(
            f"The {without[0]} vectors have no labels, and others have: label all of them, or none "
            f"(dataset.labels=null)."
        )
    texts = {}
    for name, source in sources.items():
        assert source.labels is not None
        texts[name] = source.labels.astype(str)
        if len(texts[name]) != len(source.stored):
            raise UserError(
                f"The {name} split has {len(source.stored)} vectors and {len(texts[name])} labels."
            )
    different = np.unique(np.concatenate(list(texts.values())))
    order = class_order(different.tolist())
    place = {label: i for i, label in enumerate(order)}
    lookup = np.array([place[label] for label in different.tolist()], dtype=np.int64)
    numbers = {name: lookup[np.searchsorted(different, words)] for name, words in texts.items()}
    return numbers, order, True


class Vectors(DatasetSource):
    """Vectors in files, memory-mapped where the format allows; see `noisyml.data.readers.matrices`.

    Labels are for evaluation, or for methods that learn from them; vectors may do without.

    Args:
        path: file of the training vectors.
        val: file of validation vectors; None: a share of the training vectors.
        test: file of test vectors; None: likewise.
        key: name of the vectors in files that hold several arrays; None: the only ones.
        labels: name of the labels in such files; ``auto``: ``labels``, ``label`` or ``y`` there, or
            the file beside (``vectors.labels.npy`` or ``.labels.txt``); None: no labels.
        val_fraction: share of each class for ``val``, in [0, 1).
        test_fraction: the same for ``test``.
        seed: which of the possible carvings; unrelated to the seed of a run.
        centre: subtract the mean of the training vectors.
        unit_norm: bring vectors to length 1, after that.
        gallery: what a test searches: the other ``test`` vectors, or those of ``train``.
        labels_are_true: whether the labels are known to be right, see `CsvTable`.
    """

    description: ClassVar[str] = "Your vectors, in files of numbers"
    how_to_get: ClassVar[str] = (
        "set dataset.path to a file of vectors: .npy, .npz, .parquet, .fvecs, .bvecs or .h5."
    )

    def __init__(
        self,
        path: str,
        val: str | None = None,
        test: str | None = None,
        key: str | None = None,
        labels: str | None = "auto",
        val_fraction: OpenShare = 0.1,
        test_fraction: OpenShare = 0.2,
        seed: WholeNonNegative = 0,
        centre: bool = False,
        unit_norm: bool = False,
        gallery: Gallery = "test",
        labels_are_true: bool = False,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        files = {"train": path, "val": val, "test": test}
        self.files = {name: Path(file) for name, file in files.items() if file is not None}
        self.key = key
        self.labels = labels
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.centre = centre
        self.unit_norm = unit_norm
        self.gallery = gallery
        self.labels_are_true = labels_are_true

    def missing(self) -> str | None:
        """None, or the first file that is not there."""
        gone = next((file for file in self.files.values() if not file.exists()), None)
        return None if gone is None else f"the file {gone}"

    @property
    def vector_size(self) -> int:
        """Columns of the training vectors."""
        require_files(self, "vectors")
        return int(self.open(self.files["train"]).shape[1])

    def open(self, path: Path) -> Any:
        """The matrix [N, D] in a file, read when it is indexed."""
        return open_matrix(path, self.key)

    def sources(self) -> dict[str, Source]:
        """The vectors of each split that has a file."""
        return {name: self.source(name, path) for name, path in self.files.items()}

    def source(self, name: str, path: Path) -> Source:
        """The vectors of a split in a file."""
        stored = self.open(path)
        digest = files_digest([str(path)], stat_files(Path(), [str(path)]), name)
        names = RowNames(path.name, len(stored))
        return Source(stored, names, read_labels(path, self.labels), digest)

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if there is one) and ``test``.

        Raises:
            UserError: files missing, or contents that are no vectors or do not fit each other.
        """
        require_files(self, "vectors")
        splits, self.has_labels, self.split_origin = vector_splits(
            self.sources(),
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.seed,
            centre=self.centre,
            unit_norm=self.unit_norm,
        )
        return splits

    def test_sets(self, names: Any) -> dict[str, TestSet]:
        """``test`` by itself, or searched among the training vectors."""
        return test_sets(self.gallery)


def test_sets(gallery: Gallery) -> dict[str, TestSet]:
    """The one test set of vectors.

    Args:
        gallery: ``test``: its vectors among each other; ``train``: among the training vectors.
    """
    if gallery == "train":
        return {"test": {"query": "test", "gallery": "train"}}
    return {"test": {"pool": "test"}}
