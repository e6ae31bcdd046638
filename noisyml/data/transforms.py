"""Image transforms: PIL image in, uint8 tensor out; random ones are a function of a given seed.

Pixel normalisation is not done here: it belongs to the weights of the backbone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from noisyml.errors import UserError

Crop = Literal["none", "centre", "random", "random_resized"]


class ImageTransform:
    """Resize, crop, flip; the training form is random, the evaluation form is not.

    Args:
        size: side of the output in pixels; null keeps the images as they are.
        resize: length of the shorter side before cropping, in pixels; null: `size`.
        crop: what training does: ``random_resized`` (area and aspect ratio jittered), ``random``
            (a random window, after padding by `padding`), ``centre`` or ``none`` (both sides are
            set to `size`). Evaluation takes the centre window, or with ``none`` the same as
            training.
        crop_scale: range of the area share of ``random_resized``.
        padding: pixels added on each side before ``random``.
        horizontal_flip: probability of mirroring in training.
        colour: ``keep`` the mode of the source (grey or RGB), or force ``grey`` or ``rgb``.
    """

    def __init__(
        self,
        size: int | None = None,
        resize: int | None = None,
        crop: Crop = "none",
        crop_scale: Sequence[float] = (0.2, 1.0),
        padding: int = 0,
        horizontal_flip: float = 0.0,
        colour: Literal["keep", "grey", "rgb"] = "keep",
    ) -> None:
        if size is None and crop != "none":
            raise UserError(f"transform.crop={crop} needs transform.size, the side in pixels.")
        self.size = size
        self.resize = resize
        self.crop = crop
        self.crop_scale = (float(crop_scale[0]), float(crop_scale[1]))
        self.padding = padding
        self.horizontal_flip = horizontal_flip
        self.colour = colour

    def fingerprint(self) -> str:
        """Everything the evaluation form depends on."""
        return repr((self.size, self.resize, self.crop == "none", self.colour))

    def evaluate(self, image: Image.Image) -> Tensor:
        """The deterministic form: uint8 [C, H, W]."""
        image = self._mode(image)
        if self.size is not None:
            if self.crop == "none":
                image = F.resize(image, [self.size, self.size], antialias=True)
            else:
                image = F.resize(image, [self.resize or self.size], antialias=True)
                image = F.center_crop(image, [self.size, self.size])
        return _tensor(image)

    def train(self, image: Image.Image, seed: int) -> Tensor:
        """The random form, a pure function of image and seed: uint8 [C, H, W]."""
        rng = np.random.Generator(np.random.PCG64(seed))
        image = self._mode(image)
        if self.size is not None:
            if self.crop == "random_resized":
                if self.resize is not None:
                    image = F.resize(image, [self.resize], antialias=True)
                window = self._random_window(image.width, image.height, rng)
                image = F.resized_crop(image, *window, [self.size, self.size], antialias=True)
            elif self.crop == "random":
                if self.resize is not None:
                    image = F.resize(image, [self.resize], antialias=True)
                image = F.pad(image, [self.padding])
                top = int(rng.integers(0, max(image.height - self.size, 0) + 1))
                left = int(rng.integers(0, max(image.width - self.size, 0) + 1))
                image = F.crop(image, top, left, self.size, self.size)
            elif self.crop == "centre":
                image = F.resize(image, [self.resize or self.size], antialias=True)
                image = F.center_crop(image, [self.size, self.size])
            else:
                image = F.resize(image, [self.size, self.size], antialias=True)
        if self.horizontal_flip > 0 and rng.random() < self.horizontal_flip:
            image = F.horizontal_flip(image)
        return _tensor(image)

    def _mode(self, image: Image.Image) -> Image.Image:
        if self.colour == "keep":
            return image if image.mode in ("L", "RGB") else image.convert("RGB")
        return image.convert("L" if self.colour == "grey" else "RGB")

    def _random_window(
        self, width: int, height: int, rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """(top, left, height, width) with a random area share and aspect ratio in [3/4, 4/3].

        After ten windows that do not fit, the largest centred one within the ratio is taken.
        """
        for _ in range(10):
            area = width * height * rng.uniform(*self.crop_scale)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(rng.integers(0, height - h + 1))
                left = int(rng.integers(0, width - w + 1))
                return top, left, h, w
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        return (height - h) // 2, (width - w) // 2, h, w


def _tensor(image: Image.Image) -> Tensor:
    pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    return torch.from_numpy(np.array(pixels))
