"""A running average of the predictions for each training sample, indexed by its position."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def last_of_equal(index: Tensor) -> Tensor:
    """For each place of `index` [B] the last place that holds the same number; [B] int64.

    Example:
        >>> last_of_equal(torch.tensor([3, 1, 3]))
        tensor([2, 1, 2])
    """
    ordered, place = index.sort(stable=True)
    return place[torch.searchsorted(ordered, index, right=True) - 1]


class TargetMemory(nn.Module):
    """One row of C targets per training sample.

    A sample that occurs twice in a batch is written once, from its last occurrence, so that the
    result depends neither on the order of writing nor on the rank.

    Args:
        num_samples: N, size of the training split.
        num_classes: C.

    Attributes:
        rows: [N, C] float, 0 for samples not seen yet.
        seen: [N] bool.

    Example:
        >>> memory = TargetMemory(num_samples=3, num_classes=2)
        >>> memory.blend(torch.tensor([2]), torch.tensor([[0.5, 0.5]]), momentum=0.8)
        tensor([[0.1000, 0.1000]])
        >>> memory.seen
        tensor([False, False,  True])
    """

    rows: Tensor
    seen: Tensor

    def __init__(self, num_samples: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(num_samples, num_classes))
        self.register_buffer("seen", torch.zeros(num_samples, dtype=torch.bool))

    @torch.no_grad()
    def blend(
        self, index: Tensor, values: Tensor, momentum: float, start: Tensor | None = None
    ) -> Tensor:
        """``row <- m row + (1 - m) value``.

        Args:
            index: [B] int64, positions.
            values: [B, C] float.
            momentum: m, share of the old row that is kept, in [0, 1].
            start: [B, C], rows of samples not seen before; None: zeros.

        Returns:
            The new rows [B, C] of the batch, without gradient.
        """
        old = self.rows[index]
        if start is not None:
            old = torch.where(self.seen[index][:, None], old, start.to(old.dtype))
        new = momentum * old + (1 - momentum) * values.detach().to(old.dtype)
        new = new[last_of_equal(index)]
        self.rows[index] = new
        self.seen[index] = True
        return new
