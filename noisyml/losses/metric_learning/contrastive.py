"""Contrastive loss within a batch and against a memory bank.

Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020 (arXiv 1912.06798), section 3.3;
with the filter of Liu et al., "Noise-resistant Deep Metric Learning with Ranking-based Instance
Selection", CVPR 2021 (arXiv 2103.16047), eq. 7 to 9, and the constants of their code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisyml.errors import UserError
from noisyml.losses.base import EmbeddingLoss
from noisyml.similarity.memory_bank import MemoryBank


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    *,
    keep: Tensor | None = None,
    margin: float = 0.5,
    positive_cutoff: float = 1e-5,
    relu_form: bool = False,
) -> Tensor:
    """Sum over active pairs of the kept samples, divided by the number of kept samples.

    A positive pair of cosine s < 1 - `positive_cutoff` costs 1 - s (the cut-off removes the pairs
    of a sample with itself), a negative pair of s > `margin` costs s. Each pair counts in both
    orders and sends its gradient to both sides.

    Args:
        embeddings: [B, D] float, unit norm; computed in float32 at least.
        labels: [B] int64.
        keep: [B] bool; None keeps all. If nothing is kept the loss is 0.
        margin: lambda, a cosine.
        positive_cutoff: how far below 1 a positive's cosine must lie to count.
        relu_form: a negative costs ``s - margin`` as in the paper; other values, same gradients.

    Returns:
        Scalar, attached to the graph.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = _at_least_float32(embeddings)
        similarity = embeddings @ embeddings.T
        positive, negative = _active_pairs(
            similarity.detach(), labels, labels, margin, positive_cutoff
        )
        kept = torch.ones_like(labels, dtype=torch.bool) if keep is None else keep
        both = kept[:, None] & kept
        offset = margin if relu_form else 0.0
        cost = torch.where(positive & both, 1 - similarity, 0.0)
        cost = torch.where(negative & both, similarity - offset, cost)
        return cost.sum() / kept.sum().clamp(min=1)


def memory_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    *,
    keep: Tensor | None = None,
    margin: float = 0.5,
    positive_cutoff: float = 1e-5,
    relu_form: bool = False,
    block_bytes: int = 2**26,
) -> Tensor:
    """Sum over active pairs of kept anchors and stored rows, divided by the *full* batch size B.

    The pairs are those of `contrastive_loss`; the stored rows are constants. The gradient of an
    anchor is the sum of its active negatives minus that of its active positives, so one pass
    without a graph finds both and no [B, M] matrix has to be held.

    Args:
        embeddings: [B, D] float, unit norm; computed in float32 at least.
        labels: [B] int64.
        references: [M, D] float, unit norm; M may be 0, the loss is then 0.
        reference_labels: [M] int64.
        keep: [B] bool, the anchors; None keeps all.
        margin: lambda, a cosine.
        positive_cutoff: how far below 1 a positive's cosine must lie to count.
        relu_form: a negative costs ``s - margin`` as in the paper; other values, same gradients.
        block_bytes: bound on the similarities held at a time, in bytes.

    Returns:
        Scalar, attached to the graph of `embeddings`.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = _at_least_float32(embeddings)
        anchors = embeddings.detach()
        batch_size = len(anchors)
        rows = max(1, block_bytes // max(1, anchors.element_size() * batch_size))
        slope = torch.zeros_like(anchors)
        constant = anchors.new_zeros(batch_size)
        for start in range(0, len(references), rows):
            block = references[start : start + rows].to(anchors.dtype)
            positive, negative = _active_pairs(
                anchors @ block.T,
                labels,
                reference_labels[start : start + rows],
                margin,
                positive_cutoff,
            )
            sign = negative.to(anchors.dtype) - positive.to(anchors.dtype)
            slope += sign @ block
            constant += positive.sum(dim=1)
            if relu_form:
                constant -= margin * negative.sum(dim=1)
        # Where the set of active pairs stays the same the cost is linear in the anchor.
        cost = constant + (embeddings * slope).sum(dim=1)
        if keep is not None:
            cost = torch.where(keep, cost, 0.0)
        return cost.sum() / max(1, batch_size)


class ContrastiveLoss(EmbeddingLoss):
    """Contrastive loss among the kept samples of a batch; see `contrastive_loss`.

    Args:
        margin: lambda, the cosine above which a negative costs, in [-1, 1].
        positive_cutoff: how far below 1 a positive's cosine must lie to count.
        relu_form: a negative costs ``s - margin`` instead of ``s``.

    Raises:
        UserError: a margin that is no cosine, or a negative cut-off.
    """

    def __init__(
        self, margin: float = 0.5, positive_cutoff: float = 1e-5, relu_form: bool = False
    ) -> None:
        super().__init__()
        if not -1 <= margin <= 1:
            raise UserError(
                f"loss.margin={margin} is compared with a cosine: give a number from -1 to 1."
            )
        if positive_cutoff < 0:
            raise UserError(
                f"loss.positive_cutoff={positive_cutoff} is negative: give 0 or a small number."
            )
        self.margin = margin
        self.positive_cutoff = positive_cutoff
        self.relu_form = relu_form

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        memory: MemoryBank | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The loss of the kept samples among themselves; `memory` is not read."""
        return contrastive_loss(
            embeddings,
            labels,
            keep=keep,
            margin=self.margin,
            positive_cutoff=self.positive_cutoff,
            relu_form=self.relu_form,
        )


class MemoryContrastiveLoss(ContrastiveLoss):
    """MCL: the contrastive loss within the batch plus that against the memory bank.

    Args:
        margin: see `ContrastiveLoss`.
        positive_cutoff: see `ContrastiveLoss`.
        relu_form: see `ContrastiveLoss`.
        batch_weight: factor of the term within the batch.
        memory_weight: factor of the term against the bank.
        block_bytes: bound on the similarities to the bank held at a time, in bytes.

    Raises:
        UserError: an argument out of range.
    """

    needs = frozenset({"memory"})

    def __init__(
        self,
        margin: float = 0.5,
        positive_cutoff: float = 1e-5,
        relu_form: bool = False,
        batch_weight: float = 1.0,
        memory_weight: float = 1.0,
        block_bytes: int = 2**26,
    ) -> None:
        super().__init__(margin, positive_cutoff, relu_form)
        if block_bytes < 1:
            raise UserError(f"loss.block_bytes={block_bytes} is too small: 67108864 is 64 MiB.")
        self.batch_weight = batch_weight
        self.memory_weight = memory_weight
        self.block_bytes = block_bytes

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        memory: MemoryBank | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Both terms for the kept samples; an empty bank adds 0.

        Raises:
            ValueError: no memory.
        """
        if memory is None:
            raise ValueError("MemoryContrastiveLoss needs a memory bank")
        batch_term = super().forward(embeddings, labels, keep=keep)
        stored = memory.filled()
        memory_term = memory_contrastive_loss(
            embeddings,
            labels,
            stored.embeddings,
            stored.labels,
            keep=keep,
            margin=self.margin,
            positive_cutoff=self.positive_cutoff,
            relu_form=self.relu_form,
            block_bytes=self.block_bytes,
        )
        return self.batch_weight * batch_term + self.memory_weight * memory_term


def _at_least_float32(x: Tensor) -> Tensor:
    """Half precision cannot tell a cosine of 1 from the cut-off just below it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _active_pairs(
    similarity: Tensor,
    labels: Tensor,
    reference_labels: Tensor,
    margin: float,
    positive_cutoff: float,
) -> tuple[Tensor, Tensor]:
    """Masks [B, M] of the positive and of the negative pairs that cost something."""
    same = labels[:, None] == reference_labels
    positive = same & (similarity < 1 - positive_cutoff)
    negative = ~same & (similarity > margin)
    return positive, negative
