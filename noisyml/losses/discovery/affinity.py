"""Contrastive affinity learning: a student's embeddings pulled to their pseudo-positives in memory.

Which rows of the memory are positives of a query comes from `noisyml.similarity.affinity`; here are
the negatives, the rule of the labels and the loss (Zhang et al., "PromptCAL", CVPR 2023).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from noisyml.checks import Count, Positive, WholeNonNegative, checked

#: What happens where a row has more positives than the budget allows pairs, see `sample_negatives`.
Overdraft = Literal["clamp", "released"]


class PairMasks(NamedTuple):
    """Rows of a memory that each query is compared with, bool [Q, M] each.

    Attributes:
        positives: edges of the affinity graph.
        negatives: others that were drawn.
    """

    positives: Tensor
    negatives: Tensor


@checked
def sample_negatives(
    positives: Tensor,
    budget: Count | None,
    generator: torch.Generator | None = None,
    overdraft: Overdraft = "clamp",
) -> Tensor:
    """Rows drawn uniformly, without replacement, among those that are no positives.

    A query with a positives gets ``budget - a`` of them, or all if there are fewer. Keys are drawn
    for the whole matrix at once and ranked row by row.

    Args:
        positives: bool [Q, M].
        budget: pairs of a query in all; None: every other row is a negative.
        generator: on the CPU; draws alike on every process that has the same.
        overdraft: with more positives than the budget: no negatives (``clamp``), or all but a few
            (``released``: the number is the end of a slice and becomes negative).

    Returns:
        bool [Q, M].

    Example:
        >>> import torch
        >>> edges = torch.tensor([[True, False, False, False]])
        >>> int(sample_negatives(edges, 3, torch.Generator().manual_seed(0)).sum())
        2
    """
    others = ~positives
    if budget is None:
        return others
    wanted = budget - positives.sum(dim=1)
    if overdraft == "released":
        wanted = torch.where(wanted < 0, others.sum(dim=1) + wanted, wanted)
    keys = torch.rand(positives.shape, generator=generator).to(positives.device)
    most = positives.shape[1] if overdraft == "released" else min(budget, positives.shape[1])
    chosen = keys.masked_fill(positives, 2.0).topk(most, dim=1, largest=False).indices
    place = torch.arange(most, device=positives.device)
    drawn = torch.zeros_like(positives).scatter_(1, chosen, place < wanted[:, None])
    return drawn & others


@checked
def follow_labels(masks: PairMasks, labels: Tensor, memory_labels: Tensor) -> PairMasks:
    """The masks where two labels decide: equal ones are positives, different ones are not.

    A pair of different classes that was no edge becomes a negative only if it was drawn.

    Args:
        masks: of Q queries and M rows of the memory.
        labels: [Q] int64, negative: none.
        memory_labels: [M] int64, negative: none.

    Source: PromptCAL (``SemiPriori``), applied after diffusion as its authors say.

    Example:
        >>> import torch
        >>> none = torch.zeros(1, 3, dtype=torch.bool)
        >>> memory_labels = torch.tensor([0, 1, -1])
        >>> found = follow_labels(PairMasks(none, none), torch.tensor([0]), memory_labels)
        >>> found.positives.tolist()
        [[True, False, False]]
    """
    must, cannot = links(labels, memory_labels)
    positives, negatives = masks
    return PairMasks(
        (positives | must) & ~cannot,
        (negatives | (cannot & positives)) & ~must,
    )


def links(labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of equal and of different labels, bool [Q, M] each; a negative label has no pair.

    Args:
        labels: [Q] int64.
        others: [M] int64.
    """
    both = (labels >= 0)[:, None] & (others >= 0)[None, :]
    same = labels[:, None] == others[None, :]
    return both & same, both & ~same


class EdgeAgreement(NamedTuple):
    """Agreement of edges with labels, 0-d, NaN where undefined.

    Attributes:
        precision: share of the edges whose two labels are equal, of those with two labels.
        recall: share of the pairs of equal labels that are edges, averaged over queries.
    """

    precision: Tensor
    recall: Tensor


def edge_agreement(edges: Tensor, labels: Tensor, memory_labels: Tensor) -> EdgeAgreement:
    """Precision and recall of a graph's edges, where both ends have a label.

    Args:
        edges: bool [Q, M].
        labels: [Q] int64, negative: none.
        memory_labels: [M] int64, negative: none.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[True, True, False]])
        >>> found = edge_agreement(edges, torch.tensor([0]), torch.tensor([0, 1, 0]))
        >>> float(found.precision), float(found.recall)
        (0.5, 0.5)
    """
    same, apart = links(labels, memory_labels)
    right = (edges & same).sum(dim=1).double()
    whole = same.sum(dim=1)
    return EdgeAgreement(
        right.sum() / (edges & (same | apart)).sum(), (right / whole)[whole > 0].mean()
    )


@checked
def contrastive_affinity(
    embeddings: Tensor,
    own: Tensor,
    memory: Tensor,
    masks: PairMasks,
    temperature: Positive = 0.07,
) -> Tensor:
    """Minus the mean log-probability of a query's own teacher embedding and of its positives.

    Probabilities are over the own embedding, positives and negatives; the gradient flows through
    the queries alone.

    Args:
        embeddings: the student's [Q, D], unit norm.
        own: the teacher's of the same images [Q, D], unit norm.
        memory: [M, D], unit norm.
        masks: see `PairMasks`.
        temperature: of the similarities.

    Returns:
        [Q], query by query.

    Raises:
        ValueError: shapes that do not fit.

    Source: PromptCAL, contrastive affinity loss.

    Example:
        >>> import torch
        >>> rows, none = torch.eye(2), torch.zeros(2, 1, dtype=torch.bool)
        >>> contrastive_affinity(rows, rows, rows[:1], PairMasks(none, none)).abs().tolist()
        [0.0, 0.0]
    """
    if own.shape != embeddings.shape or masks.positives.shape != (len(embeddings), len(memory)):
        raise ValueError(
            f"own {list(own.shape)} and masks {list(masks.positives.shape)} must be "
            f"{list(embeddings.shape)} and [{len(embeddings)}, {len(memory)}]"
        )
    positives, negatives = masks
    mine = (embeddings * own.detach()).sum(dim=1, keepdim=True) / temperature
    theirs = embeddings @ memory.detach().T / temperature
    seen = theirs.masked_fill(~(positives | negatives), -torch.inf)
    total = torch.cat([mine, seen], dim=1).logsumexp(dim=1, keepdim=True)
    log_share = torch.where(positives, theirs - total, 0.0).sum(dim=1)
    found: Tensor = -((mine - total)[:, 0] + log_share) / (1 + positives.sum(dim=1))
    return found


def affinity_weight(
    iteration: WholeNonNegative, ramp: WholeNonNegative, most: float = 0.6
) -> float:
    """Share of the affinity loss in the unsupervised part, ``most * min(it, ramp) / ramp``.

    Args:
        iteration: from 0.
        ramp: iterations until `most`; 0: from the start.
        most: at the end.

    Example:
        >>> [affinity_weight(it, 2) for it in (0, 1, 2, 3)]
        [0.0, 0.3, 0.6, 0.6]
    """
    return most * min(iteration, ramp) / ramp if ramp else most


def fading_weight(
    epoch: WholeNonNegative, epochs: WholeNonNegative, start: float = 0.5, end: float = 0.01
) -> float:
    """Weight of the distillation from pretrained features, falling on a line and then 0.

    Args:
        epoch: from 0.
        epochs: so many epochs have it.
        start: in the first one.
        end: that the line would reach after the last one.

    Example:
        >>> [round(fading_weight(epoch, 5), 3) for epoch in (0, 1, 5)]
        [0.5, 0.402, 0.0]
    """
    return start - (start - end) * epoch / epochs if epoch < epochs else 0.0
