"""The encoder every method trains: a backbone and an embedding head."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from noisyml.models.backbones import Backbone
from noisyml.models.heads import EmbeddingHead


class Encoder(nn.Module):
    """Images, or features cached from a frozen backbone, to embeddings.

    Args:
        backbone: uint8 images to features.
        head: features to embeddings.
    """

    def __init__(self, backbone: Backbone, head: EmbeddingHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @property
    def out_features(self) -> int:
        """Embedding dimension D."""
        return self.head.out_features

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings [B, D] of a batch with ``image`` (uint8 [B, C, H, W]) or ``features``."""
        if "features" in batch:
            features = self.backbone.finish(batch["features"].to(self.backbone.feature_mean.dtype))
        else:
            features = self.backbone(batch["image"])
        embeddings: Tensor = self.head(features)
        return embeddings
