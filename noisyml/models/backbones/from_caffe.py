"""Networks whose published weights were converted from Caffe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from noisyml.checks import Share, checked
from noisyml.models.backbones.base import Backbone
from noisyml.models.backbones.bn_inception import OUT_FEATURES, BNInception
from noisyml.models.pooling import Pooling, global_pooling, state_names
from noisyml.models.weights import fetch_weights, load_into, read_weights

#: Pixel means of Caffe's ImageNet models, blue, green, red, for values in [0, 255].
CAFFE_BGR_MEAN = (104.0, 117.0, 128.0)
BN_INCEPTION_URL = "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth"


@checked
def bn_inception(
    weights: str | None = None,
    sha256: str | None = None,
    pooling: Pooling | nn.Module = "avg",
    norm_momentum: Share = 0.1,
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
        load_into(body, state, str(path), fresh=state_names(body, "global_pool"))
    convention: dict[str, Any] = {
        "mean": tuple(value / 255 for value in CAFFE_BGR_MEAN),
        "std": (1 / 255,) * 3,
        "channel_order": "bgr",
    }
    blocks = ("stage1", "stage2", "stage3", "stage4")
    return Backbone(
        body, OUT_FEATURES, blocks=blocks, pool="global_pool", **(convention | settings)
    )
