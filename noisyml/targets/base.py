"""Interface of a kind of labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    # Reports read labels without loading torch.
    from torch import Tensor

#: The kinds of labels by name.
TargetKind = Literal["single", "multi", "pairs", "partial", "masks"]

#: The labels of N samples, row by row; the kind says of which shape and type.
Labels = NDArray[Any]


class Target(ABC):
    """A kind of labels; its objects hold no labels, they answer questions about them.

    `labels` are those of N samples as `checked` returns them; `clean` may say of a label that it is
    unknown (negative). Defaults suit labels that are arrays of numbers.
    """

    #: The kind's name in declarations (``target_kinds``).
    name: ClassVar[TargetKind]
    #: The kind in words, for messages: "one label per image".
    words: ClassVar[str]
    #: Name of the labels in a batch.
    field: ClassVar[str]
    #: Types of observed and of true labels in memory and in files.
    dtype: ClassVar[type[np.generic]]
    clean_dtype: ClassVar[type[np.generic]]
    #: True if a sample belongs to exactly one class, so that samples can be grouped by class.
    exclusive: ClassVar[bool]
    #: True if a label is a picture that must be cut and turned together with its image.
    beside_image: ClassVar[bool] = False
    #: A method and a noise for such labels, for advice in messages.
    example_method: ClassVar[str]
    example_noise: ClassVar[str]
    #: What noise for such labels does, for messages: "changes the one label of an image".
    noise_words: ClassVar[str]

    # -- arrays ------------------------------------------------------------------------------

    @abstractmethod
    def holds(self, labels: ArrayLike) -> bool:
        """True if labels are of this kind."""

    @abstractmethod
    def checked(self, labels: ArrayLike, num_classes: int) -> Labels:
        """A fresh array of labels given as list, array or CPU tensor.

        Raises:
            TypeError: values of another type or shape.
            UserError: a label that is none of the classes.
        """

    @abstractmethod
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
        """Check that the columns of a noise manifest fit each other.

        Args:
            observed: N labels.
            clean: N true labels.
            changed: whether they differ, by sample or by entry.
            num_classes: classes of `observed`.
            num_clean_classes: classes of `clean`.
            replaces: True if the noise replaces images or renumbers classes.

        Raises:
            ValueError: they do not.
        """

    # -- in a batch --------------------------------------------------------------------------

    @abstractmethod
    def tensor(self, labels: Labels) -> Tensor:
        """The labels of a batch as losses and evaluators take them."""

    def pixels(self, label: Any) -> NDArray[np.uint8]:
        """The label of one sample as a picture [H, W], of kinds that lie beside the image."""
        raise TypeError(f"{self.words} is no picture")

    # -- for people --------------------------------------------------------------------------

    @abstractmethod
    def texts(
        self, labels: Labels, class_names: Sequence[str], nothing: str = "no label"
    ) -> list[str]:
        """The label of each sample in words; unknown ones give an empty text.

        Args:
            labels: N labels.
            class_names: C names.
            nothing: stands for a sample without any label.
        """

    @abstractmethod
    def shown(self, label: Any) -> str:
        """The label of one sample by class number, for messages."""

    @abstractmethod
    def facts(self, labels: Labels) -> dict[str, str]:
        """Further facts about the labels of a split, by heading."""

    # -- in files ----------------------------------------------------------------------------

    @abstractmethod
    def digest(self, observed: Labels, clean: Labels) -> bytes:
        """The labels as bytes that do not depend on the machine."""

    def content(self, labels: Labels) -> bytes:
        """The labels alone as bytes that do not depend on the machine."""
        return labels.astype("<i8").tobytes()

    @abstractmethod
    def to_column(self, labels: Labels) -> Any:
        """An Arrow array of labels."""

    def to_columns(self, observed: Labels, clean: Labels) -> tuple[Any, Any]:
        """Columns of observed and true labels; null stands for an observed one that is the true."""
        return self.to_column(observed), self.to_column(clean)

    @abstractmethod
    def text_column(self, labels: Labels, class_names: Sequence[str]) -> Any:
        """An Arrow array of the labels in words; null or empty where there is no name."""

    @abstractmethod
    def cells(self, labels: Labels) -> Any:
        """The labels as a column of a data frame."""

    # -- observed and true ones --------------------------------------------------------------

    def changed(self, observed: Labels, clean: Labels) -> NDArray[np.bool_]:
        """Marks of the observed labels that differ from the true ones, by sample or by entry."""
        return np.asarray(observed != clean)

    @abstractmethod
    def per_sample(self, marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Samples with any mark, bool [N], of marks like those of `changed`."""

    def unknown(self, clean: Labels, changed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Marks of the labels that nobody knows to be right or wrong, by sample or by entry."""
        return np.asarray((clean < 0) & ~changed)

    def unknown_truth(self, observed: Labels) -> Labels:
        """True labels of which none is known."""
        return np.full(observed.shape, -1)

    def truth(self, observed: Labels, known: Labels) -> tuple[Labels, NDArray[np.bool_]]:
        """True labels and marks of the wrong observed ones, of what was looked at by hand.

        Args:
            observed: N labels.
            known: the true ones; -1 where nobody knows, -2 where a label is only known to be wrong.
        """
        return np.maximum(known, -1), (known != -1) & (known != observed)

    def differing(self, clean: Labels, labels: Labels) -> NDArray[np.int64]:
        """Positions of the samples whose true label is known and is not the one in `labels`."""
        return np.flatnonzero(self.per_sample((clean >= 0) & (clean != labels)))

    @abstractmethod
    def count_matrix(
        self, observed: Labels, clean: Labels, num_classes: int, num_clean_classes: int
    ) -> NDArray[np.int64]:
        """Samples by true and observed class, see `NoiseManifest.count_matrix`."""

    def rate(self, observed: Labels, changed: NDArray[np.bool_]) -> float:
        """Share of the labels, or of the entries, that are wrong."""
        return float(changed.mean())

    def rates(
        self, observed: Labels, clean: Labels, changed: NDArray[np.bool_]
    ) -> dict[str, float]:
        """Rates that only this kind of labels has, fractions of 1 by name."""
        return {}

    def summary(self, observed: Labels, clean: Labels) -> dict[str, Any]:
        """Entries of the record of noise that only this kind of labels has, JSON values."""
        return {}

    # -- classes -----------------------------------------------------------------------------

    @abstractmethod
    def class_counts(self, labels: Labels, num_classes: int) -> NDArray[np.int64]:
        """Samples of each class, int64 [C]."""

    @abstractmethod
    def members(self, labels: Labels, label: int) -> NDArray[np.int64]:
        """Positions of the samples of a class."""

    @abstractmethod
    def present(self, labels: Labels) -> NDArray[np.int64]:
        """The classes that any sample has, ascending."""

    @abstractmethod
    def among_present(
        self, labels: Labels, class_names: Sequence[str]
    ) -> tuple[Labels, Sequence[str]]:
        """Labels and names without the classes that no sample has, where classes can go."""

    @abstractmethod
    def strata(self, labels: Labels) -> NDArray[np.int64]:
        """Groups of which each gives its share to a part of the samples, int64 [N]."""

    def class_columns(self, labels: Labels) -> int | None:
        """Number of classes that the labels themselves tell; None if they tell none."""
        return None

    @abstractmethod
    def labelled(self, labels: Labels) -> NDArray[np.bool_]:
        """Samples that have any label, bool [N]."""

    @abstractmethod
    def groups(
        self, labels: Labels, class_names: Sequence[str], most: int
    ) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
        """Groups that a map of the samples tells apart.

        Args:
            labels: N labels.
            class_names: C names.
            most: largest number of groups to show.

        Returns:
            The group of each sample [N], the name of each group, and the groups to show.
        """

    # -- pseudo-labels -----------------------------------------------------------------------

    def sizes(self, labels: Labels, num_classes: int) -> NDArray[np.int64]:
        """Labels of each class, of samples or of pixels, int64 [C]; of kinds that models can give.

        Raises:
            TypeError: a kind that no model gives.
        """
        raise TypeError(f"{self.words} is nothing that a model gives")

    def agreement(self, labels: Labels, clean: Labels, num_classes: int) -> tuple[int, int, int]:
        """Labels that are the true ones, labels there are, and labels there could be.

        Of samples or of pixels with a true class; of kinds that models can give.

        Raises:
            TypeError: a kind that no model gives.
        """
        raise TypeError(f"{self.words} is nothing that a model gives")
