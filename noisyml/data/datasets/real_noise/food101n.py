"""Food-101N (Lee, He, Zhang, Yang, CVPR 2018) to train, Food-101 (Bossard et al., 2014) to test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import UNKNOWN, WRONG
from noisyml.data.readers.closed_set import ClosedSetFiles, Listed
from noisyml.data.readers.folders import LeftOut, entries, image_files
from noisyml.data.readers.layout import (
    check_count,
    first_missing,
    read_columns,
)
from noisyml.data.readers.path_lists import CrawledFiles, read_path_list
from noisyml.data.readers.zero_shot import Rows
from noisyml.errors import UserError
from noisyml.storage.text import read_lines

LISTS = {"train": "FOOD_train.csv", "test": "FOOD_test.csv"}
LIST_FOLDER = "food101nDML"
CRAWLED, CURATED = "Food-101N_release", "food-101"
TRAINING_CLASSES = 50
CLASSES = 101
#: Rows of meta/imagelist.tsv over all 101 classes (the data set's page).
CRAWLED_IMAGES = 310_009
#: Images of Food-101's official test list.
TEST_IMAGES = 25_250
VERIFIED = ("verified_train.tsv", "verified_val.tsv")
HOW_TO_GET = (
    "fetch Food-101N_release.zip (310,009 images; kuanghuei.github.io/Food-101N) and "
    "food-101.tar.gz (5 GB; data.vision.ee.ethz.ch/cvl/datasets_extra/food-101), unpack both "
    "side by side, and set dataset.root to the folder with "
    "Food-101N_release/{images,meta/imagelist.tsv} and food-101/images."
)


class Food101N(CrawledFiles):
    """Crawled dishes of classes 1-50 for training, Food-101's classes 51-101 for testing.

    Classes are numbered from 1 in the order of their names (protocol of arXiv 2103.16047).

    Args:
        root: folder with the official releases ``Food-101N_release/`` and ``food-101/``; with
            `lists`, the folder that holds ``food101nDML/``.
        lists: None for the official releases; or a folder with ``FOOD_train.csv`` and
            ``FOOD_test.csv`` as released with PRISM.
        max_missing: see `CrawledFiles`.
        val_classes: see `ZeroShotFiles`.
        check_counts: see `ZeroShotFiles`.
    """

    description: ClassVar[str] = "Food-101N: crawled dishes, 50 classes, about 20 % wrong labels"
    how_to_get: ClassVar[str] = HOW_TO_GET
    name = "food101n"
    #: No count of the crawled half has been published; all 101 classes are counted instead.
    published: ClassVar[dict[str, tuple[int, int]]] = {"test": (51_000, 51)}

    def __init__(
        self,
        root: str,
        lists: str | None = None,
        max_missing: OpenShare = 0.1,
        val_classes: WholeNonNegative = 0,
        check_counts: bool = True,
    ) -> None:
        super().__init__(root, max_missing, val_classes, check_counts)
        self.lists = None if lists is None else Path(lists)

    def missing(self) -> str | None:
        """None, or the first list or folder that is not there."""
        if self.lists is not None:
            lacking = first_missing(self.lists, *LISTS.values())
            return lacking or first_missing(self.root, LIST_FOLDER)
        return first_missing(
            self.root,
            f"{CRAWLED}/meta/imagelist.tsv",
            f"{CRAWLED}/images",
            f"{CURATED}/images",
        )

    def rows(self) -> dict[str, Rows]:
        """Rows of the released lists, or of the official releases."""
        if self.lists is not None:
            folders = (LIST_FOLDER,)
            return {part: read_path_list(self.lists / f, folders) for part, f in LISTS.items()}
        curated = self.root / CURATED / "images"
        classes = _classes(curated)
        number = {name: i for i, name in enumerate(classes, start=1)}
        names = {i: name for name, i in number.items()}
        train = self._crawled(number, names)
        paths: list[str] = []
        ids: list[int] = []
        left_out = LeftOut()
        for name in classes[TRAINING_CLASSES:]:
            files = image_files(curated / name, left_out)
            paths += [f"{CURATED}/images/{name}/{file}" for file in files]
            ids += [number[name]] * len(files)
        self.left_out = left_out.by_kind
        return {"train": train, "test": Rows(paths, np.array(ids, dtype=np.int64), names)}

    def _crawled(self, number: dict[str, int], names: dict[int, str]) -> Rows:
        images, classes = _crawled(self.root, list(number), self.check_counts)
        ids = np.array([number[name] for name in classes], dtype=np.int64)
        every = Rows([f"{CRAWLED}/images/{image}" for image in images], ids, names)
        return every.take(ids <= TRAINING_CLASSES)


class Food101NClosedSet(ClosedSetFiles):
    """All 101 dishes: Food-101N to train a classifier, Food-101's official test list to test it.

    Part of the training labels were verified by hand as right or wrong: the extra ``clean_label``
    holds the class where it is right, -2 where it is wrong and -1 elsewhere, so
    that label trust can be measured; no method reads it.

    Args:
        root: folder with the official releases ``Food-101N_release/`` and ``food-101/``.
        val_fraction: see `ClosedSetFiles`; the papers hold out nothing.
        max_missing: share of the training images that may be gone, in [0, 1).
        seed: see `ClosedSetFiles`.
        check_counts: see `ClosedSetFiles`.

    Raises:
        UserError: a value out of range.
    """

    description: ClassVar[str] = "Food-101N: 310,009 crawled dishes, 101 classes, about 20 % wrong"
    how_to_get: ClassVar[str] = HOW_TO_GET
    name = "food101n_closed_set"
    labels_are_true = False

    def __init__(
        self,
        root: str,
        val_fraction: OpenShare = 0.0,
        max_missing: OpenShare = 0.1,
        seed: WholeNonNegative = 0,
        check_counts: bool = True,
    ) -> None:
        super().__init__(root, val_fraction, seed, check_counts)
        self.max_missing = max_missing

    def missing(self) -> str | None:
        """None, or the first list or folder that is not there."""
        return first_missing(
            self.root,
            f"{CRAWLED}/meta/imagelist.tsv",
            *(f"{CRAWLED}/meta/{file}" for file in VERIFIED),
            f"{CRAWLED}/images",
            f"{CURATED}/images",
            f"{CURATED}/meta/test.txt",
        )

    def class_names(self) -> Sequence[str]:
        """The dishes in the order of their names."""
        return _classes(self.root / CURATED / "images")

    def published(self) -> dict[str, int | Sequence[int]]:
        """250 test images of each class; the crawled list is counted when it is read."""
        return {"test": [TEST_IMAGES // CLASSES] * CLASSES}

    def parts(self) -> dict[str, Listed]:
        """The crawled list with what was verified, and the official test list."""
        classes = list(self.class_names())
        if self.check_counts:
            check_count(f"Classes in {self.root / CURATED / 'images'}", len(classes), CLASSES)
        number = {name: i for i, name in enumerate(classes)}
        images, owners = _crawled(self.root, classes, self.check_counts)
        labels = np.array([number[name] for name in owners], dtype=np.int64)
        verdict = {}
        for file in VERIFIED:
            rows = read_columns(self.root / CRAWLED / "meta" / file, 2, skip=1, tabs=True)
            verdict.update(dict(rows))
        verified = np.array([verdict.get(image, "") for image in images])
        clean = np.where(verified == "1", labels, np.where(verified == "0", WRONG, UNKNOWN))
        paths = [f"{CRAWLED}/images/{image}" for image in images]
        test_list = self.root / CURATED / "meta" / "test.txt"
        test = [line.strip() for line in read_lines(test_list)]
        unknown = next((i for i, t in enumerate(test) if t.partition("/")[0] not in number), None)
        if unknown is not None:
            raise UserError(f"{test_list}, line {unknown + 1}: no folder for '{test[unknown]}'.")
        test_labels = np.array([number[t.partition("/")[0]] for t in test], dtype=np.int64)
        return {
            "train": Listed(paths, labels, {"clean_label": clean}),
            "test": Listed([f"{CURATED}/images/{image}.jpg" for image in test], test_labels),
        }

    def usable(self, parts: dict[str, Listed]) -> dict[str, Listed]:
        """The training images that are there."""
        train = self.available(parts["train"], self.max_missing)
        return {**parts, "train": train}


def _classes(curated: Path) -> list[str]:
    return entries(curated, LeftOut())[0]


def _crawled(root: Path, known: Sequence[str], check_counts: bool) -> tuple[list[str], list[str]]:
    """Images ``<class>/<file>`` of the crawled list, and their classes."""
    path = root / CRAWLED / "meta" / "imagelist.tsv"
    # The first line is the column's name.
    images = [line.strip() for line in read_lines(path)[1:]]
    if check_counts:
        check_count(f"Images listed in {path}", len(images), CRAWLED_IMAGES)
    classes = [image.partition("/")[0] for image in images]
    names = set(known)
    unknown = next((row for row, name in enumerate(classes) if name not in names), None)
    if unknown is not None:
        raise UserError(
            f"{path}, line {unknown + 2}: class '{classes[unknown]}' has no folder in "
            f"{root / CURATED / 'images'}; unpack food-101 again."
        )
    return images, classes
