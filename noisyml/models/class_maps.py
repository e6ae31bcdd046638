"""Networks with class activation maps: a linear classifier on the average of the last map."""

from __future__ import annotations

import torch

from noisyml.models.backbones.base import LAST_MAP
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead

#: Side of the probe in pixels: what networks that accept one size alone mostly ask for.
_PROBE_SIDE = 224


@torch.no_grad()
def obstacle_to_class_maps(encoder: Encoder) -> str | None:
    """Why scores of a linear classifier on the embeddings are no means of maps; None if they are.

    Args:
        encoder: tried with an image of noise, in evaluation mode; its state stays as it is.

    Returns:
        The reason and what to do about it, as part of a sentence.
    """
    backbone, head = encoder.backbone, encoder.head
    if backbone.frozen:
        return (
            "a frozen backbone hands on pooled features from the cache: set backbone.frozen=false"
        )
    if not backbone.has_maps:
        return (
            f"{type(backbone.body).__name__} has no feature maps: choose a convolutional "
            "backbone=..., e.g. small_cnn or resnet18"
        )
    if not isinstance(head, IdentityHead) or head.normalise:
        return (
            "here the classifier does not read the pooled features themselves: use head=identity "
            "head.normalise=false"
        )
    generator = torch.Generator().manual_seed(0)
    size = (1, backbone.in_channels, _PROBE_SIDE, _PROBE_SIDE)
    noise = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    training = backbone.training
    try:
        features, maps = backbone.eval().feature_maps(noise.to(backbone.mean.device))
    finally:
        backbone.train(training)
    averages = maps[LAST_MAP].flatten(2).mean(dim=2)
    # Layers between pooling and classifier, or channels that come last, show here too.
    same = averages.shape == features.shape and torch.allclose(
        averages, features, rtol=1e-3, atol=1e-3 * float(features.abs().max())
    )
    if not same:
        return (
            "here the features are not the average of the last map: use backbone.pooling=avg, or "
            "another backbone=... if that is set"
        )
    return None
