"""The projection head of DINO, for losses that compare distributions over many directions."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from noisyml.checks import Checked, Count, WholeNonNegative
from noisyml.models.heads import unit_norm

#: Width of tokens from which on a head is as deep and as wide as the released ones: ViT-S.
_RELEASED_FROM = 384


def usual_layers(in_features: Count) -> int:
    """Linear layers of a head that is told nothing else: 3 as released, 1 for narrow tokens.

    Three layers behind the tokens of a small network that begins at random collapse: all
    projections are alike, and the contrast of views stays at the logarithm of their number.

    Example:
        >>> usual_layers(768), usual_layers(64)
        (3, 1)
    """
    return 3 if in_features >= _RELEASED_FROM else 1


def usual_directions(in_features: Count) -> int:
    """Directions of a head that is told nothing else: 65,536 as released, 1,024 for narrow tokens.

    Args:
        in_features: width of the tokens.
    """
    return 65_536 if in_features >= _RELEASED_FROM else 1024


def perceptron(
    in_features: int, hidden_features: int, out_features: int, layers: int
) -> nn.Sequential:
    """Linear layers with GELU between them, weights of deviation 0.02; none if `layers` is 0."""
    widths = [in_features, *[hidden_features] * (layers - 1), out_features]
    parts: list[nn.Module] = []
    for i in range(layers):
        parts += [*([nn.GELU()] if i else []), nn.Linear(widths[i], widths[i + 1])]
    for part in parts:
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
    return nn.Sequential(*parts)


class UnitRows(nn.Module):
    """A linear layer without bias whose rows have length 1: inner products with directions.

    The gain of a weight-normalised layer that is fixed at 1 and never trained.

    Args:
        in_features: D.
        out_features: directions K.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] to [B, K]."""
        return x @ F.normalize(self.weight, dim=1).T


class Projected(NamedTuple):
    """Outputs of a `ProjectionHead`.

    Attributes:
        bottleneck: [B, bottleneck], before its normalisation.
        scores: [B, K], inner products of its direction with K directions.
    """

    bottleneck: Tensor
    scores: Tensor


class ProjectionHead(Checked, nn.Module):
    """A perceptron to a bottleneck on the unit sphere, then inner products with K directions.

    Linear layers with GELU between them, no batch norm (Caron et al., "Emerging Properties in
    Self-Supervised Vision Transformers", ICCV 2021).

    Args:
        in_features: D of the tokens, which are not normalised before.
        out_features: directions K; None: see `usual_directions`.
        hidden_features: width of the hidden layers.
        bottleneck: width of the bottleneck.
        layers: linear layers up to the bottleneck; 1: no hidden one, 0: the token itself; None: see
            `usual_layers`.
    """

    def __init__(
        self,
        in_features: Count,
        out_features: Count | None = None,
        hidden_features: Count = 2048,
        bottleneck: Count = 256,
        layers: WholeNonNegative | None = None,
    ) -> None:
        super().__init__()
        layers = usual_layers(in_features) if layers is None else layers
        if out_features is None:
            out_features = usual_directions(in_features)
        self.mlp = perceptron(in_features, hidden_features, bottleneck, layers)
        self.last_layer = UnitRows(bottleneck if layers else in_features, out_features)

    def both(self, tokens: Tensor) -> Projected:
        """Bottleneck and scores of tokens [B, D]."""
        bottleneck = self.mlp(tokens)
        return Projected(bottleneck, self.last_layer(F.normalize(bottleneck, dim=1)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Projections [B, K] of unit norm of tokens [B, D]."""
        return unit_norm(self.both(tokens).scores)


def supervised_prompt(prompts: Tensor, number: Count) -> Tensor:
    """The mean [B, D] of the first prompt tokens, which the prompt loss looks at.

    Args:
        prompts: [B, P, D].
        number: supervised ones, at most P.

    Example:
        >>> import torch
        >>> supervised_prompt(torch.tensor([[[1.0], [3.0], [9.0]]]), 2).tolist()
        [[2.0]]
    """
    return prompts[:, :number].mean(dim=1)
