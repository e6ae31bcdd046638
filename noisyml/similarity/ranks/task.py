"""Queries and a gallery, related by their labels or by lists of what is relevant."""

from __future__ import annotations

import itertools
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
        left_out, left_out_start: the gallery items that are no negatives of a query although their
            class is another one: left_out[left_out_start[i] : left_out_start[i + 1]], int64 [J]
            and [Nq + 1]. In the query's class: those that are not relevant either.
        listed, listed_start: where lists say what is relevant, those items in the same form,
            ascending for each query; else None. No query has then the class of a gallery item, and
            what is listed is among what is left out.
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
    listed: Tensor | None = None
    listed_start: Tensor | None = None

    def listed_of(self, query_index: Tensor) -> tuple[Tensor, Tensor]:
        """Listed items [b, R] of queries `query_index` [b], and False in the padding [b, R].

        Raises:
            ValueError: labels say what is relevant.
        """
        if self.listed is None or self.listed_start is None:
            raise ValueError("relevance follows from labels here")
        start = self.listed_start[query_index]
        length = self.listed_start[query_index + 1] - start
        offset = torch.arange(int(length.max()) if len(length) else 0, device=start.device)
        place = (start[:, None] + offset).clamp(max=max(0, len(self.listed) - 1))
        return self.listed[place], offset < length[:, None]

    def parts_of(self, query_index: Tensor, at_once: int, large: int) -> list[slice]:
        """Queries, in class order, in parts of at most so many, none of which begins in a class of
        `large` or more and ends in another: it would be multiplied with both."""
        ends = [len(query_index)]
        if self.listed is None:
            sizes = self.query_class[query_index].unique_consecutive(return_counts=True)[1]
            edge = sizes >= large
            edge[:-1] |= edge[1:].clone()
            edge[-1:] = True
            ends = sizes.cumsum(0)[edge].tolist()
        return [
            slice(top, min(top + at_once, end))
            for start, end in itertools.pairwise([0, *ends])
            for top in range(start, end, at_once)
        ]

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
    query_labels: Tensor | None,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    left_out: tuple[Tensor, Tensor],
    metric: Literal["cosine", "l2"],
    relevant: tuple[Tensor, Tensor] | None = None,
) -> RankingTask:
    """Relate queries to a gallery (None: the queries themselves).

    Args:
        query: [Nq, D] float.
        query_labels: [Nq] int64; not read where `relevant` is given.
        gallery: [Ng, D] float or None.
        gallery_labels: [Ng] int64 or None.
        left_out: (query number, gallery number) int64 [J] each, all pairs different and in the
            order of the queries: what to leave out of the ranking, above all the query itself.
        metric: how to compare.
        relevant: pairs in the form of `left_out` that are relevant, in place of those of equal
            labels; what is left out as well is not.

    Raises:
        UserError: NaN or infinite embeddings.
    """
    query_norms = checked_norms(query, "query")
    # One product cannot serve both sides where an item is left out of one side only.
    symmetric = gallery is None and relevant is None and torch.equal(*left_out)
    gallery_norms = query_norms if gallery is None else checked_norms(gallery, "gallery")
    largest = max(
        [float(norms.max()) for norms in (query_norms, gallery_norms) if len(norms)], default=1.0
    )
    scale = 2.0 ** math.frexp(largest)[1]
    query_rows = Rows(query, query_norms, metric, scale)
    gallery_rows = query_rows if gallery is None else Rows(gallery, gallery_norms, metric, scale)

    scores = PairScores(query_rows, gallery_rows)
    if relevant is not None:
        return _listed_task(scores, left_out, relevant)
    if query_labels is None:
        raise ValueError("either labels or lists say what is relevant")
    items = query_labels if gallery_labels is None else gallery_labels
    joint = query_labels if gallery_labels is None else torch.cat([query_labels, gallery_labels])
    classes, member = joint.unique(return_inverse=True)
    sizes = torch.bincount(member[len(member) - len(items) :], minlength=len(classes))
    by_size = torch.empty_like(sizes)
    by_size[sizes.argsort(stable=True)] = torch.arange(len(sizes), device=sizes.device)
    query_class = by_size[member[: len(query_labels)]]
    gallery_class = by_size[member[len(member) - len(items) :]]

    out_query, out_item = left_out
    left_out_start = _starts(out_query, len(query))
    of_class = query_class[out_query] == gallery_class[out_item]
    n_relevant = sizes[member[: len(query_labels)]]
    n_relevant = n_relevant - torch.bincount(out_query[of_class], minlength=len(query))
    return RankingTask(
        scores,
        query_class,
        gallery_class,
        out_item,
        left_out_start,
        n_relevant,
        symmetric,
    )


def _listed_task(
    scores: PairScores, left_out: tuple[Tensor, Tensor], relevant: tuple[Tensor, Tensor]
) -> RankingTask:
    """The task of lists of relevant items: none of them is a negative of its query."""
    n, n_gallery = len(scores.query), len(scores.gallery)
    out = left_out[0] * n_gallery + left_out[1]
    listed = (relevant[0] * n_gallery + relevant[1]).unique()
    listed = listed[~torch.isin(listed, out)]
    aside = torch.cat([out, listed]).unique()
    n_relevant = torch.bincount(listed // n_gallery, minlength=n)
    # Queries come in the order of their lists' length, and have no gallery item's class.
    query_class = n_relevant.unique(return_inverse=True)[1] + 1
    return RankingTask(
        scores,
        query_class,
        torch.zeros(n_gallery, dtype=torch.int64, device=query_class.device),
        aside % n_gallery,
        _starts(aside // n_gallery, n),
        n_relevant,
        symmetric=False,
        listed=listed % n_gallery,
        listed_start=_starts(listed // n_gallery, n),
    )


def _starts(rows: Tensor, n: int) -> Tensor:
    """Place at which each of `n` rows begins in ascending row numbers [J], int64 [n + 1]."""
    starts = torch.zeros(n + 1, dtype=torch.int64, device=rows.device)
    starts[1:] = torch.bincount(rows, minlength=n).cumsum(0)
    return starts
