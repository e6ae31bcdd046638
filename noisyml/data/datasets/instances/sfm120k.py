"""retrieval-SfM-120k (Radenović, Tolias, Chum, TPAMI 2019): photographs of 3D models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.layout import check_count, file_split, first_missing, require_files
from noisyml.errors import UserError
from noisyml.storage.pickles import read_plain

FILE, IMAGES = "retrieval-SfM-120k.pkl", "ims"
#: Split of the run by part of the file, with images and models as published.
PARTS = {"train": ("train", 91_642, 551), "val": ("test", 6_403, 162)}


class SfM120k(DatasetSource):
    """Photographs of places; a label is the 3D model that an image belongs to.

    Images of one model need not show the same part of it, so that labels are coarser than the pairs
    that the data set also lists. The models for validation are the test here: their images search
    each other.

    Args:
        root: folder with ``retrieval-SfM-120k.pkl`` and ``ims/``.
        check_counts: compare the numbers of images and models with the published ones.
    """

    description: ClassVar[str] = "retrieval-SfM-120k: 91,642 images of 551 places to train"
    how_to_get: ClassVar[str] = (
        "fetch ims.tar.gz (about 30 GB) and dbs/retrieval-SfM-120k.pkl from "
        "cmp.felk.cvut.cz/cnnimageretrieval/data/train, unpack the images into ims/, and set "
        "dataset.root to their folder."
    )

    def __init__(self, root: str, check_counts: bool = True) -> None:
        self.root = Path(root)
        self.check_counts = check_counts

    def missing(self) -> str | None:
        """None, or the first file or folder that is not there."""
        return first_missing(self.root, FILE, IMAGES)

    def splits(self) -> dict[str, Split]:
        """``train`` and ``test``.

        Raises:
            UserError: files missing, or contents that contradict the layout.
        """
        require_files(self, "sfm120k")
        path = self.root / FILE
        content = read_plain(path, encoding="latin-1", advice="fetch it again")
        splits = {}
        for part, (name, images, models) in PARTS.items():
            keys, clusters = _part(path, content, part)
            numbers, labels = np.unique(clusters, return_inverse=True)
            if self.check_counts:
                check_count(f"Images of the {part} part of sfm120k", len(keys), images)
                check_count(f"Models of the {part} part of sfm120k", len(numbers), models)
            names = [f"model {number}" for number in numbers.tolist()]
            paths = [image_path(key) for key in keys]
            splits[name] = file_split(
                name, self.root / IMAGES, paths, labels.astype(np.int64), names
            )
        return splits


def image_path(key: str) -> str:
    """Path of an image below ``ims/``: three folders named after its last letters."""
    return f"{key[-2:]}/{key[-4:-2]}/{key[-6:-4]}/{key}"


def _part(path: Path, content: Any, part: str) -> tuple[list[str], np.ndarray]:
    """Names of images and numbers of models of a part of the file."""
    try:
        keys = [str(key) for key in content[part]["cids"]]
        clusters = np.array([int(number) for number in content[part]["cluster"]], dtype=np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not hold cids and cluster of the part '{part}' ({error}); fetch it again."
        ) from error
    if len(keys) != len(clusters):
        raise UserError(f"{path} names {len(keys)} images and {len(clusters)} models of '{part}'.")
    return keys, clusters
