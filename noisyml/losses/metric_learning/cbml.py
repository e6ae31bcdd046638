"""Contrastive Bayesian loss with the metric variance constraint.

Kan et al., "Contrastive Bayesian Analysis for Deep Metric Learning", IEEE TPAMI 2023
(arXiv 2210.04402). Figures marked *released* are those of the authors' code for CUB-200-2011.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from noisyml.checks import Count, NonNegative, Positive, Share
from noisyml.errors import UserError
from noisyml.losses.metric_learning.pairs import (
    PairLoss,
    Pairs,
    log1p_sum_exp,
    mine_pairs,
    row_max,
    row_mean,
    row_min,
)

Form = Literal["log", "sqrt", "const"]
Constraint = Literal[
    "mvc", "none", "released_2020_06_02", "released_2020_07_16", "released_2020_08_07"
]
Reduction = Literal["sum", "mean"]

#: Largest exponent of which float32 holds the exponential of a few thousand terms' sum.
_LARGEST_EXPONENT = 80.0


def cbml_loss(
    pairs: Pairs,
    *,
    form: Form = "log",
    a_p: float = 0.5,
    b_p: float = 0.5,
    a_n: float = 1.0,
    b_n: float = 0.01,
    margin: float = 0.1,
    adaptive_negatives: bool = True,
    fixed_negatives: int = 100,
    constraint: Constraint = "mvc",
    mvc_weight: float = 1.0,
    hyper_weight: float = 0.2,
    mvc_reduction: Reduction = "sum",
    positive_weight: float = 0.25,
    negative_weight: float = 0.25,
    positive_cutoff: float = 1e-5,
) -> Tensor:
    """Negative log posterior of mined pairs plus the variance constraint, over the B anchors.

    With E+ = sum exp(-(s - a_p) / b_p) over an anchor's mined positives and
    E- = sum exp((s - a_n) / b_n) over its mined negatives, the anchor costs
    ``log``: log(1 + E+) + log(1 + E-); ``sqrt``: sqrt(1 + E+) + sqrt(1 + E-);
    ``const``: 2 + w_p E+ + w_n E-; plus `mvc_weight` times its constraint. An anchor without a
    mined positive or without a mined negative costs nothing, its constraint included; the divisor
    is the number of all anchors.

    Args:
        pairs: B anchors and their columns, see `cosine_pairs`.
        form: how a pair sum enters.
        a_p: cosine at which a positive pair's posterior is one half.
        b_p: its scale, positive.
        a_n: the same for negative pairs.
        b_n: its scale, positive.
        margin: m, slack of the mining.
        adaptive_negatives: mine negatives by `margin`; False: the `fixed_negatives` most similar.
        fixed_negatives: how many those are; all of them if there are fewer.
        constraint: ``mvc``: squared distance of the unmined negatives' cosines from
            h mean(positives) + (1 - h) mean(negatives); ``none``; or an earlier released form, see
            `_constraint`.
        mvc_weight: w, factor of the constraint.
        hyper_weight: h, in [0, 1].
        mvc_reduction: ``sum`` over the negatives (released) or their ``mean``.
        positive_weight: w_p of the ``const`` form.
        negative_weight: w_n of the ``const`` form.
        positive_cutoff: a positive pair counts below a cosine of 1 minus this (drops duplicates).

    Returns:
        Scalar, attached to the graph.

    Example:
        >>> from noisyml.losses.metric_learning.pairs import Samples, cosine_pairs
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> pairs = cosine_pairs(Samples.of_batch(embeddings, torch.tensor([7, 7, 8])))
        >>> cbml_loss(pairs).round(decimals=4)
        tensor(0.1999)
    """
    pairs = pairs.below(positive_cutoff)
    similarity = pairs.similarity
    positive, negative = mine_pairs(pairs, margin)
    if not adaptive_negatives:
        negative = most_similar_negatives(pairs, fixed_negatives)
    used = positive.any(dim=1) & negative.any(dim=1)

    # Unused anchors lose their pairs here, so that nothing of theirs can overflow below.
    positive, negative = positive & used[:, None], negative & used[:, None]
    log_positive = log1p_sum_exp((a_p - similarity) / b_p, positive)
    log_negative = log1p_sum_exp((similarity - a_n) / b_n, negative)
    if form == "log":
        cost = log_positive + log_negative
    elif form == "sqrt":
        cost = (log_positive / 2).exp() + (log_negative / 2).exp()
    else:
        # expm1(log(1 + E)) is E, to full precision also where E is tiny.
        cost = 2 + positive_weight * log_positive.expm1() + negative_weight * log_negative.expm1()
    if constraint != "none":
        selected = positive | negative
        cost = cost + mvc_weight * _constraint(
            pairs, selected, constraint, hyper_weight, mvc_reduction
        )
    return pairs.mean(torch.where(used, cost, 0.0))


class CBMLLoss(PairLoss):
    """Contrastive Bayesian metric learning; see `cbml_loss`, whose arguments these are.

    Args:
        form: ``log``, ``sqrt`` or ``const``.
        a_p: location of the positive pairs' posterior, a cosine.
        b_p: its scale, positive.
        a_n: location of the negative pairs' posterior, a cosine.
        b_n: its scale, positive.
        margin: m, slack of the mining, a cosine.
        adaptive_negatives: mine negatives by the margin; False: the most similar ones.
        fixed_negatives: how many those are.
        constraint: ``mvc``, ``none`` or an earlier released form.
        mvc_weight: w, factor of the constraint, not negative.
        hyper_weight: h, share of the positives in the constraint's centre, in [0, 1].
        mvc_reduction: ``sum`` or ``mean`` over an anchor's negatives.
        positive_weight: w_p of the ``const`` form.
        negative_weight: w_n of the ``const`` form.
        positive_cutoff: how far below 1 a positive's cosine must lie to count.

    Raises:
        ArgumentError: a value out of range.
        UserError: exponents too large for the form.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> CBMLLoss()(embeddings, torch.tensor([7, 7, 8])).round(decimals=4)
        tensor(0.1999)
    """

    def __init__(
        self,
        form: Form = "log",
        a_p: float = 0.5,
        b_p: Positive = 0.5,
        a_n: float = 1.0,
        b_n: Positive = 0.01,
        margin: float = 0.1,
        adaptive_negatives: bool = True,
        fixed_negatives: Count = 100,
        constraint: Constraint = "mvc",
        mvc_weight: NonNegative = 1.0,
        hyper_weight: Share = 0.2,
        mvc_reduction: Reduction = "sum",
        positive_weight: NonNegative = 0.25,
        negative_weight: NonNegative = 0.25,
        positive_cutoff: NonNegative = 1e-5,
    ) -> None:
        # A cosine spans [-1, 1]; the square root halves the exponent, the logarithm has no limit.
        limit = {"log": math.inf, "sqrt": 2 * _LARGEST_EXPONENT, "const": _LARGEST_EXPONENT}[form]
        for side, exponent in (("p", (1 + a_p) / b_p), ("n", (1 - a_n) / b_n)):
            if exponent > limit:
                raise UserError(
                    f"loss.a_{side} and loss.b_{side} let exponents grow to {exponent:.0f}, too "
                    f"large for loss.form={form}: raise loss.b_{side} or use loss.form=log."
                )
        super().__init__(
            partial(
                cbml_loss,
                form=form,
                a_p=a_p,
                b_p=b_p,
                a_n=a_n,
                b_n=b_n,
                margin=margin,
                adaptive_negatives=adaptive_negatives,
                fixed_negatives=fixed_negatives,
                constraint=constraint,
                mvc_weight=mvc_weight,
                hyper_weight=hyper_weight,
                mvc_reduction=mvc_reduction,
                positive_weight=positive_weight,
                negative_weight=negative_weight,
                positive_cutoff=positive_cutoff,
            )
        )


def most_similar_negatives(pairs: Pairs, number: int) -> Tensor:
    """Each anchor's most similar negatives: the mining without a margin (``fixed_negatives``).

    Args:
        pairs: B anchors and N columns, see `cosine_pairs`.
        number: negatives of each anchor; all of them if there are fewer.

    Returns:
        Mask [B, N] bool; of equal cosines any.

    Example:
        >>> from noisyml.losses.metric_learning.pairs import Samples, cosine_pairs
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> pairs = cosine_pairs(Samples.of_batch(embeddings, torch.tensor([7, 7, 8])))
        >>> most_similar_negatives(pairs, 1)
        tensor([[False, False,  True],
                [False, False,  True],
                [False,  True, False]])
    """
    cosines = pairs.similarity.detach().masked_fill(~pairs.negative, -torch.inf)
    index = cosines.topk(min(number, cosines.shape[1]), dim=1).indices
    return torch.zeros_like(pairs.negative).scatter(1, index, True) & pairs.negative


def _constraint(
    pairs: Pairs,
    selected: Tensor,
    constraint: Constraint,
    hyper_weight: float,
    reduction: Reduction,
) -> Tensor:
    """The constraint of each anchor [B]; meaningless where it has no positive or no negative.

    All but the oldest are the squared distances of the unmined negatives from a centre:

    * ``mvc`` (and the code of 2020-08-05): h mean(positives) + (1 - h) mean(negatives);
    * ``released_2020_07_16``: (mean(row) + midpoint) / 2;
    * ``released_2020_08_07``: (1 - h) mean(row) + h midpoint,

    with the midpoint of the least similar positive and the most similar negative. The code of
    2020-06-02 sums |mean(row) - mean(selected)| and |sum (row - mean(row))^2 - var(selected)|, the
    first square a sum and the second a mean. A row holds the anchor's cosine to itself as well.
    """
    s, h = pairs.similarity, hyper_weight
    if constraint == "released_2020_06_02":
        row_centre, centre = s.mean(dim=1), row_mean(s, selected)
        variance = row_mean((s - centre[:, None]) ** 2, selected)
        spread = ((s - row_centre[:, None]) ** 2).sum(dim=1)
        return (row_centre - centre).abs() + (spread - variance).abs()
    if constraint == "mvc":
        centre = h * row_mean(s, pairs.positive) + (1 - h) * row_mean(s, pairs.negative)
    else:
        midpoint = (row_min(s, pairs.positive, 0.0) + row_max(s, pairs.negative, 0.0)) / 2
        if constraint == "released_2020_07_16":
            centre = (s.mean(dim=1) + midpoint) / 2
        else:
            centre = (1 - h) * s.mean(dim=1) + h * midpoint
    squares = (s - centre[:, None]) ** 2
    if reduction == "mean":
        return row_mean(squares, pairs.negative)
    return squares.masked_fill(~pairs.negative, 0.0).sum(dim=1)
