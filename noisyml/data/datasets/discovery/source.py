"""A data set with one label per image as one of category discovery: some labels are hidden."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from noisyml.checks import Share, WholeNonNegative
from noisyml.data.base import DatasetSource, Split, TestSet
from noisyml.data.datasets.discovery.splits import ClassSplit, Draw, draw_labelled
from noisyml.data.partial import LABELLED, UNLABELLED
from noisyml.errors import UserError
from noisyml.targets import SINGLE


class CategoryDiscovery(DatasetSource):
    """Training images of old classes, partly labelled, and of new ones, all unlabelled.

    Classes are numbered anew, the old ones first, in the order of their list. Training sees the
    labelled and the unlabelled images; the default test scores the clusters of the unlabelled ones
    (``query``), given the labelled ones (``gallery``), as all published figures do. Official test
    images, where there are any, are the test set ``held_out``.

    Args:
        source: the data set, all of its classes in its training split.
        old_classes: see `ClassSplit.of`.
        labelled_share: share of the images of old classes that are labelled.
        draw: see `draw_labelled`.
        seed: of that draw; unrelated to the seed of a run.

    Raises:
        UserError: a data set with several labels per image, or settings that do not fit it.
    """

    def __init__(
        self,
        source: DatasetSource,
        old_classes: str | int | Sequence[int] = "half",
        labelled_share: Share = 0.5,
        draw: Draw = "released",
        seed: WholeNonNegative = 0,
    ) -> None:
        self.source = source
        self.old_classes = old_classes
        self.labelled_share = labelled_share
        self.draw: Draw = draw
        self.seed = seed
        self.labels_are_true = source.labels_are_true

    @property
    def description(self) -> str:  # type: ignore[override]
        """That of the data set."""
        return f"{self.source.description}; category discovery"

    @property
    def how_to_get(self) -> str:  # type: ignore[override]
        """That of the data set."""
        return self.source.how_to_get

    def missing(self) -> str | None:
        """None, or the first file that the data set lacks."""
        return self.source.missing()

    def test_sets(self, names: Collection[str]) -> dict[str, TestSet]:
        """The unlabelled training images given the labelled ones; held-out images, if any."""
        found: dict[str, TestSet] = {"test": {"query": UNLABELLED, "gallery": LABELLED}}
        if "test" in names:
            found["held_out"] = {"pool": "test"}
        return found

    def splits(self) -> dict[str, Split]:
        """``train``, with marks of what is labelled, and ``test`` where the data set has one.

        Raises:
            UserError: files missing, or a data set that cannot be parted like this.
        """
        given = self.source.splits()
        self.left_out = self.source.left_out
        train = given["train"]
        if train.target is not SINGLE:
            raise UserError(
                f"Category discovery parts images by their one class, but the data set gives "
                f"{train.target.words}."
            )
        classes = ClassSplit.of(self.old_classes, len(train.class_names))
        old = len(classes.old)
        self.split_origin = (
            f"{old} of {len(train.class_names)} classes old, {self.labelled_share:g} of their "
            f"images labelled by seed {self.seed}"
        )
        found = {
            name: _renumbered(split, classes)
            for name, split in (("train", train), ("test", given.get("test")))
            if split is not None
        }
        labels = found["train"].labels
        marks = draw_labelled(labels, old, self.labelled_share, self.seed, self.draw)
        found["train"] = replace(found["train"], labelled=marks)
        return found


def _renumbered(split: Split, classes: ClassSplit) -> Split:
    place = np.empty(len(classes.order), dtype=np.int64)
    place[classes.order] = np.arange(len(place))
    names = [split.class_names[number] for number in classes.order.tolist()]
    return replace(split, labels=place[split.labels], class_names=names)
