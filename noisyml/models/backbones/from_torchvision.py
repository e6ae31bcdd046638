"""Networks of torchvision without their classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import nn

from noisyml.checks import Count, checked
from noisyml.errors import UserError
from noisyml.models.backbones.base import Backbone, bands
from noisyml.models.pooling import Pooling, global_pooling, state_names
from noisyml.models.weights import fetch_weights, load_into, read_weights


@checked
def resnet(
    name: str = "resnet50",
    weights: str | None = None,
    sha256: str | None = None,
    pooling: Pooling | nn.Module = "avg",
    last_stride: Literal[1, 2] = 2,
    output_stride: Literal[8, 16, 32] = 32,
    in_channels: Count = 3,
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
        output_stride: side of an image over that of the last map; below 32 the last stages are
            dilated in place of halved (DeepLab), which resnet18 and resnet34 cannot.
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
    dilated = (
        {}
        if output_stride == 32
        else {"replace_stride_with_dilation": [False, output_stride == 8, True]}
    )
    try:
        body = torchvision.models.get_model(name, weights=None, **dilated)
    except NotImplementedError as error:
        raise UserError(
            f"backbone.output_stride={output_stride} dilates stages, which torchvision's {name} "
            f"cannot: use resnet50 or resnet101."
        ) from error
    out_features = body.fc.in_features
    body.fc = nn.Identity()
    body.avgpool = global_pooling(pooling)
    if layout == "caffe":
        body.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        for stage in (body.layer2, body.layer3, body.layer4):
            if isinstance(stage[0], torchvision.models.resnet.Bottleneck):
                # A dilated stage is not halved at all.
                stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, (1, 1)
    if last_stride == 1:
        for module in body.layer4[0].modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)
    if in_channels != 3:
        settings = bands(in_channels) | settings
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


@checked
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
    load_into(body, read_weights(path, sha256), str(path), fresh=state_names(body, "avgpool"))
