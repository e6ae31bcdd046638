"""Contrast of two views of a batch, with and without labels.

Rows of two-view tensors are ordered view by view: row i and row ``(i + B) mod 2B`` show one image.
Rows and columns may be the same embeddings (GCD, stage 1 of PromptCAL) or those of a student and of
its teacher (stage 2). Losses come row by row, so that a selector can judge them.

Sources: Vaze et al., "Generalized Category Discovery", CVPR 2022, eq. 1 and 2; Zhang et al.,
"PromptCAL", CVPR 2023; Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.checks import Positive, checked


def other_view(rows: Tensor) -> Tensor:
    """The rows [2B, ...] of two views with the views exchanged.

    Example:
        >>> import torch
        >>> other_view(torch.tensor([1, 2, 3, 4])).tolist()
        [3, 4, 1, 2]
    """
    return rows.roll(len(rows) // 2, dims=0)


@checked
def info_nce(rows: Tensor, columns: Tensor, temperature: Positive = 1.0) -> Tensor:
    """Cross-entropy of finding the other view of each image among all columns but the own one.

    Args:
        rows: [2B, D], unit norm, view by view.
        columns: [2B, D], likewise.
        temperature: of the similarities; 1.0 in the released codes of GCD and PromptCAL.

    Returns:
        [2B], row by row.

    Raises:
        ValueError: shapes that differ, or an odd number of rows.

    Example:
        >>> import torch
        >>> views = torch.eye(2).repeat(2, 1)
        >>> [round(float(loss), 3) for loss in info_nce(views, views, 0.1)]
        [0.0, 0.0, 0.0, 0.0]
    """
    _check_views(rows, columns)
    logits = rows @ columns.T / temperature
    logits = logits.masked_fill(_diagonal(logits), -torch.inf)
    target = other_view(torch.arange(len(rows), device=rows.device))
    return F.cross_entropy(logits, target, reduction="none")


@checked
def supervised_contrast(
    rows: Tensor, columns: Tensor, labels: Tensor, temperature: Positive = 0.07
) -> Tensor:
    """Minus the mean log-probability of the other columns of a row's class, among labelled ones.

    Args:
        rows: [2B, D], unit norm, view by view.
        columns: [2B, D], likewise; column i is never compared with row i.
        labels: [2B] int64; negative: no label, which takes no part on either side.
        temperature: of the similarities.

    Returns:
        [2B], row by row; 0 with a gradient of 0 for rows without a label.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> views = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(2, 1)
        >>> losses = supervised_contrast(views, views, torch.tensor([0, -1, 0, -1]))
        >>> losses.abs().tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    _check_views(rows, columns)
    if labels.shape != (len(rows),):
        raise ValueError(f"labels {list(labels.shape)} must be [{len(rows)}]")
    known = labels >= 0
    logits = rows @ columns.T / temperature
    own = _diagonal(logits)
    # Rows without a label see everything, so that they stay finite until they are left out.
    seen = (known[None, :] & ~own) | ~known[:, None]
    log_share = logits - logits.masked_fill(~seen, -torch.inf).logsumexp(dim=1, keepdim=True)
    same = (labels[:, None] == labels[None, :]) & ~own & known[:, None]
    mean = torch.where(same, log_share, 0.0).sum(dim=1) / same.sum(dim=1).clamp(min=1)
    return torch.where(known, -mean, 0.0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values [n] where the mask is true; 0 with a gradient of 0 if it never is."""
    total: Tensor = torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
    return total


def _diagonal(square: Tensor) -> Tensor:
    return torch.eye(len(square), dtype=torch.bool, device=square.device)


def _check_views(rows: Tensor, columns: Tensor) -> None:
    if rows.shape != columns.shape or rows.ndim != 2 or len(rows) % 2:
        raise ValueError(
            f"rows {list(rows.shape)} and columns {list(columns.shape)} must both be [2B, D]"
        )
