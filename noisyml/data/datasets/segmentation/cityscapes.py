"""Cityscapes (Cordts et al., CVPR 2016): street scenes, finely annotated."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.datasets.segmentation.files import mask_split, read_masks
from noisyml.data.readers.layout import check_count, first_missing, require_files
from noisyml.data.readers.partition import carve_samples, carving
from noisyml.errors import UserError
from noisyml.targets.masks import IGNORE

#: The evaluated classes by their number in the files, in the order of their training numbers.
CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole",
    19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky",
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle",
    33: "bicycle",
}  # fmt: skip
IMAGES = {"train": 2_975, "test": 500}
_FOLDERS = {"train": "train", "test": "val"}
_IMAGE, _IDS, _TRAIN_IDS = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"

_NUMBERS = np.full(256, IGNORE, dtype=np.uint8)
_NUMBERS[list(CLASSES)] = np.arange(len(CLASSES))


def cityscapes_classes(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Training numbers 0 to 18 of the numbers in the files; all others belong to no class."""
    return _NUMBERS[pixels]


class Cityscapes(DatasetSource):
    """3,475 street scenes with 19 classes of pixels; the official validation images are the test.

    The labels of the official test images have not been published. Keys are names without their
    end, e.g. ``aachen_000000_000019``.

    Args:
        root: folder with ``leftImg8bit/`` and ``gtFine/``.
        val_fraction: share of the training images for ``val``, in [0, 1).
        seed: which of the possible carvings; unrelated to the seed of a run.
        check_counts: compare the numbers of images with the published ones.
        cache_dir: folder in which masks are kept whose numbers were changed; null: they are made
            each time.
    """

    description: ClassVar[str] = "Cityscapes: 3,475 street scenes, 2048x1024, 19 classes of pixels"
    how_to_get: ClassVar[str] = (
        "register at www.cityscapes-dataset.com, fetch leftImg8bit_trainvaltest.zip (11 GB) and "
        "gtFine_trainvaltest.zip (241 MB), unpack both, and set dataset.root to the folder with "
        "leftImg8bit/ and gtFine/."
    )

    def __init__(
        self,
        root: str,
        val_fraction: OpenShare = 0.0,
        seed: WholeNonNegative = 0,
        check_counts: bool = True,
        cache_dir: str | None = None,
    ) -> None:
        self.root = Path(root)
        self.val_fraction = val_fraction
        self.seed = seed
        self.check_counts = check_counts
        self.cache_dir = None if cache_dir is None else Path(cache_dir)

    def missing(self) -> str | None:
        """None, or the first folder that is not there."""
        parts = ("leftImg8bit", "gtFine")
        wanted = [f"{part}/{folder}" for part in parts for folder in _FOLDERS.values()]
        return first_missing(self.root, *wanted)

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if its fraction is positive) and ``test``.

        Raises:
            UserError: files missing, or counts that are not the published ones.
        """
        require_files(self, "cityscapes")
        found = {}
        for name, folder in _FOLDERS.items():
            below = self.root / "leftImg8bit" / folder
            images = sorted(
                path.relative_to(self.root).as_posix() for path in below.glob(f"*/*{_IMAGE}")
            )
            if self.check_counts:
                check_count(f"Images of the {name} split of cityscapes", len(images), IMAGES[name])
            found[name] = self._split(name, images)
        if self.val_fraction > 0:
            train = found.pop("train")
            one = np.zeros(len(train), dtype=np.int64)
            part = carve_samples(one, train.keys, self.val_fraction, 0.0, self.seed)
            self.split_origin = f"val {carving(self.val_fraction, 0.0, self.seed)} out of train"
            carved = {}
            for number, name in enumerate(("train", "val")):
                rows = np.flatnonzero(part == number)
                carved[name] = self._split(name, [train.inputs.paths[row] for row in rows])  # type: ignore[attr-defined]
            found = {**carved, **found}
        return found

    def _split(self, name: str, images: list[str]) -> Split:
        stems = [image.removesuffix(_IMAGE).replace("leftImg8bit/", "gtFine/") for image in images]
        ready = [stem + _TRAIN_IDS for stem in stems]
        if all((self.root / path).is_file() for path in ready):
            masks = read_masks(self.root, ready)
        else:
            paths = [stem + _IDS for stem in stems]
            masks = read_masks(self.root, paths, cityscapes_classes, self.cache_dir)
        if not images:
            raise UserError(f"{self.root}/leftImg8bit holds no images; unpack it again.")
        keys = [Path(stem).name for stem in stems]
        return mask_split(name, self.root, images, masks, list(CLASSES.values()), keys)
