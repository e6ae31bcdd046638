"""Images sorted into one folder per class: the user's own data."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import ClassVar

import numpy as np

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.layout import (
    IMAGE_SUFFIXES,
    parts_to_splits,
    require_files,
)
from noisyml.data.readers.partition import (
    SplitKind,
    arrange,
    check_fractions,
    origin,
)
from noisyml.errors import UserError

log = logging.getLogger(__name__)

SPLIT_FOLDERS = ("train", "val", "test")


class ImageFolder(DatasetSource):
    """``<path>/<class>/*.jpg``, or ``<path>/{train,val,test}/<class>/*.jpg``.

    A folder with both ``train`` and ``test`` below it is taken as split already, and only a missing
    ``val`` is carved from ``train``. Class folders may hold sub-folders; names that start with a
    dot are left out.

    Args:
        path: the folder.
        split: ``closed_set`` (same classes everywhere) or ``zero_shot`` (disjoint classes).
        val_fraction: share of each class (or of the classes) for ``val``, in [0, 1).
        test_fraction: the same for ``test``; unused if the folder is split already.
        seed: which of the possible carvings; unrelated to the seed of a run.
        labels_are_true: whether the labels are known to be right, so that the labels changed by an
            injector are the only wrong ones and selection can be scored against them.
        clean_val: whether ``val`` is your own and clean; injected noise then leaves it alone.
    """

    description: ClassVar[str] = "Your images, one folder per class"
    how_to_get: ClassVar[str] = (
        "set dataset.path to a folder that holds one folder of images per class, or folders train "
        "and test (and val) that do."
    )

    def __init__(
        self,
        path: str,
        split: SplitKind = "closed_set",
        val_fraction: OpenShare = 0.1,
        test_fraction: OpenShare = 0.2,
        seed: WholeNonNegative = 0,
        labels_are_true: bool = False,
        clean_val: bool = False,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        self.path = Path(path)
        self.split = split
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.labels_are_true = labels_are_true
        self.clean_val = clean_val

    def missing(self) -> str | None:
        """None, or the folder."""
        return None if self.path.is_dir() else f"the folder {self.path}"

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if there is one) and ``test``.

        Raises:
            UserError: no images, an empty class folder, or classes that contradict `split`.
        """
        require_files(self, "image_folder")
        official = [name for name in SPLIT_FOLDERS if (self.path / name).is_dir()]
        is_split = {"train", "test"} <= set(official)
        paths: list[str] = []
        classes: list[str] = []
        parts: list[str] = []
        for part in official if is_split else [""]:
            for name, found in _class_files(self.path / part):
                paths += [os.path.join(part, file) for file in found]
                classes += [name] * len(found)
                parts += [part] * len(found)
        class_names = sorted(set(classes))
        if len(class_names) < 2:
            raise UserError(
                f"{self.path} has {len(class_names)} class folders with images; two at least are "
                "needed, each with images of one class."
            )
        number = {name: i for i, name in enumerate(class_names)}
        labels = np.array([number[name] for name in classes], dtype=np.int64)
        rows = arrange(
            labels,
            class_names,
            paths,
            parts if is_split else None,
            self.split,
            self.val_fraction,
            self.test_fraction,
            self.seed,
            str(self.path),
        )
        self.split_origin = origin(
            f"the folders {', '.join(official)} in {self.path}" if is_split else None,
            "val" in official,
            self.val_fraction,
            self.test_fraction,
            self.seed,
        )
        log.info("splits: %s", self.split_origin)
        share = self.split == "closed_set"
        return parts_to_splits(self.path, paths, labels, class_names, rows, share)


def _class_files(folder: Path) -> list[tuple[str, list[str]]]:
    """Every class folder with its images' paths relative to `folder`, in order of their names."""
    found = []
    for name in sorted(os.listdir(folder)):
        if name.startswith(".") or not (folder / name).is_dir():
            continue
        files = [
            os.path.relpath(os.path.join(parent, file), folder)
            for parent, _, names in os.walk(folder / name, followlinks=True)
            for file in names
            if Path(file).suffix.lower() in IMAGE_SUFFIXES and not file.startswith(".")
        ]
        if not files:
            raise UserError(
                f"The class folder {folder / name} holds no image "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}); fill it or remove it."
            )
        found.append((name, sorted(files)))
    return found
