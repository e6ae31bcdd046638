"""Labels of one class per sample, and of any number of classes per sample (multi-hot)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisyml.errors import UserError
from noisyml.storage.parquet import to_column
from noisyml.targets.base import Labels, Target, TargetKind

if TYPE_CHECKING:
    from torch import Tensor


class SingleLabel(Target):
    """One label per sample: its class, int64 [N]."""

    name: ClassVar[TargetKind] = "single"
    words: ClassVar[str] = "one label per image"
    field: ClassVar[str] = "label"
    dtype: ClassVar[type[np.generic]] = np.int64
    clean_dtype: ClassVar[type[np.generic]] = np.int64
    exclusive: ClassVar[bool] = True
    example_method: ClassVar[str] = "classification"
    example_noise: ClassVar[str] = "symmetric"
    noise_words: ClassVar[str] = "changes the one label of an image"

    def holds(self, labels: ArrayLike) -> bool:
        """True for one value per sample."""
        return np.ndim(labels) == 1

    def checked(self, labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
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
                f"Training sample {i} has label {array[i]}, but the data set declares "
                f"{num_classes} classes (labels 0 to {num_classes - 1}); correct the label or the "
                "class names."
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
        n = len(observed)
        if n and not 0 <= observed.min() <= observed.max() < num_classes:
            raise ValueError(f"an observed label is not in 0 .. {num_classes - 1}")
        if n and not -1 <= clean.min() <= clean.max() < num_clean_classes:
            raise ValueError(f"a clean label is not in -1 .. {num_clean_classes - 1}")

    def tensor(self, labels: Labels) -> Tensor:
        """Labels [b] int64."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(labels))

    def texts(
        self, labels: Labels, class_names: Sequence[str], nothing: str = "no label"
    ) -> list[str]:
        """The name of each sample's class, empty for a negative number."""
        names = np.asarray([*class_names, ""], dtype=object)
        return [str(name) for name in names[np.maximum(labels, -1)]]

    def shown(self, label: Any) -> str:
        """The class number."""
        return str(int(label))

    def facts(self, labels: Labels) -> dict[str, str]:
        """Nothing beyond what class counts tell."""
        return {}

    def digest(self, observed: Labels, clean: Labels) -> bytes:
        """Both as little-endian int64."""
        return observed.astype("<i8").tobytes() + clean.astype("<i8").tobytes()

    def to_column(self, labels: Labels) -> Any:
        """A column of whole numbers."""
        return to_column(np.asarray(labels))

    def text_column(self, labels: Labels, class_names: Sequence[str]) -> Any:
        """A dictionary-encoded column; null for a label that no class has."""
        import pyarrow as pa

        # A label that no class has (images from elsewhere) has no name either.
        nameless = (labels < 0) | (labels >= len(class_names))
        return pa.DictionaryArray.from_arrays(
            pa.array(labels.astype(np.int32), mask=nameless),
            pa.array([str(name) for name in class_names]),
        )

    def cells(self, labels: Labels) -> Any:
        """The array itself."""
        return labels

    def per_sample(self, marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The marks themselves."""
        return marks

    def count_matrix(
        self, observed: Labels, clean: Labels, num_classes: int, num_clean_classes: int
    ) -> NDArray[np.int64]:
        """Samples by true (row) and observed (column) class, [num_clean_classes, num_classes]."""
        known = clean >= 0
        cells = clean[known] * num_classes + observed[known]
        counts = np.bincount(cells, minlength=num_clean_classes * num_classes).astype(np.int64)
        return counts.reshape(num_clean_classes, num_classes)

    def class_counts(self, labels: Labels, num_classes: int) -> NDArray[np.int64]:
        """Samples of each class, int64 [C]."""
        # Distractors have a negative label: they belong to no class.
        return np.bincount(labels[labels >= 0], minlength=num_classes).astype(np.int64)

    def members(self, labels: Labels, label: int) -> NDArray[np.int64]:
        """Positions of the samples of a class."""
        return np.flatnonzero(labels == label)

    def present(self, labels: Labels) -> NDArray[np.int64]:
        """The classes that any sample has, ascending."""
        return np.unique(labels)

    def among_present(
        self, labels: Labels, class_names: Sequence[str]
    ) -> tuple[Labels, Sequence[str]]:
        """Labels renumbered among the classes that any sample has, and their names."""
        present, inner = np.unique(labels, return_inverse=True)
        return inner, [class_names[i] for i in present.tolist()]

    def strata(self, labels: Labels) -> NDArray[np.int64]:
        """The classes."""
        return labels

    def labelled(self, labels: Labels) -> NDArray[np.bool_]:
        """All samples."""
        return np.ones(len(labels), dtype=bool)

    def groups(
        self, labels: Labels, class_names: Sequence[str], most: int
    ) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
        """The classes, shown ones chosen evenly; see `Target.groups`."""
        present = np.unique(labels)
        shown = np.linspace(0, len(present) - 1, min(most, len(present))).astype(int)
        return labels, list(class_names), present[shown]

    def sizes(self, labels: Labels, num_classes: int) -> NDArray[np.int64]:
        """Samples of each class; a negative label is none."""
        return self.class_counts(labels, num_classes)

    def agreement(self, labels: Labels, clean: Labels, num_classes: int) -> tuple[int, int, int]:
        """Of the samples with a true class."""
        known = clean >= 0
        right = int((labels == clean)[known].sum())
        return right, int((labels[known] >= 0).sum()), int(known.sum())


@dataclass(frozen=True)
class LabelChanges:
    """Changes of the labels of each class, of multi-label samples.

    Attributes:
        positives: int64 [C], samples that truly have the class.
        added: int64 [C], samples without the class that were given it.
        removed: int64 [C], samples with the class that lost it.
    """

    positives: NDArray[np.int64]
    added: NDArray[np.int64]
    removed: NDArray[np.int64]

    @classmethod
    def of(cls, observed: Labels, clean: Labels) -> LabelChanges:
        """The changes between labels [N, C]."""
        counts = MULTI.count_matrix(observed, clean, observed.shape[1], observed.shape[1])
        return cls(counts[:, 1].sum(axis=1), counts[:, 0, 1], counts[:, 1, 0])


class MultiLabel(Target):
    """Any number of labels per sample: uint8 [N, C], 1 where it has a class.

    True labels are int8, -1 where it is unknown whether the sample has the class.
    """

    name: ClassVar[TargetKind] = "multi"
    words: ClassVar[str] = "several labels per image"
    field: ClassVar[str] = "labels"
    dtype: ClassVar[type[np.generic]] = np.uint8
    clean_dtype: ClassVar[type[np.generic]] = np.int8
    exclusive: ClassVar[bool] = False
    example_method: ClassVar[str] = "multilabel"
    example_noise: ClassVar[str] = "multilabel_mixed"
    noise_words: ClassVar[str] = "adds and removes labels of images that have several"

    def holds(self, labels: ArrayLike) -> bool:
        """True for a row of values per sample."""
        return np.ndim(labels) == 2

    def checked(self, labels: ArrayLike, num_classes: int) -> NDArray[np.uint8]:
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
        """Check shapes and entries; see `Target.check_record`."""
        shape = (len(observed), num_classes)
        if not observed.shape == clean.shape == changed.shape == shape:
            raise ValueError(
                f"multi-label columns must be {list(shape)}, not {list(observed.shape)}, "
                f"{list(clean.shape)} and {list(changed.shape)}"
            )
        if num_clean_classes != num_classes or replaces:
            raise ValueError("multi-label noise keeps classes and images as they are")
        if (observed > 1).any():
            raise ValueError("an observed entry is neither 0 nor 1")
        if not np.isin(clean, (-1, 0, 1)).all():
            raise ValueError("a clean entry is not -1, 0 or 1")

    def tensor(self, labels: Labels) -> Tensor:
        """Labels [b, C] float32 of zeros and ones."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(labels)).float()

    def texts(
        self, labels: Labels, class_names: Sequence[str], nothing: str = "no label"
    ) -> list[str]:
        """The names of each sample's classes, joined; empty for a row with unknown entries."""
        names = np.asarray(list(map(str, class_names)), dtype=object)
        return [
            "" if (row < 0).any() else " + ".join(names[np.flatnonzero(row)]) or nothing
            for row in labels
        ]

    def shown(self, label: Any) -> str:
        """The class numbers, joined."""
        return " + ".join(map(str, np.flatnonzero(label == 1).tolist())) or "none"

    def facts(self, labels: Labels) -> dict[str, str]:
        """Mean number of labels."""
        return {"labels per image": f"{labels.sum(axis=1).mean():.2f}"}

    def digest(self, observed: Labels, clean: Labels) -> bytes:
        """Both byte by byte, marked as multi-label."""
        return b"multi" + observed.tobytes() + clean.tobytes()

    def to_column(self, labels: Labels) -> Any:
        """A column of lists of the fixed size C."""
        return to_column(np.asarray(labels))

    def text_column(self, labels: Labels, class_names: Sequence[str]) -> Any:
        """A column of words; empty for a sample without any label."""
        import pyarrow as pa

        return pa.array(self.texts(labels, class_names, nothing=""), pa.string())

    def cells(self, labels: Labels) -> Any:
        """A list per sample."""
        return labels.tolist()

    def per_sample(self, marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Samples with any marked entry."""
        return np.asarray(marks.any(axis=1))

    def count_matrix(
        self, observed: Labels, clean: Labels, num_classes: int, num_clean_classes: int
    ) -> NDArray[np.int64]:
        """Samples of each class by true and observed absence (0) or presence (1), [C, 2, 2]."""
        cells = np.where(clean < 0, 4, 2 * clean + observed)
        each = [(cells == cell).sum(axis=0, dtype=np.int64) for cell in range(4)]
        return np.stack(each, axis=1).reshape(num_classes, 2, 2)

    def rates(
        self, observed: Labels, clean: Labels, changed: NDArray[np.bool_]
    ) -> dict[str, float]:
        """``added_rate`` and ``removed_rate``, over labels truly there, and ``wrong_samples``."""
        if not len(observed):
            return {}
        changes = LabelChanges.of(observed, clean)
        positives = max(int(changes.positives.sum()), 1)
        return {
            "added_rate": int(changes.added.sum()) / positives,
            "removed_rate": int(changes.removed.sum()) / positives,
            "wrong_samples": float(self.per_sample(changed).mean()),
        }

    def summary(self, observed: Labels, clean: Labels) -> dict[str, Any]:
        """``classes``: the counts of `LabelChanges`."""
        changes = asdict(LabelChanges.of(observed, clean))
        return {"classes": {name: counts.tolist() for name, counts in changes.items()}}

    def class_counts(self, labels: Labels, num_classes: int) -> NDArray[np.int64]:
        """Samples of each class, int64 [C]."""
        return labels.sum(axis=0, dtype=np.int64)

    def members(self, labels: Labels, label: int) -> NDArray[np.int64]:
        """Positions of the samples that have a class."""
        return np.flatnonzero(labels[:, label] > 0)

    def present(self, labels: Labels) -> NDArray[np.int64]:
        """The classes that any sample has, ascending."""
        return np.flatnonzero(labels.any(axis=0))

    def among_present(
        self, labels: Labels, class_names: Sequence[str]
    ) -> tuple[Labels, Sequence[str]]:
        """Labels and names as they are: a column stays where no sample has its class."""
        return labels, list(class_names)

    def strata(self, labels: Labels) -> NDArray[np.int64]:
        """One group of all samples."""
        return np.zeros(len(labels), dtype=np.int64)

    def class_columns(self, labels: Labels) -> int | None:
        """C."""
        return int(labels.shape[1])

    def labelled(self, labels: Labels) -> NDArray[np.bool_]:
        """Samples that have any class."""
        return np.asarray(labels.any(axis=1))

    def groups(
        self, labels: Labels, class_names: Sequence[str], most: int
    ) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
        """The sets of classes that occur, the most frequent shown; see `Target.groups`."""
        sets, numbers, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
        frequent = np.argsort(-counts, kind="stable")[:most]
        return numbers.reshape(-1), self.texts(sets, class_names), frequent


#: The kind of labels with one class per sample.
SINGLE = SingleLabel()
#: The kind of labels with any number of classes per sample.
MULTI = MultiLabel()
