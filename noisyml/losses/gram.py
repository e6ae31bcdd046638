"""Inner products of rows with each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gram(rows: Tensor) -> Tensor:
    """``rows @ rows.T`` [N, N] of rows [N, D], with one product back where autograd takes two.

    Example:
        >>> gram(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        tensor([[ 1.,  3.],
                [ 3., 25.]])
    """
    products: Tensor = _Gram.apply(rows)
    return products


class _Gram(torch.autograd.Function):
    """`gram`; the gradient is written in operations that autograd can follow once more."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return rows @ rows.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        with torch.autocast(rows.device.type, enabled=False):
            return (grads[0] + grads[0].T) @ rows
