"""What a data set is to the rest of the house: named splits of indexed images and labels."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from noisyml.targets import Labels, Target, target_of

#: In the extra ``clean_label``: nobody knows the true class; known to be wrong, but no more.
UNKNOWN, WRONG = -1, -2

#: A decoded image: PIL's if grey or RGB, uint8 [H, W, bands] if it has other bands.
Picture = Image.Image | NDArray[np.uint8]


def as_rgb(picture: Picture) -> Image.Image:
    """A picture to look at: RGB; of an image with other bands the first three."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    seen = picture[:, :, :3] if picture.shape[2] >= 3 else picture[:, :, [0, 0, 0]]
    return Image.fromarray(np.ascontiguousarray(seen))


class ImageSource(Protocol):
    """Random access to decoded images."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Picture:
        """The image at `index`, mode ``L`` or ``RGB`` or an array of other bands.

        Raises `BrokenImage` if it is undecodable.
        """
        ...


def sentence_of(error: type[Exception], message: str) -> str:
    """The message of an exception that PyTorch carried over from a worker process.

    PyTorch rebuilds such an exception from one text, a traceback that ends in the message.

    Args:
        error: the exception's class.
        message: what its constructor was given; text of another kind is returned as it is.
    """
    if not message.startswith(f"Caught {error.__name__} in DataLoader worker"):
        return message
    return message.rsplit(f"{error.__module__}.{error.__qualname__}: ", 1)[-1].strip()


class BrokenImage(Exception):
    """An image that cannot be decoded; `key` names the file."""

    def __init__(self, key: str, reason: str = "") -> None:
        # One argument must do: PyTorch rebuilds the exceptions of its workers from their message.
        key = sentence_of(BrokenImage, key)
        super().__init__(f"{key}: {reason}" if reason else key)
        self.key = key
        self.reason = reason


@dataclass(frozen=True)
class ArrayImages:
    """Images held in memory: ``pixels`` is uint8 [N, H, W] (grey) or [N, H, W, 3] (RGB)."""

    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, index: int) -> Image.Image:
        """The image at `index` as a PIL image."""
        return Image.fromarray(self.pixels[index])


@dataclass(frozen=True)
class FileImages:
    """Images decoded from files when asked for: ``paths[i]`` relative to ``root`` or absolute."""

    paths: Sequence[str]
    root: str = "."

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """Where the image at `index` lies."""
        return os.path.join(self.root, self.paths[index])

    def load(self, index: int) -> Image.Image:
        """The image at `index`, converted to RGB; raises `BrokenImage` naming the file."""
        path = self.path(index)
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except MemoryError:
            raise
        except Exception as error:
            # A damaged file makes decoders trip over anything: OSError mostly, but TypeError,
            # ValueError, SyntaxError, EOFError and struct.error have been seen too.
            raise BrokenImage(path, _why(error)) from error


def _why(error: Exception) -> str:
    """What is wrong with an image file, in a few words and without its path."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    message = str(error)
    return "truncated" if "truncated" in message.lower() else message or type(error).__name__


@dataclass(frozen=True)
class Split:
    """One split: row i of every field describes sample i, and i never changes its meaning.

    Attributes:
        name: ``train``, ``val``, ``test``, ``query`` or ``gallery``.
        images: where the pixels come from.
        labels: int64 [N], the labels as the data set gives them, ``0 .. len(class_names) - 1``;
            uint8 [N, C] multi-hot where an image may have several or none.
        class_names: one name per label value. Splits with disjoint classes (zero-shot retrieval)
            may share one list or bring their own; retrieval only compares labels inside a split
            (or between ``query`` and ``gallery``, which must share the list).
        keys: N strings naming the samples (path or id): stable, unique, order-defining.
        fingerprint: SHA-256 hex digest of the content (bytes of an embedded set; name, paths,
            sizes and modification times of a folder): the feature cache is keyed by it.
        extras: further per-sample arrays by name (``coarse_label``, ``caption``, ``is_noise``).
            ``clean_label`` [N] int64 of a set with real noise: the true class where it is known,
            else `UNKNOWN` or `WRONG`; only diagnostics see it.
    """

    name: str
    images: ImageSource
    labels: Labels
    class_names: Sequence[str]
    keys: Sequence[str]
    fingerprint: str
    extras: dict[str, NDArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.labels) == len(self.keys):
            raise ValueError(
                f"split {self.name}: {len(self.images)} images, {len(self.labels)} labels and "
                f"{len(self.keys)} keys; they must be equally many"
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

    def members(self, label: int) -> NDArray[np.int64]:
        """Positions of the images that have a label."""
        return self.target.members(self.labels, label)


class DatasetSource(ABC):
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

    @abstractmethod
    def missing(self) -> str | None:
        """None if the files are there, otherwise what is missing (a path). Must be cheap."""

    @abstractmethod
    def splits(self) -> dict[str, Split]:
        """The official splits by name; always ``train``, and ``test`` or ``query``+``gallery``.

        Raises:
            UserError: files missing (with `how_to_get`) or contents that contradict the layout.
        """
