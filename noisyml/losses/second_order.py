"""Second derivatives of losses whose gradient is written down by hand.

A `torch.autograd.Function` with a fast backward pass of its own would leave its share out of second
derivatives without a word. Where a graph of the gradient is asked for (``create_graph=True``), its
``backward`` takes the gradient of a plain form of the loss instead, which autograd can follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def recorded_gradient(
    plain: Callable[..., Tensor], inputs: Sequence[Tensor], slope: Tensor
) -> list[Tensor | None]:
    """The gradient of ``slope * plain(*inputs)``, itself differentiable.

    For the ``backward`` of a `torch.autograd.Function`, where ``torch.is_grad_enabled()`` says that
    a graph of the gradient is wanted.

    Args:
        plain: the loss in operations that autograd knows: tensors to a scalar.
        inputs: saved inputs of the function.
        slope: scalar, what arrives at its output.

    Returns:
        A gradient for each input; None for one that requires none.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> (slope,) = recorded_gradient(lambda x: x**3, [x], torch.tensor(2.0))
        >>> slope.item(), torch.autograd.grad(slope, x)[0].item()
        (54.0, 36.0)
    """
    with torch.enable_grad():
        # Views of their own: one tensor may be given twice.
        views = [x.view_as(x) for x in inputs]
        value = plain(*views)
        wanted = [x for x in views if x.requires_grad]
        found = iter(
            torch.autograd.grad(
                value, wanted, slope.to(value.dtype), create_graph=True, allow_unused=True
            )
        )
    return [next(found) if x.requires_grad else None for x in views]


class KnownGradient(torch.autograd.Function):
    """A scalar whose gradient was computed along with it.

    ``KnownGradient.apply(at, value, gradient, plain)``: the value of a loss at a tensor, its
    gradient there, and the loss in operations that autograd knows, see `recorded_gradient`.
    """

    @staticmethod
    def forward(
        ctx: Any, at: Tensor, value: Tensor, gradient: Tensor, plain: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The value."""
        ctx.save_for_backward(at, gradient)
        ctx.plain = plain
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        """The gradient that came along, or one with a graph where that is wanted."""
        at, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():
            return recorded_gradient(ctx.plain, [at], grads[0])[0], None, None, None
        return gradient * grads[0].to(gradient.dtype), None, None, None
