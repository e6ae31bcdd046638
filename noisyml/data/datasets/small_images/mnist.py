"""MNIST (LeCun, Bottou, Bengio, Haffner, 1998), and the IDX files it shares with Fashion-MNIST."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from noisyml.data.readers.array_benchmark import ArrayBenchmark, LabelledArrays
from noisyml.errors import UserError

PREFIXES = {"train": "train", "test": "t10k"}


class IdxImages(ArrayBenchmark):
    """Four IDX files, gzipped or not: images and labels of 60,000 training and 10,000 test images.

    Args:
        root: see `folders`.
        val_fraction: see `ArrayBenchmark`.
        seed: see `ArrayBenchmark`.
        check_counts: see `ArrayBenchmark`.
        split: see `ArrayBenchmark`.
    """

    published: ClassVar[dict[str, int]] = {"train": 60_000, "test": 10_000}
    class_names: ClassVar[Sequence[str]]
    #: torchvision's folder below the root.
    folder: ClassVar[str]

    def folders(self) -> tuple[Path, ...]:
        """Folders that may hold the four files: torchvision's download folder, or the root."""
        return (self.root / self.folder / "raw", self.root)

    def missing(self) -> str | None:
        """None, or the first of the four files that no known folder has."""
        absent = next((stem for stem, path in self._files().items() if path is None), None)
        return None if absent is None else str(self.folders()[0] / f"{absent}.gz")

    def read(self, part: str) -> LabelledArrays:
        """The two files of one half."""
        files = self._files()
        image_file = files[f"{PREFIXES[part]}-images-idx3-ubyte"]
        label_file = files[f"{PREFIXES[part]}-labels-idx1-ubyte"]
        if image_file is None or label_file is None:
            raise UserError(f"A file of {self.name} vanished from {self.root} while being read.")
        pixels, labels = read_idx(image_file, 3), read_idx(label_file, 1).astype(np.int64)
        if len(pixels) != len(labels):
            raise UserError(
                f"{image_file} holds {len(pixels)} images but {label_file} {len(labels)} labels; "
                "fetch both again."
            )
        if labels.max(initial=0) >= len(self.class_names):
            raise UserError(f"{label_file} holds a label above 9; fetch the file again.")
        return LabelledArrays(pixels, labels, self.class_names)

    def _files(self) -> dict[str, Path | None]:
        stems = [
            f"{prefix}-{kind}"
            for prefix in PREFIXES.values()
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]
        return {stem: _find(self.folders(), stem) for stem in stems}


class MNIST(IdxImages):
    """70,000 handwritten digits, 28x28 grey, 10 classes.

    Args:
        root: folder with ``MNIST/raw/*`` (torchvision's download folder) or with the four files
            themselves.
        val_fraction: see `ArrayBenchmark`.
        seed: see `ArrayBenchmark`.
        check_counts: see `ArrayBenchmark`.
        split: see `ArrayBenchmark`.
    """

    description: ClassVar[str] = "MNIST: 70,000 handwritten digits, 28x28 grey, 10 classes"
    how_to_get: ClassVar[str] = (
        "fetch the four *-ubyte.gz files (11 MB) of the MNIST database, e.g. with "
        "torchvision.datasets.MNIST(root, download=True), and set dataset.root to the folder that "
        "holds MNIST/raw."
    )
    name = "mnist"
    folder = "MNIST"
    class_names = tuple(str(digit) for digit in range(10))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An array of bytes from an IDX file, gzipped or not.

    The format: two zero bytes, the type (8 = unsigned byte), the number of dimensions, each size
    as a big-endian 32-bit number, then the data.

    Args:
        path: the file.
        dimensions: how many dimensions it must have.

    Raises:
        UserError: it is no such file, or it is cut short.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked ({error}); fetch it again.") from error
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(f"{path} is no IDX file of bytes with {dimensions} dimensions.")
    shape = np.frombuffer(raw, dtype=">u4", count=dimensions, offset=4).tolist()
    expected = start + int(np.prod(shape, dtype=object))
    if len(raw) != expected:
        raise UserError(
            f"{path} announces {expected} bytes and has {len(raw)}; fetch the file again."
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def _find(folders: tuple[Path, ...], stem: str) -> Path | None:
    candidates = (folder / f"{stem}{suffix}" for folder in folders for suffix in (".gz", ""))
    return next((path for path in candidates if path.is_file()), None)
