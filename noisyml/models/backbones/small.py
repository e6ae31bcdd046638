"""Small networks for small images: a plain convolutional net, and a perceptron on pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisyml.checks import Checked, Count, NonNegative, OpenShare, checked
from noisyml.errors import UserError
from noisyml.models.backbones.base import Backbone
from noisyml.models.pooling import Pooling, global_pooling


@checked
def small_cnn(
    widths: Sequence[Count] = (32, 64, 128),
    in_channels: Count = 1,
    halve_after: Sequence[Count] | None = None,
    pooling: Pooling | nn.Module = "avg",
    **settings: Any,
) -> Backbone:
    """A plain convolutional net for small images: 3x3 conv, batch norm, ReLU, halved each stage.

    Args:
        widths: channels of the stages, the blocks of `feature_maps`.
        in_channels: 1 for grey, 3 for colour.
        halve_after: numbers of the stages, from 1, that end in halving the side; None: all.
        pooling: global pooling, see `global_pooling`.
        **settings: arguments of `Backbone`.
    """
    layers: list[nn.Module] = []
    previous = in_channels
    for stage, width in enumerate(widths, start=1):
        halved = halve_after is None or stage in halve_after
        layers += [
            nn.Conv2d(previous, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True) if halved else nn.Identity(),
        ]
        previous = width
    body = nn.Sequential(*layers, global_pooling(pooling), nn.Flatten())
    settings = {"mean": (0.5,) * in_channels, "std": (0.5,) * in_channels} | settings
    ends = [str(4 * i + 3) for i in range(len(widths))]
    return Backbone(
        body, previous, in_channels=in_channels, blocks=ends, pool=str(len(layers)), **settings
    )


class InputNoise(Checked, nn.Module):
    """Normal noise on what a network sees in training; nothing in evaluation.

    Args:
        std: its standard deviation.
    """

    def __init__(self, std: NonNegative) -> None:
        super().__init__()
        self.std = std

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs of any shape, with independent noise on each number."""
        return inputs + self.std * torch.randn_like(inputs) if self.training else inputs


class FlatPixels(nn.Module):
    """Images of one shape as vectors.

    Args:
        shape: channels, height and width.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C * H * W].

        Raises:
            UserError: images of another shape.
        """
        if images.shape[1:] != self.shape:
            found, expected = (
                f"{c} x {h} x {w}" for c, h, w in (tuple(images.shape[1:]), self.shape)
            )
            raise UserError(
                f"backbone=mlp takes images of {expected} (channels, height, width), but these are "
                f"{found}: set backbone.image_size=[{images.shape[2]},{images.shape[3]}] and "
                f"backbone.in_channels={images.shape[1]}."
            )
        return images.flatten(1)


@checked
def mlp(
    image_size: Count | tuple[Count, Count],
    in_channels: Count = 1,
    hidden_features: Sequence[Count] = (256, 256),
    dropout: OpenShare = 0.0,
    input_noise: NonNegative = 0.0,
    **settings: Any,
) -> Backbone:
    """A multi-layer perceptron on flattened pixels.

    Args:
        image_size: side of the square images, or their height and width.
        in_channels: 1 for grey, 3 for colour.
        hidden_features: widths; each layer is linear then ReLU, and a block of `activations`.
            Empty: the pixels themselves.
        dropout: share of each layer's outputs that is left out in training.
        input_noise: standard deviation of the noise on the normalised pixels in training.
        **settings: arguments of `Backbone`.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    layers: list[nn.Module] = [FlatPixels((in_channels, height, width))]
    if input_noise:
        layers.append(InputNoise(input_noise))
    previous = in_channels * height * width
    ends = []
    for features in hidden_features:
        layers += [nn.Linear(previous, features), nn.ReLU()]
        ends.append(str(len(layers) - 1))
        if dropout:
            layers.append(nn.Dropout(dropout))
        previous = features
    settings = {"mean": (0.5,) * in_channels, "std": (0.5,) * in_channels} | settings
    return Backbone(
        nn.Sequential(*layers), previous, in_channels=in_channels, blocks=ends, **settings
    )
