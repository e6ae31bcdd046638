"""Caltech-UCSD Birds 200-2011 (Wah et al., CNS-TR-2011-001), split for zero-shot retrieval."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from noisyml.data.readers.layout import first_missing, read_columns, whole_numbers
from noisyml.data.readers.zero_shot import Rows, ZeroShotFiles
from noisyml.errors import UserError


class CUB200(ZeroShotFiles):
    """Birds: classes 1-100 train, 101-200 test (the protocol of deep metric learning).

    Args:
        root: the folder ``CUB_200_2011``.
        val_classes: see `ZeroShotFiles`.
        check_counts: see `ZeroShotFiles`.
        split: see `ZeroShotFiles`.
        archives: see `ZeroShotFiles`.
    """

    description: ClassVar[str] = "CUB-200-2011: 11,788 birds, 100 classes to train, 100 to test"
    how_to_get: ClassVar[str] = (
        "fetch CUB_200_2011.tgz (1.1 GB) from Caltech's page of Caltech-UCSD Birds-200-2011 "
        "(vision.caltech.edu/datasets/cub_200_2011), unpack it, and set dataset.root to the folder "
        "CUB_200_2011 with images.txt, image_class_labels.txt, classes.txt and images/."
    )
    name = "cub200"
    published: ClassVar[dict[str, tuple[int, int]]] = {"train": (5864, 100), "test": (5924, 100)}
    archive_md5: ClassVar[dict[str, str]] = {"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"}

    def missing(self) -> str | None:
        """None, or the first official file that is not there."""
        return first_missing(
            self.root, "images.txt", "image_class_labels.txt", "classes.txt", "images"
        )

    def rows(self) -> dict[str, Rows]:
        """Rows of ``images.txt``, halved by class."""
        every = self.every()
        return {"train": every.take(every.ids <= 100), "test": every.take(every.ids > 100)}

    def every(self) -> Rows:
        """Rows of ``images.txt``, joined with their classes by image id.

        Raises:
            UserError: the files contradict each other.
        """
        classes = read_columns(self.root / "classes.txt", 2)
        class_ids = whole_numbers([row[0] for row in classes], self.root / "classes.txt")
        names = {
            int(number): row[1].partition(".")[2] or row[1]
            for number, row in zip(class_ids, classes, strict=True)
        }
        path_of = dict(read_columns(self.root / "images.txt", 2))
        label_file = self.root / "image_class_labels.txt"
        label_of = dict(read_columns(label_file, 2))
        if path_of.keys() != label_of.keys():
            odd = min(path_of.keys() ^ label_of.keys())
            raise UserError(
                f"Image {odd} stands in only one of images.txt and image_class_labels.txt of "
                f"{self.root}; unpack the archive again."
            )
        ids = whole_numbers([label_of[image] for image in path_of], label_file)
        unnamed = np.setdiff1d(ids, list(names))
        if len(unnamed):
            raise UserError(f"{label_file}: class {unnamed[0]} is not in classes.txt.")
        return Rows([f"images/{path}" for path in path_of.values()], ids, names)
