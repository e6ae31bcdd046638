"""Patches of slides in folders of classes: Kather's textures, KimiaPath24, BACH."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.readers.closed_set import ClosedSetFiles, Listed
from noisyml.data.readers.folders import LeftOut, image_files
from noisyml.data.readers.layout import check_count, first_missing
from noisyml.data.readers.partition import TestShare, carving, check_fractions
from noisyml.errors import UserError


class _ClassFolders(ClosedSetFiles):
    """A folder of images for each class, the same classes in all parts."""

    #: Names of the folders in the order of the labels.
    folders: ClassVar[Sequence[str]]

    def listed(self, below: str) -> Listed:
        """The images in the class folders below a folder of the root.

        Raises:
            UserError: a class without images.
        """
        left_out, paths, labels = LeftOut(), [], []
        for number, folder in enumerate(self.folders):
            place = f"{below}/{folder}" if below else folder
            found = image_files(self.root / place, left_out)
            if not found:
                raise UserError(f"{self.root / place} holds no images; unpack {self.name} again.")
            paths += [f"{place}/{name}" for name in found]
            labels += [number] * len(found)
        self.left_out = left_out.by_kind
        return Listed(paths, np.array(labels, dtype=np.int64))


class _Carved(_ClassFolders):
    """Class folders without an official division: every class gives its share to the parts.

    Args:
        root: folder with the class folders.
        val_fraction: share of each class for ``val``, in [0, 1).
        test_fraction: share of each class for ``test``, in (0, 1).
        seed: which of the possible carvings; unrelated to the seed of a run.
        check_counts: compare the numbers of images with the published ones.
    """

    #: Images of each class.
    each: ClassVar[int]
    #: Folder of the root that holds the class folders.
    below: ClassVar[str] = ""

    def __init__(
        self,
        root: str,
        val_fraction: OpenShare = 0.1,
        test_fraction: TestShare = 0.2,
        seed: WholeNonNegative = 0,
        check_counts: bool = True,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        super().__init__(root, val_fraction, seed, check_counts)
        self.test_fraction = test_fraction

    def missing(self) -> str | None:
        """None, or the first class folder that is not there."""
        prefix = f"{self.below}/" if self.below else ""
        return first_missing(self.root, *(prefix + folder for folder in self.folders))

    def published(self) -> dict[str, int | Sequence[int]]:
        """Nothing by part: the parts are carved, classes are counted as they are read."""
        return {}

    def parts(self) -> dict[str, Listed]:
        """Every class divided by the fractions."""
        every = self.listed(self.below)
        if self.check_counts:
            for number, folder in enumerate(self.folders):
                found = int((every.labels == number).sum())
                check_count(f"Images of class '{folder}' of {self.name}", found, self.each)
        self.split_origin = carving(self.val_fraction, self.test_fraction, self.seed)
        parts = every.carved(self.val_fraction, self.test_fraction, self.seed)
        return {part: listed for part, listed in parts.items() if len(listed.paths)}


class KatherTextures(_Carved):
    """Colorectal cancer (Kather et al., Scientific Reports 2016): 5,000 patches, 8 tissues.

    There is no official division; 150x150 pixels of about 0.495 micrometres.

    Args:
        root: the folder ``Kather_texture_2016_image_tiles_5000``.
        val_fraction: share of each class for ``val``, in [0, 1).
        test_fraction: share of each class for ``test``, in (0, 1).
        seed: which of the possible carvings; unrelated to the seed of a run.
        check_counts: compare the numbers of images with the published ones.
    """

    description: ClassVar[str] = (
        "Kather CRC: 5,000 patches of colorectal cancer, 150x150, 8 classes"
    )
    how_to_get: ClassVar[str] = (
        "fetch Kather_texture_2016_image_tiles_5000.zip (260 MB; doi 10.5281/zenodo.53169), unpack "
        "it, and set dataset.root to the folder with 01_TUMOR/ to 08_EMPTY/."
    )
    name = "kather_crc"
    folders = (
        "01_TUMOR", "02_STROMA", "03_COMPLEX", "04_LYMPHO", "05_DEBRIS", "06_MUCOSA",
        "07_ADIPOSE", "08_EMPTY",
    )  # fmt: skip
    each = 625

    def class_names(self) -> Sequence[str]:
        """The tissues."""
        return [folder.partition("_")[2].lower() for folder in self.folders]


class BACH(_Carved):
    """Breast cancer (ICIAR 2018 challenge; Aresta et al., MedIA 2019): 400 images, 4 classes.

    The labels of the official test images have not been published: the training images are divided.

    Args:
        root: the folder ``ICIAR2018_BACH_Challenge``.
        val_fraction: share of each class for ``val``, in [0, 1).
        test_fraction: share of each class for ``test``, in (0, 1).
        seed: which of the possible carvings; unrelated to the seed of a run.
        check_counts: compare the numbers of images with the published ones.
    """

    description: ClassVar[str] = "BACH: 400 images of breast tissue, 2048x1536, 4 classes"
    how_to_get: ClassVar[str] = (
        "fetch ICIAR2018_BACH_Challenge.zip (10 GB; doi 10.5281/zenodo.3632035), unpack it, and "
        "set dataset.root to the folder with Photos/Benign, InSitu, Invasive and Normal."
    )
    name = "bach"
    folders = ("Normal", "Benign", "InSitu", "Invasive")
    each = 100
    below = "Photos"

    def class_names(self) -> Sequence[str]:
        """The folders."""
        return self.folders


class KimiaPath24(_ClassFolders):
    """24 textures of tissue (Babaie et al., CVPR workshops 2017), grouped by non-experts.

    The 1,325 test patches are official; the training patches are cut by the user, here one folder
    for each of the 24 scans. Class numbers are those of the folders.

    Args:
        root: folder with ``Training/s0`` to ``s23`` and ``RGBPatches-test/s0`` to ``s23``.
        val_fraction: share of the training patches of each class for ``val``, in [0, 1).
        seed: which of the possible carvings; unrelated to the seed of a run.
        check_counts: compare the number of test patches with the published one.
    """

    description: ClassVar[str] = "KimiaPath24: patches of 24 slides, 1000x1000, 24 classes"
    how_to_get: ClassVar[str] = (
        "ask for KimiaPath24C at kimialab.uwaterloo.ca, and set dataset.root to the folder with "
        "Training/s0 to s23 (patches cut from the scans) and RGBPatches-test/s0 to s23."
    )
    name = "kimia_path24"
    folders = tuple(f"s{number}" for number in range(24))

    def missing(self) -> str | None:
        """None, or the first class folder that is not there."""
        parts = ("Training", "RGBPatches-test")
        return first_missing(
            self.root, *(f"{p}/{folder}" for p in parts for folder in self.folders)
        )

    def class_names(self) -> Sequence[str]:
        """The folders, in the order of their numbers."""
        return self.folders

    def published(self) -> dict[str, int | Sequence[int]]:
        """1,325 test patches."""
        return {"test": 1_325}

    def parts(self) -> dict[str, Listed]:
        """The patches of both folders."""
        return {"train": self.listed("Training"), "test": self.listed("RGBPatches-test")}
