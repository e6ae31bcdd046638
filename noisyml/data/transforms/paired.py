"""Transforms of an image together with its mask (torchvision's v2 functions and tensors).

Whatever moves pixels moves both; values of the mask are never mixed (nearest neighbour), and what
is filled in around it belongs to no class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from noisyml.checks import Checked, Count, Positive, Share
from noisyml.data.inputs import Picture
from noisyml.data.transforms.image import ViewMaker, check_range
from noisyml.errors import UserError
from noisyml.targets.masks import IGNORE

#: Height and width in pixels, or one number for both.
Size = Count | tuple[Count, Count]


@runtime_checkable
class PairTransform(Protocol):
    """Interface of a transform that takes masks along."""

    def train_pair(self, picture: Picture, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """The random form, a pure function of its arguments.

        Args:
            picture: the image.
            mask: uint8 [P, H, W], one or more planes.
            seed: of what is random.

        Returns:
            Image uint8 [C, h, w] and mask uint8 [P, h, w].
        """
        ...

    def evaluate_pair(self, picture: Picture, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The deterministic form; arguments and results as in `train_pair`."""
        ...


def paired(transform: ViewMaker) -> PairTransform:
    """The transform as one that takes masks along.

    Raises:
        UserError: it is none.
    """
    if not isinstance(transform, PairTransform):
        raise UserError(
            f"{type(transform).__name__} moves images without their masks: choose "
            f"transform=segmentation."
        )
    return transform


class SegmentationTransform(Checked):
    """Scale, pad, crop and flip of images with masks.

    In training: both sides to `resize`, a random scale, padding up to `crop`, a random window of
    it, mirroring, brightness and contrast. In evaluation: both sides to `resize`, then padding on
    the right and below up to `evaluation_size`; what is padded belongs to no class.

    Args:
        resize: height and width, or one side, to which both are brought; null: as they are.
        scale: range of the random scale in training, in steps of 0.1.
        crop: side of the random window, or height and width; null: the whole image.
        horizontal_flip: probability of mirroring in training.
        jitter: greatest relative change of brightness and of contrast in training.
        evaluation_size: size to which images are padded in evaluation, so that images of different
            sizes fit into one batch; null: none.
        colour: ``keep`` the mode of the source, or force ``grey`` or ``rgb``.
        mean_colour: red, green and blue (or one grey level) of what is padded. A run passes its
            backbone's, which its normalisation turns into 0.

    Raises:
        UserError: a value out of range.
    """

    n_views: ClassVar[int] = 1

    def __init__(
        self,
        resize: Size | None = None,
        scale: tuple[Positive, Positive] = (1.0, 1.0),
        crop: Size | None = None,
        horizontal_flip: Share = 0.0,
        jitter: Share = 0.0,
        evaluation_size: Size | None = None,
        colour: Literal["keep", "grey", "rgb"] = "keep",
        mean_colour: Sequence[int] = (124, 116, 104),
    ) -> None:
        self.resize = _sides(resize)
        self.scale = check_range("scale", scale, float("inf"))
        self.crop = _sides(crop)
        self.horizontal_flip = horizontal_flip
        self.jitter = jitter
        self.evaluation_size = _sides(evaluation_size)
        self.colour = colour
        self.mean_colour = tuple(int(level) for level in mean_colour)

    def fingerprint(self) -> str:
        """Everything the evaluation form depends on."""
        return repr(("segmentation", self.resize, self.evaluation_size, self.colour))

    def views(self, picture: Picture, seed: int) -> list[Tensor]:
        """The one view of an image without a mask."""
        image = self._image(picture)
        nothing = torch.zeros(1, *image.shape[1:], dtype=torch.uint8)
        return [self.train_pair(picture, nothing, seed)[0]]

    def evaluate(self, picture: Picture) -> Tensor:
        """The deterministic form without a mask: uint8 [C, H, W]."""
        image = self._image(picture)
        nothing = torch.zeros(1, *image.shape[1:], dtype=torch.uint8)
        return self.evaluate_pair(picture, nothing)[0]

    def evaluate_pair(self, picture: Picture, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Resized and padded; see `PairTransform`."""
        image, moved = self._resized(*self._pair(picture, mask))
        if self.evaluation_size is not None:
            height, width = image.shape[-2:]
            if height > self.evaluation_size[0] or width > self.evaluation_size[1]:
                raise UserError(
                    f"An image of {width}x{height} pixels is larger than "
                    f"transform.evaluation_size={list(self.evaluation_size)} (height, width): "
                    f"raise it, or set transform.resize."
                )
            image, moved = self._padded(image, moved, self.evaluation_size)
        return _plain(image), _plain(moved)

    def train_pair(self, picture: Picture, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Scaled, padded, cut and mirrored; see `PairTransform`."""
        rng = np.random.Generator(np.random.PCG64(seed))
        image, moved = self._resized(*self._pair(picture, mask))
        low, high = self.scale
        if low != high:
            factor = float(np.round(rng.integers(round(low * 10), round(high * 10) + 1) / 10, 1))
            sides = [max(1, int(side * factor)) for side in image.shape[-2:]]
            image, moved = self._to(image, moved, sides)
        if self.crop is not None:
            image, moved = self._padded(image, moved, self.crop)
            height, width = self.crop
            top = int(rng.integers(0, image.shape[-2] - height + 1))
            left = int(rng.integers(0, image.shape[-1] - width + 1))
            image = F.crop(image, top, left, height, width)
            moved = F.crop(moved, top, left, height, width)
        if self.horizontal_flip > 0 and rng.random() < self.horizontal_flip:
            image, moved = F.horizontal_flip(image), F.horizontal_flip(moved)
        if self.jitter > 0:
            brightness, contrast = rng.uniform(1 - self.jitter, 1 + self.jitter, 2)
            image = F.adjust_contrast(F.adjust_brightness(image, brightness), contrast)
        return _plain(image), _plain(moved)

    def native(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """A mask of evaluation at the size of its image: padding cut off, resizing undone.

        Args:
            mask: [..., h, w], of what `evaluate` gave.
            size: height and width of the image.
        """
        height, width = size if self.resize is None else self.resize
        cut = tv_tensors.Mask(mask[..., :height, :width])
        return _plain(cut if self.resize is None else F.resize(cut, list(size)))

    def _pair(self, picture: Picture, mask: Tensor) -> tuple[Tensor, Tensor]:
        image = self._image(picture)
        if image.shape[-2:] != mask.shape[-2:]:
            raise UserError(
                f"An image of {image.shape[-1]}x{image.shape[-2]} pixels has a mask of "
                f"{mask.shape[-1]}x{mask.shape[-2]}: they must be of one size."
            )
        return image, tv_tensors.Mask(mask)

    def _image(self, picture: Picture) -> Tensor:
        if isinstance(picture, np.ndarray):
            return tv_tensors.Image(torch.from_numpy(np.moveaxis(picture, 2, 0).copy()))
        if self.colour == "keep":
            image = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
        else:
            image = picture.convert("L" if self.colour == "grey" else "RGB")
        assert isinstance(image, Image.Image)
        return tv_tensors.Image(F.pil_to_tensor(image))

    def _resized(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return (image, mask) if self.resize is None else self._to(image, mask, list(self.resize))

    @staticmethod
    def _to(image: Tensor, mask: Tensor, sides: list[int]) -> tuple[Tensor, Tensor]:
        """Both at another size; F goes by the kind of tensor, and masks are never interpolated."""
        return F.resize(image, sides, antialias=True), F.resize(mask, sides)

    def _padded(self, image: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Both filled up on the right and below."""
        missing = [max(0, size[i] - image.shape[i - 2]) for i in (0, 1)]
        if not any(missing):
            return image, mask
        around = [0, 0, missing[1], missing[0]]
        fits = len(self.mean_colour) == image.shape[0]
        fill = list(self.mean_colour) if fits else [round(float(np.mean(self.mean_colour)))]
        return (
            F.pad(image, around, fill=fill if len(fill) == image.shape[0] else fill[0]),
            F.pad(mask, around, fill=IGNORE),
        )


def _sides(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else None if size is None else (size[0], size[1])


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor).contiguous()
