"""Inputs of a split, sample by sample: images here, vectors in `noisyml.data.vectors`."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

#: The kinds of inputs by name.
InputKind = Literal["images", "vectors"]

Item = TypeVar("Item", covariant=True)


class Inputs(Protocol[Item]):
    """Random access to the inputs of a split."""

    @property
    def kind(self) -> InputKind:
        """The kind of what `load` gives."""
        ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> Item:
        """The input at `index`."""
        ...


@dataclass(frozen=True)
class ChosenInputs:
    """Some rows of other inputs, of whatever kind."""

    inputs: Inputs[Any]
    rows: NDArray[np.int64]

    @property
    def kind(self) -> InputKind:
        """The kind of the others."""
        return self.inputs.kind

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> Any:
        """The input at row ``rows[index]`` of the others."""
        return self.inputs.load(int(self.rows[index]))


@dataclass(frozen=True)
class ReplacedInputs:
    """Inputs of which some are taken from another source: open-set noise keeps the label."""

    inputs: Inputs[Any]
    source: Inputs[Any]
    source_index: NDArray[np.int64]

    @property
    def kind(self) -> InputKind:
        """The kind of both."""
        return self.inputs.kind

    def __len__(self) -> int:
        return len(self.inputs)

    def load(self, index: int) -> Any:
        """The input at `index`, from the source where the manifest says so."""
        other = int(self.source_index[index])
        return self.inputs.load(index) if other < 0 else self.source.load(other)


#: A decoded image: PIL's if grey or RGB, uint8 [H, W, bands] if it has other bands.
Picture = Image.Image | NDArray[np.uint8]


def as_rgb(picture: Picture) -> Image.Image:
    """A picture to look at: RGB; of an image with other bands the first three."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    seen = picture[:, :, :3] if picture.shape[2] >= 3 else picture[:, :, [0, 0, 0]]
    return Image.fromarray(np.ascontiguousarray(seen))


def as_seen(image: Image.Image) -> Image.Image:
    """An image as a viewer shows it, RGB.

    It is turned as its EXIF orientation says; what is transparent lies on white; 16-bit greys keep
    their share of the range, and so do floats, which run from 0 to 1 or from 0 to 255.

    Raises:
        ValueError: grey values out of every known range.
    """
    image.load()
    # A damaged note on how the camera was held says nothing about the pixels.
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        seen = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, rgb, "LAB", "RGB"))
        assert seen is not None  # only a transform in place gives none
        return seen
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_grey_bytes(np.asarray(image))).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        paper = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(paper, clear).convert("RGB")
    return image.convert("RGB")


def _grey_bytes(grey: NDArray[Any]) -> NDArray[np.uint8]:
    """Greys of more than 8 bits as uint8 [H, W]."""
    low, high = grey.min(), grey.max()
    most = 1 if grey.dtype.kind == "f" and high <= 1 else 255
    if grey.dtype.kind != "f" and (grey.dtype.itemsize == 2 or high > 255):
        most = 65535
    if not (low >= 0 and high <= most):
        raise ValueError(f"grey values from {low:g} to {high:g}; save it with 8 or 16 bits")
    return np.round(grey.astype(np.float64) * (255 / most)).astype(np.uint8)


#: Random access to decoded images: ``load`` gives one of mode ``L`` or ``RGB``, or an array of
#: other bands, and raises `BrokenImage` if it is undecodable.
ImageSource = Inputs[Picture]


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

    kind: ClassVar[InputKind] = "images"

    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, index: int) -> Image.Image:
        """The image at `index` as a PIL image."""
        return Image.fromarray(self.pixels[index])


@dataclass(frozen=True)
class FileImages:
    """Images decoded from files when asked for: ``paths[i]`` relative to ``root`` or absolute."""

    kind: ClassVar[InputKind] = "images"

    paths: Sequence[str]
    root: str = "."

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """Path of the image at `index`."""
        return os.path.join(self.root, self.paths[index])

    def content(self, index: int) -> bytes:
        """The file of the image at `index`."""
        with open(self.path(index), "rb") as file:
            return file.read()

    def load(self, index: int) -> Image.Image:
        """The image at `index`, RGB as a viewer shows it; raises `BrokenImage` naming the file."""
        path = self.path(index)
        try:
            with Image.open(path) as image:
                return as_seen(image)
        except MemoryError:
            raise
        except Exception as error:
            # A damaged file makes decoders trip over anything: OSError mostly, but TypeError,
            # ValueError, SyntaxError, EOFError and struct.error have been seen too.
            raise BrokenImage(path, _why(error)) from error


def _why(error: Exception) -> str:
    """Reason why an image file cannot be read, in a few words and without its path."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    message = str(error)
    return "truncated" if "truncated" in message.lower() else message or type(error).__name__


#: Files of a split that are read to tell it from another of equal names, sizes and times.
SAMPLE = 64


def identity(inputs: Inputs[Any]) -> str:
    """The place of the files of a split and a digest of some of their contents.

    Two folders may hold files of equal names, sizes and times. Inputs held in memory have no place:
    their split's fingerprint covers all of them.

    Args:
        inputs: files, or a choice of files.
    """
    if isinstance(inputs, ChosenInputs):
        return identity(inputs.inputs)
    if isinstance(inputs, ReplacedInputs):
        return f"{identity(inputs.inputs)} {identity(inputs.source)}"
    paths, root = getattr(inputs, "paths", None), getattr(inputs, "root", None)
    if not paths or root is None:
        return ""
    digest = hashlib.sha256(os.path.realpath(root).encode(errors="surrogateescape"))
    for row in np.unique(np.linspace(0, len(paths) - 1, SAMPLE).round().astype(np.int64)):
        try:
            with open(os.path.join(root, paths[int(row)]), "rb") as file:
                digest.update(hashlib.sha256(file.read(1 << 20)).digest())
        except OSError:
            digest.update(b"unreadable")
    return digest.hexdigest()


def picture_digests(inputs: Inputs[Any]) -> NDArray[np.uint8]:
    """Digests [N, 16] of the pictures of a split, of their files or else of their pixels.

    Those of equal content are equal, wherever they lie. Zeros stand for what cannot be read.

    Args:
        inputs: images.
    """
    digests = np.zeros((len(inputs), 16), dtype=np.uint8)
    for row in range(len(inputs)):
        if (content := _content(inputs, row)) is not None:
            found = hashlib.blake2b(content, digest_size=16).digest()
            digests[row] = np.frombuffer(found, dtype=np.uint8)
    return digests


def _content(inputs: Any, row: int) -> bytes | None:
    """The bytes that an image is decoded from, or its decoded ones with their shape."""
    if isinstance(inputs, ChosenInputs):
        return _content(inputs.inputs, int(inputs.rows[row]))
    if isinstance(inputs, ReplacedInputs):
        other = int(inputs.source_index[row])
        return _content(inputs.inputs, row) if other < 0 else _content(inputs.source, other)
    try:
        if hasattr(inputs, "content"):
            return bytes(inputs.content(row))
        pixels = np.asarray(inputs.load(row))
    except Exception:
        # Whoever decodes it will say what is wrong with it.
        return None
    return f"{pixels.dtype} {pixels.shape} ".encode() + pixels.tobytes()
