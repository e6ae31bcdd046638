"""Pooling of the states of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

#: Least number of tokens that a sum is divided by: an empty row stays zero.
LEAST_COUNT = 1e-9


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of the states of the tokens that count; zeros for a row without any.

    Args:
        states: [b, L, F] float.
        mask: [b, L], 1 (or true) for tokens that count.

    Returns:
        [b, F].

    Example:
        >>> import torch
        >>> states = torch.tensor([[[1.0], [3.0], [9.0]]])
        >>> masked_mean(states, torch.tensor([[1, 1, 0]])).tolist()
        [[2.0]]
    """
    weight = mask[:, :, None].to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=LEAST_COUNT)


def project_pooled(
    pooled: Tensor, weight: Tensor, bias: Tensor | None, any_token: Tensor
) -> Tensor:
    """A linear projection of every token before the pooling, computed after it.

    Both are the same but for rows without tokens, which have no bias.

    Args:
        pooled: [b, F], of `masked_mean`.
        weight: [D, F].
        bias: [D], or None.
        any_token: [b] bool.

    Returns:
        [b, D].

    Example:
        >>> import torch
        >>> pooled, weight, bias = torch.tensor([[2.0], [0.0]]), torch.eye(1), torch.ones(1)
        >>> project_pooled(pooled, weight, bias, torch.tensor([True, False])).tolist()
        [[3.0], [0.0]]
    """
    projected = torch.nn.functional.linear(pooled, weight, bias)
    return projected * any_token[:, None].to(projected.dtype)
