"""Interface of data sets: named splits of indexed inputs and labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import Checked
from noisyml.data.inputs import ChosenInputs, ImageSource, Inputs
from noisyml.errors import UserError
from noisyml.targets import Labels, Target, target_of
from noisyml.targets.judgements import Judgements

#: In the extra ``clean_label``: nobody knows the true class; known to be wrong, but no more.
UNKNOWN, WRONG = -1, -2


@dataclass(frozen=True)
class Split:
    """One split: row i of every field describes sample i, and i never changes its meaning.

    Attributes:
        name: ``train``, ``val``, ``test``, ``query`` or ``gallery``.
        inputs: where the pixels (or what else is looked at) come from.
        labels: int64 [N], the labels as the data set gives them, ``0 .. len(class_names) - 1``;
            uint8 [N, C] multi-hot where an image may have several or none; -1 in a split of
            distractors, which belong to no class.
        class_names: one name per label value. Splits with disjoint classes (zero-shot retrieval)
            may share one list or bring their own; retrieval only compares labels inside a split
            (or between ``query`` and ``gallery``, which must share the list).
        keys: N strings naming the samples (path or id): stable, unique, order-defining.
        fingerprint: SHA-256 hex digest of the content (bytes of an embedded set; name, paths,
            sizes and modification times of a folder): the feature cache is keyed by it.
        extras: further per-sample arrays by name (``coarse_label``, ``caption``, ``is_noise``).
            ``clean_label`` [N] int64 of a set with real noise: the true class where it is known,
            else `UNKNOWN` or `WRONG`; only diagnostics see it.
        labelled: bool [N], False for samples whose label training must not use (semi-supervised
            sets); None: all are labelled.
    """

    name: str
    inputs: Inputs[Any]
    labels: Labels
    class_names: Sequence[str]
    keys: Sequence[str]
    fingerprint: str
    extras: dict[str, NDArray] = field(default_factory=dict)
    labelled: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if not len(self.inputs) == len(self.labels) == len(self.keys):
            raise ValueError(
                f"split {self.name}: {len(self.inputs)} {self.inputs.kind}, {len(self.labels)} "
                f"labels and {len(self.keys)} keys; they must be equally many"
            )
        if self.labelled is not None and (
            self.labelled.shape != (len(self.labels),) or self.labelled.dtype != np.bool_
        ):
            raise ValueError(
                f"split {self.name}: labelled must be bool [{len(self.labels)}], not "
                f"{self.labelled.dtype} {list(self.labelled.shape)}"
            )
        if self.target.class_columns(self.labels) not in (None, len(self.class_names)):
            raise ValueError(
                f"split {self.name}: {self.target.class_columns(self.labels)} columns of labels "
                f"for {len(self.class_names)} class names"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def target(self) -> Target:
        """The kind of the labels."""
        return target_of(self.labels)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Images of each class, int64 [C]."""
        return self.target.class_counts(self.labels, len(self.class_names))

    @property
    def images(self) -> ImageSource:
        """The inputs, for code that looks at pixels.

        Raises:
            UserError: inputs of another kind.
        """
        if self.inputs.kind != "images":
            raise UserError(
                f"The {self.name} split holds {self.inputs.kind}, but images are needed here."
            )
        return self.inputs

    def take(self, rows: NDArray[np.int64], fingerprint: str) -> Split:
        """The samples at `rows` [M], renumbered 0 .. M-1, as a split of the same name.

        Args:
            rows: positions.
            fingerprint: of the new split.
        """
        return replace(
            self,
            inputs=ChosenInputs(self.inputs, rows),
            labels=self.labels[rows],
            keys=[self.keys[row] for row in rows.tolist()],
            fingerprint=fingerprint,
            extras={name: values[rows] for name, values in self.extras.items()},
            labelled=None if self.labelled is None else self.labelled[rows],
        )

    def members(self, label: int) -> NDArray[np.int64]:
        """Positions of the images that have a label."""
        return self.target.members(self.labels, label)


#: What the samples of a split are in a test set: queries that are their own gallery (``pool``),
#: ``query``, ``gallery``, or ``distractors``: more gallery, of no query's class.
TestRole = Literal["pool", "query", "gallery", "distractors"]

#: The splits of a test set by their role.
TestSet = Mapping[TestRole, str]

#: The test set whose metrics a run goes by.
DEFAULT_TEST_SET = "test"

#: The roles in the order in which their splits are read, with their split in the default test set.
TEST_ROLES: dict[TestRole, str] = {
    "pool": "test",
    "query": "query",
    "gallery": "gallery",
    "distractors": "distractors",
}


def default_test_sets(names: Collection[str]) -> dict[str, TestSet]:
    """The one test set of splits named after their roles: ``test``, or ``query`` and ``gallery``.

    Args:
        names: of all splits.

    Returns:
        That test set by its name, or nothing if none of the splits is for testing.
    """
    parts: TestSet = {role: name for role, name in TEST_ROLES.items() if name in names}
    return {DEFAULT_TEST_SET: parts} if parts else {}


class DatasetSource(Checked, ABC):
    """A data set: constructed from its config node, cheap until `splits` is called.

    Class attributes describe it to ``noisyml list datasets`` and to the error for missing files.
    """

    #: One line: what it shows, how many images and classes.
    description: ClassVar[str]
    #: True if the labels are known to be right, so that injected noise can be scored.
    labels_are_true: bool = True
    #: True if ``val`` is official and clean; otherwise noise is injected into it like into train.
    clean_val: bool = False
    #: What to fetch, from where, how large, and the folder layout expected; empty if embedded.
    how_to_get: ClassVar[str] = ""
    #: Where the splits come from, if that is not the data set's own matter; set by `splits`.
    split_origin: str = ""
    #: False if there are no labels, so that nothing can be compared with them; set by `splits`.
    has_labels: bool = True
    #: Judgements of the gallery's documents for the queries, where there are any; set by `splits`.
    judgements: Judgements | None = None
    #: Paths that were found and are no image of the data set, by kind; set by `splits`.
    left_out: Mapping[str, Sequence[str]] = MappingProxyType({})

    @property
    def vector_size(self) -> int | None:
        """Columns of the vectors; None where the inputs are something else. Must be cheap."""
        return None

    def test_sets(self, names: Collection[str]) -> dict[str, TestSet]:
        """Test sets by name; the first is the default one and is called ``test``.

        Several of them may share a split, e.g. a gallery with and without distractors.

        Args:
            names: of the splits that `splits` returned.
        """
        return default_test_sets(names)

    @abstractmethod
    def missing(self) -> str | None:
        """None if the files are there, otherwise what is missing (a path). Must be cheap."""

    @abstractmethod
    def splits(self) -> dict[str, Split]:
        """The official splits by name; always ``train``, and ``test`` or ``query``+``gallery``.

        Raises:
            UserError: files missing (with `how_to_get`) or contents that contradict the layout.
        """
