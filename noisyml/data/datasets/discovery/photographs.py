"""Photographs of all classes in their official halves, as category discovery parts them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from noisyml.data.datasets.discovery.splits import class_lists
from noisyml.data.datasets.retrieval.cars196 import Cars196
from noisyml.data.datasets.retrieval.cub200 import CUB200
from noisyml.data.readers.closed_set import ClosedSetFiles, Listed
from noisyml.data.readers.folders import LeftOut, entries, image_files
from noisyml.data.readers.layout import first_missing, read_columns, whole_numbers
from noisyml.data.readers.zero_shot import Rows
from noisyml.errors import UserError
from noisyml.storage.text import read_lines

#: Classes of the small ImageNet and of the whole one.
IMAGENET100, IMAGENET = 100, 1000


class BirdHalves(ClosedSetFiles):
    """CUB-200-2011 by its own halves: 5,994 training and 5,794 test images of all 200 classes.

    Args:
        root: the folder ``CUB_200_2011``.
        val_fraction: see `ClosedSetFiles`.
        seed: see `ClosedSetFiles`.
        check_counts: see `ClosedSetFiles`.
    """

    description: ClassVar[str] = "CUB-200-2011: 11,788 birds, 200 classes in both halves"
    how_to_get: ClassVar[str] = CUB200.how_to_get
    name = "cub200"

    def missing(self) -> str | None:
        """None, or the first official file that is not there."""
        own = CUB200(str(self.root)).missing()
        return own or first_missing(self.root, "train_test_split.txt")

    def class_names(self) -> Sequence[str]:
        """The names in ``classes.txt``."""
        return list(self._every().names.values())

    def parts(self) -> dict[str, Listed]:
        """Both halves in the order of ``images.txt``."""
        every = self._every()
        path = self.root / "train_test_split.txt"
        half = dict(read_columns(path, 2))
        ids = [row[0] for row in read_columns(self.root / "images.txt", 2)]
        if half.keys() != set(ids):
            raise UserError(f"{path} names other images than images.txt; unpack the archive again.")
        in_train = whole_numbers([half[image] for image in ids], path) == 1
        return _halves(every, in_train)

    def published(self) -> dict[str, int | Sequence[int]]:
        """Images of both halves."""
        return {"train": 5994, "test": 5794}

    def _every(self) -> Rows:
        return CUB200(str(self.root), check_counts=False).every()


class CarHalves(ClosedSetFiles):
    """Stanford Cars by its own halves: 8,144 training and 8,041 test images of all 196 classes.

    Args:
        root: folder with ``devkit/``, ``cars_train/``, ``cars_test/`` and
            ``cars_test_annos_withlabels.mat`` (there or in ``devkit/``).
        val_fraction: see `ClosedSetFiles`.
        seed: see `ClosedSetFiles`.
        check_counts: see `ClosedSetFiles`.
    """

    description: ClassVar[str] = "Stanford Cars: 16,185 cars, 196 classes in both halves"
    how_to_get: ClassVar[str] = Cars196.how_to_get
    name = "stanford_cars"

    def missing(self) -> str | None:
        """None, or the first file of the devkit's layout that is not there."""
        return self._cars().missing()

    def class_names(self) -> Sequence[str]:
        """The names in ``cars_meta.mat``."""
        return list(self._cars().from_devkit().names.values())

    def parts(self) -> dict[str, Listed]:
        """Both halves in the order of their annotations."""
        every = self._cars().from_devkit()
        in_train = np.array([path.startswith("cars_train/") for path in every.paths], dtype=bool)
        return _halves(every, in_train)

    def published(self) -> dict[str, int | Sequence[int]]:
        """Images of both halves."""
        return {"train": 8144, "test": 8041}

    def _cars(self) -> Cars196:
        return Cars196(str(self.root), layout="devkit", check_counts=False)


class Aircraft(ClosedSetFiles):
    """FGVC-Aircraft 2013b by variants: 6,667 training and 3,333 test images of 100 classes.

    Classes are numbered by the names of the variants, sorted as text.

    Args:
        root: the folder ``fgvc-aircraft-2013b/data``.
        val_fraction: see `ClosedSetFiles`.
        seed: see `ClosedSetFiles`.
        check_counts: see `ClosedSetFiles`.
    """

    description: ClassVar[str] = "FGVC-Aircraft: 10,000 aircraft, 100 variants"
    how_to_get: ClassVar[str] = (
        "fetch fgvc-aircraft-2013b.tar.gz (2.75 GB; robots.ox.ac.uk/~vgg/data/fgvc-aircraft), "
        "unpack it, and set dataset.source.root to the folder fgvc-aircraft-2013b/data with "
        "images/, images_variant_trainval.txt and images_variant_test.txt."
    )
    name = "fgvc_aircraft"
    files: ClassVar[dict[str, str]] = {
        "train": "images_variant_trainval.txt",
        "test": "images_variant_test.txt",
    }

    def missing(self) -> str | None:
        """None, or the first official file that is not there."""
        return first_missing(self.root, *self.files.values(), "images")

    def class_names(self) -> Sequence[str]:
        """The variants, sorted."""
        return sorted({variant for name in self.files for _, variant in self._rows(name)})

    def parts(self) -> dict[str, Listed]:
        """Training and validation images together, and the test images, in their order."""
        number = {name: i for i, name in enumerate(self.class_names())}
        found = {}
        for part in self.files:
            rows = self._rows(part)
            labels = np.array([number[variant] for _, variant in rows], dtype=np.int64)
            found[part] = Listed([f"images/{image}.jpg" for image, _ in rows], labels)
        return found

    def published(self) -> dict[str, int | Sequence[int]]:
        """Images of both halves."""
        return {"train": 6667, "test": 3333}

    def _rows(self, part: str) -> list[list[str]]:
        lines = read_lines(self.root / self.files[part])
        rows = [line.split(" ", 1) for line in lines if line.strip()]
        if wrong := next((row for row in rows if len(row) != 2), None):
            raise UserError(f"{self.root / self.files[part]}: '{wrong[0]}' has no variant.")
        return rows


class Herbarium19(ClosedSetFiles):
    """Herbarium 2019: 34,225 training and 2,679 validation images of 683 species of Melastomes.

    Classes are numbered by the names of their folders, sorted as text.

    Args:
        root: folder with ``small-train/<class>/`` and ``small-validation/<class>/``.
        val_fraction: see `ClosedSetFiles`.
        seed: see `ClosedSetFiles`.
        check_counts: see `ClosedSetFiles`.
    """

    description: ClassVar[str] = "Herbarium 19: 36,904 pressed plants, 683 species"
    how_to_get: ClassVar[str] = (
        "fetch the small images of the Herbarium Challenge 2019 of FGVC6 (about 5 GB; "
        "kaggle.com/c/herbarium-2019-fgvc6), unpack them, and set dataset.source.root to the "
        "folder with small-train/ and small-validation/."
    )
    name = "herbarium19"
    folders: ClassVar[dict[str, str]] = {"train": "small-train", "test": "small-validation"}

    def missing(self) -> str | None:
        """None, or the first folder that is not there."""
        return first_missing(self.root, *self.folders.values())

    def class_names(self) -> Sequence[str]:
        """The folders of the training images, sorted as text."""
        return sorted(entries(self.root / self.folders["train"], LeftOut())[0])

    def parts(self) -> dict[str, Listed]:
        """The images of both folders, class by class."""
        names, left_out = self.class_names(), LeftOut()
        found = {
            part: _from_folders(self.root, folder, names, left_out)
            for part, folder in self.folders.items()
        }
        self.left_out = left_out.by_kind
        return found

    def published(self) -> dict[str, int | Sequence[int]]:
        """Images of both folders."""
        return {"train": 34_225, "test": 2_679}


class ImageNet100(Herbarium19):
    """The 100 classes of ImageNet-1k that category discovery uses: about 127,000 training images.

    Not the ImageNet-100 of contrastive multiview coding: the two share 10 classes.

    Args:
        root: folder with ``train/<wnid>/`` and ``val/<wnid>/``, of all 1,000 classes or of these
            100 alone.
        val_fraction: see `ClosedSetFiles`.
        seed: see `ClosedSetFiles`.
        check_counts: see `ClosedSetFiles`; here the number of classes alone.
    """

    description: ClassVar[str] = "ImageNet-100 of GCD: about 127,000 photographs, 100 classes"
    how_to_get: ClassVar[str] = (
        "fetch ILSVRC2012 (150 GB; image-net.org), unpack training and validation images into "
        "train/<wnid>/ and val/<wnid>/, and set dataset.source.root to the folder with both."
    )
    name = "imagenet100"
    folders: ClassVar[dict[str, str]] = {"train": "train", "test": "val"}

    def class_names(self) -> Sequence[str]:
        """The wnids, sorted.

        Raises:
            UserError: neither 100 nor 1,000 folders.
        """
        names = super().class_names()
        if len(names) == IMAGENET:
            chosen = class_lists()["imagenet100_of_1000"]["classes"]
            return [names[number] for number in chosen]
        if self.check_counts and len(names) != IMAGENET100:
            raise UserError(
                f"{self.root / self.folders['train']} has {len(names)} folders: those of all 1,000 "
                "classes are needed, or of the 100 alone (dataset.source.check_counts=false takes "
                "any)."
            )
        return names

    def published(self) -> dict[str, int | Sequence[int]]:
        """No count but that of classes was published."""
        return {}


def _halves(every: Rows, in_train: np.ndarray) -> dict[str, Listed]:
    """Both halves of images with official ids, whose classes are numbered in the order of names."""
    number = {key: i for i, key in enumerate(every.names)}
    found = {}
    for name, chosen in (("train", in_train), ("test", ~in_train)):
        rows = every.take(chosen)
        labels = np.array([number[key] for key in rows.ids.tolist()], dtype=np.int64)
        found[name] = Listed(rows.paths, labels)
    return found


def _from_folders(root: Path, folder: str, names: Sequence[str], left_out: LeftOut) -> Listed:
    paths: list[str] = []
    labels: list[int] = []
    for number, name in enumerate(names):
        if not (root / folder / name).is_dir():
            continue
        files = image_files(root / folder / name, left_out)
        paths += [f"{folder}/{name}/{file}" for file in files]
        labels += [number] * len(files)
    return Listed(paths, np.array(labels, dtype=np.int64))
