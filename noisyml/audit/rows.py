"""All rows of a data set, split after split, with the features by which labels are judged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyml.data.base import Split
from noisyml.data.inputs import ChosenInputs, Inputs, ReplacedInputs
from noisyml.errors import UserError
from noisyml.targets import Labels, Target, TargetKind, target_of

#: Kinds of labels that are judged.
JUDGED: tuple[TargetKind, ...] = ("single", "multi", "pairs")
#: Between the labels of a row in tables, as ``dataset=csv`` reads them.
JOINT = "; "


@dataclass(frozen=True)
class Rows:
    """N labelled rows with features; broken images are left out and listed.

    Attributes:
        keys: path or identifier of each row, N.
        labels: observed: [N] int64 in ``0 .. C - 1``, [N, C] zeros and ones, or N captions.
        class_names: C; none where the labels are captions.
        split: name of the split of each row, N.
        place: position of each row in its split [N] int64.
        features: [N, D], read in blocks.
        inputs: of each split by name.
        broken: split and key of the images that could not be decoded.
    """

    keys: Sequence[str]
    labels: Labels
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

    @property
    def target(self) -> Target:
        """The kind of the labels."""
        return target_of(self.labels)

    @property
    def several(self) -> bool:
        """True if a row may have any number of the classes."""
        return self.target.class_columns(self.labels) is not None

    @cached_property
    def paths(self) -> list[str]:
        """Path, or where there is none the key, of each row, N."""
        return [
            path_of(self.inputs[split], place) or str(key)
            for split, place, key in zip(self.split, self.place.tolist(), self.keys, strict=True)
        ]

    @cached_property
    def given(self) -> NDArray[Any]:
        """The label of each row as a text [N]; several are joined by semicolons."""
        if self.target.exclusive:
            return np.asarray(self.class_names, dtype=object)[self.labels]
        if not self.several:
            return np.asarray(self.labels, dtype=object)
        names = [str(name) for name in self.class_names]
        texts = [JOINT.join(names[c] for c in np.flatnonzero(row)) for row in self.labels]
        return np.asarray(texts, dtype=object)

    def load(self, row: int) -> Any:
        """The input of a row."""
        return self.inputs[self.split[row]].load(int(self.place[row]))

    def digest(self) -> str:
        """SHA-256 over keys, labels and a sample of the features."""
        found = hashlib.sha256(
            "\0".join([*self.class_names, *self.keys]).encode("utf-8", "replace")
        )
        found.update(self.target.digest(self.labels, self.labels))
        some = np.unique(np.linspace(0, len(self) - 1, 64).round().astype(np.int64))
        found.update(np.ascontiguousarray(self.features[some], dtype=np.float32).tobytes())
        return found.hexdigest()


def path_of(inputs: Any, place: int) -> str | None:
    """Absolute path of the file behind an input; None where there is no file."""
    if isinstance(inputs, ChosenInputs):
        return path_of(inputs.inputs, int(inputs.rows[place]))
    if isinstance(inputs, ReplacedInputs):
        other = int(inputs.source_index[place])
        return path_of(inputs.inputs if other < 0 else inputs.source, max(other, place))
    find = getattr(inputs, "path", None)
    return os.path.abspath(find(place)) if callable(find) else None


def collect_rows(
    splits: Mapping[str, Split], features_of: Callable[[Split], tuple[Any, NDArray[np.int64]]]
) -> Rows:
    """The rows of all splits.

    Args:
        splits: by name, with labels of one kind: one per row, several, or captions.
        features_of: features [n, D] of a split and positions of the images that are broken.

    Raises:
        UserError: labels of another kind, splits with several labels and classes of their own, or
            fewer than two classes.
    """
    names: list[str] = []
    number: dict[str, int] = {}
    several = False
    for split in splits.values():
        if split.target.name not in JUDGED:
            raise UserError(
                f"{split.target.words[0].upper()}{split.target.words[1:]} cannot be judged: "
                f"noisyml clean judges one label per row, several, or captions."
            )
        several = several or split.target.class_columns(split.labels) is not None
        if several and names and list(split.class_names) != names:
            raise UserError("Splits with several labels per row must have the same classes.")
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
        if split.target.exclusive:
            kept = kept[np.asarray(split.labels)[kept] >= 0]
        if not len(kept):
            continue
        labels = split.labels[kept]
        if split.target.exclusive:
            labels = np.asarray([number[text] for text in split.class_names])[labels]
        parts.append(
            {
                "keys": [split.keys[row] for row in kept.tolist()],
                "labels": labels,
                "split": np.full(len(kept), name, dtype=object),
                "place": kept,
                "features": features if len(kept) == len(split) else features[kept],
            }
        )
    if not parts:
        raise UserError("There are no rows with labels to judge.")
    labels = np.concatenate([part["labels"] for part in parts])
    if (several and len(names) < 1) or (not several and len(set(labels.tolist())) < 2):
        only = names[int(labels[0])] if names and not several else str(labels[0])
        raise UserError(f"All rows have the label '{only}': two classes at least are needed.")
    matrix = parts[0]["features"]
    if len(parts) > 1:
        matrix = StackedRows([part["features"] for part in parts])
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


class StackedRows:
    """Matrices [n_i, D] one below the other, float32 as they are read; nothing is copied before.

    Args:
        parts: with as many columns each, read in blocks.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        self.shape = (int(self.ends[-1]), int(parts[0].shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        rows = np.arange(*key.indices(len(self))) if isinstance(key, slice) else np.asarray(key)
        place = np.searchsorted(self.ends, rows, side="right")
        found = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        for number, part in enumerate(self.parts):
            mine = np.flatnonzero(place == number)
            if len(mine):
                found[mine] = part[rows[mine] - (self.ends[number] - len(part))]
        return found
