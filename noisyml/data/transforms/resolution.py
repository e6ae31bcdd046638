"""Images at a resolution of their own, and at the side that the network is given.

*Image resolution* is how finely a field of view is sampled, *input resolution* the side length
after resizing (Teh and Taylor, "Understanding the impact of image and input resolution on deep
digital pathology patch classifiers", CRV 2022, arXiv 2204.13829).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from noisyml.checks import Checked, Count
from noisyml.data.inputs import Picture
from noisyml.data.transforms.image import ViewMaker


def resized(image: Tensor, side: int, antialias: bool = False) -> Tensor:
    """An image [C, H, W] of floats at another side, bilinear with half-pixel centres.

    Args:
        image: [C, H, W] float.
        side: of the result, in pixels.
        antialias: average over what falls into a pixel where the image shrinks.
    """
    return F.interpolate(
        image[None], size=(side, side), mode="bilinear", align_corners=False, antialias=antialias
    )[0]


class AtResolution(Checked):
    """Images are brought to one side, then to another; what comes next is another transform's.

    Args:
        image: what is done with an image of the input resolution, in training and evaluation.
        image_resolution: side in pixels to which every image is brought first; null: as it is.
        input_resolution: side in pixels to which it is brought then.
        antialias: average over what falls into a pixel where an image shrinks.
    """

    n_views: ClassVar[int] = 1

    def __init__(
        self,
        image: ViewMaker,
        input_resolution: Count,
        image_resolution: Count | None = None,
        antialias: bool = True,
    ) -> None:
        self.image = image
        self.image_resolution = image_resolution
        self.input_resolution = input_resolution
        self.antialias = antialias

    def fingerprint(self) -> str:
        """Everything the evaluation form depends on."""
        own = (self.image_resolution, self.input_resolution, self.antialias)
        return repr((own, self.image.fingerprint()))

    def evaluate(self, picture: Picture) -> Tensor:
        """The deterministic form: uint8 [C, H, W]."""
        return self.image.evaluate(self._at_both(picture))

    def views(self, picture: Picture, seed: int) -> list[Tensor]:
        """The random form of the other transform."""
        return self.image.views(self._at_both(picture), seed)

    def _at_both(self, picture: Picture) -> Picture:
        if isinstance(picture, Image.Image) and picture.mode not in ("L", "RGB"):
            picture = picture.convert("RGB")
        pixels = torch.from_numpy(np.array(picture)).float()
        image = pixels[None] if pixels.ndim == 2 else pixels.movedim(2, 0)
        for side in (self.image_resolution, self.input_resolution):
            if side is not None:
                image = resized(image, side, self.antialias)
        whole = image.round().clamp(0, 255).to(torch.uint8)
        array = whole.movedim(0, 2).numpy()
        if isinstance(picture, np.ndarray):
            return array
        return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
