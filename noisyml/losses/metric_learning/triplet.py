"""Triplet loss with the samplers of negatives of the metric-learning literature, vectorised.

Schroff et al., "FaceNet", CVPR 2015 (arXiv 1503.03832), for semi-hard negatives; Wu et al.,
"Sampling Matters in Deep Embedding Learning", ICCV 2017 (arXiv 1706.07567), section 4.1, for
distance-weighted ones; with the constants and rules of the code released with Park et al.,
"Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068).
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.checks import Interval, Seed
from noisyml.losses.base import EmbeddingLoss
from noisyml.losses.metric_learning.distances import pair_distances
from noisyml.similarity.memory_bank import MemoryBank

#: Ways to choose the negatives that meet a pair of anchor and positive.
Negatives = Literal["random", "hardest", "semi_hard", "all", "distance_weighted"]
#: Ways to turn the distances of a triplet into a cost.
Form = Literal["hinge", "contrastive"]

#: Distance of unit vectors.
Distance = Annotated[float, Interval(ge=0, le=2)]

#: Added to differences before their norm, as PyTorch's pairwise distance does.
_OFFSET = 1e-6


class Triplets(NamedTuple):
    """Positions in the batch, [T] int64 each: the positive shares the anchor's label.

    Example:
        >>> Triplets(torch.tensor([0]), torch.tensor([1]), torch.tensor([2])).negative
        tensor([2])
    """

    anchor: Tensor
    positive: Tensor
    negative: Tensor


def all_triplets(labels: Tensor) -> Triplets:
    """Every anchor with every positive and every negative.

    Args:
        labels: [B] int64.

    Example:
        >>> labels = torch.tensor([7, 7, 8, 9])
        >>> all_triplets(labels).negative
        tensor([2, 3, 2, 3])
    """
    anchor, positive, strangers = _pairs(labels)
    pair, negative = strangers.nonzero(as_tuple=True)
    return Triplets(anchor[pair], positive[pair], negative)


def random_triplets(labels: Tensor, *, generator: torch.Generator | None = None) -> Triplets:
    """Every pair with one negative, all equally likely.

    Args:
        labels: [B] int64.
        generator: of any device; None: the global one of the CPU.

    Example:
        >>> labels = torch.tensor([7, 7, 8, 9])
        >>> random_triplets(labels, generator=torch.Generator().manual_seed(0)).anchor
        tensor([0, 1])
    """
    anchor, positive, strangers = _pairs(labels)
    return Triplets(anchor, positive, _draw(strangers.to(torch.float64), generator))


def hardest_triplets(distances: Tensor, labels: Tensor) -> Triplets:
    """Every pair with the negative nearest to the anchor.

    Args:
        distances: [B, B] float, see `pair_distances`.
        labels: [B] int64.

    Example:
        >>> labels = torch.tensor([7, 7, 8, 9])
        >>> distances = pair_distances(torch.tensor([[0.0], [1.0], [0.5], [3.0]]))
        >>> hardest_triplets(distances, labels).negative
        tensor([2, 2])
    """
    anchor, positive, strangers = _pairs(labels)
    return Triplets(anchor, positive, _nearest(distances[anchor], strangers))


def semi_hard_triplets(distances: Tensor, labels: Tensor) -> Triplets:
    """Every pair with the nearest negative beyond the positive, or the farthest if none is.

    Args:
        distances: [B, B] float, see `pair_distances`.
        labels: [B] int64.

    Example:
        >>> labels = torch.tensor([7, 7, 8, 9])
        >>> distances = pair_distances(torch.tensor([[0.0], [1.0], [0.5], [3.0]]))
        >>> semi_hard_triplets(distances, labels).negative
        tensor([3, 3])
    """
    anchor, positive, strangers = _pairs(labels)
    from_anchor = distances[anchor]
    beyond = strangers & (from_anchor > distances[anchor, positive, None])
    if strangers.shape[0] == 0:
        return Triplets(anchor, positive, anchor)
    farthest = from_anchor.masked_fill(~strangers, -torch.inf).argmax(dim=1)
    negative = torch.where(beyond.any(dim=1), _nearest(from_anchor, beyond), farthest)
    return Triplets(anchor, positive, negative)


def distance_weights(
    embeddings: Tensor, labels: Tensor, *, cutoff: float = 0.5, reach: float = 1.4
) -> Tensor:
    """Probability of each sample to be drawn as the negative of each anchor.

    Inverse to the density of distances d between points uniform on the sphere (arXiv 1706.07567,
    eq. 2): log w = (2 - D) log d - (D - 3)/2 log(1 - d^2/4).

    Args:
        embeddings: [B, D] float, unit norm; computed in float64.
        labels: [B] int64.
        cutoff: distances below it weigh as much as one of this size.
        reach: negatives from this distance on are not drawn, unless an anchor has no others; then
            they are equally likely.

    Returns:
        [B, B] float64; rows sum to 1, or to 0 for an anchor without negatives.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
        >>> distance_weights(embeddings, torch.tensor([7, 7, 8]))
        tensor([[0.0000, 0.0000, 1.0000],
                [0.0000, 0.0000, 1.0000],
                [0.4949, 0.5051, 0.0000]], dtype=torch.float64)
    """
    with torch.no_grad():
        distances = pair_distances(embeddings).clamp(min=cutoff)
        dim = embeddings.shape[1]
        # Antipodes have density 0 and, in the formula, infinite weight.
        room = (1 - distances.square() / 4).clamp(min=torch.finfo(torch.float64).tiny)
        log_weight = (2 - dim) * distances.log() - (dim - 3) / 2 * room.log()
        strangers = labels[:, None] != labels
        near = strangers & (distances < reach)
        some_near = near.any(dim=1, keepdim=True)
        # Only eligible negatives enter the softmax: the weight of a close positive would make
        # theirs vanish in rounding.
        log_weight = torch.where(some_near, log_weight, 0.0)
        eligible = torch.where(some_near, near, strangers)
        weight = log_weight.masked_fill(~eligible, -torch.inf).softmax(dim=1)
        return weight.masked_fill(~eligible, 0.0)


def distance_weighted_triplets(
    weights: Tensor, labels: Tensor, *, generator: torch.Generator | None = None
) -> Triplets:
    """Every pair with one negative drawn with the anchor's weights.

    Args:
        weights: [B, B] float, not negative, see `distance_weights`; rows need not sum to 1.
        labels: [B] int64.
        generator: of any device; None: the global one of the CPU.

    Example:
        >>> labels = torch.tensor([7, 7, 8, 9])
        >>> weights = torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(4, -1)
        >>> distance_weighted_triplets(weights, labels).negative
        tensor([2, 2])
    """
    anchor, positive, _ = _pairs(labels)
    return Triplets(anchor, positive, _draw(weights[anchor], generator))


def triplet_loss(
    embeddings: Tensor, triplets: Triplets, *, margin: float = 0.2, form: Form = "hinge"
) -> Tensor:
    """Mean cost of triplets, those that cost nothing included.

    Args:
        embeddings: [B, D] float, usually unit norm; distances are computed in float64.
        triplets: positions in the batch; there may be none.
        margin: alpha, a distance.
        form: ``hinge``: max(0, d_ap - d_an + margin) (arXiv 1503.03832, eq. 3, of distances not
            squared); ``contrastive``: the mean of d_ap^2 and max(0, margin - d_an)^2.

    Returns:
        Scalar, 0 without triplets.

    Example:
        >>> embeddings, labels = torch.tensor([[0.0], [1.0], [0.5]]), torch.tensor([7, 7, 8])
        >>> triplet_loss(embeddings, all_triplets(labels)).round(decimals=4)
        tensor(0.7000)
    """
    distances = pair_distances(embeddings, offset=_OFFSET)
    to_positive = distances[triplets.anchor, triplets.positive]
    to_negative = distances[triplets.anchor, triplets.negative]
    if form == "hinge":
        cost = (to_positive - to_negative + margin).clamp(min=0)
    else:
        cost = (to_positive.square() + (margin - to_negative).clamp(min=0).square()) / 2
    value = cost.sum() / max(1, len(cost))
    return value.to(torch.promote_types(embeddings.dtype, torch.float32))


class TripletLoss(EmbeddingLoss):
    """Triplet loss on the kept samples of a batch, brought to unit norm; see `triplet_loss`.

    Draws depend on `seed` and the number of training steps alone, so that all processes and a
    resumed run draw alike.

    Args:
        negatives: which negatives meet a pair: ``random``, ``hardest``, ``semi_hard``, ``all`` or
            ``distance_weighted``.
        margin: alpha, a distance of unit vectors, in [0, 2].
        form: ``hinge`` or ``contrastive``.
        cutoff: of distance weighting, see `distance_weights`.
        reach: of distance weighting, see `distance_weights`.
        seed: of the draws of ``random`` and ``distance_weighted``.

    Raises:
        ArgumentError: an unknown choice, or a distance out of range.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> TripletLoss("hardest")(embeddings, torch.tensor([7, 7, 8])).round(decimals=4)
        tensor(0.2310)
    """

    steps: Tensor

    def __init__(
        self,
        negatives: Negatives = "distance_weighted",
        margin: Distance = 0.2,
        form: Form = "hinge",
        cutoff: Annotated[float, Interval(gt=0, le=2)] = 0.5,
        reach: Distance = 1.4,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.negatives: Negatives = negatives
        self.margin = margin
        self.form: Form = form
        self.cutoff = cutoff
        self.reach = reach
        self.seed = seed
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        memory: MemoryBank | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The loss of the kept samples among themselves; `memory` is not read."""
        if keep is not None:
            kept = keep.nonzero().squeeze(1)
            embeddings, labels = embeddings[kept], labels[kept]
        with torch.autocast(embeddings.device.type, enabled=False):
            rows = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
            rows = F.normalize(rows, dim=1)
        triplets = self.triplets(rows.detach(), labels)
        if self.training:
            self.steps += 1
        return triplet_loss(rows, triplets, margin=self.margin, form=self.form)

    @torch.no_grad()
    def triplets(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        """The triplets this step's batch is made into.

        Args:
            embeddings: [B, D] float, unit norm.
            labels: [B] int64.
        """
        if self.negatives == "all":
            return all_triplets(labels)
        if self.negatives == "random":
            return random_triplets(labels, generator=self._generator())
        if self.negatives == "distance_weighted":
            weights = distance_weights(embeddings, labels, cutoff=self.cutoff, reach=self.reach)
            return distance_weighted_triplets(weights, labels, generator=self._generator())
        distances = pair_distances(embeddings)
        mine = hardest_triplets if self.negatives == "hardest" else semi_hard_triplets
        return mine(distances, labels)

    def _generator(self) -> torch.Generator:
        entropy = np.random.SeedSequence([self.seed, int(self.steps)])
        return torch.Generator().manual_seed(int(entropy.generate_state(1)[0]))


def _pairs(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ordered pairs of equal labels, [P] and [P], and which samples are their negatives [P, B].

    Anchors without any negative make no triplets.
    """
    same = labels[:, None] == labels
    pairs = same & ~same.all(dim=1, keepdim=True)
    anchor, positive = pairs.fill_diagonal_(False).nonzero(as_tuple=True)
    return anchor, positive, ~same[anchor]


def _nearest(distances: Tensor, among: Tensor) -> Tensor:
    """Column of the least distance [P, B] among those allowed."""
    if distances.shape[0] == 0:
        return distances.new_zeros(0, dtype=torch.int64)
    return distances.masked_fill(~among, torch.inf).argmin(dim=1)


def _draw(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """One column [P] per row of weights [P, B]: the first arrival of exponential clocks."""
    if weights.shape[0] == 0:
        return weights.new_zeros(0, dtype=torch.int64)
    device = torch.device("cpu") if generator is None else generator.device
    clocks = torch.empty(weights.shape, device=device).exponential_(generator=generator)
    return (clocks.to(weights.device) / weights).argmin(dim=1)
