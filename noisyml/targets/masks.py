"""Masks as labels: what belongs to an image is a class for each of its pixels.

A label is the content of an 8-bit PNG file of class numbers, as `bytes`: some thousand times
smaller than the pixels, told apart by its bytes, and decoded when it is looked at.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from noisyml.errors import UserError
from noisyml.targets.base import Labels, TargetKind
from noisyml.targets.objects import Objects

if TYPE_CHECKING:
    from torch import Tensor

#: The value of pixels that belong to no class: they teach nothing and count for nothing.
IGNORE = 255
#: A true mask that nobody knows.
UNKNOWN_MASK = b""

_PNG = b"\x89PNG"
#: Masks whose pixels are looked at before training to see whether the classes fit.
_LOOKED_AT = 32
_COUNTS_KEPT = 1 << 16


def encode_mask(pixels: NDArray[np.uint8]) -> bytes:
    """The content of an 8-bit grey PNG file of class numbers [H, W].

    Example:
        >>> import numpy as np
        >>> mask = np.array([[0, 1], [2, 255]], dtype=np.uint8)
        >>> decode_mask(encode_mask(mask)).tolist()
        [[0, 1], [2, 255]]
    """
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise TypeError(f"a mask is uint8 [H, W], not {pixels.dtype} {list(pixels.shape)}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def decode_mask(content: bytes) -> NDArray[np.uint8]:
    """The class numbers uint8 [H, W] in the content of a PNG file.

    Palette files give their indices, never their colours.

    Raises:
        UserError: it is no such file, or one of colours.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            mode = image.mode
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(
            f"A mask cannot be decoded ({error}); it must be a PNG file of class numbers."
        ) from error
    if mode not in ("L", "P"):
        raise UserError(
            f"A mask is stored in the mode {mode}, and must be an 8-bit PNG of class numbers, grey "
            f"or with a palette."
        )
    return np.asarray(pixels, dtype=np.uint8)


@lru_cache(maxsize=_COUNTS_KEPT)
def pixel_counts(content: bytes) -> tuple[tuple[int, int], ...]:
    """The classes of a mask that occur, each with its number of pixels; `IGNORE` left out."""
    numbers, counts = np.unique(decode_mask(content), return_counts=True)
    pairs = zip(numbers.tolist(), counts.tolist(), strict=True)
    return tuple((number, count) for number, count in pairs if number != IGNORE)


class Masks(Objects):
    """One mask per image: PNG contents, an array [N] of objects that are `bytes`.

    A true mask that is unknown is the empty content.
    """

    name: ClassVar[TargetKind] = "masks"
    words: ClassVar[str] = "a mask per image"
    field: ClassVar[str] = "mask"
    object_type: ClassVar[type] = bytes
    nobody_knows: ClassVar[bytes] = UNKNOWN_MASK
    beside_image: ClassVar[bool] = True
    example_method: ClassVar[str] = "segmentation"
    example_noise: ClassVar[str] = "mask_boundary"
    noise_words: ClassVar[str] = "changes the masks of images"

    def holds(self, labels: ArrayLike) -> bool:
        """True for the content of a PNG file per sample."""
        if isinstance(labels, np.ndarray):
            first = labels.flat[0] if labels.dtype == object and labels.size else None
        else:
            listed = isinstance(labels, Sequence) and not isinstance(labels, str | bytes)
            first = labels[0] if listed and len(labels) else None  # type: ignore[arg-type, index]
        return isinstance(first, bytes)

    def checked(self, labels: ArrayLike, num_classes: int) -> Labels:
        """Masks as a fresh array [N] of `bytes`; the pixels of some are looked at.

        Raises:
            TypeError: not one PNG file per sample.
            UserError: a pixel that is none of the classes.
        """
        listed: list[Any] = list(labels)  # type: ignore[arg-type]
        array = as_labels(listed)
        if not all(isinstance(content, bytes) and content.startswith(_PNG) for content in listed):
            raise TypeError("masks must be contents of PNG files [N]")
        for i in np.unique(np.linspace(0, len(array) - 1, _LOOKED_AT).round().astype(int)):
            if i >= 0:
                check_classes(array[i], num_classes, f"Training sample {i}")
        return array

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
        """Check that masks stand where masks must, of the same classes."""
        super().check_record(
            observed,
            clean,
            changed,
            num_classes=num_classes,
            num_clean_classes=num_clean_classes,
            replaces=replaces,
        )
        if num_clean_classes != num_classes:
            raise ValueError("noise of masks keeps the classes as they are")

    def tensor(self, labels: Labels) -> Tensor:
        """Masks uint8 [b, H, W] as they stand; all of one size."""
        import torch

        decoded = [decode_mask(content) for content in labels]
        if len({mask.shape for mask in decoded}) > 1:
            raise UserError("The masks of a batch differ in size: choose transform=segmentation.")
        return torch.from_numpy(np.stack(decoded)) if decoded else torch.empty(0)

    def pixels(self, label: Any) -> NDArray[np.uint8]:
        """The class numbers uint8 [H, W] of one mask."""
        return decode_mask(label)

    def texts(
        self, labels: Labels, class_names: Sequence[str], nothing: str = "no label"
    ) -> list[str]:
        """The names of the classes that occur in each mask, joined; empty for an unknown one."""
        names = [str(name) for name in class_names]

        def text(content: bytes) -> str:
            if content == UNKNOWN_MASK:
                return ""
            return " + ".join(names[c] for c, _ in pixel_counts(content)) or nothing

        return [text(content) for content in labels]

    def shown(self, label: Any) -> str:
        """The first digits of the content's hash."""
        return f"mask {hashlib.sha256(label).hexdigest()[:8]}"

    def facts(self, labels: Labels) -> dict[str, str]:
        """Number of classes in a mask on average, and share of pixels without a class."""
        found = [pixel_counts(content) for content in labels]
        pixels = sum(decode_mask(content).size for content in labels)
        known = sum(count for pairs in found for _, count in pairs)
        return {
            "classes per mask": f"{sum(map(len, found)) / max(len(found), 1):.2f}",
            "pixels without class": f"{1 - known / max(pixels, 1):.1%}",
        }

    def content(self, labels: Labels) -> bytes:
        """The hash of each mask's content."""
        return b"".join(hashlib.sha256(content).digest() for content in labels)

    def to_column(self, labels: Labels) -> Any:
        """A column of file contents."""
        import pyarrow as pa

        return pa.array(list(labels), pa.large_binary())

    def to_columns(self, observed: Labels, clean: Labels) -> tuple[Any, Any]:
        """Columns of file contents, in which no mask stands twice; see `Target.to_columns`."""
        own = observed.copy()
        own[observed == clean] = None
        return self.to_column(own), self.to_column(clean)

    def text_column(self, labels: Labels, class_names: Sequence[str]) -> Any:
        """A column of the names of the classes that occur."""
        import pyarrow as pa

        return pa.array(self.texts(labels, class_names), pa.string())

    def count_matrix(
        self, observed: Labels, clean: Labels, num_classes: int, num_clean_classes: int
    ) -> NDArray[np.int64]:
        """Pixels by true (row) and observed (column) class, where both have one."""
        counts = np.zeros((num_clean_classes, num_classes), dtype=np.int64)
        for seen, true in zip(observed, clean, strict=True):
            if true != UNKNOWN_MASK:
                counts += pixel_confusion(decode_mask(seen), decode_mask(true), num_classes)
        return counts

    def rates(
        self, observed: Labels, clean: Labels, changed: NDArray[np.bool_]
    ) -> dict[str, float]:
        """``wrong_pixels`` and ``unlabelled_pixels``, of the pixels with a true class.

        The share whose observed class is another one, and the share that is left without.
        """
        wrong = lost = total = 0
        for seen, true, differs in zip(observed, clean, changed.tolist(), strict=True):
            total += sum(count for _, count in pixel_counts(true))
            if differs:
                truth, given = decode_mask(true), decode_mask(seen)
                differing = (truth != IGNORE) & (given != truth)
                gone = differing & (given == IGNORE)
                wrong += int((differing & ~gone).sum())
                lost += int(gone.sum())
        return {
            "wrong_pixels": wrong / max(total, 1),
            "unlabelled_pixels": lost / max(total, 1),
        }

    def class_counts(self, labels: Labels, num_classes: int) -> NDArray[np.int64]:
        """Images in which each class occurs, int64 [C]."""
        found = [number for content in labels for number, _ in pixel_counts(content)]
        counts = np.bincount(np.array(found, dtype=np.int64), minlength=num_classes)
        return counts[:num_classes].astype(np.int64)

    def members(self, labels: Labels, label: int) -> NDArray[np.int64]:
        """Positions of the images in which a class occurs."""
        has = [any(number == label for number, _ in pixel_counts(c)) for c in labels]
        return np.flatnonzero(np.array(has, dtype=bool))

    def present(self, labels: Labels) -> NDArray[np.int64]:
        """The classes that any pixel has, ascending."""
        return np.flatnonzero(self.class_counts(labels, IGNORE))

    def labelled(self, labels: Labels) -> NDArray[np.bool_]:
        """Samples with a pixel that has a class."""
        return np.array([bool(pixel_counts(content)) for content in labels], dtype=bool)

    def groups(
        self, labels: Labels, class_names: Sequence[str], most: int
    ) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
        """The class with most pixels beside the first one; see `Target.groups`."""

        def largest(content: bytes) -> int:
            counts = {number: count for number, count in pixel_counts(content) if number}
            return max(counts, key=lambda number: counts[number], default=0)

        numbers = np.array([largest(content) for content in labels], dtype=np.int64)
        present, counts = np.unique(numbers, return_counts=True)
        frequent = present[np.argsort(-counts, kind="stable")[:most]]
        return numbers, [str(name) for name in class_names], frequent

    def sizes(self, labels: Labels, num_classes: int) -> NDArray[np.int64]:
        """Pixels of each class."""
        counts = np.zeros(num_classes, dtype=np.int64)
        for content in labels:
            for number, count in pixel_counts(content):
                counts[number] += count
        return counts

    def agreement(self, labels: Labels, clean: Labels, num_classes: int) -> tuple[int, int, int]:
        """Of the pixels with a true class."""
        right = labelled = total = 0
        for given, true in zip(labels, clean, strict=True):
            truth, seen = decode_mask(true), decode_mask(given)
            known = truth != IGNORE
            right += int((seen == truth)[known].sum())
            labelled += int((seen[known] != IGNORE).sum())
            total += int(known.sum())
        return right, labelled, total


#: The kind of labels that are masks.
MASKS = Masks()


def as_labels(contents: Sequence[bytes]) -> Labels:
    """Contents of PNG files as labels: an array [N] of objects."""
    array = np.empty(len(contents), dtype=object)
    array[:] = list(contents)
    return array


def mask_size(content: bytes) -> tuple[int, int]:
    """Height and width of a mask, from the head of its file."""
    with Image.open(io.BytesIO(content)) as image:
        return image.height, image.width


def check_classes(content: bytes, num_classes: int, what: str) -> None:
    """Refuse a mask with a pixel of no class.

    Args:
        content: of its file.
        num_classes: C.
        what: names the sample in the message.

    Raises:
        UserError: such a pixel.
    """
    wrong = [number for number, _ in pixel_counts(content) if number >= num_classes]
    if wrong:
        raise UserError(
            f"{what} has a pixel of class {wrong[0]}, but the data set declares {num_classes} "
            f"classes (0 to {num_classes - 1}; {IGNORE} for no class); correct the mask or the "
            f"class names."
        )


def pixel_confusion(
    observed: NDArray[np.uint8], clean: NDArray[np.uint8], num_classes: int
) -> NDArray[np.int64]:
    """Pixels by true (row) and observed (column) class [C, C]; those without either left out."""
    known = (clean < num_classes) & (observed < num_classes)
    cells = clean[known].astype(np.int64) * num_classes + observed[known]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
