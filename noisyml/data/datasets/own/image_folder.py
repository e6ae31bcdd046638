"""Images sorted into one folder per class: the user's own data."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import ClassVar

import numpy as np

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.layout import (
    IMAGE_SUFFIXES,
    class_order,
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

#: Names of folders of splits, in any case, by the split.
SPLIT_WORDS = {
    "train": frozenset({"train", "training"}),
    "val": frozenset({"val", "valid", "validation", "dev"}),
    "test": frozenset({"test", "testing"}),
}
#: Folders that systems and tools leave behind; so are all whose names start with a dot.
TOOL_FOLDERS = frozenset(
    {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)


class ImageFolder(DatasetSource):
    """``<path>/<class>/*.jpg``, or ``<path>/{train,val,test}/<class>/*.jpg``.

    A folder with both ``train`` and ``test`` below it (or ``Training``, ``valid`` and the like) is
    taken as split already, and only a missing ``val`` is carved from ``train``. Class folders may
    hold sub-folders; names that start with a dot and folders of tools are left out. Class names
    that are all numbers are ordered as numbers. After `splits`, `left_out` has the paths that are
    no image of the data set, by kind.

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
        self.left_out = {}

    def missing(self) -> str | None:
        """None, or the folder."""
        return None if self.path.is_dir() else f"the folder {self.path}"

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if there is one) and ``test``.

        Raises:
            UserError: no images, folders named after other splits, or classes that contradict
                `split`.
        """
        require_files(self, "image_folder")
        official = _split_folders(self.path)
        is_split = bool(official)
        left_out: dict[str, list[str]] = defaultdict(list)
        paths: list[str] = []
        classes: list[str] = []
        parts: list[str] = []
        for part, below in official.items() if is_split else [("", "")]:
            for name, found in _class_files(self.path / below, left_out):
                paths += [os.path.join(below, file) for file in found]
                classes += [name] * len(found)
                parts += [part] * len(found)
        for kind, those in left_out.items():
            log.warning("%s: left out %d %s (%s)", self.path, len(those), kind, those[0])
        self.left_out = dict(left_out)
        class_names = class_order(classes)
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
            f"the folders {', '.join(official.values())} in {self.path}" if is_split else None,
            "val" in official,
            self.val_fraction,
            self.test_fraction,
            self.seed,
        )
        log.info("splits: %s", self.split_origin)
        share = self.split == "closed_set"
        return parts_to_splits(self.path, paths, labels, class_names, rows, share)


def _split_folders(folder: Path) -> dict[str, str]:
    """The folders of splits by the split's name; empty if the folders are classes.

    Raises:
        UserError: the folders are named after splits, but not after ``train`` and ``test``.
    """
    names = _folders(folder)
    roles = {
        role: [name for name in names if name.lower() in words]
        for role, words in SPLIT_WORDS.items()
    }
    found = {role: some[0] for role, some in roles.items() if len(some) == 1}
    if {"train", "test"} <= set(found) and all(len(some) < 2 for some in roles.values()):
        return found
    words = frozenset().union(*SPLIT_WORDS.values())
    if len(names) > 1 and all(set(re.split(r"[^a-z0-9]+", n.lower())) & words for n in names):
        raise UserError(
            f"The folders {', '.join(names)} in {folder} are named after splits, no classes: "
            "name one of them train, one test, and one val if there is one; or set dataset.path to "
            "one of them."
        )
    return {}


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, without those of tools."""
    return sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not _of_tools(entry.name)
    )


def _of_tools(name: str) -> bool:
    return name.startswith(".") or name in TOOL_FOLDERS


def _class_files(folder: Path, left_out: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    """Every class folder with its images' paths relative to `folder`, in order of their names."""
    found = []
    for name in _folders(folder):
        files: list[str] = []
        # A link to a folder above would bring the other classes into this one.
        above = Path(os.path.realpath(folder))
        seen = {str(above), *map(str, above.parents)}
        for parent, below, names in os.walk(folder / name, followlinks=True):
            real = os.path.realpath(parent)
            if real in seen:
                left_out["links to folders already read or above"].append(parent)
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(one for one in below if not _of_tools(one))
            for file in names:
                path = os.path.join(parent, file)
                suffix = Path(file).suffix.lower()
                if file.startswith("."):
                    continue
                if not os.path.exists(path):
                    left_out["links to nothing"].append(path)
                elif suffix in IMAGE_SUFFIXES:
                    files.append(os.path.relpath(path, folder))
                else:
                    left_out[f"files named *{suffix}" if suffix else "files without suffix"].append(
                        path
                    )
        if files:
            found.append((name, sorted(files)))
        else:
            left_out["class folders without images"].append(str(folder / name))
    return found
