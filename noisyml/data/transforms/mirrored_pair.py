"""An image and its mirror image, each with a box erased: the two views of EAC.

Zhang et al., "Learn From All: Erasing Attention Consistency for Noisy Label Facial Expression
Recognition", ECCV 2022 (arXiv 2207.10299).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from noisyml.checks import Checked, Interval, NonNegative, Positive, Share
from noisyml.data.inputs import Picture
from noisyml.data.transforms.image import ImageTransform, check_range

PairMode = Literal["independent", "mirrored"]
#: Top, left, height and width in pixels.
Box = tuple[int, int, int, int]


#: Standard deviation of the released noise, in grey levels.
RELEASED_STD = math.sqrt(30.0)
#: A grey level.
Grey = Annotated[int, Interval(ge=0, le=255)]


class MirroredPair(Checked):
    """View 1 shows the image as it stands, view 2 its mirror image; boxes are erased at random.

    An erased box takes the colour that the backbone's normalisation turns into 0. Pixels are whole
    grey levels here, so that it becomes 0 up to half a level: less than 0.01 with ImageNet's
    constants.

    Args:
        image: how an image is resized and cropped, alike for both views, and what evaluation sees.
        pair_mode: ``independent``: each view has its own box, and only view 1 has pixel noise
            (released for noisy labels); ``mirrored``: view 2 is the exact mirror image of the
            finished view 1 (released for clean labels).
        noise_probability: share of images with pixel noise in view 1, added before any resizing.
        noise_std: standard deviation of the noise, independent for each pixel and channel, in grey
            levels (0..255); the sums are clipped and truncated to whole levels.
        erase_probability: share of views with an erased box.
        erase_scale: range of its share of the area.
        erase_ratio: range of its height over its width.
        mean_colour: red, green and blue (or one grey level, or one per band), 0..255, of erased
            boxes. A run passes its backbone's (`Backbone.mean_colour`); the default is ImageNet's.

    Raises:
        UserError: a value out of range.
    """

    n_views: ClassVar[int] = 2

    def __init__(
        self,
        image: ImageTransform,
        pair_mode: PairMode = "independent",
        noise_probability: Share = 0.0,
        noise_std: NonNegative = RELEASED_STD,
        erase_probability: Share = 0.5,
        erase_scale: tuple[Positive, Positive] = (0.02, 0.25),
        erase_ratio: tuple[Positive, Positive] = (0.3, 3.3),
        mean_colour: Sequence[Grey] = (124, 116, 104),
    ) -> None:
        self.image = image
        self.pair_mode = pair_mode
        self.noise_probability = noise_probability
        self.noise_std = noise_std
        self.erase_probability = erase_probability
        self.erase_scale = check_range("erase_scale", erase_scale, 1.0)
        self.erase_ratio = check_range("erase_ratio", erase_ratio, math.inf)
        self.mean_colour = tuple(mean_colour)

    def fingerprint(self) -> str:
        """Everything the evaluation form depends on."""
        return self.image.fingerprint()

    def evaluate(self, picture: Picture) -> Tensor:
        """The picture as it stands, whole: uint8 [C, H, W]."""
        return self.image.evaluate(picture)

    def views(self, picture: Picture, seed: int) -> list[Tensor]:
        """View 1 and view 2, uint8 [C, H, W] each; a pure function of picture and seed."""
        rng = np.random.default_rng([seed, 0xEAC])
        # The same seed for both: the same window is cut from noisy and clean pixels.
        first = second = self.image.train(picture, seed)
        if rng.random() < self.noise_probability:
            pixels = np.asarray(picture)
            noisy = add_noise(pixels, rng.normal(0.0, self.noise_std, pixels.shape))
            plain = isinstance(picture, Image.Image)
            first = self.image.train(Image.fromarray(noisy) if plain else noisy, seed)
        first = self._erase(first, rng)
        if self.pair_mode == "mirrored":
            return [first, first.flip(-1)]
        return [first, self._erase(second.flip(-1), rng)]

    def _erase(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        if rng.random() >= self.erase_probability:
            return pixels
        height, width = pixels.shape[1:]
        box = random_box(height, width, self.erase_scale, self.erase_ratio, rng)
        return pixels if box is None else erase(pixels, box, self.mean_colour)


def add_noise(pixels: NDArray[np.uint8], noise: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Grey levels plus noise of the same shape, clipped to 0..255 and truncated."""
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def random_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box | None:
    """A box that lies inside an image (Zhong et al., "Random Erasing", AAAI 2020, algorithm 1).

    Args:
        height: of the image, in pixels.
        width: likewise.
        scale: range of the box's share of the area, uniform.
        ratio: range of its height over its width, uniform in the logarithm.
        rng: draws it.

    Returns:
        The box, smaller than the image on both sides; None after ten draws that do not fit.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return None


def erase(pixels: Tensor, box: Box, colour: Sequence[int]) -> Tensor:
    """A copy of an image uint8 [C, H, W] with a box in one colour, or its mean if C differs."""
    top, left, height, width = box
    levels = torch.tensor(colour, dtype=torch.float32)
    fill = levels[:, None, None] if len(levels) == len(pixels) else levels.mean().round()
    erased = pixels.clone()
    erased[:, top : top + height, left : left + width] = fill.to(torch.uint8)
    return erased
