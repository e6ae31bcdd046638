"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), from the binary or the Python version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.readers.array_benchmark import ArrayBenchmark, ArraySplit, LabelledArrays
from noisyml.data.readers.layout import first_missing, first_missing_of_layouts
from noisyml.errors import UserError
from noisyml.storage.pickles import read_plain
from noisyml.storage.text import read_lines

SIDE = 32
PIXELS = 3 * SIDE * SIDE
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class _Columns(NamedTuple):
    """Of one or more batches: uint8 [N, 3072] pixels, and uint8 or int64 [N] labels by name."""

    pixels: NDArray[np.uint8]
    labels: dict[str, NDArray]


class _Cifar(ArrayBenchmark):
    """Base of the two data sets: where their files lie and how they are read."""

    published: ClassVar[dict[str, int]] = {"train": 50_000, "test": 10_000}
    #: Folder and files of both versions, files by half.
    binary: ClassVar[tuple[str, dict[str, tuple[str, ...]]]]
    python: ClassVar[tuple[str, dict[str, tuple[str, ...]]]]
    #: Names of the labels that precede the pixels of a binary record, and in the Python version.
    label_fields: ClassVar[dict[str, str]]

    def missing(self) -> str | None:
        """None, or the first file that the version lacks of which most is there."""
        return first_missing_of_layouts(self.root, *map(self._needed, (self.binary, self.python)))

    def _needed(self, version: tuple[str, dict[str, tuple[str, ...]]]) -> list[str]:
        folder, files = version
        return [f"{folder}/{file}" for part in files.values() for file in part]

    @property
    def _is_binary(self) -> bool:
        return first_missing(self.root, *self._needed(self.binary)) is None

    def _read_columns(self, part: str) -> _Columns:
        """All batches of a half, in their order."""
        if self._is_binary:
            folder, files = self.binary
            names = tuple(self.label_fields)
            batches = [_read_binary(self.root / folder / f, names) for f in files[part]]
        else:
            folder, files = self.python
            batches = [_read_python(self.root / folder / f, self.label_fields) for f in files[part]]
        labels = {
            name: np.concatenate([batch.labels[name] for batch in batches]).astype(np.int64)
            for name in self.label_fields
        }
        return _Columns(np.concatenate([batch.pixels for batch in batches]), labels)


class Cifar10(_Cifar):
    """60,000 photographs, 32x32 colour, 10 classes.

    Args:
        root: folder with ``cifar-10-batches-bin/`` or ``cifar-10-batches-py/``; the binary version
            is preferred, because the other one consists of pickles.
        val_fraction: see `ArrayBenchmark`.
        seed: see `ArrayBenchmark`.
        check_counts: see `ArrayBenchmark`.
        split: see `ArrayBenchmark`.
    """

    description: ClassVar[str] = "CIFAR-10: 60,000 photographs, 32x32 colour, 10 classes"
    how_to_get: ClassVar[str] = (
        "fetch cifar-10-binary.tar.gz (162 MB, MD5 c32a1d4ab5d03f1284b67883e8d87530; "
        "cs.toronto.edu/~kriz/cifar.html), unpack it, and set dataset.root to the folder with "
        "cifar-10-batches-bin/ (cifar-10-batches-py/ of the Python version will do too)."
    )
    name = "cifar10"
    binary = (
        "cifar-10-batches-bin",
        {
            "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "test": ("test_batch.bin",),
        },
    )
    python = (
        "cifar-10-batches-py",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    )
    label_fields: ClassVar[dict[str, str]] = {"label": "labels"}

    def read(self, part: str) -> LabelledArrays:
        """The five training batches one after the other, or the test batch."""
        columns = self._read_columns(part)
        labels = columns.labels["label"]
        _check_labels(labels, CIFAR10_CLASSES, self.name, self.root)
        return LabelledArrays(_images(columns.pixels), labels, CIFAR10_CLASSES)


class Cifar100(_Cifar):
    """60,000 photographs, 32x32 colour, 100 classes in 20 superclasses.

    Args:
        root: folder with ``cifar-100-binary/`` or ``cifar-100-python/``; the binary version is
            preferred, because the other one consists of pickles.
        val_fraction: see `ArrayBenchmark`.
        seed: see `ArrayBenchmark`.
        check_counts: see `ArrayBenchmark`.
        split: see `ArrayBenchmark`.
        labels: ``fine`` (100 classes) or ``coarse`` (20); the other one is an extra of each split,
            ``coarse_label`` or ``fine_label``.

    Raises:
        UserError: no such labels.
    """

    description: ClassVar[str] = "CIFAR-100: 60,000 photographs, 32x32 colour, 100 or 20 classes"
    how_to_get: ClassVar[str] = (
        "fetch cifar-100-binary.tar.gz (161 MB, MD5 03b5dce01913d631647c71ecec9e9cb8; "
        "cs.toronto.edu/~kriz/cifar.html), unpack it, and set dataset.root to the folder with "
        "cifar-100-binary/ (cifar-100-python/ of the Python version will do too)."
    )
    name = "cifar100"
    binary = (
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
    )
    python = ("cifar-100-python", {"train": ("train",), "test": ("test",)})
    #: In a binary record the coarse label comes first.
    label_fields: ClassVar[dict[str, str]] = {
        "coarse_label": "coarse_labels",
        "fine_label": "fine_labels",
    }

    def __init__(
        self,
        root: str,
        val_fraction: OpenShare = 0.1,
        seed: WholeNonNegative = 0,
        check_counts: bool = True,
        split: ArraySplit = "official",
        labels: Literal["fine", "coarse"] = "fine",
    ) -> None:
        super().__init__(root, val_fraction, seed, check_counts, split)
        self.labels = labels

    def missing(self) -> str | None:
        """None, or the first file that is not there, the names of the classes included."""
        lacking = super().missing()
        if lacking is not None:
            return lacking
        if not self._is_binary:
            return first_missing(self.root, f"{self.python[0]}/meta")
        names = [f"{self.binary[0]}/{kind}_label_names.txt" for kind in ("fine", "coarse")]
        return first_missing(self.root, *names)

    def read(self, part: str) -> LabelledArrays:
        """One file per half; the two sets of labels must agree with the list of superclasses."""
        columns = self._read_columns(part)
        for kind in ("fine", "coarse"):
            names = self._class_names(kind)
            _check_labels(columns.labels[f"{kind}_label"], names, self.name, self.root)
        fine, coarse = columns.labels["fine_label"], columns.labels["coarse_label"]
        pairs = np.unique(np.stack([fine, coarse]), axis=1)
        if len(np.unique(pairs[0])) != pairs.shape[1]:
            raise UserError(
                f"{self.root}: a class of CIFAR-100 lies in two superclasses; fetch the data set "
                "again."
            )
        labels, other = (fine, coarse) if self.labels == "fine" else (coarse, fine)
        extra = "coarse_label" if self.labels == "fine" else "fine_label"
        return LabelledArrays(
            _images(columns.pixels), labels, self._class_names(self.labels), {extra: other}
        )

    def _class_names(self, kind: str) -> Sequence[str]:
        if self._is_binary:
            return read_lines(self.root / self.binary[0] / f"{kind}_label_names.txt")
        path = self.root / self.python[0] / "meta"
        names = _unpickle(path).get(f"{kind}_label_names".encode())
        if not isinstance(names, list):
            raise UserError(f"{path} has no {kind}_label_names; fetch the data set again.")
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _images(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Records hold all red, then all green, then all blue values: [N, 3072] to [N, 32, 32, 3]."""
    return np.ascontiguousarray(rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))


def _check_labels(
    labels: NDArray[np.int64], class_names: Sequence[str], name: str, root: Path
) -> None:
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise UserError(
            f"{root}: {name} has a label outside of 0 to {len(class_names) - 1}; fetch it again."
        )


def _read_binary(path: Path, names: Sequence[str]) -> _Columns:
    """Records of one byte per label and 3072 bytes of pixels."""
    raw = np.fromfile(path, dtype=np.uint8)
    size = len(names) + PIXELS
    if len(raw) == 0 or len(raw) % size:
        raise UserError(
            f"{path} has {len(raw)} bytes, which is no multiple of the {size} of an image; fetch "
            "it again."
        )
    records = raw.reshape(-1, size)
    labels = {name: records[:, i] for i, name in enumerate(names)}
    return _Columns(records[:, len(names) :], labels)


def _read_python(path: Path, fields: dict[str, str]) -> _Columns:
    content = _unpickle(path)
    pixels = content.get(b"data")
    labels = {name: np.asarray(content.get(field.encode(), ())) for name, field in fields.items()}
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != PIXELS
        or any(column.shape != (len(pixels),) for column in labels.values())
        or any(column.dtype.kind not in "iu" for column in labels.values())
    ):
        raise UserError(f"{path} is no batch of the Python version of CIFAR; fetch it again.")
    return _Columns(pixels, labels)


def _unpickle(path: Path) -> dict[bytes, Any]:
    """The dictionary in a file of the Python version, keys as bytes."""
    content = read_plain(path, encoding="bytes", advice="fetch it again, or the binary version")
    if not isinstance(content, dict):
        raise UserError(f"{path} is no batch of the Python version of CIFAR; fetch it again.")
    return {key.encode() if isinstance(key, str) else key: v for key, v in content.items()}
