"""Pair losses whose columns may be more than their anchors, synthetic copies of them for example.

The forms are those of intra-class adaptive augmentation (Fu et al., IEEE TMM 2022, arXiv
2211.16264): every loss is a sum over the anchors' pairs divided by the number of anchors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisyml.errors import UserError
from noisyml.losses.metric_learning.pairs import (
    PairLoss,
    cosine_pairs,
    log1p_sum_exp,
    mine_pairs,
    row_min,
)


def multi_similarity_loss(
    anchors: Tensor,
    labels: Tensor,
    columns: Tensor | None = None,
    column_labels: Tensor | None = None,
    anchor_id: Tensor | None = None,
    column_id: Tensor | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 40.0,
    base: float = 0.5,
    epsilon: float = 0.1,
    positive_cutoff: float = 1e-5,
) -> Tensor:
    """Multi-Similarity over mined pairs (Wang et al., CVPR 2019), divided by B.

    An anchor costs log(1 + sum exp(-alpha (s - base))) / alpha over its mined positives plus
    log(1 + sum exp(beta (s - base))) / beta over its mined negatives, and nothing if it has none
    of either.

    Args:
        anchors: [B, A] float, unit norm; computed in float32 at least.
        labels: [B] int64.
        columns: [N, A], see `noisyml.losses.metric_learning.pairs.cosine_pairs`; None: the anchors.
        column_labels: [N] int64.
        anchor_id: [B] int64.
        column_id: [N] int64.
        alpha: scale of the positive pairs, positive.
        beta: scale of the negative pairs, positive; 40 in the code of the augmentation.
        base: lambda, a cosine.
        epsilon: slack of the mining, a cosine.
        positive_cutoff: a positive pair counts below a cosine of 1 minus this (drops duplicates).

    Returns:
        Scalar, attached to the graph.
    """
    pairs = cosine_pairs(
        anchors,
        labels,
        columns,
        column_labels,
        anchor_id,
        column_id,
        positive_cutoff=positive_cutoff,
    )
    positive, negative = mine_pairs(pairs, epsilon)
    used = positive.any(dim=1) & negative.any(dim=1)
    offset = pairs.similarity - base
    cost = (
        log1p_sum_exp(-alpha * offset, positive) / alpha
        + log1p_sum_exp(beta * offset, negative) / beta
    )
    return torch.where(used, cost, 0.0).sum() / max(1, len(anchors))


def two_margin_contrastive_loss(
    anchors: Tensor,
    labels: Tensor,
    columns: Tensor | None = None,
    column_labels: Tensor | None = None,
    anchor_id: Tensor | None = None,
    column_id: Tensor | None = None,
    *,
    positive_margin: float = 0.8,
    negative_margin: float = 0.5,
) -> Tensor:
    """Positives cost what they lack to one cosine, negatives what they exceed another, over B.

    Args:
        anchors: [B, A] float, unit norm; computed in float32 at least.
        labels: [B] int64.
        columns: [N, A], see `noisyml.losses.metric_learning.pairs.cosine_pairs`; None: the anchors.
        column_labels: [N] int64.
        anchor_id: [B] int64.
        column_id: [N] int64.
        positive_margin: cosine below which a positive pair costs.
        negative_margin: cosine above which a negative pair costs.

    Returns:
        Scalar, attached to the graph.
    """
    similarity, positive, negative = cosine_pairs(
        anchors, labels, columns, column_labels, anchor_id, column_id
    )
    lacking = (positive_margin - similarity).relu().masked_fill(~positive, 0.0)
    exceeding = (similarity - negative_margin).relu().masked_fill(~negative, 0.0)
    return (lacking + exceeding).sum() / max(1, len(anchors))


def hardest_negative_triplet_loss(
    anchors: Tensor,
    labels: Tensor,
    columns: Tensor | None = None,
    column_labels: Tensor | None = None,
    anchor_id: Tensor | None = None,
    column_id: Tensor | None = None,
    *,
    margin: float = 0.2,
) -> Tensor:
    """Every positive against the anchor's nearest negative (arXiv 2211.16264, eq. 19), over B.

    Args:
        anchors: [B, A] float, unit norm; computed in float32 at least.
        labels: [B] int64.
        columns: [N, A], see `noisyml.losses.metric_learning.pairs.cosine_pairs`; None: the anchors.
        column_labels: [N] int64.
        anchor_id: [B] int64.
        column_id: [N] int64.
        margin: how much nearer than the negative a positive must be, a Euclidean distance.

    Returns:
        Scalar, attached to the graph.
    """
    similarity, positive, negative = cosine_pairs(
        anchors, labels, columns, column_labels, anchor_id, column_id
    )
    squared = 2 - 2 * similarity
    # The root's slope is infinite at 0: where two rows coincide there is no direction to push in.
    apart = squared.detach() > torch.finfo(squared.dtype).eps
    distance = torch.where(apart, squared, 1.0).sqrt().masked_fill(~apart, 0.0)
    nearest = row_min(distance, negative, torch.inf)
    hinge = (distance - nearest[:, None] + margin).relu()
    return hinge.masked_fill(~positive, 0.0).sum() / max(1, len(anchors))


class MultiSimilarityLoss(PairLoss):
    """Multi-Similarity of mined pairs; see `multi_similarity_loss`, whose arguments these are.

    On a batch alone it differs from pytorch-metric-learning's loss with its miner in the default
    `beta` (50 there) and in dropping positive pairs of cosine 1.

    Args:
        alpha: scale of the positive pairs, positive.
        beta: scale of the negative pairs, positive.
        base: lambda, a cosine.
        epsilon: slack of the mining, a cosine.
        positive_cutoff: how far below 1 a positive's cosine must lie to count.

    Raises:
        UserError: a scale that is not positive, or a negative cut-off.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 40.0,
        base: float = 0.5,
        epsilon: float = 0.1,
        positive_cutoff: float = 1e-5,
    ) -> None:
        super().__init__()
        for name, scale in (("alpha", alpha), ("beta", beta)):
            if not scale > 0:
                raise UserError(f"loss.{name}={scale} scales cosines: give a positive number.")
        if not positive_cutoff >= 0:
            raise UserError(
                f"loss.positive_cutoff={positive_cutoff} is negative: give 0 or a small number."
            )
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.epsilon = epsilon
        self.positive_cutoff = positive_cutoff

    def between(
        self,
        anchors: Tensor,
        labels: Tensor,
        columns: Tensor,
        column_labels: Tensor,
        anchor_id: Tensor,
        column_id: Tensor,
    ) -> Tensor:
        """The loss of the anchors' pairs; see `PairLoss.between`."""
        return multi_similarity_loss(
            anchors,
            labels,
            columns,
            column_labels,
            anchor_id,
            column_id,
            alpha=self.alpha,
            beta=self.beta,
            base=self.base,
            epsilon=self.epsilon,
            positive_cutoff=self.positive_cutoff,
        )


class TwoMarginContrastiveLoss(PairLoss):
    """Contrastive loss with one margin per kind of pair; see `two_margin_contrastive_loss`.

    Args:
        positive_margin: cosine below which a positive pair costs, in [-1, 1].
        negative_margin: cosine above which a negative pair costs, in [-1, 1].

    Raises:
        UserError: a margin that is no cosine.
    """

    def __init__(self, positive_margin: float = 0.8, negative_margin: float = 0.5) -> None:
        super().__init__()
        for name, margin in (
            ("positive_margin", positive_margin),
            ("negative_margin", negative_margin),
        ):
            if not -1 <= margin <= 1:
                raise UserError(
                    f"loss.{name}={margin} is compared with a cosine: give a number from -1 to 1."
                )
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin

    def between(
        self,
        anchors: Tensor,
        labels: Tensor,
        columns: Tensor,
        column_labels: Tensor,
        anchor_id: Tensor,
        column_id: Tensor,
    ) -> Tensor:
        """The loss of the anchors' pairs; see `PairLoss.between`."""
        return two_margin_contrastive_loss(
            anchors,
            labels,
            columns,
            column_labels,
            anchor_id,
            column_id,
            positive_margin=self.positive_margin,
            negative_margin=self.negative_margin,
        )


class HardestNegativeTripletLoss(PairLoss):
    """Triplets of every positive and the nearest negative; see `hardest_negative_triplet_loss`.

    Args:
        margin: how much nearer than the negative a positive must be, a Euclidean distance.

    Raises:
        UserError: a negative margin.
    """

    def __init__(self, margin: float = 0.2) -> None:
        super().__init__()
        if not margin >= 0:
            raise UserError(f"loss.margin={margin} is negative: give 0 or a positive number.")
        self.margin = margin

    def between(
        self,
        anchors: Tensor,
        labels: Tensor,
        columns: Tensor,
        column_labels: Tensor,
        anchor_id: Tensor,
        column_id: Tensor,
    ) -> Tensor:
        """The loss of the anchors' pairs; see `PairLoss.between`."""
        return hardest_negative_triplet_loss(
            anchors,
            labels,
            columns,
            column_labels,
            anchor_id,
            column_id,
            margin=self.margin,
        )
