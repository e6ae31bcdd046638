"""PASCAL VOC 2012 (Everingham et al., IJCV 2015), with the masks of SBD (Hariharan, ICCV 2011)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.datasets.segmentation.files import mask_split, read_masks
from noisyml.data.readers.layout import at_once, check_count, first_missing, require_files
from noisyml.data.readers.partition import carve_samples, carving
from noisyml.errors import UserError
from noisyml.storage.reading import reading
from noisyml.storage.text import read_lines
from noisyml.targets import Labels
from noisyml.targets.masks import as_labels, encode_mask

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
#: Images of the lists: the official training list, that with SBD, and the validation list.
TRAIN, TRAIN_AUG, VAL = 1_464, 10_582, 1_449


class VOC2012(DatasetSource):
    """Photographs with 21 classes of pixels; the official validation images are the test.

    Args:
        root: the folder ``VOCdevkit/VOC2012``.
        train: ``aug``: 10,582 images with the masks of SBD, as most papers; ``official``: 1,464.
        train_list: file of the ids of the training images, one a line; null:
            ``ImageSets/Segmentation/train_aug.txt`` (or ``train.txt``).
        sbd: folder ``benchmark_RELEASE/dataset`` with ``cls/*.mat``, whose masks stand where there
            is no PNG file; null: masks lie in ``SegmentationClassAug`` or ``SegmentationClass``.
        val_fraction: share of the training images for ``val``, in [0, 1).
        seed: which of the possible carvings; unrelated to the seed of a run.
        check_counts: compare the numbers of images with the published ones.
    """

    description: ClassVar[str] = (
        "PASCAL VOC 2012 with SBD: 12,031 photographs, 21 classes of pixels"
    )
    how_to_get: ClassVar[str] = (
        "fetch VOCtrainval_11-May-2012.tar (2 GB; host.robots.ox.ac.uk/pascal/VOC/voc2012), unpack "
        "it, and set dataset.root to VOCdevkit/VOC2012 with JPEGImages/ and SegmentationClass/; "
        "for the masks of SBD put SegmentationClassAug/ (PNG files of class numbers) beside them, "
        "or unpack benchmark.tgz (1.4 GB) and set dataset.sbd to benchmark_RELEASE/dataset; put "
        "train_aug.txt, the ids of the 10,582 training images, into ImageSets/Segmentation/."
    )

    def __init__(
        self,
        root: str,
        train: Literal["aug", "official"] = "aug",
        train_list: str | None = None,
        sbd: str | None = None,
        val_fraction: OpenShare = 0.0,
        seed: WholeNonNegative = 0,
        check_counts: bool = True,
    ) -> None:
        self.root = Path(root)
        self.train = train
        self.train_list = train_list
        self.sbd = None if sbd is None else Path(sbd)
        self.val_fraction = val_fraction
        self.seed = seed
        self.check_counts = check_counts

    def missing(self) -> str | None:
        """None, or the first file or folder that is not there."""
        lists = self.root / "ImageSets" / "Segmentation"
        if self.train_list is not None and not Path(self.train_list).is_file():
            return self.train_list
        own = "train_aug.txt" if self.train == "aug" else "train.txt"
        wanted = ["val.txt", *([] if self.train_list is not None else [own])]
        gone = first_missing(self.root, "JPEGImages", "SegmentationClass")
        return gone or first_missing(lists, *wanted)

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if its fraction is positive) and ``test``.

        Raises:
            UserError: files missing, or counts that are not the published ones.
        """
        require_files(self, "voc2012")
        lists = self.root / "ImageSets" / "Segmentation"
        own = "train_aug.txt" if self.train == "aug" else "train.txt"
        listed = lists / own if self.train_list is None else Path(self.train_list)
        ids = {"train": _ids(listed), "test": _ids(lists / "val.txt")}
        if self.check_counts:
            counts = {"train": TRAIN_AUG if self.train == "aug" else TRAIN, "test": VAL}
            for name, expected in counts.items():
                check_count(f"Images of the {name} split of voc2012", len(ids[name]), expected)
        if self.val_fraction > 0:
            one = np.zeros(len(ids["train"]), dtype=np.int64)
            part = carve_samples(one, ids["train"], self.val_fraction, 0.0, self.seed)
            self.split_origin = f"val {carving(self.val_fraction, 0.0, self.seed)} out of train"
            train = ids.pop("train")
            ids = {
                "train": [name for name, p in zip(train, part, strict=True) if p == 0],
                "val": [name for name, p in zip(train, part, strict=True) if p == 1],
                **ids,
            }
        return {name: self._split(name, own_ids) for name, own_ids in ids.items()}

    def _split(self, name: str, ids: Sequence[str]) -> Split:
        images = [f"JPEGImages/{own}.jpg" for own in ids]
        return mask_split(name, self.root, images, self._masks(ids), CLASS_NAMES, ids)

    def _masks(self, ids: Sequence[str]) -> Labels:
        """The mask of each image, from where it lies."""
        folders = ("SegmentationClassAug", "SegmentationClass")

        def place(own: str) -> str | None:
            there = (f"{folder}/{own}.png" for folder in folders)
            return next((path for path in there if (self.root / path).is_file()), None)

        places = [place(own) for own in ids]
        absent = [own for own, path in zip(ids, places, strict=True) if path is None]
        if absent and self.sbd is None:
            raise UserError(
                f"{len(absent)} of {len(ids)} masks are missing, the first is "
                f"{self.root / folders[0]}/{absent[0]}.png: {self.how_to_get}"
            )
        found = read_masks(self.root, [path for path in places if path is not None])
        of_sbd = dict(zip(absent, self._sbd_masks(absent), strict=True))
        left = iter(found)
        return as_labels(
            [of_sbd[o] if p is None else next(left) for o, p in zip(ids, places, strict=True)]
        )

    def _sbd_masks(self, ids: Sequence[str]) -> list[bytes]:
        """Masks of SBD, MATLAB files of class numbers."""
        from scipy.io import loadmat

        def read(some: Sequence[str]) -> list[bytes]:
            assert self.sbd is not None
            masks = []
            for own in some:
                file = self.sbd / "cls" / f"{own}.mat"
                if not file.is_file():
                    raise UserError(f"The mask {file} is missing; unpack benchmark.tgz again.")
                with reading(file, "unpack benchmark.tgz again"):
                    segmentation = loadmat(file)["GTcls"][0, 0]["Segmentation"]
                masks.append(encode_mask(np.asarray(segmentation, dtype=np.uint8)))
            return masks

        return [mask for part in at_once(read, ids) for mask in part]


def _ids(path: Path) -> list[str]:
    """The ids in a list: bare, or as paths of images and masks (``/JPEGImages/ID.jpg ...``)."""
    rows = [line.split() for line in read_lines(path)]
    return [Path(row[0]).stem for row in rows if row]
