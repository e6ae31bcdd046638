"""Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv 1708.07747), read from its four IDX files."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from noisyml.data.base import DatasetSource, Split
from noisyml.data.datasets.layout import array_split, check_count, require_files
from noisyml.data.datasets.partition import carve_samples, check_fractions
from noisyml.errors import UserError

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
#: Folder of Debian's package ``dataset-fashion-mnist``.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
PREFIXES = {"train": "train", "test": "t10k"}
PUBLISHED = {"train": 60_000, "test": 10_000}


class FashionMNIST(DatasetSource):
    """70,000 photographs of clothes, 28x28 grey, 10 classes.

    Args:
        root: folder with ``FashionMNIST/raw/*`` (torchvision's download folder) or with the four
            files themselves; where it has none, the folder of Debian's package is looked at.
        val_fraction: share of each training class for ``val``, in [0, 1).
        seed: which of the possible carvings; unrelated to the seed of a run.
        check_counts: compare the numbers of images with the published ones.
    """

    description: ClassVar[str] = "Fashion-MNIST: 70,000 clothes, 28x28 grey, 10 classes"
    how_to_get: ClassVar[str] = (
        "fetch the four *-ubyte.gz files (30 MB) of github.com/zalandoresearch/fashion-mnist, with "
        "torchvision.datasets.FashionMNIST(root, download=True) or as Debian's package "
        "dataset-fashion-mnist, and set dataset.root to the folder that holds FashionMNIST/raw."
    )

    def __init__(
        self, root: str, val_fraction: float = 0.1, seed: int = 0, check_counts: bool = True
    ) -> None:
        check_fractions(val_fraction)
        self.root = Path(root)
        self.val_fraction = val_fraction
        self.seed = seed
        self.check_counts = check_counts

    def missing(self) -> str | None:
        """None, or the first of the four files that no known folder has."""
        absent = next((stem for stem, path in self._files().items() if path is None), None)
        return None if absent is None else str(self.root / "FashionMNIST" / "raw" / f"{absent}.gz")

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if its fraction is positive) and ``test``."""
        require_files(self, "fashion_mnist")
        official = {name: self._read(name) for name in PREFIXES}
        pixels, labels = official["train"]
        keys = [f"train/{i:05d}" for i in range(len(labels))]
        parts = carve_samples(labels, keys, self.val_fraction, 0.0, self.seed)
        chosen = {name: np.flatnonzero(parts == i) for i, name in enumerate(("train", "val"))}
        splits = {
            name: array_split(
                name, pixels[rows], labels[rows], CLASS_NAMES, [keys[row] for row in rows]
            )
            for name, rows in chosen.items()
            if len(rows)
        }
        pixels, labels = official["test"]
        keys = [f"test/{i:05d}" for i in range(len(labels))]
        return splits | {"test": array_split("test", pixels, labels, CLASS_NAMES, keys)}

    def _files(self) -> dict[str, Path | None]:
        stems = [
            f"{prefix}-{kind}"
            for prefix in PREFIXES.values()
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]
        folders = (self.root / "FashionMNIST" / "raw", self.root, DEBIAN_FOLDER)
        return {stem: _find(folders, stem) for stem in stems}

    def _read(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        files = self._files()
        image_file = files[f"{PREFIXES[name]}-images-idx3-ubyte"]
        label_file = files[f"{PREFIXES[name]}-labels-idx1-ubyte"]
        if image_file is None or label_file is None:
            raise UserError(f"A file of Fashion-MNIST vanished from {self.root} while being read.")
        pixels, labels = read_idx(image_file, 3), read_idx(label_file, 1).astype(np.int64)
        if len(pixels) != len(labels):
            raise UserError(
                f"{image_file} holds {len(pixels)} images but {label_file} {len(labels)} labels; "
                "fetch both again."
            )
        if labels.max(initial=0) >= len(CLASS_NAMES):
            raise UserError(f"{label_file} holds a label above 9; fetch the file again.")
        if self.check_counts:
            check_count(
                f"Images of the {name} split of fashion_mnist", len(labels), PUBLISHED[name]
            )
        return pixels, labels


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
