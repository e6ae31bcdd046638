"""Data and weights that a run needs and that are, or are not, on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def missing_data(config: DictConfig) -> str | None:
    """The files that a configuration's data set lacks, in words; None if it lacks none."""
    from noisyml.assembly.nodes import build

    found: str | None = build(config.dataset).missing()
    return found


def missing_weights(config: DictConfig) -> str | None:
    """The weights that a configuration's backbone lacks, in words; None if it lacks none.

    Nothing is fetched; weights that the first run would fetch are missing.
    """
    import torch

    node: Any = config.get("backbone")
    weights = None if node is None else node.get("weights")
    if weights is None:
        return None
    name = str(node.get("name") or str(node["_target_"]).rpartition(".")[2])
    if weights == "imagenet" and name == "efficientnet_lite0":
        from noisyml.models.backbones.from_timm import lite0_wheel_file

        try:
            lite0_wheel_file()
        except UserError as error:
            return f"weights: {error}"
        return None
    if weights == "imagenet":
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        return None if any(cache.glob(f"{name}-*.pth")) else f"weights: {name} in {cache}"
    if weights == "pretrained":
        home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
        there = (home / "hub" / f"models--timm--{name}").is_dir()
        return None if there else f"weights: {name} of timm in {home / 'hub'}"
    return None if Path(weights).is_file() else f"weights: {weights}"


def missing(config: DictConfig) -> str | None:
    """Everything that a run lacks on this machine, in words; None if it could start."""
    found = [text for text in (missing_data(config), missing_weights(config)) if text]
    return "; ".join(found) or None
