"""Fully connected encoders and projectors that are described by a word: ``mlp-2-512``.

The words are those of TLDR's released library (Kalantidis et al., TMLR 2022): ``linear``, or
``KIND-L-h1-h2-...`` with hidden sizes (h1, h2, ...) that are repeated L times.

=========== ======================================================================================
``linear``  one linear layer with a bias
``flinear`` hidden layers without non-linearity (linear with bias, then norm), and a last one: a
            linear map in factors once it is trained
``mlp``     hidden layers (linear without bias, norm, ReLU), and a last one without bias
=========== ======================================================================================
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from noisyml.checks import Count
from noisyml.errors import UserError, did_you_mean
from noisyml.models.heads import Head
from noisyml.models.norm import GlobalBatchNorm1d

Kind = Literal["linear", "flinear", "mlp"]
HiddenNorm = Literal["batch", "layer"]


class Architecture(NamedTuple):
    """A word taken apart.

    Attributes:
        kind: see the table at the head of this module.
        repeats: L, 0 where there are no hidden layers.
        sizes: (h1, h2, ...).
    """

    kind: Kind
    repeats: int
    sizes: tuple[int, ...]

    @property
    def is_linear(self) -> bool:
        """True if a trained encoder of this kind is a linear map."""
        return self.kind != "mlp"


def parse_architecture(word: str) -> Architecture:
    """A word such as ``mlp-2-512`` taken apart.

    Raises:
        UserError: it is none.

    Example:
        >>> parse_architecture("mlp-2-6-3")
        Architecture(kind='mlp', repeats=2, sizes=(6, 3))
    """
    first, *numbers = str(word).split("-")
    kinds: tuple[Kind, ...] = get_args(Kind)
    kind = next((known for known in kinds if known == first), None)
    form = "linear, flinear-L-H or mlp-L-H: L times a hidden layer of width H, e.g. mlp-1-2048"
    if kind is None:
        raise UserError(
            f"'{word}' describes no network.{did_you_mean(first, kinds)} Write one of {form}."
        )
    if not all(number.isascii() and number.isdigit() and int(number) for number in numbers):
        raise UserError(f"'{word}' describes no network: after {kind} come numbers. Write {form}.")
    if len(numbers) == 1 or (kind != "linear" and not numbers):
        raise UserError(f"'{word}' does not say how wide its hidden layers are. Write {form}.")
    sizes = tuple(int(number) for number in numbers)
    return Architecture(kind, sizes[0] if sizes else 0, sizes[1:])


def dense_layers(
    kind: Kind, in_features: int, widths: tuple[int, ...], norm: HiddenNorm = "batch"
) -> nn.Sequential:
    """Layers of these widths, each but the last with its norm (and ReLU).

    Args:
        kind: see the table at the head of this module.
        in_features: columns of the input.
        widths: of the layers; the last is the output's.
        norm: of hidden layers: ``batch`` (over the global batch) or ``layer``.
    """
    layers: list[nn.Module] = []
    *hidden, last = widths
    for width in hidden:
        layers.append(nn.Linear(in_features, width, bias=kind != "mlp"))
        layers.append(GlobalBatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width))
        if kind == "mlp":
            layers.append(nn.ReLU())
        in_features = width
    layers.append(nn.Linear(in_features, last, bias=kind != "mlp"))
    return nn.Sequential(*layers)


def encoder_layers(
    word: str, in_features: int, out_features: int, norm: HiddenNorm = "batch"
) -> nn.Sequential:
    """The encoder that a word describes, [B, in_features] to [B, out_features].

    Raises:
        UserError: see `parse_architecture`.
    """
    kind, repeats, sizes = parse_architecture(word)
    return dense_layers(kind, in_features, (*(sizes * repeats), out_features), norm)


def projector_layers(
    word: str | None, in_features: int, norm: HiddenNorm = "batch"
) -> tuple[nn.Sequential | None, int]:
    """The projector that a word describes, and the width of its output.

    Its sizes are repeated L + 1 times, the last layer included; None: no projector.

    Raises:
        UserError: see `parse_architecture`; or a word without sizes.
    """
    if word is None:
        return None, in_features
    kind, repeats, sizes = parse_architecture(word)
    if not sizes:
        raise UserError(
            f"projector={word} does not say how wide its output is: write e.g. mlp-1-2048, or none "
            f"at all (null)."
        )
    widths = sizes * (repeats + 1)
    return dense_layers(kind, in_features, widths, norm), widths[-1]


@torch.no_grad()
def linear_map(layers: nn.Sequential) -> tuple[Tensor, Tensor]:
    """The map of linear layers and batch norms in evaluation mode: weight [D, d] and bias [d].

    Outputs are ``rows @ weight + bias``.

    Raises:
        UserError: a layer is not linear.
    """
    first = next(layer for layer in layers if isinstance(layer, nn.Linear))
    size = first.in_features
    probe = torch.cat([torch.eye(size), torch.zeros(1, size)]).double().to(first.weight.device)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            bias = 0 if layer.bias is None else layer.bias.double()
            probe = probe @ layer.weight.double().T + bias
        elif isinstance(layer, nn.BatchNorm1d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            scale = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
            probe = (probe - layer.running_mean.double()) * scale + layer.bias.double()
        else:
            raise UserError(f"{type(layer).__name__} makes a network that is no linear map.")
    weight = probe[:-1] - probe[-1]
    return weight.float(), probe[-1].float()


class DenseHead(Head):
    """A fully connected network that a word describes, e.g. ``linear`` or ``mlp-1-2048``.

    Args:
        in_features: width of the backbone's features.
        out_features: embedding dimension D.
        architecture: see the table at the head of this module.
        norm: of hidden layers: ``batch`` (over the global batch) or ``layer``.
        normalise: project embeddings onto the unit sphere.

    Raises:
        UserError: a word that describes no network.
    """

    def __init__(
        self,
        in_features: Count,
        out_features: Count,
        architecture: str = "linear",
        norm: HiddenNorm = "batch",
        normalise: bool = False,
    ) -> None:
        layers = encoder_layers(architecture, in_features, out_features, norm)
        super().__init__(layers, out_features, normalise)
        self.architecture = architecture
