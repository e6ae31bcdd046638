"""Labels that are one object per sample, told apart as wholes: texts, contents of files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from noisyml.targets.base import Labels, Target


class Objects(Target):
    """One object per sample, an array [N] of them; an unknown one is `nobody_knows`."""

    dtype: ClassVar[type[np.generic]] = np.object_
    clean_dtype: ClassVar[type[np.generic]] = np.object_
    exclusive: ClassVar[bool] = False
    #: Type of a label.
    object_type: ClassVar[type]
    #: The true label that nobody knows.
    nobody_knows: ClassVar[Any]

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
        """Check number and type of the labels; see `Target.check_record`."""
        if not observed.shape == clean.shape == changed.shape:
            raise ValueError("observed and clean labels and their marks differ in number")
        for name, labels in (("observed", observed), ("clean", clean)):
            if not all(isinstance(label, self.object_type) for label in labels):
                raise ValueError(f"one of the {name} labels is not {self.words}")

    def digest(self, observed: Labels, clean: Labels) -> bytes:
        """Both as `content`, marked by the name of the kind."""
        return self.name.encode() + self.content(observed) + self.content(clean)

    def cells(self, labels: Labels) -> Any:
        """The array itself."""
        return labels

    def per_sample(self, marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The marks themselves."""
        return marks

    def unknown(self, clean: Labels, changed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Samples whose true label is unknown and that are not known to be wrong."""
        return np.asarray((clean == self.nobody_knows) & ~changed, dtype=bool)

    def unknown_truth(self, observed: Labels) -> Labels:
        """Labels that nobody knows."""
        return np.full(observed.shape, self.nobody_knows, dtype=object)

    def truth(self, observed: Labels, known: Labels) -> tuple[Labels, NDArray[np.bool_]]:
        """The known labels, and marks of the observed ones that differ from them."""
        there = known != self.nobody_knows
        return known, np.asarray(there & (known != observed), dtype=bool)

    def changed(self, observed: Labels, clean: Labels) -> NDArray[np.bool_]:
        """Marks of the labels that differ from the true ones."""
        return np.asarray(observed != clean, dtype=bool)

    def differing(self, clean: Labels, labels: Labels) -> NDArray[np.int64]:
        """Positions of the samples whose true label is known and is not the one in `labels`."""
        return np.flatnonzero((clean != self.nobody_knows) & (clean != labels))

    def among_present(
        self, labels: Labels, class_names: Sequence[str]
    ) -> tuple[Labels, Sequence[str]]:
        """Labels and names as they are."""
        return labels, list(class_names)

    def strata(self, labels: Labels) -> NDArray[np.int64]:
        """One group of all samples."""
        return np.zeros(len(labels), dtype=np.int64)
