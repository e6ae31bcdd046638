"""The encoder every method trains: a backbone and an embedding head."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from noisyml.errors import UserError
from noisyml.models.backbones.base import Backbone
from noisyml.models.heads import Head

#: The embeddings, where a layer is named.
EMBEDDING = "embedding"


class Encoding(NamedTuple):
    """Everything one pass through an encoder yields; all with gradient.

    Attributes:
        embeddings: [B, D], what `Encoder.forward` gives.
        raw: [B, D], before the L2 normalisation (the same if the head does not normalise).
        features: [B, F], pooled.
        maps: [B, C, H, W] by name, see `FeatureMaps`.
    """

    embeddings: Tensor
    raw: Tensor
    features: Tensor
    maps: dict[str, Tensor]


class Encoder(nn.Module):
    """Images, or features cached from a frozen backbone, to embeddings.

    Calling it gives the embeddings as configured; `raw` gives them before the L2 normalisation,
    for methods that work there (iaa, rkd), and `head.finish` takes the step between.

    Args:
        backbone: uint8 images to features.
        head: features to embeddings.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @property
    def out_features(self) -> int:
        """Embedding dimension D."""
        return self.head.out_features

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Features [B, F] of a batch.

        Args:
            batch: with ``image`` (uint8 [B, C, H, W]), ``vector`` [B, D], raw ``features`` [B, F],
                or ``prepared`` [B, F], which are features already.
        """
        if "prepared" in batch:
            return batch["prepared"]
        if "features" in batch:
            return self.backbone.finish(batch["features"].to(self.backbone.feature_mean.dtype))
        features: Tensor = self.backbone(batch["vector" if "vector" in batch else "image"])
        return features

    def raw(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings [B, D] before the L2 normalisation; `batch` as in `features`."""
        return self.head.project(self.features(batch))

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings [B, D]; `batch` as in `features`."""
        return self.head.finish(self.raw(batch))

    def activations(
        self, batch: Mapping[str, Tensor], layers: Collection[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings [B, D] and outputs [B, ...] of layers in one pass, all with gradient.

        Args:
            batch: as in `features`.
            layers: ``embedding``, the embeddings themselves, or blocks of the backbone, see
                `Backbone.activations`; blocks need images.

        Raises:
            UserError: there is no such layer, or features come from the cache.
        """
        blocks = [layer for layer in layers if layer != EMBEDDING]
        seen: dict[str, Tensor] = {}
        if blocks:
            if "image" not in batch:
                raise UserError(
                    f"The layer '{blocks[0]}' needs images, but the pooled features of a frozen "
                    "backbone come from the cache: look at the embedding, or set "
                    "backbone.frozen=false."
                )
            features, seen = self.backbone.activations(batch["image"], blocks)
        else:
            features = self.features(batch)
        embeddings = self.head.finish(self.head.project(features))
        return embeddings, {name: seen.get(name, embeddings) for name in layers}

    def encode(self, batch: Mapping[str, Tensor]) -> Encoding:
        """Embeddings, raw embeddings, features and feature maps of ``image`` in one pass.

        Raises:
            UserError: the network has no feature maps, or its pooled features come from the cache.
        """
        if "image" not in batch:
            raise UserError(
                "Feature maps need images, but the pooled features of a frozen backbone come from "
                "the cache: set backbone.frozen=false."
            )
        features, maps = self.backbone.feature_maps(batch["image"])
        raw = self.head.project(features)
        return Encoding(self.head.finish(raw), raw, features, maps)
