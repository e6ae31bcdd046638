"""Pair losses whose columns may be more than their anchors, synthetic copies of them for example.

The forms are those of intra-class adaptive augmentation (Fu et al., IEEE TMM 2022, arXiv
2211.16264): every loss is a sum over the anchors' pairs divided by the number of anchors.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from noisyml.checks import NonNegative, Positive
from noisyml.losses.metric_learning.pairs import (
    Cosine,
    PairLoss,
    Pairs,
    log1p_sum_exp,
    mine_pairs,
    row_min,
)
from noisyml.losses.second_order import KnownGradient

#: e to the power of it vanishes beside 1, but is no denormal number.
_LEAST_EXPONENT = -80.0


def multi_similarity_loss(
    pairs: Pairs,
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
        pairs: B anchors and their columns, see `cosine_pairs`.
        alpha: scale of the positive pairs, positive.
        beta: scale of the negative pairs, positive; 40 in the code of the augmentation.
        base: lambda, a cosine.
        epsilon: slack of the mining, a cosine.
        positive_cutoff: a positive pair counts below a cosine of 1 minus this (drops duplicates).

    Returns:
        Scalar, attached to the graph.

    Example:
        >>> from noisyml.losses.metric_learning.pairs import Samples, cosine_pairs
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> pairs = cosine_pairs(Samples.of_batch(embeddings, torch.tensor([7, 7, 8])))
        >>> multi_similarity_loss(pairs).round(decimals=4)
        tensor(0.1997)
    """
    plain = partial(_plain_costs, pairs, alpha, beta, base, epsilon, positive_cutoff)
    with torch.no_grad():
        cost, slope = _costs_and_slope(pairs, alpha, beta, base, epsilon, positive_cutoff)
    return pairs.mean(KnownGradient.apply(pairs.similarity, cost, slope, plain))


def _plain_costs(
    pairs: Pairs,
    alpha: float,
    beta: float,
    base: float,
    epsilon: float,
    cutoff: float,
    similarity: Tensor,
) -> Tensor:
    """Sum of the anchors' costs in operations that autograd can follow."""
    pairs = pairs._replace(similarity=similarity).below(cutoff)
    positive, negative = mine_pairs(pairs, epsilon)
    used = positive.any(dim=1) & negative.any(dim=1)
    offset = similarity - base
    cost = (
        log1p_sum_exp(-alpha * offset, positive) / alpha
        + log1p_sum_exp(beta * offset, negative) / beta
    )
    return torch.where(used, cost, 0.0).sum()


def _costs_and_slope(
    pairs: Pairs, alpha: float, beta: float, base: float, epsilon: float, cutoff: float
) -> tuple[Tensor, Tensor]:
    """Sum of the anchors' costs, and its gradient [B, N] with respect to the cosines.

    Of each kind the hardest pair of an anchor is mined if any is, and has the largest exponent.
    """
    similarity = pairs.similarity
    if similarity.shape[1] == 0:
        return similarity.sum(), torch.zeros_like(similarity)
    positive = similarity.masked_fill(~pairs.below(cutoff).positive, torch.inf)
    negative = similarity.masked_fill(~pairs.negative, -torch.inf)
    nearest, farthest = positive.amin(dim=1), negative.amax(dim=1)
    used = (nearest - epsilon < farthest) & (farthest + epsilon > nearest)
    positive.masked_fill_(positive - epsilon >= farthest[:, None], torch.inf)
    negative.masked_fill_(negative + epsilon <= nearest[:, None], -torch.inf)
    cost, slope = similarity.new_zeros(len(used)), None
    for cosines, hardest, scale in ((positive, nearest, -alpha), (negative, farthest, beta)):
        largest = ((hardest - base) * scale).clamp(min=0.0)
        share = cosines.sub_(base).mul_(scale).sub_(largest[:, None])
        # What no sum notices takes many times as long to exponentiate; it is 0 in the gradient.
        share = share.clamp_(min=_LEAST_EXPONENT).exp_()
        total = share.sum(dim=1) + torch.exp(-largest)
        cost += (largest + total.log()) / abs(scale)
        factor = torch.where(used, math.copysign(1.0, scale) / total, 0.0)[:, None]
        slope = share.mul_(factor) if slope is None else slope.addcmul_(share, factor)
    assert slope is not None
    slope = hardshrink(slope, 2 * math.exp(_LEAST_EXPONENT))
    return torch.where(used, cost, 0.0).sum(), slope


def two_margin_contrastive_loss(
    pairs: Pairs,
    *,
    positive_margin: float = 0.8,
    negative_margin: float = 0.5,
) -> Tensor:
    """Positives cost what they lack to one cosine, negatives what they exceed another, over B.

    Args:
        pairs: B anchors and their columns, see `cosine_pairs`.
        positive_margin: cosine below which a positive pair costs.
        negative_margin: cosine above which a negative pair costs.

    Returns:
        Scalar, attached to the graph.

    Example:
        >>> from noisyml.losses.metric_learning.pairs import Samples, cosine_pairs
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> pairs = cosine_pairs(Samples.of_batch(embeddings, torch.tensor([7, 7, 8])))
        >>> two_margin_contrastive_loss(pairs).round(decimals=4)
        tensor(0.3333)
    """
    lacking = (positive_margin - pairs.similarity).relu().masked_fill(~pairs.positive, 0.0)
    exceeding = (pairs.similarity - negative_margin).relu().masked_fill(~pairs.negative, 0.0)
    return pairs.mean(lacking + exceeding)


def hardest_negative_triplet_loss(
    pairs: Pairs,
    *,
    margin: float = 0.2,
) -> Tensor:
    """Every positive against the anchor's nearest negative (arXiv 2211.16264, eq. 19), over B.

    Args:
        pairs: B anchors and their columns, see `cosine_pairs`.
        margin: how much nearer than the negative a positive must be, a Euclidean distance.

    Returns:
        Scalar, attached to the graph.

    Example:
        >>> from noisyml.losses.metric_learning.pairs import Samples, cosine_pairs
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> pairs = cosine_pairs(Samples.of_batch(embeddings, torch.tensor([7, 7, 8])))
        >>> hardest_negative_triplet_loss(pairs).round(decimals=4)
        tensor(0.1540)
    """
    squared = 2 - 2 * pairs.similarity
    # The root's slope is infinite at 0: where two rows coincide there is no direction to push in.
    apart = squared.detach() > torch.finfo(squared.dtype).eps
    distance = torch.where(apart, squared, 1.0).sqrt().masked_fill(~apart, 0.0)
    nearest = row_min(distance, pairs.negative, torch.inf)
    hinge = (distance - nearest[:, None] + margin).relu()
    return pairs.mean(hinge.masked_fill(~pairs.positive, 0.0))


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
        ArgumentError: a scale that is not positive, or a negative cut-off.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> round(float(MultiSimilarityLoss()(embeddings, torch.tensor([7, 7, 8]))), 4)
        0.1997
    """

    def __init__(
        self,
        alpha: Positive = 2.0,
        beta: Positive = 40.0,
        base: float = 0.5,
        epsilon: float = 0.1,
        positive_cutoff: NonNegative = 1e-5,
    ) -> None:
        super().__init__(
            partial(
                multi_similarity_loss,
                alpha=alpha,
                beta=beta,
                base=base,
                epsilon=epsilon,
                positive_cutoff=positive_cutoff,
            )
        )


class TwoMarginContrastiveLoss(PairLoss):
    """Contrastive loss with one margin per kind of pair; see `two_margin_contrastive_loss`.

    Args:
        positive_margin: cosine below which a positive pair costs, in [-1, 1].
        negative_margin: cosine above which a negative pair costs, in [-1, 1].

    Raises:
        ArgumentError: a margin that is no cosine.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> round(float(TwoMarginContrastiveLoss()(embeddings, torch.tensor([7, 7, 8]))), 4)
        0.3333
    """

    def __init__(self, positive_margin: Cosine = 0.8, negative_margin: Cosine = 0.5) -> None:
        super().__init__(
            partial(
                two_margin_contrastive_loss,
                positive_margin=positive_margin,
                negative_margin=negative_margin,
            )
        )


class HardestNegativeTripletLoss(PairLoss):
    """Triplets of every positive and the nearest negative; see `hardest_negative_triplet_loss`.

    Args:
        margin: how much nearer than the negative a positive must be, a Euclidean distance.

    Raises:
        ArgumentError: a negative margin.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> round(float(HardestNegativeTripletLoss()(embeddings, torch.tensor([7, 7, 8]))), 4)
        0.154
    """

    def __init__(self, margin: NonNegative = 0.2) -> None:
        super().__init__(partial(hardest_negative_triplet_loss, margin=margin))
