"""RAF-DB, basic expressions (Li, Deng, Du, CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np

from noisyml.data.readers.closed_set import ClosedSetFiles, Listed, check_range
from noisyml.data.readers.layout import first_missing, read_columns, whole_numbers
from noisyml.errors import UserError

CLASS_NAMES = ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral")
#: The misspelling is part of the official name.
LABEL_LIST = "EmoLabel/list_patition_label.txt"
IMAGES = "Image/aligned"


class RAFDB(ClosedSetFiles):
    """Aligned faces of the basic set; the part of an image is the prefix of its name.

    Keys are the names in the official list (``train_00001.jpg``), so that noisy lists in its
    format are joined by name (``noise=raf_db_list``).

    Args:
        root: folder with ``EmoLabel/list_patition_label.txt`` and ``Image/aligned/*.jpg`` (the
            folder ``basic`` of the release).
        val_fraction: see `ClosedSetFiles`.
        seed: see `ClosedSetFiles`.
        check_counts: see `ClosedSetFiles`; here of every class.
    """

    description: ClassVar[str] = "RAF-DB: 15,339 aligned faces, 7 basic expressions"
    how_to_get: ClassVar[str] = (
        "ask the authors for it (whdeng.cn/RAF/model1.html; 15,339 images), unpack aligned.zip of "
        "the basic set, and set dataset.root to the folder with EmoLabel/list_patition_label.txt "
        "and Image/aligned/train_*_aligned.jpg; the download may need a form to be sent first, and "
        "you fetch it by the link that comes back."
    )
    name = "raf_db"

    def missing(self) -> str | None:
        """None, or the list or folder that is not there."""
        return first_missing(self.root, LABEL_LIST, IMAGES)

    def class_names(self) -> Sequence[str]:
        """The seven expressions; the list counts them from 1."""
        return CLASS_NAMES

    def published(self) -> dict[str, int | Sequence[int]]:
        """Counts by class, from the official list."""
        return {
            "train": (1290, 281, 717, 4772, 1982, 705, 2524),
            "test": (329, 74, 160, 1185, 478, 162, 680),
        }

    def parts(self) -> dict[str, Listed]:
        """The official list, divided by prefix."""
        path = self.root / LABEL_LIST
        rows = read_columns(path, 2)
        names = [row[0] for row in rows]
        labels = whole_numbers([row[1] for row in rows], path) - 1
        check_range(labels, len(CLASS_NAMES), path, first=1)
        prefixes = np.array([name.partition("_")[0] for name in names])
        odd = np.flatnonzero(~np.isin(prefixes, ("train", "test")))
        if len(odd):
            raise UserError(
                f"{path}, line {odd[0] + 1}: '{names[odd[0]]}' begins with neither "
                "train_ nor test_."
            )
        every = Listed([f"{IMAGES}/{_aligned(name)}" for name in names], labels, keys=names)
        return {part: every.take(np.flatnonzero(prefixes == part)) for part in ("train", "test")}


def _aligned(name: str) -> str:
    """``train_00001.jpg`` lies in the file ``train_00001_aligned.jpg``."""
    path = PurePosixPath(name)
    return f"{path.stem}_aligned{path.suffix}"
