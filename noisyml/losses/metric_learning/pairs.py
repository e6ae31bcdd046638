"""Losses on the cosines of anchor-column pairs: their contract, the pairs, and pair mining.

The columns are the anchors themselves, or more than them: synthetic copies of the anchors, say. An
explicit instance number keeps a column that shows the anchor itself, or a copy of it, out of the
anchor's pairs, whatever the order of the columns.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from noisyml.losses.base import EmbeddingLoss

if TYPE_CHECKING:
    from noisyml.similarity.memory_bank import MemoryBank


class Pairs(NamedTuple):
    """Cosines of anchors and columns and which of them are pairs.

    Attributes:
        similarity: [B, N] float32 or float64, with gradient.
        positive: [B, N] bool, same label, another instance.
        negative: [B, N] bool, another label.
    """

    similarity: Tensor
    positive: Tensor
    negative: Tensor


def cosine_pairs(
    anchors: Tensor,
    labels: Tensor,
    columns: Tensor | None = None,
    column_labels: Tensor | None = None,
    anchor_id: Tensor | None = None,
    column_id: Tensor | None = None,
    *,
    positive_cutoff: float | None = None,
) -> Pairs:
    """All pairs of anchors and columns, computed in float32 at least whatever the autocast.

    Args:
        anchors: [B, A] float, unit norm.
        labels: [B] int64.
        columns: [N, A] float, unit norm; None: the anchors, and the next three are None as well.
        column_labels: [N] int64.
        anchor_id: [B] int64, the instance each anchor shows.
        column_id: [N] int64; a column with the anchor's number is no pair of it.
        positive_cutoff: a positive pair must have a cosine below 1 minus this; None: any.

    Raises:
        ValueError: some of the four arguments about columns are given and others not, or lengths
            that do not fit together.
    """
    if columns is None and column_labels is None and anchor_id is None and column_id is None:
        columns, column_labels = anchors, labels
        anchor_id = column_id = torch.arange(len(labels), device=labels.device)
    if columns is None or column_labels is None or anchor_id is None or column_id is None:
        raise ValueError("columns, column_labels, anchor_id and column_id go together")
    if not len(anchors) == len(labels) == len(anchor_id):
        raise ValueError(
            f"{len(anchors)} anchors, {len(labels)} labels and {len(anchor_id)} numbers of them"
        )
    if not len(columns) == len(column_labels) == len(column_id):
        raise ValueError(
            f"{len(columns)} columns, {len(column_labels)} labels and {len(column_id)} numbers"
        )
    with torch.autocast(anchors.device.type, enabled=False):
        dtype = torch.promote_types(anchors.dtype, torch.float32)
        similarity = anchors.to(dtype) @ columns.to(dtype).T
    same = labels[:, None] == column_labels
    positive = same & (anchor_id[:, None] != column_id)
    if positive_cutoff is not None:
        positive = positive & (similarity.detach() < 1 - positive_cutoff)
    return Pairs(similarity, positive, ~same)


def mine_pairs(pairs: Pairs, margin: float) -> tuple[Tensor, Tensor]:
    """Positives below the hardest negative plus margin, negatives above the hardest positive less.

    Both tests are strict and see the extremes of all pairs, not the other test's result. This
    is the mining of Multi-Similarity (Wang et al., CVPR 2019).

    Args:
        pairs: as `cosine_pairs` gives them.
        margin: slack of the two comparisons, a cosine.

    Returns:
        Masks [B, N] of the positives and the negatives left.
    """
    similarity = pairs.similarity.detach()
    hardest_positive = row_min(similarity, pairs.positive, torch.inf)
    hardest_negative = row_max(similarity, pairs.negative, -torch.inf)
    return (
        pairs.positive & (similarity - margin < hardest_negative[:, None]),
        pairs.negative & (similarity + margin > hardest_positive[:, None]),
    )


def row_min(x: Tensor, mask: Tensor, empty: float) -> Tensor:
    """Minimum [B] of `x` [B, N] over the mask of each row, `empty` where it selects nothing."""
    if x.shape[1] == 0:
        return x.new_full((len(x),), empty)
    least = x.masked_fill(~mask, torch.inf).amin(dim=1)
    return torch.where(mask.any(dim=1), least, empty)


def row_max(x: Tensor, mask: Tensor, empty: float) -> Tensor:
    """Maximum [B] of `x` [B, N] over the mask of each row, `empty` where it selects nothing."""
    return -row_min(-x, mask, -empty)


def row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean [B] of `x` [B, N] over the mask of each row, 0 where it selects nothing."""
    return x.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def log1p_sum_exp(exponents: Tensor, mask: Tensor) -> Tensor:
    """``log(1 + sum exp)`` [B] of `exponents` [B, N] over each row's mask, free of overflow."""
    masked = exponents.masked_fill(~mask, -torch.inf)
    return functional.pad(masked, (1, 0)).logsumexp(dim=1)


class PairLoss(EmbeddingLoss):
    """A loss on anchor-column pairs; as an `EmbeddingLoss` the batch is compared with itself."""

    @abstractmethod
    def between(
        self,
        anchors: Tensor,
        labels: Tensor,
        columns: Tensor,
        column_labels: Tensor,
        anchor_id: Tensor,
        column_id: Tensor,
    ) -> Tensor:
        """The loss of the anchors' pairs, divided by the number of anchors.

        Args:
            anchors: [B, A] float, unit norm, with gradient.
            labels: [B] int64.
            columns: [N, A] float, unit norm, with gradient.
            column_labels: [N] int64.
            anchor_id: [B] int64, the instance each anchor shows.
            column_id: [N] int64; columns with the anchor's number are no pairs of it.

        Returns:
            Scalar tensor attached to the graph; 0 with a gradient of 0 if there are no anchors.
        """

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        memory: MemoryBank | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The loss as if the batch consisted of the kept samples alone; `memory` is not read.

        Samples not kept are neither anchors nor columns, and the divisor counts the kept ones.
        """
        if keep is not None:
            kept = keep.nonzero().squeeze(1)
            embeddings, labels = embeddings[kept], labels[kept]
        instance = torch.arange(len(labels), device=labels.device)
        return self.between(embeddings, labels, embeddings, labels, instance, instance)
