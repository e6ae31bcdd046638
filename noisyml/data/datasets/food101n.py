"""Food-101N (Lee, He, Zhang, Yang, CVPR 2018) to train, Food-101 (Bossard et al., 2014) to test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import numpy as np

from noisyml.data.datasets.layout import IMAGE_SUFFIXES, check_count, first_missing, read_lines
from noisyml.data.datasets.path_lists import CrawledFiles, read_path_list
from noisyml.data.datasets.zero_shot import Rows
from noisyml.errors import UserError

LISTS = {"train": "FOOD_train.csv", "test": "FOOD_test.csv"}
LIST_FOLDER = "food101nDML"
CRAWLED, CURATED = "Food-101N_release", "food-101"
TRAINING_CLASSES = 50
#: Rows of meta/imagelist.tsv over all 101 classes (the data set's page).
CRAWLED_IMAGES = 310_009


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
    how_to_get: ClassVar[str] = (
        "fetch Food-101N_release.zip (310,009 images; kuanghuei.github.io/Food-101N) and "
        "food-101.tar.gz (5 GB; data.vision.ee.ethz.ch/cvl/datasets_extra/food-101), unpack both "
        "side by side, and set dataset.root to the folder with "
        "Food-101N_release/{images,meta/imagelist.tsv} and food-101/images."
    )
    name = "food101n"
    #: No count of the crawled half has been published; all 101 classes are counted instead.
    published: ClassVar[dict[str, tuple[int, int]]] = {"test": (51_000, 51)}

    def __init__(
        self,
        root: str,
        lists: str | None = None,
        max_missing: float = 0.1,
        val_classes: int = 0,
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
        classes = sorted(entry.name for entry in os.scandir(curated) if entry.is_dir())
        number = {name: i for i, name in enumerate(classes, start=1)}
        names = {i: name for name, i in number.items()}
        train = self._crawled(number, names)
        paths: list[str] = []
        ids: list[int] = []
        for name in classes[TRAINING_CLASSES:]:
            files = sorted(
                f for f in os.listdir(curated / name) if Path(f).suffix in IMAGE_SUFFIXES
            )
            paths += [f"{CURATED}/images/{name}/{file}" for file in files]
            ids += [number[name]] * len(files)
        return {"train": train, "test": Rows(paths, np.array(ids, dtype=np.int64), names)}

    def _crawled(self, number: dict[str, int], names: dict[int, str]) -> Rows:
        path = self.root / CRAWLED / "meta" / "imagelist.tsv"
        # The first line is the column's name; the others are <class>/<file>.
        images = [line.strip() for line in read_lines(path)[1:]]
        if self.check_counts:
            check_count(f"Images listed in {path}", len(images), CRAWLED_IMAGES)
        classes = [image.partition("/")[0] for image in images]
        unknown = next((row for row, name in enumerate(classes) if name not in number), None)
        if unknown is not None:
            raise UserError(
                f"{path}, line {unknown + 2}: class '{classes[unknown]}' has no folder in "
                f"{self.root / CURATED / 'images'}; unpack food-101 again."
            )
        ids = np.array([number[name] for name in classes], dtype=np.int64)
        every = Rows([f"{CRAWLED}/images/{image}" for image in images], ids, names)
        return every.take(ids <= TRAINING_CLASSES)
