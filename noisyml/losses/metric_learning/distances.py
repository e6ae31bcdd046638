"""Euclidean distances within a batch, in double precision."""

from __future__ import annotations

import torch
from torch import Tensor

#: Squared distances below this count as this much and carry no gradient (released RKD code).
SQUARED_FLOOR = 1e-12


def pair_distances(points: Tensor, *, squared: bool = False, offset: float = 0.0) -> Tensor:
    """Euclidean distances between all rows of a batch; the diagonal is exactly 0.

    Rows that coincide count as 1e-6 apart, without a gradient.

    Args:
        points: [N, D] float of any precision. Computed in float64: the Gram form cancels, and in
            float32 it cannot tell equal rows from rows 3e-4 of their norm apart.
        squared: squared distances instead.
        offset: added to every entry of a difference x_i - x_j before its norm is taken.

    Returns:
        [N, N] float64, attached to the graph of `points`.

    Example:
        >>> pair_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).round(decimals=4)
        tensor([[0., 5.],
                [5., 0.]], dtype=torch.float64)
    """
    with torch.autocast(points.device.type, enabled=False):
        points = centred(points)
        norms = points.square().sum(dim=1)
        distances = torch.addmm(norms[:, None] + norms, points, points.T, alpha=-2)
        if offset:
            sums = points.sum(dim=1)
            distances = distances + 2 * offset * (sums[:, None] - sums)
            distances = distances + points.shape[1] * offset**2
        distances = distances.clamp(min=SQUARED_FLOOR)
        if not squared:
            distances = distances.sqrt()
        itself = torch.eye(len(points), dtype=torch.bool, device=points.device)
        return distances.masked_fill(itself, 0.0)


def centred(points: Tensor) -> Tensor:
    """Rows [N, D] as float64 around their mean; differences of rows, all we look at, stay.

    Example:
        >>> centred(torch.tensor([[1.0], [3.0]]))
        tensor([[-1.],
                [ 1.]], dtype=torch.float64)
    """
    points = points.to(torch.float64)
    if len(points) == 0:
        return points
    return points - points.detach().mean(dim=0)
