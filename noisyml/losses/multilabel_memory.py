"""A running average of what a network said about each training sample, class by class."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def running_rows(rows: Tensor, index: Tensor, probabilities: Tensor, momentum: float) -> Tensor:
    """Move the rows of a memory towards new probabilities.

    A sample that stands in the batch several times takes what its last place says.

    Args:
        rows: [B, C], the memory's rows of the batch before this step.
        index: positions in the training split [B] int64.
        probabilities: [B, C] in [0, 1].
        momentum: weight of the rows as they were, in [0, 1].

    Returns:
        [B, C] without gradient; equal rows for equal positions.
    """
    moved = momentum * rows + (1 - momentum) * probabilities.detach().to(rows.dtype)
    places = torch.arange(len(index), device=index.device)
    same = index[:, None] == index[None, :]
    return moved[torch.where(same, places, -1).amax(dim=1)]


class ProbabilityMemory(nn.Module):
    """One row of C probabilities for each training sample; a buffer, so checkpoints carry it.

    Under DDP every rank is given the same gathered batch and thus holds the same memory.

    Args:
        num_samples: N, of the training split.
        num_classes: C.
        initial: what a row holds before its first step; None: the labels it is shown then.
    """

    rows: Tensor

    def __init__(self, num_samples: int, num_classes: int, initial: float | None) -> None:
        super().__init__()
        # NaN marks rows that wait for their sample's labels.
        start = torch.nan if initial is None else initial
        self.register_buffer("rows", torch.full((num_samples, num_classes), start))

    @torch.no_grad()
    def average(
        self, index: Tensor, labels: Tensor, probabilities: Tensor, momentum: float
    ) -> Tensor:
        """Update the rows of a batch, see `running_rows`, and return them [B, C]."""
        rows = self.rows[index]
        rows = torch.where(rows.isnan(), labels.to(rows.dtype), rows)
        rows = running_rows(rows, index, probabilities, momentum)
        self.rows[index] = rows
        return rows
