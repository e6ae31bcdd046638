"""PKU VehicleID (Liu, Tian, Yang, Pang, Huang, CVPR 2016), for zero-shot retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.layout import (
    check_count,
    first_missing,
    parts_to_splits,
    read_columns,
    require_files,
    whole_numbers,
)
from noisyml.data.readers.partition import DevelopmentSplit, hash_ranks, held_out_classes
from noisyml.errors import UserError

Protocol = Literal["query_gallery", "self"]
LISTS = "train_test_split"
TEST_SIZES = (800, 1600, 2400)
#: Vehicles of the training list: as the data set's own description counts them, and as papers do
#: (arXiv 2211.16264, with 110,178 images).
TRAINING_VEHICLES = (13_164, 13_134)
IMAGES_OF_PAPERS = 110_178


class VehicleID(DatasetSource):
    """Vehicles seen by surveillance cameras; the test vehicles are not among the training ones.

    Args:
        root: the folder ``VehicleID_V1.0`` with ``image/`` and ``train_test_split/``.
        test_size: number of test vehicles: 800 (small), 1600 (medium) or 2400 (large).
        protocol: ``query_gallery``: one image of each test vehicle, drawn at random, is the
            gallery, the others are queries (Liu et al., 2016); ``self``: each test image is looked
            for among the others, as metric learning does elsewhere.
        seed: which images the gallery draws.
        val_classes: number of training vehicles, the last ones, to hold out as ``val``.
        check_counts: compare the numbers of vehicles with the published ones.
        split: ``official``; or ``dev``, with the second half of the training vehicles as ``val``.

    Raises:
        UserError: a choice that does not exist.
    """

    description: ClassVar[str] = "PKU VehicleID: 13,164 vehicles to train, 800 to 2,400 to test"
    how_to_get: ClassVar[str] = (
        "sign the licence of PKU VehicleID and fetch VehicleID_V1.0.zip from Peking University "
        "(pkuml.org/resources/pku-vehicleid.html; research only, 221,763 images), unpack it, and "
        "set dataset.root to the folder VehicleID_V1.0 with image/ and "
        "train_test_split/train_list.txt."
    )

    def __init__(
        self,
        root: str,
        test_size: Literal[800, 1600, 2400] = 800,
        protocol: Protocol = "query_gallery",
        seed: WholeNonNegative = 0,
        val_classes: WholeNonNegative = 0,
        check_counts: bool = True,
        split: DevelopmentSplit = "official",
    ) -> None:
        self.root = Path(root)
        self.test_size = test_size
        self.protocol = protocol
        self.seed = seed
        self.val_classes = val_classes
        self.check_counts = check_counts
        self.split = split

    def missing(self) -> str | None:
        """None, or the first list or folder that is not there."""
        return first_missing(
            self.root, f"{LISTS}/train_list.txt", f"{LISTS}/test_list_{self.test_size}.txt", "image"
        )

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if held out), and ``query`` and ``gallery``, or ``test``.

        Raises:
            UserError: files missing, lists that contradict each other or the published numbers.
        """
        require_files(self, "vehicle_id")
        train_paths, train_ids = self._list("train_list.txt")
        test_paths, test_ids = self._list(f"test_list_{self.test_size}.txt")
        shared = np.intersect1d(train_ids, test_ids)
        if len(shared):
            raise UserError(
                f"Vehicle {shared[0]} stands in the training and the test list of "
                f"{self.root / LISTS}; unpack the archive again."
            )
        if self.check_counts:
            self._check(train_ids, test_ids)
        vehicles, labels = np.unique(np.concatenate([train_ids, test_ids]), return_inverse=True)
        labels = labels.astype(np.int64)
        train, test = np.split(np.arange(len(labels)), [len(train_ids)])
        held_out = held_out_classes(train_ids, self.split, self.val_classes, "vehicle_id")
        parts = {"train": train[~held_out], "val": train[held_out]}
        if self.protocol == "self":
            parts["test"] = test
        else:
            self.split_origin = f"one gallery image of each test vehicle drawn by seed={self.seed}"
            chosen = one_of_each(test_ids, test_paths, self.seed)
            parts |= {"query": test[~chosen], "gallery": test[chosen]}
        names = [str(number) for number in vehicles.tolist()]
        return parts_to_splits(
            self.root, train_paths + test_paths, labels, names, parts, share_classes=False
        )

    def _list(self, name: str) -> tuple[list[str], NDArray[np.int64]]:
        """Paths below the root and vehicle numbers [N] of a list."""
        path = self.root / LISTS / name
        # Columns: name of the image without its suffix, number of the vehicle.
        table = read_columns(path, 2)
        return [f"image/{row[0]}.jpg" for row in table], whole_numbers([r[1] for r in table], path)

    def _check(self, train_ids: NDArray[np.int64], test_ids: NDArray[np.int64]) -> None:
        """Compare with the published numbers, of which two are in use for the training list."""
        where = "of the {} split of vehicle_id"
        found = len(np.unique(train_ids))
        expected = found if found in TRAINING_VEHICLES else TRAINING_VEHICLES[0]
        check_count(f"Vehicles {where.format('train')}", found, expected)
        if found == TRAINING_VEHICLES[1]:
            check_count(f"Images {where.format('train')}", len(train_ids), IMAGES_OF_PAPERS)
        check_count(
            f"Vehicles {where.format('test')}", len(np.unique(test_ids)), int(self.test_size)
        )


def one_of_each(ids: NDArray[np.int64], keys: list[str], seed: int) -> NDArray[np.bool_]:
    """One sample of every class at random, bool [N]: a function of seed and names, not of order.

    Args:
        ids: int64 [N], class ids.
        keys: N unique names.
        seed: which of the possible choices.
    """
    order = np.lexsort((hash_ranks(keys, seed), ids))
    _, first = np.unique(ids[order], return_index=True)
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[order[first]] = True
    return chosen
