"""Vectors as they come, where other runs have a network on images."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from noisyml.checks import Count
from noisyml.errors import UserError
from noisyml.models.backbones.base import Backbone


class VectorBackbone(Backbone):
    """Hands the vectors of a data set on to the head.

    Args:
        vector_size: their columns D, known once the data set is; None: the data set has none.

    Raises:
        UserError: a data set of something else.
    """

    takes: ClassVar[str] = "vectors"

    def __init__(self, vector_size: Count | None) -> None:
        if vector_size is None:
            raise UserError(
                "backbone=vectors hands on vectors, and the data set gives something else: choose "
                "dataset=vectors, or a backbone=... for images (with backbone.frozen=true its "
                "features are vectors)."
            )
        super().__init__(nn.Identity(), vector_size)

    def raw_features(self, images: Tensor) -> Tensor:
        """Vectors [B, D] in the precision of the weights."""
        return images.to(self.feature_mean.dtype)
