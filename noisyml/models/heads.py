"""Embedding heads: from the features of a backbone to embeddings, on the unit sphere or raw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisyml.checks import Checked, Count
from noisyml.models.norm import GlobalBatchNorm1d

Norm = Literal["batch", "layer", "none"]
InputNorm = Literal["none", "layer", "l2"]
Init = Literal["kaiming", "torch"]


def unit_norm(embeddings: Tensor) -> Tensor:
    """Rows of length 1, [B, D], in single precision or better; a zero row stays zero."""
    # In half precision a unit vector is off by 1e-3, and a sample no longer equals itself.
    with torch.autocast(embeddings.device.type, enabled=False):
        return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))


def class_scores(classifier: nn.Linear, embeddings: Tensor) -> Tensor:
    """Class scores [b, C] of embeddings [b, D], float32 or better whatever the precision."""
    scores: Tensor = classifier(embeddings)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


class UnitNorm(nn.Module):
    """`unit_norm` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, F] to [B, F]."""
        return unit_norm(x)


def _norm(kind: Norm, features: int) -> nn.Module:
    if kind == "batch":
        return GlobalBatchNorm1d(features)
    return nn.LayerNorm(features) if kind == "layer" else nn.Identity()


def _input_norm(kind: InputNorm, features: int) -> list[nn.Module]:
    if kind == "none":
        return []
    if kind == "l2":
        return [UnitNorm()]
    return [nn.LayerNorm(features, elementwise_affine=False)]


class Head(Checked, nn.Module):
    """Layers, then L2 normalisation or none.

    `project` ends before the L2 normalisation, `finish` is that alone, and calling the head does
    both.

    Args:
        layers: features [B, F] to raw embeddings [B, out_features].
        out_features: embedding dimension D.
        normalise: project embeddings onto the unit sphere.
    """

    def __init__(self, layers: nn.Sequential, out_features: Count, normalise: bool) -> None:
        super().__init__()
        self.layers = layers
        self.out_features = out_features
        self.normalise = normalise

    def project(self, features: Tensor) -> Tensor:
        """[B, in_features] to raw embeddings [B, out_features], not normalised."""
        projected: Tensor = self.layers(features)
        return projected

    def finish(self, raw: Tensor) -> Tensor:
        """Raw embeddings [B, out_features] to what the head is configured to give."""
        return unit_norm(raw) if self.normalise else raw

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_features] to [B, out_features]."""
        return self.finish(self.project(features))


class IdentityHead(Head):
    """The pooled features themselves are the embedding, as a classifier reads them.

    Args:
        in_features: width of the backbone's features, and embedding dimension.
        normalise: project them onto the unit sphere.
    """

    def __init__(self, in_features: Count, normalise: bool = False) -> None:
        super().__init__(nn.Sequential(), in_features, normalise)


class EmbeddingHead(Head):
    """Input norm, zero or more hidden layers, a linear projection, and L2 normalisation.

    Args:
        in_features: width of the backbone's features.
        out_features: embedding dimension D.
        hidden_features: widths of the hidden layers; each is linear, norm, ReLU.
        norm: ``batch`` (over the global batch), ``layer`` or ``none``, after each hidden layer.
        input_norm: of the features: ``layer`` (without scale and shift, proxynca_pp), ``l2``
            (insclr) or ``none``.
        bias: give the last layer one.
        init: of the linear layers: ``kaiming`` (normal, fan-out, zero bias; prism, cbml, iaa) or
            ``torch`` (uniform, PyTorch's own; proxynca_pp, rkd).
        normalise: project embeddings onto the unit sphere.
    """

    def __init__(
        self,
        in_features: Count,
        out_features: Count,
        hidden_features: Sequence[Count] = (),
        norm: Norm = "batch",
        input_norm: InputNorm = "none",
        bias: bool = True,
        init: Init = "kaiming",
        normalise: bool = True,
    ) -> None:
        layers = _input_norm(input_norm, in_features)
        width = in_features
        for hidden in hidden_features:
            layers += [nn.Linear(width, hidden), _norm(norm, hidden), nn.ReLU()]
            width = hidden
        layers.append(nn.Linear(width, out_features, bias=bias))
        super().__init__(nn.Sequential(*layers), out_features, normalise)
        if init == "kaiming":
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
