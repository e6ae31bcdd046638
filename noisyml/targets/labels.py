"""Labels as arrays: a class number per sample, or a row of zeros and ones (multi-hot)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisyml.errors import UserError

#: ``single``: int64 [N], the class of each sample; ``multi``: uint8 [N, C], 1 where it has a class.
LabelKind = Literal["single", "multi"]

#: Labels of either kind.
Labels = NDArray[Any]

#: What each kind is, for messages.
KIND_WORDS: dict[LabelKind, str] = {
    "single": "one label per image",
    "multi": "several labels per image",
}


def kind_of(labels: ArrayLike) -> LabelKind:
    """Which kind of labels an array holds: [N] or [N, C]."""
    return "multi" if np.ndim(labels) == 2 else "single"


def as_labels(labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Labels as a fresh int64 [N]; lists, arrays and CPU tensors of integers are accepted.

    Raises:
        TypeError: not one-dimensional integers.
        UserError: a label is not in ``0 .. num_classes-1``.
    """
    array = np.asarray(labels)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"labels must be integers [N], not {array.dtype} {list(array.shape)}")
    if array.size and (array.min() < 0 or array.max() >= num_classes):
        i = int(np.flatnonzero((array < 0) | (array >= num_classes))[0])
        raise UserError(
            f"Training sample {i} has label {array[i]}, but the data set declares {num_classes} "
            f"classes (labels 0 to {num_classes - 1}); correct the label or the class names."
        )
    return array.astype(np.int64)


def as_multi_hot(labels: ArrayLike, num_classes: int) -> NDArray[np.uint8]:
    """Labels as a fresh uint8 [N, C] of zeros and ones.

    Raises:
        TypeError: not zeros and ones [N, num_classes].
    """
    array = np.asarray(labels)
    if array.ndim != 2 or array.shape[1] != num_classes:
        raise TypeError(f"labels must be [N, {num_classes}], not {list(array.shape)}")
    if not np.isin(array, (0, 1)).all():
        raise TypeError("labels must be zeros and ones, one column per class")
    return array.astype(np.uint8)


def label_texts(labels: Labels, class_names: Sequence[str]) -> list[str]:
    """The labels of each sample in words; several are joined, ``no label`` where there is none.

    Args:
        labels: [n] or [n, C]; negative numbers (unknown) give an empty text.
        class_names: C names.
    """
    names = np.asarray([*class_names, ""], dtype=object)
    if labels.ndim == 1:
        return [str(name) for name in names[np.maximum(labels, -1)]]
    return [
        "" if (row < 0).any() else " + ".join(names[np.flatnonzero(row)]) or "no label"
        for row in labels
    ]
