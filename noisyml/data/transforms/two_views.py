"""An image transformed at random twice."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from noisyml.checks import Checked
from noisyml.data.inputs import Picture
from noisyml.data.transforms.image import ImageTransform


class TwoViews(Checked):
    """Two random views of an image, drawn independently (GCD, SimGCD, PromptCAL).

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
        """Two random forms, uint8 [C, H, W] each."""
        second = int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0])
        return [self.image.train(picture, one) for one in (seed, second)]
