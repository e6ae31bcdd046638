"""Labels of one class per sample, or none: what category discovery and few labels learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisyml.errors import UserError
from noisyml.targets.base import Labels, TargetKind
from noisyml.targets.labels import SingleLabel

#: The label of a sample that has none.
NO_LABEL = -1


class PartialLabel(SingleLabel):
    """One label per sample or none, int64 [N] with `NO_LABEL` where there is none.

    Some samples have a label and others have not: labels of which all are there, or none, are of
    the kind with one label per sample. A sample without a label can be neither right nor wrong; its
    true class, where known, stands among the clean labels alone.
    """

    name: ClassVar[TargetKind] = "partial"
    words: ClassVar[str] = "one label per image or none"
    example_method: ClassVar[str] = "gcd"
    noise_words: ClassVar[str] = "changes the labels of images that have one"

    def holds(self, labels: ArrayLike) -> bool:
        """True for integers [N], some of them negative and others not."""
        array = np.asarray(labels)
        if array.ndim != 1 or array.dtype.kind != "i" or not array.size:
            return False
        return bool(array.min() < 0 <= array.max())

    def checked(self, labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
        """Labels as a fresh int64 [N].

        Raises:
            TypeError: not one-dimensional integers.
            UserError: a label is not in ``-1 .. num_classes-1``.
        """
        array = np.asarray(labels)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TypeError(f"labels must be integers [N], not {array.dtype} {list(array.shape)}")
        wrong = np.flatnonzero((array < NO_LABEL) | (array >= num_classes))
        if len(wrong):
            raise UserError(
                f"Training sample {wrong[0]} has label {array[wrong[0]]}, but labels are "
                f"0 to {num_classes - 1}, or {NO_LABEL} for none; correct it or the class names."
            )
        return array.astype(np.int64)

    def check_record(
        self,
        observed: Labels,
        clean: Labels,
        changed: NDArray[np.bool_],
        *,
        num_classes: int,
        num_clean_classes: int,
        replaces: bool,
    ) -> None:
        """Check the ranges of labels; see `Target.check_record`."""
        if not NO_LABEL <= observed.min() <= observed.max() < num_classes:
            raise ValueError(f"an observed label is not in {NO_LABEL} .. {num_classes - 1}")
        if not -1 <= clean.min() <= clean.max() < num_clean_classes:
            raise ValueError(f"a clean label is not in -1 .. {num_clean_classes - 1}")
        if (changed & (observed < 0)).any():
            raise ValueError("a label that is not there counts as wrong")

    def texts(
        self, labels: Labels, class_names: Sequence[str], nothing: str = "no label"
    ) -> list[str]:
        """The name of each sample's class, `nothing` for a sample without one."""
        return [text or nothing for text in super().texts(labels, class_names)]

    def shown(self, label: int) -> str:
        """The class number, or that there is none."""
        return "none" if label < 0 else super().shown(label)

    def facts(self, labels: Labels) -> dict[str, str]:
        """Number of samples with a label, and of their classes."""
        known = labels[labels >= 0]
        return {"labelled": f"{len(known)}", "labelled classes": f"{len(np.unique(known))}"}

    def digest(self, observed: Labels, clean: Labels) -> bytes:
        """Both as little-endian int64, marked as partial."""
        return b"partial" + super().digest(observed, clean)

    def changed(self, observed: Labels, clean: Labels) -> NDArray[np.bool_]:
        """Marks of the labels that are there and differ from the true ones."""
        return np.asarray((observed != clean) & (observed >= 0))

    def truth(self, observed: Labels, known: Labels) -> tuple[Labels, NDArray[np.bool_]]:
        """True labels and marks of the wrong observed ones, see `Target.truth`."""
        clean, wrong = super().truth(observed, known)
        return clean, wrong & (observed >= 0)

    def count_matrix(
        self, observed: Labels, clean: Labels, num_classes: int, num_clean_classes: int
    ) -> NDArray[np.int64]:
        """Labelled samples by true and observed class."""
        there = observed >= 0
        return super().count_matrix(observed[there], clean[there], num_classes, num_clean_classes)

    def rate(self, observed: Labels, changed: NDArray[np.bool_]) -> float:
        """Share of the labels that are there and wrong."""
        there = observed >= 0
        return float(changed[there].mean()) if there.any() else float("nan")

    def rates(
        self, observed: Labels, clean: Labels, changed: NDArray[np.bool_]
    ) -> dict[str, float]:
        """``labelled``, the share of samples with a label."""
        return {"labelled": float((observed >= 0).mean())}

    def present(self, labels: Labels) -> NDArray[np.int64]:
        """The classes that any labelled sample has, ascending."""
        return np.unique(labels[labels >= 0])

    def among_present(
        self, labels: Labels, class_names: Sequence[str]
    ) -> tuple[Labels, Sequence[str]]:
        """Labels and names as they are: unlabelled samples may be of any class."""
        return labels, list(class_names)

    def labelled(self, labels: Labels) -> NDArray[np.bool_]:
        """Samples that have a label."""
        return np.asarray(labels >= 0)

    def groups(
        self, labels: Labels, class_names: Sequence[str], most: int
    ) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
        """The labelled classes and the samples without one as a group; see `Target.groups`."""
        numbers = np.where(labels < 0, len(class_names), labels)
        present = np.unique(numbers)
        # The group without a label is always shown.
        return (
            numbers,
            [*map(str, class_names), "no label"],
            np.append(present[present < len(class_names)][: most - 1], len(class_names)),
        )


#: The kind of labels that only some samples have.
PARTIAL = PartialLabel()
