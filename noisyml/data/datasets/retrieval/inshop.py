"""In-shop Clothes Retrieval of DeepFashion (Liu, Luo, Qiu, Wang, Tang, CVPR 2016)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from noisyml.checks import WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.layout import (
    check_count,
    parts_to_splits,
    read_columns,
    require_files,
)
from noisyml.data.readers.partition import DevelopmentSplit, held_out_classes
from noisyml.errors import UserError

LIST = "list_eval_partition.txt"
#: Folders, below the root, that releases of the data set keep the list and ``img/`` in.
LIST_FOLDERS = ("Eval", "", "Anno")
IMAGE_FOLDERS = ("Img", "")
PUBLISHED = {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985)}


class InShop(DatasetSource):
    """Clothes of an online shop with a query and a gallery of unseen items.

    Args:
        root: folder with ``Eval/list_eval_partition.txt`` and ``Img/img/`` (or both directly).
        val_classes: number of training items, the last ones, to hold out as ``val``.
        check_counts: compare the numbers of images and items with the published ones.
        split: ``official``; or ``dev``, with the second half of the training items as ``val``
            (proxynca_pp), while query and gallery stay what they are.
    """

    description: ClassVar[str] = "In-shop Clothes: 52,712 photographs, 7,982 items, query + gallery"
    how_to_get: ClassVar[str] = (
        "fetch Eval/list_eval_partition.txt and Img/img.zip (52,712 images) of the In-shop Clothes "
        "Retrieval Benchmark from the DeepFashion page "
        "(mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html), unpack the images, and "
        "set dataset.root to the folder with Eval/list_eval_partition.txt and Img/img/."
    )

    def __init__(
        self,
        root: str,
        val_classes: WholeNonNegative = 0,
        check_counts: bool = True,
        split: DevelopmentSplit = "official",
    ) -> None:
        self.root = Path(root)
        self.val_classes = val_classes
        self.check_counts = check_counts
        self.split = split

    def missing(self) -> str | None:
        """None, or the list or the folder of images."""
        if self._list() is None:
            return str(self.root / LIST_FOLDERS[0] / LIST)
        return str(self.root / "Img" / "img") if self._images() is None else None

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (with `val_classes` or ``split=dev``), ``query`` and ``gallery``.

        Items are numbered over the whole list, so that the labels of query and gallery agree
        whatever the order of its rows.
        """
        require_files(self, "inshop")
        list_file, images = self._list(), self._images()
        if list_file is None or images is None:
            raise UserError(f"The files of {self.root} vanished while being read.")
        # The first line is the number of rows, the second the names of the columns.
        table = read_columns(list_file, 3, skip=2)
        given = np.array([row[2].strip() for row in table])
        wrong = np.flatnonzero(~np.isin(given, list(PUBLISHED)))
        if len(wrong):
            raise UserError(
                f"{list_file}, line {wrong[0] + 3}: the split is '{given[wrong[0]]}', not one of: "
                f"{', '.join(PUBLISHED)}."
            )
        items, labels = np.unique([row[1] for row in table], return_inverse=True)
        labels = labels.astype(np.int64)
        parts = {name: np.flatnonzero(given == name) for name in PUBLISHED}
        if self.check_counts:
            for name, (number, classes) in PUBLISHED.items():
                where = f"of the {name} split of inshop"
                check_count(f"Images {where}", len(parts[name]), number)
                check_count(f"Items {where}", len(np.unique(labels[parts[name]])), classes)
        train = parts["train"]
        held_out = held_out_classes(labels[train], self.split, self.val_classes, "inshop")
        parts = {
            "train": train[~held_out],
            "val": train[held_out],
            "query": parts["query"],
            "gallery": parts["gallery"],
        }
        return parts_to_splits(
            images, [row[0] for row in table], labels, items.tolist(), parts, share_classes=False
        )

    def _list(self) -> Path | None:
        candidates = (self.root / folder / LIST for folder in LIST_FOLDERS)
        return next((path for path in candidates if path.is_file()), None)

    def _images(self) -> Path | None:
        """The folder that paths of the list, which begin with ``img/``, start from."""
        candidates = (self.root / folder for folder in IMAGE_FOLDERS)
        return next((path for path in candidates if (path / "img").is_dir()), None)
