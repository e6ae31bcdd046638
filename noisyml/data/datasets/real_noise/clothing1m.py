"""Clothing1M (Xiao, Xia, Yang, Huang, Wang, CVPR 2015): shop photographs with labels from text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import Ge, Hint, OpenShare, WholeNonNegative
from noisyml.data.base import UNKNOWN
from noisyml.data.readers.closed_set import (
    ClosedSetFiles,
    Listed,
    check_range,
)
from noisyml.data.readers.layout import (
    first_missing,
    read_columns,
    whole_numbers,
)
from noisyml.data.readers.partition import hash_ranks
from noisyml.errors import UserError
from noisyml.storage.text import read_lines

CLASS_NAMES = (
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket",
    "Down Coat", "Suit", "Shawl", "Dress", "Vest", "Underwear",
)  # fmt: skip
KEY_LISTS = {
    "noisy": "noisy_train_key_list.txt",
    "clean": "clean_train_key_list.txt",
    "val": "clean_val_key_list.txt",
    "test": "clean_test_key_list.txt",
}
PUBLISHED = {"noisy": 1_000_000, "clean": 47_570, "val": 14_313, "test": 10_526}


class Clothing1M(ClosedSetFiles):
    """One million garments, 14 classes; ``val`` and ``test`` are official and clean.

    About 38 % of the training labels are wrong (Xiao et al.). Some training images were labelled
    by hand too: the extra ``clean_label`` holds these labels, so that label trust can be measured
    on them; it is -1 elsewhere, and no method reads it.

    Args:
        root: folder with ``images/`` and the key lists and label tables, which may also lie in
            ``annotations/``.
        train: ``noisy`` (1,000,000 images) or ``clean`` (47,570 with labels given by hand).
        subset: train on a class-balanced random subset of this many images: at most
            ``ceil(subset / 14)`` of each class. The papers draw 256,000 or 64,000; None: all.
        max_missing: share of the training images that may be gone, in [0, 1).
        seed: which subset; unrelated to the seed of a run.
        check_counts: see `ClosedSetFiles`.

    Raises:
        UserError: a value out of range.
    """

    description: ClassVar[str] = "Clothing1M: 1,000,000 garments, 14 classes, about 38 % wrong"
    how_to_get: ClassVar[str] = (
        "ask the authors for it (github.com/Cysu/noisy_label; 1,072,409 images), fetch and unpack "
        "images/0.tar to images/9.tar and annotations.zip, and set dataset.root to the folder with "
        "images/<0..9>/, noisy_train_key_list.txt, noisy_label_kv.txt, clean_label_kv.txt and the "
        "three clean_*_key_list.txt."
    )
    name = "clothing1m"
    clean_val = True

    def __init__(
        self,
        root: str,
        train: Literal["noisy", "clean"] = "noisy",
        subset: Annotated[int, Ge(14), Hint("That is one image per class.")] | None = None,
        max_missing: OpenShare = 0.0,
        seed: WholeNonNegative = 0,
        check_counts: bool = True,
    ) -> None:
        super().__init__(root, 0.0, seed, check_counts)
        self.train = train
        self.subset = subset
        self.max_missing = max_missing
        self.labels_are_true = train == "clean"

    def missing(self) -> str | None:
        """None, or the first official file that is not there."""
        tables = ["clean_label_kv.txt", KEY_LISTS[self.train], KEY_LISTS["val"], KEY_LISTS["test"]]
        if self.train == "noisy":
            tables.append("noisy_label_kv.txt")
        return first_missing(self._annotations, *tables) or first_missing(self.root, "images")

    @property
    def _annotations(self) -> Path:
        inner = self.root / "annotations"
        return inner if inner.is_dir() else self.root

    def class_names(self) -> Sequence[str]:
        """The 14 names in the order of the labels."""
        return CLASS_NAMES

    def published(self) -> dict[str, int | Sequence[int]]:
        """Counts of the key lists."""
        return {"train": PUBLISHED[self.train], "val": PUBLISHED["val"], "test": PUBLISHED["test"]}

    def parts(self) -> dict[str, Listed]:
        """The key lists, joined with the label tables by path."""
        clean = self._table("clean_label_kv.txt")
        parts = {
            part: self._listed(KEY_LISTS[part], clean, "clean_label_kv.txt")
            for part in ("val", "test")
        }
        if self.train == "clean":
            train = self._listed(KEY_LISTS["clean"], clean, "clean_label_kv.txt")
        else:
            noisy = self._table("noisy_label_kv.txt")
            train = self._listed(KEY_LISTS["noisy"], noisy, "noisy_label_kv.txt")
            known = [clean.get(path, UNKNOWN) for path in train.paths]
            train.extras["clean_label"] = np.array(known, dtype=np.int64)
        return {"train": train, **parts}

    def usable(self, parts: dict[str, Listed]) -> dict[str, Listed]:
        """The training images that are there, and of them the balanced subset asked for."""
        train = self.available(parts["train"], self.max_missing)
        if self.subset is not None:
            train = train.take(balanced_subset(train.labels, train.paths, self.subset, self.seed))
            self.split_origin = f"official; {len(train.paths)} of train by seed={self.seed}"
        return {**parts, "train": train}

    def _table(self, name: str) -> dict[str, int]:
        path = self._annotations / name
        rows = read_columns(path, 2)
        labels = whole_numbers([row[1] for row in rows], path)
        check_range(labels, len(CLASS_NAMES), path)
        return dict(zip((row[0] for row in rows), labels.tolist(), strict=True))

    def _listed(self, name: str, labels: dict[str, int], table: str) -> Listed:
        path = self._annotations / name
        paths = [line.strip() for line in read_lines(path)]
        unlabelled = next((image for image in paths if image not in labels), None)
        if unlabelled is not None:
            raise UserError(f"{unlabelled} of {path} has no label in {table}; fetch both again.")
        return Listed(paths, np.array([labels[image] for image in paths], dtype=np.int64))


def balanced_subset(
    labels: NDArray[np.int64], keys: Sequence[str], size: int, seed: int
) -> NDArray[np.int64]:
    """Rows of a random subset with at most ``ceil(size / C)`` samples of a class, ascending.

    Walks the samples in random order and takes each whose class is not full yet, until `size` are
    taken (DivideMix, bare). The choice depends on keys and seed, never on the order of the rows.

    Args:
        labels: int64 [N].
        keys: N unique names.
        size: number of samples wanted; fewer where classes are too small.
        seed: which of the possible subsets.
    """
    counts = np.bincount(labels)
    quota = math.ceil(size / np.count_nonzero(counts))
    ranks = hash_ranks(keys, seed)
    order = np.lexsort((ranks, labels))
    place = np.empty(len(labels), dtype=np.int64)
    place[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    allowed = np.flatnonzero(place < quota)
    return np.sort(allowed[np.argsort(ranks[allowed], kind="stable")[:size]])
