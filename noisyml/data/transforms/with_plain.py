"""An image as it is transformed at random, and as evaluation sees it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from noisyml.checks import Checked
from noisyml.data.inputs import Picture
from noisyml.data.transforms.image import ImageTransform


class WithPlain(Checked):
    """View 1 is random, view 2 is what evaluation sees.

    For methods that judge neighbours by images without augmentation (InsCLR).

    Args:
        image: makes both; it must bring all images to one size.
    """

    n_views: ClassVar[int] = 2

    def __init__(self, image: ImageTransform) -> None:
        self.image = image

    def fingerprint(self) -> str:
        """Everything the evaluation form depends on."""
        return self.image.fingerprint()

    def evaluate(self, picture: Picture) -> Tensor:
        """The deterministic form: uint8 [C, H, W]."""
        return self.image.evaluate(picture)

    def views(self, picture: Picture, seed: int) -> list[Tensor]:
        """The random form and the deterministic one, uint8 [C, H, W] each."""
        return [self.image.train(picture, seed), self.image.evaluate(picture)]
