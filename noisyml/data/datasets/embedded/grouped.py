"""Coarse labels: the classes of another data set joined to groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from noisyml.checks import WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.errors import UserError


class Grouped(DatasetSource):
    """Another data set whose labels tell the group of a class and no more: weak labels.

    Args:
        source: a data set with one label per image, the same classes in all splits.
        groups: class numbers of each group, by its name; every class in one group.

    Raises:
        UserError: a class that is in no group or in two.
    """

    description: ClassVar[str] = "Digits (or another data set) with groups of classes as labels"

    def __init__(
        self, source: DatasetSource, groups: Mapping[str, Sequence[WholeNonNegative]]
    ) -> None:
        self.source = source
        self.groups = {str(name): list(members) for name, members in groups.items()}
        self.labels_are_true = source.labels_are_true
        self.clean_val = source.clean_val
        listed = [number for members in self.groups.values() for number in members]
        if sorted(listed) != list(range(len(listed))):
            raise UserError(
                f"dataset.groups must hold every class number from 0 on once, and holds {listed}."
            )

    def missing(self) -> str | None:
        """The first thing that the source lacks, or None."""
        return self.source.missing()

    def splits(self) -> dict[str, Split]:
        """The splits of the source with other labels.

        Raises:
            UserError: the source has another number of classes, or several labels per image.
        """
        group = np.empty(sum(map(len, self.groups.values())), dtype=np.int64)
        for number, members in enumerate(self.groups.values()):
            group[members] = number
        splits = {}
        for name, split in self.source.splits().items():
            if not split.target.exclusive or len(split.class_names) != len(group):
                raise UserError(
                    f"dataset.groups is for {len(group)} classes of one label per image, and the "
                    f"source has {len(split.class_names)}: list those of the source."
                )
            splits[name] = replace(
                split,
                labels=group[split.labels],
                class_names=list(self.groups),
                fingerprint=f"{split.fingerprint}+groups",
            )
        self.split_origin = self.source.split_origin
        return splits
