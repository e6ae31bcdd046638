"""Votes of the nearest rows of the memory, on current features."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from noisyml.checks import Count, Positive, Share, WholeNonNegative
from noisyml.selectors.base import Evidence, Selection, Selector


@torch.no_grad()
def memory_votes(
    embeddings: Tensor,
    index: Tensor,
    rows: Tensor,
    labels: Tensor,
    positions: Tensor,
    num_classes: int,
    k: int = 10,
    temperature: float | None = None,
) -> Tensor:
    """Shares of the votes of each sample's k nearest rows [B, C]; its own old rows have none.

    Args:
        embeddings: [B, D] unit-norm.
        index: positions of the samples [B] int64.
        rows: [M, D] unit-norm, of the memory.
        labels: theirs [M] int64.
        positions: theirs [M] int64.
        num_classes: C.
        k: votes; fewer where there are fewer rows.
        temperature: votes weigh ``exp(cosine / temperature)`` (Wu et al., CVPR 2018, arXiv
            1805.01978, eq. 6); None: 1 each.

    Returns:
        NaN for a sample without a neighbour.
    """
    similarity = embeddings @ rows.to(embeddings.dtype).T
    similarity = similarity.masked_fill(index[:, None] == positions[None, :], -torch.inf)
    nearest, place = similarity.topk(min(k, len(rows)), dim=1)
    power = torch.ones_like(nearest) if temperature is None else (nearest / temperature).exp()
    power = torch.where(nearest.isinf(), 0.0, power)
    votes = torch.zeros(len(embeddings), num_classes, dtype=power.dtype, device=power.device)
    votes.scatter_add_(1, labels[place], power)
    return votes / votes.sum(dim=1, keepdim=True)


class NeighbourVote(Selector):
    """Keeps samples whose label the nearest rows of the memory vote for (kNN vote).

    Args:
        k: votes of each sample.
        threshold: share of the votes from which a label is kept; None: it must have the most.
        temperature: of the votes, see `memory_votes`; None: they weigh the same.
        warmup_steps: steps that keep everything.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"embeddings", "memory"})

    def __init__(
        self,
        k: Count = 10,
        threshold: Share | None = None,
        temperature: Positive | None = None,
        warmup_steps: WholeNonNegative = 0,
    ) -> None:
        super().__init__()
        self.k = k
        self.threshold = threshold
        self.temperature = temperature
        self.warmup_steps = warmup_steps

    @torch.no_grad()
    def select(self, evidence: Evidence) -> Selection:
        """Judge one global batch; `p_clean` is the share of the votes for the label."""
        if evidence.embeddings is None or evidence.memory is None:
            raise ValueError("this selector needs embeddings and a memory")
        memory, labels = evidence.memory, evidence.labels
        if not len(memory):
            return Selection.keep_everything(labels)
        rows = memory.filled()
        votes = memory_votes(
            evidence.embeddings,
            evidence.index,
            rows.embeddings,
            rows.labels,
            rows.index,
            memory.num_classes,
            self.k,
            self.temperature,
        )
        own = votes.gather(1, labels[:, None]).squeeze(1)
        others = votes.scatter(1, labels[:, None], -1.0).amax(dim=1)
        keep = own >= (others if self.threshold is None else self.threshold)
        keep = keep | own.isnan()
        if evidence.step < self.warmup_steps:
            keep = torch.ones_like(keep)
        return Selection(keep, own.float(), log_odds=(own - others).float())
