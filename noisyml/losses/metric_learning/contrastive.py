"""Contrastive loss within a batch and against a memory bank.

Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020 (arXiv 1912.06798), section 3.3;
with the filter of Liu et al., "Noise-resistant Deep Metric Learning with Ranking-based Instance
Selection", CVPR 2021 (arXiv 2103.16047), eq. 7 to 9, and the constants of their code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisyml.checks import Count, NonNegative
from noisyml.losses.base import EmbeddingLoss
from noisyml.losses.metric_learning.pairs import Cosine, Pairs, Samples, cosine_pairs
from noisyml.similarity.memory_bank import MemoryBank


def contrastive_loss(
    pairs: Pairs, *, margin: float = 0.5, positive_cutoff: float = 1e-5, relu_form: bool = False
) -> Tensor:
    """Sum over active pairs, divided by the number of anchors.

    A positive pair of cosine s < 1 - `positive_cutoff` costs 1 - s (the cut-off removes the pairs
    of a sample with itself), a negative pair of s > `margin` costs s. Each pair counts in both
    orders and sends its gradient to both sides.

    Args:
        pairs: of a batch with itself, ``among`` the kept samples.
        margin: lambda, a cosine.
        positive_cutoff: how far below 1 a positive's cosine must lie to count.
        relu_form: a negative costs ``s - margin`` as in the paper; other values, same gradients.

    Returns:
        Scalar, attached to the graph; 0 without anchors.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> pairs = cosine_pairs(Samples(embeddings, torch.tensor([7, 7, 8])))
        >>> round(float(contrastive_loss(pairs)), 4)  # 2 positives of 0.4, 2 negatives of 0.8
        0.8
        >>> keep = torch.tensor([True, True, False])
        >>> round(float(contrastive_loss(pairs.among(keep))), 4)
        0.4
    """
    positive, negative = active_pairs(pairs, margin, positive_cutoff)
    offset = margin if relu_form else 0.0
    cost = torch.where(positive, 1 - pairs.similarity, 0.0)
    cost = torch.where(negative, pairs.similarity - offset, cost)
    return pairs.mean(cost)


def memory_contrastive_loss(
    batch: Samples,
    stored: Samples,
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
        batch: B anchors without instance numbers; computed in float32 at least.
        stored: M rows without instance numbers; M may be 0, the loss is then 0.
        keep: [B] bool, the anchors; None keeps all.
        margin: lambda, a cosine.
        positive_cutoff: how far below 1 a positive's cosine must lie to count.
        relu_form: a negative costs ``s - margin`` as in the paper; other values, same gradients.
        block_bytes: bound on the similarities held at a time, in bytes.

    Returns:
        Scalar, attached to the graph of the anchors.

    Example:
        >>> batch = Samples(torch.tensor([[1.0, 0.0]]), torch.tensor([7]))
        >>> stored = Samples(torch.tensor([[0.8, 0.6], [0.6, 0.8]]), torch.tensor([7, 8]))
        >>> round(float(memory_contrastive_loss(batch, stored)), 4)  # 1 - 0.8, and 0.6
        0.8
    """
    with torch.autocast(batch.embeddings.device.type, enabled=False):
        embeddings = _at_least_float32(batch.embeddings)
        anchors = batch._replace(embeddings=embeddings.detach())
        slope = torch.zeros_like(anchors.embeddings)
        constant = slope.new_zeros(len(slope))
        for block in stored.blocks(
            max(1, block_bytes // max(1, slope.element_size() * len(slope)))
        ):
            positive, negative = active_pairs(cosine_pairs(anchors, block), margin, positive_cutoff)
            sign = negative.to(slope.dtype) - positive.to(slope.dtype)
            slope += sign @ block.embeddings.to(slope.dtype)
            constant += positive.sum(dim=1)
            if relu_form:
                constant -= margin * negative.sum(dim=1)
        # Where the set of active pairs stays the same the cost is linear in the anchor.
        cost = constant + (embeddings * slope).sum(dim=1)
        if keep is not None:
            cost = torch.where(keep, cost, 0.0)
        return cost.sum() / max(1, len(cost))


def active_pairs(pairs: Pairs, margin: float, positive_cutoff: float) -> tuple[Tensor, Tensor]:
    """Masks [B, N] of the positive and of the negative pairs that cost something.

    Args:
        pairs: as `cosine_pairs` gives them.
        margin: cosine above which a negative costs.
        positive_cutoff: how far below 1 a positive's cosine must lie to cost.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> pairs = cosine_pairs(Samples(embeddings, torch.tensor([7, 7, 8])))
        >>> positive, negative = active_pairs(pairs, margin=0.5, positive_cutoff=1e-5)
        >>> negative
        tensor([[False, False, False],
                [False, False,  True],
                [False,  True, False]])
    """
    similarity = pairs.similarity.detach()
    return (
        pairs.positive & (similarity < 1 - positive_cutoff),
        pairs.negative & (similarity > margin),
    )


class ContrastiveLoss(EmbeddingLoss):
    """Contrastive loss among the kept samples of a batch; see `contrastive_loss`.

    Args:
        margin: lambda, the cosine above which a negative costs, in [-1, 1].
        positive_cutoff: how far below 1 a positive's cosine must lie to count.
        relu_form: a negative costs ``s - margin`` instead of ``s``.

    Raises:
        ArgumentError: a margin that is no cosine, or a negative cut-off.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> round(float(ContrastiveLoss()(embeddings, torch.tensor([7, 7, 8]))), 4)
        0.8
    """

    def __init__(
        self,
        margin: Cosine = 0.5,
        positive_cutoff: NonNegative = 1e-5,
        relu_form: bool = False,
    ) -> None:
        super().__init__()
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
        pairs = cosine_pairs(Samples(embeddings, labels))
        return contrastive_loss(
            pairs if keep is None else pairs.among(keep),
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
        ArgumentError: a value out of range.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> labels = torch.tensor([7, 7, 8])
        >>> bank = MemoryBank(size=3, dim=2, num_classes=9)
        >>> bank.enqueue(embeddings, labels, index=torch.arange(3))
        >>> MemoryContrastiveLoss()(embeddings, labels, memory=bank).round(decimals=4)
        tensor(1.6000)
    """

    needs = frozenset({"memory"})

    def __init__(
        self,
        margin: Cosine = 0.5,
        positive_cutoff: NonNegative = 1e-5,
        relu_form: bool = False,
        batch_weight: float = 1.0,
        memory_weight: float = 1.0,
        block_bytes: Count = 2**26,
    ) -> None:
        super().__init__(margin, positive_cutoff, relu_form)
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
            Samples(embeddings, labels),
            Samples(stored.embeddings, stored.labels),
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
