"""Attention consistency: the class activation maps of two mirrored views must mirror each other.

Zhang et al., "Learn From All: Erasing Attention Consistency for Noisy Label Facial Expression
Recognition", ECCV 2022 (arXiv 2207.10299).
"""

from __future__ import annotations

import torch
from torch import Tensor


def class_activation_maps(
    features: Tensor, weight: Tensor, *, detach_classifier: bool = True
) -> Tensor:
    """Share of each place in the classes' scores: M[n, c] = sum over d of W[c, d] F[n, d].

    No bias, no rectification, no scaling: with average pooling the mean of a map is the class's
    score without its bias (Zhou et al., "Learning Deep Features for Discriminative Localization",
    CVPR 2016, eq. 2).

    Args:
        features: the map that is pooled, [B, D, H, W] float.
        weight: of the linear classifier, [C, D].
        detach_classifier: treat it as a constant.

    Returns:
        [B, C, H, W], in float32 at least, whatever the precision around it.

    Example:
        >>> features = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> class_activation_maps(features, torch.tensor([[2.0]]))
        tensor([[[[0., 2.],
                  [4., 6.]]]])
    """
    with torch.autocast(features.device.type, enabled=False):
        # A product per image rather than an einsum: no copy of the features, and no [B, C, D, H, W]
        # as in the released code.
        weight = weight.detach() if detach_classifier else weight
        dtype = torch.promote_types(
            torch.promote_types(features.dtype, weight.dtype), torch.float32
        )
        maps = weight.to(dtype) @ features.flatten(2).to(dtype)
    return maps.unflatten(2, features.shape[2:])


def attention_consistency(
    features: Tensor, mirrored_features: Tensor, weight: Tensor, *, detach_classifier: bool = True
) -> Tensor:
    """Mean squared difference between each image's maps and its mirror image's, mirrored back.

    Maps are linear in the features, so one product yields M_1 - mirror(M_2). All classes count, not
    the labelled one alone; no label is read.

    Args:
        features: F_1, of the images as they stand, [B, D, H, W] float, with gradient.
        mirrored_features: F_2, of their mirror images, likewise.
        weight: see `class_activation_maps`.
        detach_classifier: likewise; without it the weight can shrink to please this loss.

    Returns:
        [B]: means over C, H and W; their mean is L_att of the released code.

    Example:
        >>> features = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> weight = torch.tensor([[2.0]])
        >>> attention_consistency(features, features.flip(-1), weight)  # they mirror each other
        tensor([0.])
        >>> attention_consistency(features, features, weight)
        tensor([4.])
    """
    # Half precision would lose the small difference of two large features.
    exact = torch.promote_types(features.dtype, torch.float32)
    difference = features.to(exact) - mirrored_features.to(exact).flip(-1)
    maps = class_activation_maps(difference, weight, detach_classifier=detach_classifier)
    return maps.square().flatten(1).mean(dim=1)
