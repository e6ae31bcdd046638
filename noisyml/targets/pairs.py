"""Captions as labels: what belongs to an image is a text of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisyml.errors import UserError
from noisyml.targets.base import Labels, TargetKind
from noisyml.targets.objects import Objects

if TYPE_CHECKING:
    from torch import Tensor

#: A true caption that nobody knows.
UNKNOWN_CAPTION = ""


class Pairs(Objects):
    """One caption per image: texts, an array [N] of objects that are `str`.

    There are no classes: images of one caption belong together, others may all the same. A true
    caption that is unknown is the empty text.
    """

    name: ClassVar[TargetKind] = "pairs"
    words: ClassVar[str] = "a caption per image"
    field: ClassVar[str] = "caption"
    object_type: ClassVar[type] = str
    nobody_knows: ClassVar[str] = UNKNOWN_CAPTION
    example_method: ClassVar[str] = "otter"
    example_noise: ClassVar[str] = "caption_shuffle"
    noise_words: ClassVar[str] = "changes the captions of images"

    def holds(self, labels: ArrayLike) -> bool:
        """True for one text per sample."""
        array = np.asarray(labels)
        if array.ndim != 1 or not len(array):
            return False
        return array.dtype.kind in "UT" or (
            array.dtype.kind == "O" and isinstance(array.flat[0], str)
        )

    def checked(self, labels: ArrayLike, num_classes: int) -> Labels:
        """Captions as a fresh array [N] of `str`.

        Raises:
            TypeError: not one text per sample.
            UserError: an empty caption.
        """
        array = np.array(labels, dtype=object)
        if array.ndim != 1 or not all(isinstance(text, str) for text in array):
            raise TypeError(f"captions must be texts [N], not {list(array.shape)}")
        if empty := [i for i, text in enumerate(array) if not text.strip()]:
            raise UserError(
                f"Training sample {empty[0]} has an empty caption; write one or leave it out."
            )
        # Texts of NumPy are texts, and are kept as plain ones.
        return np.array([str(text) for text in array], dtype=object)

    def tensor(self, labels: Labels) -> Tensor:
        """Captions as bytes of UTF-8: uint8 [b, longest], filled up with zeros; see `texts_of`."""
        import torch

        encoded = [text.encode() for text in labels]
        padded = np.zeros((len(encoded), max(map(len, encoded), default=0)), dtype=np.uint8)
        for row, content in zip(padded, encoded, strict=True):
            row[: len(content)] = np.frombuffer(content, dtype=np.uint8)
        return torch.from_numpy(padded)

    def texts(
        self, labels: Labels, class_names: Sequence[str], nothing: str = "no label"
    ) -> list[str]:
        """The captions."""
        return [str(text) for text in labels]

    def shown(self, label: Any) -> str:
        """The caption in quotation marks."""
        return repr(str(label))

    def facts(self, labels: Labels) -> dict[str, str]:
        """Number of different captions, and words of each on average."""
        words = sum(len(text.split()) for text in labels) / max(len(labels), 1)
        return {"captions": f"{len(set(labels))}", "words per caption": f"{words:.1f}"}

    def content(self, labels: Labels) -> bytes:
        """The captions in UTF-8, each ended by a zero."""
        return b"".join(text.encode() + b"\0" for text in labels)

    def to_column(self, labels: Labels) -> Any:
        """A column of texts."""
        import pyarrow as pa

        return pa.array([str(text) for text in labels], pa.string())

    def text_column(self, labels: Labels, class_names: Sequence[str]) -> Any:
        """The captions again."""
        return self.to_column(labels)

    def count_matrix(
        self, observed: Labels, clean: Labels, num_classes: int, num_clean_classes: int
    ) -> NDArray[np.int64]:
        """No classes, no counts."""
        return np.zeros((num_clean_classes, num_classes), dtype=np.int64)

    def summary(self, observed: Labels, clean: Labels) -> dict[str, Any]:
        """``captions``: numbers of different captions observed and true."""
        return {"captions": {"observed": len(set(observed)), "clean": len(set(clean))}}

    def class_counts(self, labels: Labels, num_classes: int) -> NDArray[np.int64]:
        """No classes: zeros [C], mostly of length 0."""
        return np.zeros(num_classes, dtype=np.int64)

    def members(self, labels: Labels, label: int) -> NDArray[np.int64]:
        """None."""
        return np.empty(0, dtype=np.int64)

    def present(self, labels: Labels) -> NDArray[np.int64]:
        """None."""
        return np.empty(0, dtype=np.int64)

    def labelled(self, labels: Labels) -> NDArray[np.bool_]:
        """Samples whose caption is not empty."""
        return np.asarray(labels != UNKNOWN_CAPTION, dtype=bool)

    def groups(
        self, labels: Labels, class_names: Sequence[str], most: int
    ) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
        """The different captions, the most frequent shown; see `Target.groups`."""
        different, numbers, counts = np.unique(
            labels.astype(str), return_inverse=True, return_counts=True
        )
        frequent = np.argsort(-counts, kind="stable")[:most]
        return numbers.reshape(-1), different.tolist(), frequent


#: The kind of labels that are captions.
PAIRS = Pairs()


def texts_of(captions: Tensor) -> list[str]:
    """The texts of a batch's captions, the inverse of `Pairs.tensor`.

    Args:
        captions: uint8 [b, L], UTF-8 filled up with zeros, on any device.

    Example:
        >>> import numpy as np
        >>> from noisyml.targets.pairs import PAIRS, texts_of
        >>> texts_of(PAIRS.tensor(np.array(["a café", "b"], dtype=object)))
        ['a café', 'b']
    """
    return [bytes(row).rstrip(b"\0").decode() for row in captions.cpu().numpy()]
