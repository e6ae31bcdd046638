"""All rows of a data set, split after split, with the features by which labels are judged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyml.data.base import Split
from noisyml.data.inputs import Inputs
from noisyml.errors import UserError


@dataclass(frozen=True)
class Rows:
    """N labelled rows with features; broken images are left out and listed.

    Attributes:
        keys: path or identifier of each row, N.
        labels: [N] int64 in ``0 .. C - 1``, observed.
        class_names: C.
        split: name of the split of each row, N.
        place: position of each row in its split [N] int64.
        features: [N, D], read in blocks.
        inputs: of each split by name.
        broken: split and key of the images that could not be decoded.
    """

    keys: Sequence[str]
    labels: NDArray[np.int64]
    class_names: Sequence[str]
    split: NDArray[np.object_]
    place: NDArray[np.int64]
    features: Any
    inputs: Mapping[str, Inputs[Any]]
    broken: Sequence[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def kind(self) -> str:
        """The kind of the inputs: images or vectors."""
        return next(iter(self.inputs.values())).kind

    def load(self, row: int) -> Any:
        """The input of a row."""
        return self.inputs[self.split[row]].load(int(self.place[row]))

    def digest(self) -> str:
        """SHA-256 over keys, labels and a sample of the features."""
        found = hashlib.sha256(
            "\0".join([*self.class_names, *self.keys]).encode("utf-8", "replace")
        )
        found.update(self.labels.astype("<i8").tobytes())
        some = np.unique(np.linspace(0, len(self) - 1, 64).round().astype(np.int64))
        found.update(np.ascontiguousarray(self.features[some], dtype=np.float32).tobytes())
        return found.hexdigest()


def collect_rows(
    splits: Mapping[str, Split], features_of: Callable[[Split], tuple[Any, NDArray[np.int64]]]
) -> Rows:
    """The rows of all splits with one label each.

    Args:
        splits: by name.
        features_of: features [n, D] of a split and positions of the images that are broken.

    Raises:
        UserError: several labels per row, splits with classes of their own, or fewer than two
            classes.
    """
    names: list[str] = []
    number: dict[str, int] = {}
    for split in splits.values():
        if not split.target.exclusive:
            raise UserError(
                "Labels are judged one per row, and these rows have several: make a table with a "
                "row for each image and label."
            )
        for name in split.class_names:
            if name not in number:
                number[name] = len(names)
                names.append(name)
    parts: list[dict[str, Any]] = []
    broken: list[tuple[str, str]] = []
    for name, split in splits.items():
        features, lost = features_of(split)
        broken += [(name, split.keys[int(row)]) for row in lost]
        kept = np.setdiff1d(np.arange(len(split)), lost)
        kept = kept[np.asarray(split.labels)[kept] >= 0]
        if not len(kept):
            continue
        own = np.asarray([number[text] for text in split.class_names], dtype=np.int64)
        parts.append(
            {
                "keys": [split.keys[row] for row in kept.tolist()],
                "labels": own[np.asarray(split.labels)[kept]],
                "split": np.full(len(kept), name, dtype=object),
                "place": kept,
                "features": features if len(kept) == len(split) else features[kept],
            }
        )
    if not parts:
        raise UserError("There are no rows with labels to judge.")
    labels = np.concatenate([part["labels"] for part in parts])
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"All rows have the label '{names[int(labels[0])]}': two classes at least are needed."
        )
    matrix = parts[0]["features"]
    if len(parts) > 1:
        matrix = np.concatenate([np.asarray(p["features"], np.float32) for p in parts])
    return Rows(
        keys=[key for part in parts for key in part["keys"]],
        labels=labels,
        class_names=names,
        split=np.concatenate([part["split"] for part in parts]),
        place=np.concatenate([part["place"] for part in parts]),
        features=matrix,
        inputs={name: split.inputs for name, split in splits.items()},
        broken=broken,
    )
