"""Descriptors averaged over several sizes of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.checks import Positive, checked
from noisyml.errors import UserError
from noisyml.models.heads import unit_norm


@checked
def multi_scale(
    embed: Callable[[Mapping[str, Tensor]], Tensor],
    batch: Mapping[str, Tensor],
    scales: Sequence[Positive] = (1.0,),
) -> Tensor:
    """Mean of the unit descriptors of an image at several scales, on the unit sphere again.

    Pixels are interpolated on the grid of the scale itself, not of the rounded size, as in the code
    released with InsCLR (which took it from that of Radenović et al., TPAMI 2019).

    Args:
        embed: a batch to descriptors [b, D].
        batch: with ``image`` [b, C, H, W]; with ``features`` alone only scale 1 can be taken.
        scales: factors of both sides, e.g. ``(2 ** 0.5, 1, 2 ** -0.5)``.

    Returns:
        [b, D], unit norm.

    Raises:
        UserError: several scales of cached features, or no scale.

    Example:
        >>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> def corners(batch):
        ...     return batch["image"][:, 0, [0, -1], [0, -1]]
        >>> multi_scale(corners, {"image": image}, (1.0, 0.5)).round(decimals=3)
        tensor([[0.093, 0.996]])
    """
    if not scales:
        raise UserError("scales=[] asks for no descriptor: give at least one factor, e.g. [1].")
    if list(scales) == [1.0]:
        return unit_norm(embed(batch))
    if "image" not in batch:
        raise UserError(
            "Several scales need images, but the features of a frozen backbone come from the "
            "cache: set scales=[1] or backbone.frozen=false."
        )
    total: Tensor | None = None
    for scale in scales:
        image = batch["image"]
        if scale != 1:
            dtype = image.dtype if image.is_floating_point() else torch.float32
            image = F.interpolate(
                image.to(dtype), scale_factor=float(scale), mode="bilinear", align_corners=False
            )
        found = unit_norm(embed({**batch, "image": image}))
        total = found if total is None else total + found
    assert total is not None
    return unit_norm(total / len(scales))
