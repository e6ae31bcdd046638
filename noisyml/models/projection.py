"""The projection head of DINO, for losses that compare distributions over many directions."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from noisyml.checks import Checked, Count, WholeNonNegative
from noisyml.models.heads import unit_norm


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
        out_features: directions K.
        hidden_features: width of the hidden layers.
        bottleneck: width of the bottleneck.
        layers: linear layers up to the bottleneck; 1: no hidden one, 0: the token itself.
    """

    def __init__(
        self,
        in_features: Count,
        out_features: Count = 65_536,
        hidden_features: Count = 2048,
        bottleneck: Count = 256,
        layers: WholeNonNegative = 3,
    ) -> None:
        super().__init__()
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
