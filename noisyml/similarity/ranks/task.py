"""Queries and a gallery, related by their labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from noisyml.similarity.ranks.scores import PairScores, Rows, checked_norms


@dataclass(frozen=True)
class RankingTask:
    """Queries, gallery and the classes that relate them.

    Attributes:
        scores: exact and filter scores.
        query_class, gallery_class: class numbers [Nq], [Ng], ascending with the class size.
        left_out, left_out_start: the gallery items to leave out of each query's ranking:
            left_out[left_out_start[i] : left_out_start[i + 1]], int64 [J] and [Nq + 1].
        n_relevant: relevant gallery items of each query without those left out [Nq].
        symmetric: the queries are the gallery, in the same order.
    """

    scores: PairScores
    query_class: Tensor
    gallery_class: Tensor
    left_out: Tensor
    left_out_start: Tensor
    n_relevant: Tensor
    symmetric: bool

    def left_out_of(self, query_index: Tensor) -> tuple[Tensor, Tensor]:
        """Row within `query_index` [b] and gallery number of each item to leave out, [j] each."""
        start = self.left_out_start[query_index]
        length = self.left_out_start[query_index + 1] - start
        rows = torch.repeat_interleave(length)
        first = length.cumsum(0) - length
        offset = torch.arange(len(rows), device=rows.device) - first[rows]
        return rows, self.left_out[start[rows] + offset]


def ranking_task(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    left_out: tuple[Tensor, Tensor],
    metric: Literal["cosine", "l2"],
) -> RankingTask:
    """Relate queries to a gallery (None: the queries themselves).

    Args:
        query: [Nq, D] float.
        query_labels: [Nq] int64.
        gallery: [Ng, D] float or None.
        gallery_labels: [Ng] int64 or None.
        left_out: (query number, gallery number) int64 [J] each, all pairs different and in the
            order of the queries: what to leave out of the ranking, above all the query itself.
        metric: how to compare.

    Raises:
        UserError: NaN or infinite embeddings.
    """
    query_norms = checked_norms(query, "query")
    # One product cannot serve both sides where an item is left out of one side only.
    symmetric = gallery is None and torch.equal(*left_out)
    gallery_norms = query_norms if gallery is None else checked_norms(gallery, "gallery")
    largest = max(
        [float(norms.max()) for norms in (query_norms, gallery_norms) if len(norms)], default=1.0
    )
    scale = 2.0 ** math.frexp(largest)[1]
    query_rows = Rows(query, query_norms, metric, scale)
    gallery_rows = query_rows if gallery is None else Rows(gallery, gallery_norms, metric, scale)

    items = query_labels if gallery_labels is None else gallery_labels
    joint = query_labels if gallery_labels is None else torch.cat([query_labels, gallery_labels])
    classes, member = joint.unique(return_inverse=True)
    sizes = torch.bincount(member[len(member) - len(items) :], minlength=len(classes))
    by_size = torch.empty_like(sizes)
    by_size[sizes.argsort(stable=True)] = torch.arange(len(sizes), device=sizes.device)
    query_class = by_size[member[: len(query_labels)]]
    gallery_class = by_size[member[len(member) - len(items) :]]

    out_query, out_item = left_out
    left_out_start = torch.zeros(len(query) + 1, dtype=torch.int64, device=query.device)
    left_out_start[1:] = torch.bincount(out_query, minlength=len(query)).cumsum(0)
    of_class = query_class[out_query] == gallery_class[out_item]
    n_relevant = sizes[member[: len(query_labels)]]
    n_relevant = n_relevant - torch.bincount(out_query[of_class], minlength=len(query))
    return RankingTask(
        PairScores(query_rows, gallery_rows),
        query_class,
        gallery_class,
        out_item,
        left_out_start,
        n_relevant,
        symmetric,
    )
