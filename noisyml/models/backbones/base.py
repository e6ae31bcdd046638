"""Backbones: uint8 images in, one feature vector per image out, and the maps on the way.

A backbone carries the input convention of its weights (channel count and order, value range, mean
and standard deviation), because weights and convention belong together and data sets do not care.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from noisyml.checks import Checked, Count, Positive
from noisyml.errors import UserError

ChannelOrder = Literal["rgb", "bgr"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
#: Name of the map that the global pooling sees, beside ``block1``, ``block2``, ...
LAST_MAP = "last"


class FeatureMaps(NamedTuple):
    """Features and maps of one pass through a backbone.

    Attributes:
        features: float [B, F], pooled.
        maps: float [B, C, H, W] by name, in the order of the pass: ``block1``, ``block2``, ... at
            the end of each resolution from a quarter of the side on (of the network's own stages,
            if it has others), and ``last``, the map that is pooled.
    """

    features: Tensor
    maps: dict[str, Tensor]


class Backbone(Checked, nn.Module):
    """Input normalisation, a network body, and the freezing rules around it.

    Args:
        body: maps normalised images [B, C, H, W] float to features [B, F].
        out_features: F.
        in_channels: C; grey images are repeated to 3 channels where the body wants them.
        mean: per-channel mean, for pixel values in [0, 1], in the order of `channel_order`.
        std: per-channel standard deviation, likewise.
        channel_order: ``rgb``, or ``bgr`` for weights converted from Caffe.
        frozen: never train the body; its features may be computed once and cached.
        frozen_batchnorm: batch norm keeps its running statistics and normalises by them in training
            too, while its scale and shift are trained (cbml, iaa).
        standardise: subtract mean and divide by the standard deviation of the training split's
            features (per dimension, without labels); only for a frozen body.
        blocks: submodules of `body` whose outputs are ``block1``, ... of `activations`.
        pool: submodule of `body` whose input is the ``last`` map; None: the body has no maps.

    Raises:
        UserError: settings that contradict each other.
    """

    #: Kind of inputs it takes, see `noisyml.data.inputs.InputKind`.
    takes: ClassVar[str] = "images"

    mean: Tensor
    std: Tensor
    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self,
        body: nn.Module,
        out_features: Count,
        *,
        in_channels: Count = 3,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[Positive] = IMAGENET_STD,
        channel_order: ChannelOrder = "rgb",
        frozen: bool = False,
        frozen_batchnorm: bool = False,
        standardise: bool = False,
        blocks: Sequence[str] = (),
        pool: str | None = None,
    ) -> None:
        super().__init__()
        if standardise and not frozen:
            raise UserError(
                "backbone.standardise=true needs backbone.frozen=true: the features of a network "
                "in training have no fixed mean."
            )
        for key, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, in_channels):
                raise UserError(
                    f"backbone.{key} has {len(values)} values and backbone.in_channels is "
                    f"{in_channels}: give one value for each channel."
                )
        self.body = body
        self.out_features = out_features
        self.in_channels = in_channels
        self.channel_order = channel_order
        self.frozen = frozen
        self.frozen_batchnorm = frozen_batchnorm
        self.standardise = standardise
        # Batch norm must not see what is no sample, and copes with none.
        self._couples_samples = any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) for module in body.modules()
        )
        self._map_sources = {f"block{i}": path for i, path in enumerate(blocks, start=1)}
        self._pool = pool
        self._fingerprint: str | None = None
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("feature_mean", torch.zeros(out_features))
        self.register_buffer("feature_std", torch.ones(out_features))
        if frozen:
            body.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        elif self.frozen_batchnorm:
            for module in self.body.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images, RGB, grey or of C bands, to the float [B, C, H, W] of the weights."""
        x = images.to(self.feature_mean.dtype) / 255
        if x.shape[1] == 1 and self.in_channels == 3:
            x = x.expand(-1, 3, -1, -1)
        elif x.shape[1] == 3 and self.in_channels == 1:
            x = x.mean(dim=1, keepdim=True)
        if x.shape[1] != self.in_channels:
            raise UserError(
                f"The images have {x.shape[1]} channels and the backbone takes {self.in_channels}: "
                f"set backbone.in_channels={x.shape[1]}, where the backbone has that setting."
            )
        if self.channel_order == "bgr":
            x = x.flip(1)
        return (x - self.mean) / self.std

    @property
    def has_maps(self) -> bool:
        """False if `feature_maps` is refused."""
        return self._pool is not None

    @property
    def mean_colour(self) -> tuple[int, ...]:
        """The grey levels (red, green, blue, or one) that `normalise` brings nearest to 0."""
        levels = (255 * self.mean.flatten()).round().clamp(0, 255).int().tolist()
        return tuple(reversed(levels) if self.channel_order == "bgr" else levels)

    def raw_features(self, images: Tensor) -> Tensor:
        """Features before standardisation: uint8 [B, 1 or 3, H, W] to float [B, F]."""
        x = self.normalise(images)
        if not len(x) and not self._couples_samples:
            # Some transformers cannot reshape nothing: they see a blank image that is cut off.
            x = x.new_zeros((1, *x.shape[1:]))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if self.has_maps and x.device.type == "cpu" and not torch.is_grad_enabled():
                # Convolutions are up to twice as fast so. Training keeps the usual layout.
                x = x.contiguous(memory_format=torch.channels_last)
            features: Tensor = self.body(x)
        return features if len(images) else features[:0]

    def finish(self, features: Tensor) -> Tensor:
        """Standardise raw (perhaps cached) features [B, F]."""
        return (features - self.feature_mean) / self.feature_std

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images [B, 1 or 3, H, W] to features [B, F]."""
        return self.finish(self.raw_features(images))

    def feature_maps(self, images: Tensor) -> FeatureMaps:
        """Features and the maps on the way to them, in one pass; gradients as in `forward`.

        Args:
            images: uint8 [B, 1 or 3, H, W].

        Raises:
            UserError: the network has no maps (perceptrons, transformers on tokens).
        """
        if not self.has_maps:
            raise UserError(
                f"{type(self.body).__name__} has no feature maps: choose a convolutional "
                "backbone=..., e.g. resnet18."
            )
        return self.activations(images, [*self._map_sources, LAST_MAP])

    def activations(self, images: Tensor, names: Collection[str]) -> FeatureMaps:
        """Features and the outputs of some blocks in one pass, of whatever shape they are.

        Args:
            images: uint8 [B, 1 or 3, H, W].
            names: ``block1``, ... (of a perceptron: its hidden layers, [B, F]), and ``last`` where
                there are feature maps.

        Raises:
            UserError: the network has no such block.
        """
        known = [*self._map_sources, *([] if self._pool is None else [LAST_MAP])]
        if unknown := [name for name in names if name not in known]:
            raise UserError(
                f"{type(self.body).__name__} has no layer '{unknown[0]}' to look into: "
                + (f"it has {', '.join(known)}." if known else "choose another backbone=...")
            )
        seen: dict[str, Tensor] = {}

        def keep_output(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                seen[name] = output

            return hook

        def keep_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[LAST_MAP] = inputs[0]

        with ExitStack() as hooks:
            for name in names:
                if name == LAST_MAP:
                    pool = self.body.get_submodule(str(self._pool))
                    hooks.callback(pool.register_forward_pre_hook(keep_input).remove)
                else:
                    module = self.body.get_submodule(self._map_sources[name])
                    hooks.callback(module.register_forward_hook(keep_output(name)).remove)
            features = self(images)
        if not len(images):
            seen = {name: output[:0] for name, output in seen.items()}
        return FeatureMaps(features, seen)

    def set_feature_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the standardisation [F], [F], where it is asked for; constant features keep std 1."""
        if not self.standardise:
            return
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > 1e-8, std, torch.ones_like(std)))

    def fingerprint(self) -> str:
        """SHA-256 over everything raw features depend on: weights, structure, input convention."""
        if self.frozen and self._fingerprint is not None:
            return self._fingerprint
        digest = hashlib.sha256(repr(self.body).encode())
        for name, tensor in self.body.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        digest.update(repr((self.in_channels, self.mean.tolist(), self.std.tolist())).encode())
        if self.channel_order != "rgb":
            digest.update(self.channel_order.encode())
        if self.has_maps:
            digest.update(b"channels last")  # rounds otherwise than features that were kept before
        self._fingerprint = digest.hexdigest()
        return self._fingerprint


def bands(in_channels: int) -> dict[str, Any]:
    """Settings of a `Backbone` for images of other bands: mean 0.5, deviation a quarter."""
    half, quarter = (0.5,) * in_channels, (0.25,) * in_channels
    return {"in_channels": in_channels, "mean": half, "std": quarter}
