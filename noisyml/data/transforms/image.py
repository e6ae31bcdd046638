"""Image transforms: picture in, uint8 tensors out; random ones are a function of a given seed.

Pixel normalisation is not done here: it belongs to the weights of the backbone. What makes several
views of an image for a method that compares them is a `ViewMaker` around an `ImageTransform`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from noisyml.checks import Checked, Count, Positive, Share, WholeNonNegative
from noisyml.data.inputs import Picture
from noisyml.errors import UserError

Crop = Literal["none", "centre", "random", "random_resized"]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]
#: Times the shorter side that the longer one may be before the shorter is brought to a length:
#: one row of 8000 pixels would become a picture of gigabytes.
_LONGEST = 32
_MODES = {mode.value: mode for mode in InterpolationMode}
#: What torchvision transforms: PIL images, and tensors [C, H, W] of any number of channels.
_Image = Image.Image | Tensor


class ViewMaker(Protocol):
    """Interface of a transform to training and evaluation.

    Attributes:
        n_views: views of each image in training; 1: a batch holds ``image``, else ``views``.
    """

    n_views: ClassVar[int]

    def views(self, picture: Picture, seed: int) -> list[Tensor]:
        """The random form, a pure function of picture and seed: `n_views` of uint8 [C, H, W]."""
        ...

    def evaluate(self, picture: Picture) -> Tensor:
        """The deterministic form: uint8 [C, H, W]."""
        ...

    def fingerprint(self) -> str:
        """Everything the evaluation form depends on."""
        ...


class ImageTransform(Checked):
    """Resize, crop, flip; the training form is random, the evaluation form is not.

    Args:
        size: side of the output in pixels; null keeps the images as they are.
        resize: length of the shorter side before cropping, in pixels; null: `size` (with
            ``random`` and ``random_resized`` training then crops the image as it is).
        keep_aspect: false sets both sides to `resize` instead, as rkd and iaa do.
        resize_in_training: false leaves the resizing before the crop to evaluation, and
            ``random_resized`` takes its window from the image as it is (proxynca_pp).
        crop: what training does: ``random_resized`` (area and aspect ratio jittered), ``random``
            (a random window, after padding by `padding`), ``centre`` or ``none`` (both sides are
            set to `size`). Evaluation takes the centre window, or with ``none`` the same as
            training.
        crop_scale: range of the area share of ``random_resized``.
        aspect_ratio: range of width over height of its window.
        padding: pixels added on each side before ``random``.
        horizontal_flip: probability of mirroring in training.
        interpolation: ``bilinear``, ``bicubic`` or ``lanczos``.
        colour: ``keep`` the mode of the source (grey, RGB or other bands), or force ``grey`` or
            ``rgb``.

    Raises:
        UserError: settings that do not exist or contradict each other.
    """

    n_views: ClassVar[int] = 1

    def __init__(
        self,
        size: Count | None = None,
        resize: Count | None = None,
        keep_aspect: bool = True,
        resize_in_training: bool = True,
        crop: Crop = "none",
        crop_scale: tuple[Positive, Positive] = (0.2, 1.0),
        aspect_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3),
        padding: WholeNonNegative = 0,
        horizontal_flip: Share = 0.0,
        interpolation: Interpolation = "bilinear",
        colour: Literal["keep", "grey", "rgb"] = "keep",
    ) -> None:
        if size is None and crop != "none":
            raise UserError(f"transform.crop={crop} needs transform.size, the side in pixels.")
        if size is not None and resize is not None and resize < size:
            raise UserError(
                f"transform.resize={resize} is below transform.size={size}: the centre crop would "
                "be padded with black; set resize to at least size."
            )
        self.crop_scale = check_range("crop_scale", crop_scale, 1.0)
        self.aspect_ratio = check_range("aspect_ratio", aspect_ratio, math.inf)
        self.size = size
        self.resize = resize
        self.keep_aspect = keep_aspect
        self.resize_in_training = resize_in_training
        self.crop = crop
        self.padding = padding
        self.horizontal_flip = horizontal_flip
        self.interpolation = interpolation
        self.colour = colour

    def fingerprint(self) -> str:
        """Everything the evaluation form depends on."""
        depends: tuple[object, ...] = (self.size, self.resize, self.crop == "none", self.colour)
        # Named only where they are not the usual ones: features cached before stay valid.
        if not self.keep_aspect:
            depends += ("both sides",)
        if self.interpolation != "bilinear":
            depends += (self.interpolation,)
        return repr(depends)

    def evaluate(self, picture: Picture) -> Tensor:
        """The deterministic form: uint8 [C, H, W]."""
        image = self._mode(picture)
        if self.size is not None:
            if self.crop == "none":
                image = self._resized(image, [self.size, self.size])
            else:
                image = self._before_crop(image, self.resize or self.size)
                image = F.center_crop(image, [self.size, self.size])
        return _tensor(image)

    def views(self, picture: Picture, seed: int) -> list[Tensor]:
        """The one view that `train` makes."""
        return [self.train(picture, seed)]

    def train(self, picture: Picture, seed: int) -> Tensor:
        """The random form, a pure function of picture and seed: uint8 [C, H, W]."""
        if self.horizontal_flip == 0 and self.crop in ("none", "centre"):
            return self.evaluate(picture)  # nothing is random: a generator would take most time
        rng = np.random.Generator(np.random.PCG64(seed))
        image = self._mode(picture)
        if self.size is not None:
            resizes = self.resize is not None and self.resize_in_training
            if self.crop == "random_resized":
                if resizes:
                    image = self._before_crop(image, self.resize)
                height, width = F.get_size(image)
                window = self._random_window(width, height, rng)
                image = F.resized_crop(
                    image,
                    *window,
                    [self.size, self.size],
                    interpolation=_MODES[self.interpolation],
                    antialias=True,
                )
            elif self.crop == "random":
                if resizes:
                    image = self._before_crop(image, self.resize)
                image = F.pad(image, [self.padding])
                height, width = F.get_size(image)
                top = int(rng.integers(0, max(height - self.size, 0) + 1))
                left = int(rng.integers(0, max(width - self.size, 0) + 1))
                image = F.crop(image, top, left, self.size, self.size)
            elif self.crop == "centre":
                image = self._before_crop(image, self.resize or self.size)
                image = F.center_crop(image, [self.size, self.size])
            else:
                image = self._resized(image, [self.size, self.size])
        if self.horizontal_flip > 0 and rng.random() < self.horizontal_flip:
            image = F.horizontal_flip(image)
        return _tensor(image)

    def _before_crop(self, image: _Image, side: int | None) -> _Image:
        """The shorter side, or both, brought to `side` pixels; strips are cut to their middle."""
        if side is None:
            return image
        if not self.keep_aspect:
            return self._resized(image, [side, side])
        height, width = F.get_size(image)
        longest = _LONGEST * min(height, width)
        if max(height, width) > longest:
            image = F.center_crop(image, [min(height, longest), min(width, longest)])
        return self._resized(image, [side])

    def _resized(self, image: _Image, sides: list[int]) -> _Image:
        mode = _MODES[self.interpolation]
        if isinstance(image, Tensor) and self.interpolation == "lanczos":
            raise UserError(
                "transform.interpolation=lanczos is for grey and RGB images only: use bicubic for "
                f"images of {len(image)} bands."
            )
        resized: _Image = F.resize(image, sides, interpolation=mode, antialias=True)
        return resized

    def _mode(self, image: Picture) -> _Image:
        """A PIL image in the mode asked for, or the bands as a tensor [C, H, W]."""
        if isinstance(image, np.ndarray):
            if self.colour != "keep":
                raise UserError(
                    f"transform.colour={self.colour} cannot be made of an image of "
                    f"{image.shape[2]} bands: set transform.colour=keep."
                )
            return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, 2, 0)))
        if self.colour == "keep":
            return image if image.mode in ("L", "RGB") else image.convert("RGB")
        return image.convert("L" if self.colour == "grey" else "RGB")

    def _random_window(
        self, width: int, height: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """(top, left, height, width) with a random area share and aspect ratio (width / height).

        After ten windows that do not fit, the largest centred one within the ratio is taken.
        """
        low, high = self.aspect_ratio
        for _ in range(10):
            area = width * height * rng.uniform(*self.crop_scale)
            ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(rng.integers(0, height - h + 1))
                left = int(rng.integers(0, width - w + 1))
                return top, left, h, w
        w, h = min(width, round(height * high)), min(height, round(width / low))
        return (height - h) // 2, (width - w) // 2, h, w


def check_range(key: str, values: Sequence[float], most: float) -> tuple[float, float]:
    """Lower and upper end of a range of positive numbers up to `most`.

    Raises:
        UserError: it is none.
    """
    if len(values) != 2 or not 0 < values[0] <= values[1] <= most:
        limit = "" if math.isinf(most) else f" <= {most:g}"
        raise UserError(
            f"transform.{key}={list(values)} is no range [low, high] with 0 < low <= high{limit}."
        )
    return float(values[0]), float(values[1])


def _tensor(image: _Image) -> Tensor:
    if isinstance(image, Tensor):
        return image.contiguous()
    pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    return torch.from_numpy(np.array(pixels))
