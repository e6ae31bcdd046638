"""CARS-98N (Liu et al., CVPR 2021, arXiv 2103.16047): crawled cars with real label noise."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.readers.layout import first_missing
from noisyml.data.readers.path_lists import CrawledFiles, read_path_list
from noisyml.data.readers.zero_shot import Rows

LISTS = {"train": "CARSN_train.csv", "test": "CARS_test.csv"}
FOLDERS = ("cars_noise", "cars196")


class Cars98N(CrawledFiles):
    """Crawled images of 98 car models for training, classes 99-196 of Cars196 for testing.

    Args:
        root: folder with ``cars_noise/img_v3/<0..97>/`` and ``cars196/images/<class name>/``.
        lists: folder with ``CARSN_train.csv`` and ``CARS_test.csv``; None for ``root/datalist``.
        max_missing: see `CrawledFiles`.
        val_classes: see `ZeroShotFiles`.
        check_counts: see `ZeroShotFiles`.
    """

    description: ClassVar[str] = "CARS-98N: 9,558 crawled cars, real noise; tested on Cars196"
    how_to_get: ClassVar[str] = (
        "fetch the folder datalist of github.com/alibaba-edu/Ranking-based-Instance-Selection, run "
        "its prepare_CARS_98N/download.py (9,567 images from the web), take Stanford Cars with one "
        "folder per class for testing (8,131 images), and set dataset.root to a folder with "
        "datalist/, cars_noise/img_v3/<0..97>/ and cars196/images/<class name>/."
    )
    name = "cars98n"
    published: ClassVar[dict[str, tuple[int, int]]] = {"train": (9558, 98), "test": (8131, 98)}

    def __init__(
        self,
        root: str,
        lists: str | None = None,
        max_missing: OpenShare = 0.1,
        val_classes: WholeNonNegative = 0,
        check_counts: bool = True,
    ) -> None:
        super().__init__(root, max_missing, val_classes, check_counts)
        self.lists = self.root / "datalist" if lists is None else Path(lists)

    def missing(self) -> str | None:
        """None, or the first list or folder that is not there."""
        return first_missing(self.lists, *LISTS.values()) or first_missing(self.root, *FOLDERS)

    def rows(self) -> dict[str, Rows]:
        """The two released lists."""
        return {part: read_path_list(self.lists / file, FOLDERS) for part, file in LISTS.items()}
