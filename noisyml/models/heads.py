"""Embedding heads: from the features of a backbone to unit-norm embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisyml.models.norm import GlobalBatchNorm1d

Norm = Literal["batch", "layer", "none"]


def _norm(kind: Norm, features: int) -> nn.Module:
    if kind == "batch":
        return GlobalBatchNorm1d(features)
    return nn.LayerNorm(features) if kind == "layer" else nn.Identity()


class EmbeddingHead(nn.Module):
    """Zero or more hidden layers, a linear projection, and L2 normalisation.

    Args:
        in_features: width of the backbone's features.
        out_features: embedding dimension D.
        hidden_features: widths of the hidden layers; each is linear, norm, ReLU.
        norm: ``batch`` (over the global batch), ``layer`` or ``none``, after each hidden layer.
        normalise: project embeddings onto the unit sphere.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: Sequence[int] = (),
        norm: Norm = "batch",
        normalise: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_features
        for hidden in hidden_features:
            layers += [nn.Linear(width, hidden), _norm(norm, hidden), nn.ReLU()]
            width = hidden
        layers.append(nn.Linear(width, out_features))
        self.layers = nn.Sequential(*layers)
        self.out_features = out_features
        self.normalise = normalise
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_features] to [B, out_features]."""
        projected: Tensor = self.layers(features)
        if not self.normalise:
            return projected
        # In half precision a unit vector is off by 1e-3, and a sample no longer equals itself.
        with torch.autocast(projected.device.type, enabled=False):
            return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)))
