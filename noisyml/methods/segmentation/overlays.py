"""Pictures of masks over their images, to look at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noisyml.targets.masks import IGNORE

Pixels = NDArray[np.uint8]
#: Colour of pixels that belong to no class, and of wrong ones.
_NO_CLASS, _WRONG = (255, 255, 255), (230, 40, 40)


def class_colours(classes: int) -> Pixels:
    """A colour for each class number, uint8 [256, 3]; the colours of PASCAL VOC, 0 is black.

    Example:
        >>> class_colours(3)[:3].tolist()
        [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    """
    colours = np.zeros((256, 3), dtype=np.uint8)
    numbers = np.arange(classes)
    for place in range(8):
        for channel in range(3):
            bit = (numbers >> (3 * place + channel)) & 1
            colours[:classes, channel] |= (bit << (7 - place)).astype(np.uint8)
    colours[IGNORE] = _NO_CLASS
    return colours


def overlay(image: Pixels, mask: Pixels, given: Pixels, classes: int) -> Pixels:
    """Image, given mask, predicted mask and wrong pixels side by side, uint8 [H, 4 W, 3].

    Args:
        image: [H, W, 3].
        mask: predicted class numbers [H, W].
        given: class numbers of the data [H, W].
        classes: C.
    """
    colours = class_colours(classes)
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    wrong = np.where(((mask != given) & (given != IGNORE))[..., None], _WRONG, grey * 0.6)
    parts = [image, *((0.35 * grey + 0.65 * colours[m]) for m in (given, mask)), wrong]
    return np.concatenate(parts, axis=1).round().clip(0, 255).astype(np.uint8)
