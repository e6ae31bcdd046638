"""The pair loss of InsCLR, on a batch and against a memory bank.

Deng et al., "InsCLR: Improving Instance Retrieval with Self-Supervision", AAAI 2022; the formula is
that of the released code. For rows i and columns j with similarities s = <f_i, m_j>::

    pos_i = sum of (1 - s) over columns of the same label with s < 1 - 1e-6 - positive_margin
    neg_i = sum of s       over columns of another label with s > margin
    L     = mean over rows of (pos_i + neg_i)

The thresholds are hard masks without gradient, so the loss is linear in the similarities of the
pairs that count: their signs are found block by block without a graph, and one product of rows with
the signed sums of columns gives value and gradient. No similarity matrix is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from noisyml.checks import Count, NonNegative, checked

#: A pair closer than this to similarity 1 is an image beside itself, and does not count.
SAME_IMAGE = 1e-6
#: Columns of a memory bank that are compared at a time.
BLOCK_COLUMNS = 16_384


class InstanceContrast(NamedTuple):
    """The loss, and how many pairs it counts.

    Attributes:
        loss: scalar with gradient.
        positives: mean number of counted positive pairs per row, 0-d.
        negatives: mean number of counted negative pairs per row, 0-d.
    """

    loss: Tensor
    positives: Tensor
    negatives: Tensor


@checked
def batch_instance_contrast(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.4,
    positive_margin: NonNegative = 0.0,
    hinge: bool = False,
) -> InstanceContrast:
    """Pair loss of a batch with itself; the gradient flows through both sides of every pair.

    Args:
        embeddings: [B, D], unit norm.
        labels: [B] int64, any numbers; rows of one label are positives of each other.
        margin: negatives count above this similarity (paper: 0.4).
        positive_margin: positives count below 1 minus this (and `SAME_IMAGE`).
        hinge: negatives add ``s - margin`` in place of ``s``; the gradient is the same.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
        >>> found = batch_instance_contrast(rows, torch.tensor([1, 1, 2]))
        >>> [round(float(value), 2) for value in found]
        [1.44, 0.67, 1.33]
    """
    with torch.no_grad():
        signs, positives, negatives = _signs(
            embeddings, labels, embeddings, labels, margin, positive_margin
        )
    total = positives.sum() + ((signs @ embeddings) * embeddings).sum()
    return _mean(total, positives, negatives, margin if hinge else 0.0)


@checked
def memory_instance_contrast(
    embeddings: Tensor,
    labels: Tensor,
    memory: Tensor,
    memory_labels: Tensor,
    *,
    index: Tensor | None = None,
    margin: float = 0.4,
    positive_margin: NonNegative = 0.0,
    hinge: bool = False,
    block_columns: Count = BLOCK_COLUMNS,
) -> InstanceContrast:
    """Pair loss of a batch against constant rows of a memory bank.

    Args:
        embeddings: [B, D], unit norm.
        labels: [B] int64; rows with a label of 0 or less (rejected neighbours) are left out.
        memory: [M, D], constant; or with `index` a whole bank [N, D].
        memory_labels: [M] int64; negatives of every row carry a label that no row has.
        index: [M] int64, the rows of the bank that take part, read block by block and never copied
            together; None: all.
        margin, positive_margin, hinge: see `batch_instance_contrast`.
        block_columns: columns compared at a time; a block needs B times as many numbers.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> bank = torch.tensor([[0.6, 0.8], [0.8, 0.6]])
        >>> labels = torch.tensor([1, -1])
        >>> loss = memory_instance_contrast(rows, labels, bank, torch.tensor([1, 9])).loss
        >>> round(float(loss), 4)
        1.2
    """
    mine = labels > 0
    # Rows without a part in it have no pairs: their signs are zero, and so is their gradient.
    weights = mine.to(embeddings.dtype)[:, None]
    with torch.no_grad():
        signed = torch.zeros_like(embeddings)
        positives = embeddings.new_zeros(len(embeddings))
        negatives = embeddings.new_zeros(len(embeddings))
        for start in range(0, len(memory_labels), block_columns):
            part = slice(start, start + block_columns)
            column_labels = memory_labels[part]
            rows = memory[part if index is None else index[part]].to(embeddings)
            signs, more_positives, more_negatives = _signs(
                embeddings, labels, rows, column_labels, margin, positive_margin
            )
            signed += signs @ rows
            positives += more_positives
            negatives += more_negatives
        signed *= weights
        positives *= weights[:, 0]
        negatives *= weights[:, 0]
    total = positives.sum() + (signed * embeddings).sum()
    return _mean(total, positives, negatives, margin if hinge else 0.0, mine.sum())


def _signs(
    rows: Tensor,
    labels: Tensor,
    columns: Tensor,
    column_labels: Tensor,
    margin: float,
    positive_margin: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Factor of every similarity in the loss [B, M] (-1, 0, 1), and counts per row [B], [B]."""
    similarities = rows @ columns.T
    same = labels[:, None] == column_labels
    positive = same & (similarities < 1 - SAME_IMAGE - positive_margin)
    negative = ~same & (similarities > margin)
    signs = negative.to(rows.dtype).sub_(positive.to(rows.dtype))
    return signs, positive.sum(dim=1, dtype=rows.dtype), negative.sum(dim=1, dtype=rows.dtype)


def _mean(
    total: Tensor,
    positives: Tensor,
    negatives: Tensor,
    taken_off: float,
    rows: Tensor | None = None,
) -> InstanceContrast:
    """Means over the rows that have a part; 0 where none has."""
    count = len(positives) if rows is None else rows.clamp(min=1)
    loss = (total - taken_off * negatives.sum()) / count
    return InstanceContrast(loss, positives.sum() / count, negatives.sum() / count)
