"""Base of methods on vectors: those of a data set, or the features of a frozen network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from noisyml.data.vectors import VectorRows
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.methods.base import Method

if TYPE_CHECKING:
    from noisyml.data.datamodule import DataModule


class VectorMethod(Method):
    """Base of methods that make vectors of vectors; labels teach nothing."""

    gives: ClassVar[frozenset[str]] = frozenset({"embeddings", "inputs"})

    def rows(self, data: DataModule) -> VectorRows:
        """All training vectors as the head sees them, read when they are indexed.

        Raises:
            UserError: the run trains on images.
        """
        stored = data.rows("train")
        if stored is None:
            raise UserError(
                f"{type(self).__name__} reduces vectors, and these are images: choose "
                f"dataset=vectors, or let a frozen network make vectors of them "
                f"(backbone=efficientnet_lite0 backbone.frozen=true)."
            )
        if isinstance(stored, VectorRows):
            return stored
        backbone = self.encoder.backbone
        mean, std = (x.cpu().numpy() for x in (backbone.feature_mean, backbone.feature_std))
        return VectorRows(stored, mean=mean, scale=std)

    def inputs(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Vectors [b, D] of a batch as the head sees them."""
        return self.encoder.features(batch)

    def outputs(self, batch: Batch, wanted: Collection[str]) -> dict[str, Tensor]:
        """Embeddings and, if wanted, the vectors they were made of."""
        outputs = super().outputs(batch, wanted)
        if "inputs" in wanted:
            outputs["inputs"] = self.inputs(batch)
        return outputs
