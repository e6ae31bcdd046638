"""Images sorted into one folder per class: the user's own data."""

from __future__ import annotations

import logging
import os
from typing import ClassVar

import numpy as np

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.folders import (
    LeftOut,
    advice_on_classes,
    class_folders,
    split_folders,
)
from noisyml.data.readers.layout import (
    class_order,
    parts_to_splits,
    require_files,
    say_look_alikes,
    user_path,
)
from noisyml.data.readers.partition import (
    SplitKind,
    arrange,
    check_fractions,
    origin,
)
from noisyml.errors import UserError

log = logging.getLogger(__name__)


class ImageFolder(DatasetSource):
    """``<path>/<class>/*.jpg``, or ``<path>/{train,val,test}/<class>/*.jpg``.

    A folder with both ``train`` and ``test`` below it (or ``Training``, ``valid`` and the like; or
    ``query`` and ``gallery`` in place of ``test``) is taken as split already, and only a missing
    ``val`` is carved from ``train``. Class folders may hold sub-folders; names that start with a
    dot and folders of tools are left out. Class names that are all numbers are ordered as numbers.
    After `splits`, `left_out` has the paths that are no image of the data set, by kind.

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
        self.path = user_path(path)
        self.split = split
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.labels_are_true = labels_are_true
        self.clean_val = clean_val

    def missing(self) -> str | None:
        """None, or the folder."""
        if self.path.is_dir():
            return None
        return f"the folder {self.path}{' (a file has that name)' if self.path.is_file() else ''}"

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if there is one) and ``test``.

        Raises:
            UserError: no images, folders named after other splits, or classes that contradict
                `split`.
        """
        require_files(self, "image_folder")
        left_out = LeftOut()
        official = split_folders(self.path, left_out)
        is_split = bool(official)
        paths: list[str] = []
        classes: list[str] = []
        parts: list[str] = []
        for part, below in official.items() if is_split else [("", "")]:
            for name, found in class_folders(self.path / below, left_out).items():
                paths += [os.path.join(below, file) for file in found]
                classes += [name] * len(found)
                parts += [part] * len(found)
        left_out.say(self.path)
        self.left_out = left_out.by_kind
        class_names = class_order(classes)
        if len(class_names) < 2:
            raise UserError(
                f"{self.path} has {len(class_names)} class folders with images; two at least are "
                f"needed, each with images of one class{advice_on_classes(self.path)}."
            )
        say_look_alikes(class_names, str(self.path))
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
            f"the folders {', '.join(official.values())} in {self.path}" if is_split else None,
            "val" in official,
            self.val_fraction,
            self.test_fraction,
            self.seed,
        )
        log.info("splits: %s", self.split_origin)
        share = self.split == "closed_set"
        return parts_to_splits(self.path, paths, labels, class_names, rows, share)
