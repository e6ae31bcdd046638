"""Retrieval metrics of embeddings: exact, blockwise, with stated rules for ties and lone queries.

A query's ranking orders the gallery by descending cosine (or ascending Euclidean distance), ties by
ascending gallery number, the query itself left out by its number. With R relevant items left, and
rank(m) the rank of the m-th of them:

* ``precision_at_K``: relevant items among the first K, over K.
* ``precision_capped_at_K``: the same over min(K, rank(R)), as in the revisited Oxford and Paris
  benchmarks (Radenovic et al., CVPR 2018): with everything found, nothing is missing.
* ``recall_at_K``: 1 if one of the first K is relevant (the metric-learning convention).
* ``r_precision``: relevant items among the first R, over R.
* ``map_at_r``: (1/R) sum of m / rank(m) over the m with rank(m) <= R
  (Musgrave et al., A Metric Learning Reality Check, ECCV 2020).
* ``map``: the same over all m, i.e. average precision; ``map_at_K``: over rank(m) <= K, divisor R;
  ``map_capped_at_K``: the same with divisor min(R, K).
* ``map_trapezoid``: (1/2R) sum of p0(m) + m / rank(m), with p0(m) = (m - 1) / (rank(m) - 1), or 1
  if rank(m) = 1: the area under the precision-recall curve by trapezoids, the mAP of the Oxford and
  Paris benchmarks (Philbin et al., CVPR 2007; Radenovic et al., CVPR 2018).
* ``mrr``: 1 / rank(1).
* ``mean_precision_1_to_100``: mean of precision_at_1 .. precision_at_100, called mAP@100 in the
  code of PRISM (Liu et al., CVPR 2021); NaN with fewer than 100 other items.
* ``recall_margin_at_K``: 1 if fewer than K irrelevant items are strictly more similar than the best
  relevant one; equals ``recall_at_K`` without ties and is optimistic with them.

A *lone* query has no relevant item (R = 0).

From embeddings to metrics: `retrieval_metrics` checks its arguments and asks for ranks
(`noisyml.similarity.ranks`: `task` relates queries to a gallery, `walk` leads them past it, `tile`
and `block` count the negatives before each relevant item); `RankMetric` turns the ranks of a query
into values, and their means are returned.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, overload

import numpy as np
import torch
from torch import Tensor

from noisyml.checks import Count, Ge, Hint, checked
from noisyml.distributed import (
    all_reduce_sum,
    is_distributed,
    rank,
    world_size,
)
from noisyml.errors import UserError
from noisyml.similarity.ranks.block import QueryBlock, Ties
from noisyml.similarity.ranks.task import ranking_task
from noisyml.similarity.ranks.walk import Ranking

Lone = Literal["exclude", "zero"]
Average = Literal["micro", "macro"]
Distance = Literal["cosine", "l2"]
#: Embeddings, and labels: integers or strings.
Rows = Tensor | np.ndarray
Labels = Tensor | np.ndarray | Sequence[int] | Sequence[str]
#: Gallery items of each query: a list with a collection of numbers for each; or (numbers [J],
#: offsets [Nq + 1]), those of query i being numbers[offsets[i] : offsets[i + 1]]; or a mask, bool
#: [Nq, Ng].
Listed = tuple[Rows, Rows] | list[Collection[int]] | Rows

DEFAULT_METRICS = ("precision_at_1", "r_precision", "map_at_r")
DEFAULT_MEMORY_BUDGET = 128 * 2**20
#: Working memory in bytes, of 1 MiB or more.
MemoryBudget = Annotated[int, Ge(2**20), Hint("Tiles of scores need 1 MiB.")]

_FIXED = ("r_precision", "map_at_r", "map", "map_trapezoid", "mrr", "mean_precision_1_to_100")
_AT_K = re.compile(
    r"(precision|precision_capped|recall|recall_margin|map|map_capped)_at_([1-9]\d*)"
)
_NO_LIMIT = 2**62
#: Ranks of a block that metrics are computed from at once, in some ten copies.
_RANKS_AT_ONCE = 2**18


@dataclass(frozen=True)
class RankMetric:
    """One metric of one query, as a function of the ranks of its relevant items."""

    name: str
    kind: str
    k: int = 0

    @classmethod
    def parse(cls, name: str) -> RankMetric:
        """The metric called `name`.

        Raises:
            UserError: there is none.
        """
        if name in _FIXED:
            return cls(name, name, 100 if name == "mean_precision_1_to_100" else 0)
        match = _AT_K.fullmatch(name)
        if match is None:
            raise UserError(
                f"Unknown retrieval metric {name!r}; choose from {', '.join(_FIXED)}, "
                "precision_at_K, precision_capped_at_K, recall_at_K, recall_margin_at_K, "
                "map_at_K and map_capped_at_K with K = 1, 2, ..."
            )
        return cls(name, match[1], int(match[2]))

    def caps(self, m: Tensor, n_relevant: Tensor) -> Tensor:
        """Most negatives before the m-th (from 0) relevant item at which it still matters."""
        if self.kind in ("recall", "recall_margin"):
            return torch.where(m == 0, self.k - 1, -1)
        if self.kind == "mrr":
            return torch.where(m == 0, _NO_LIMIT, -1)
        if self.kind in ("r_precision", "map_at_r"):
            return n_relevant - 1 - m
        if self.k:
            return self.k - 1 - m
        return torch.full_like(m, _NO_LIMIT)

    def values(self, ranks: Tensor, n_relevant: Tensor) -> Tensor:
        """Per-query values float64 [b].

        Args:
            ranks: rank of the m-th relevant item from 1, ascending, int64 [b, R]; of a query with
                fewer relevant items the others are not read.
            n_relevant: [b], at least 1.
        """
        if self.kind in ("recall", "recall_margin"):
            return (ranks[:, 0] <= self.k).to(torch.float64)
        if self.kind == "mrr":
            return 1.0 / ranks[:, 0].to(torch.float64)
        if self.kind == "mean_precision_1_to_100":
            return self._mean_precision(ranks[:, : self.k].contiguous(), n_relevant)
        by_r = self.kind in ("r_precision", "map_at_r")
        limit = n_relevant if by_r else torch.full_like(n_relevant, self.k or _NO_LIMIT)
        hits = _number_within(ranks, n_relevant, limit)
        count = n_relevant.to(torch.float64)
        if self.kind == "precision":
            return hits.to(torch.float64) / self.k
        if self.kind == "precision_capped":
            last = ranks.gather(1, n_relevant[:, None] - 1).squeeze(1)
            return hits.to(torch.float64) / last.clamp(max=self.k)
        if self.kind == "r_precision":
            return hits.to(torch.float64) / count
        if self.kind == "map_capped":
            count = count.clamp(max=self.k)
        # Ranks beyond all hits need no work, but other devices would have to be waited for.
        width = int(hits.max()) if hits.device.type == "cpu" else ranks.shape[1]
        some = ranks[:, :width].to(torch.float64)
        position = torch.arange(1, some.shape[1] + 1, device=ranks.device)
        precision = position / some
        if self.kind == "map_trapezoid":
            before = torch.where(some == 1, 1.0, (position - 1) / (some - 1))
            precision = 0.5 * (before + precision)
        return _sums_of_first(precision, hits) / count

    def _mean_precision(self, ranks: Tensor, n_relevant: Tensor) -> Tensor:
        """Mean of the precision at 1 to `k`, of the first ranks [b, k]."""
        hits = _number_within(ranks, n_relevant, torch.full_like(n_relevant, self.k))
        # An item at rank r adds 1/k to every precision_at_k with k >= r.
        steps = 1.0 / torch.arange(1, self.k + 1, dtype=torch.float64, device=ranks.device)
        tail = steps.flip(0).cumsum(0).flip(0)
        return _sums_of_first(tail[(ranks - 1).clamp(max=self.k - 1)], hits) / self.k


def _number_within(ranks: Tensor, n_relevant: Tensor, limit: Tensor) -> Tensor:
    """Number [b] of relevant items at `limit` [b] or before it, of ascending ranks [b, R]."""
    found = torch.searchsorted(ranks, limit[:, None], right=True).squeeze(1)
    return torch.minimum(found, n_relevant)


def _sums_of_first(x: Tensor, n: Tensor) -> Tensor:
    """Sum of the first `n` [b] numbers of each row of x [b, R], one term after the other: [b].

    A sum in blocks would round differently where rows are longer or shorter.
    """
    if not x.shape[1]:
        return x.new_zeros(len(x))
    sums = x.cumsum(1).gather(1, (n[:, None] - 1).clamp(min=0)).squeeze(1)
    return sums.masked_fill_(n == 0, 0.0)


@overload
def retrieval_metrics(
    query: Rows,
    query_labels: Labels | None = ...,
    gallery: Rows | None = ...,
    gallery_labels: Labels | None = ...,
    *,
    metrics: Sequence[str] = ...,
    recall_at: Sequence[int] = ...,
    metric: Distance = ...,
    exclude_self: bool | None = ...,
    query_index_in_gallery: Tensor | None = ...,
    junk: Listed | None = ...,
    relevant: Listed | None = ...,
    lone: Lone = ...,
    average: Average = ...,
    tie_bounds: bool = ...,
    memory_budget_bytes: int = ...,
    return_per_query: Literal[False] = ...,
    share_over_ranks: bool = ...,
) -> dict[str, float]: ...


@overload
def retrieval_metrics(
    query: Rows,
    query_labels: Labels | None = ...,
    gallery: Rows | None = ...,
    gallery_labels: Labels | None = ...,
    *,
    metrics: Sequence[str] = ...,
    recall_at: Sequence[int] = ...,
    metric: Distance = ...,
    exclude_self: bool | None = ...,
    query_index_in_gallery: Tensor | None = ...,
    junk: Listed | None = ...,
    relevant: Listed | None = ...,
    lone: Lone = ...,
    average: Average = ...,
    tie_bounds: bool = ...,
    memory_budget_bytes: int = ...,
    return_per_query: Literal[True],
    share_over_ranks: bool = ...,
) -> tuple[dict[str, float], dict[str, Tensor]]: ...


@checked
@torch.no_grad()
def retrieval_metrics(
    query: Rows,
    query_labels: Labels | None = None,
    gallery: Rows | None = None,
    gallery_labels: Labels | None = None,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    recall_at: Sequence[Count] = (1,),
    metric: Distance = "cosine",
    exclude_self: bool | None = None,
    query_index_in_gallery: Tensor | None = None,
    junk: Listed | None = None,
    relevant: Listed | None = None,
    lone: Lone = "exclude",
    average: Average = "micro",
    tie_bounds: bool = False,
    memory_budget_bytes: MemoryBudget = DEFAULT_MEMORY_BUDGET,
    return_per_query: bool = False,
    share_over_ranks: bool = False,
) -> dict[str, float] | tuple[dict[str, float], dict[str, Tensor]]:
    """Retrieval metrics by name, plus ``queries`` and ``lone_queries``.

    Scores are exact inner products of rows rounded to a grid finer than float32 arithmetic (see
    `noisyml.similarity.ranks.walk`), so results do not depend on the block size, the number of
    processes or the matrix library. Time O(Nq Ng D), halved where queries are the gallery.

    Args:
        query: [Nq, D] floating point: a tensor, an array or a memory map.
        query_labels: [Nq] integers (tensor, array or list) or strings; needed unless `relevant` is
            given.
        gallery: [Ng, D]; None: the queries are the gallery.
        gallery_labels: [Ng], of the same kind as `query_labels`; given with `gallery`.
        metrics: names from the table at the head of this module.
        recall_at: every K here adds ``recall_at_K``.
        metric: ``cosine`` or ``l2``.
        exclude_self: leave the query itself out. Default: True if there is no separate gallery or
            if `query_index_in_gallery` is given. With a gallery and True alone, query i is
            gallery item i (queries first, distractors after them).
        query_index_in_gallery: gallery number of each query, or -1 [Nq] int64.
        junk: gallery items that do not exist for a query, whatever their label, as in the protocols
            of Oxford and Paris (Philbin et al., CVPR 2007; Radenovic et al., CVPR 2018); see
            `Listed` for its forms. What is left out or junk is not relevant.
        relevant: gallery items that are relevant to each query, in the same forms, in place of
            those of the query's label; `query_labels` then only tell what ``macro`` averages over.
        lone: ``exclude`` lone queries from every mean (NaN if none is left) or score them ``zero``.
        average: ``micro``: mean over queries; ``macro``: mean over classes of the class means.
        tie_bounds: add ``<name>_optimistic`` and ``<name>_pessimistic``, with relevant items first
            or last among equal scores.
        memory_budget_bytes: aim of the working memory beyond the inputs; at least 1 MiB.
        return_per_query: also return the values per query, float64 [Nq] by name (NaN for lone
            queries under ``exclude``).
        share_over_ranks: all ranks hold the same inputs; each does a share of the work.

    Raises:
        UserError: NaN or infinite embeddings, an unknown metric, or none asked for.
        ValueError: shapes that do not fit together, or neither labels nor lists.
        TypeError: labels that are not integers or embeddings that are not floating point.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> found = retrieval_metrics(rows, torch.tensor([0, 0, 1, 0]), metrics=["map_at_r"])
        >>> {name: round(value, 3) for name, value in found.items()}
        {'map_at_r': 0.75, 'recall_at_1': 0.667, 'queries': 4.0, 'lone_queries': 1.0}
        >>> retrieval_metrics(rows[:2], gallery=rows[2:], relevant=[[1], [0, 1]], junk=[[0], []])
        {'precision_at_1': 1.0, 'r_precision': 1.0, 'map_at_r': 1.0, 'recall_at_1': 1.0, \
'queries': 2.0, 'lone_queries': 0.0}
    """
    if not metrics and not recall_at:
        raise UserError(
            "No retrieval metric is asked for: name some in metrics=, or give recall_at=."
        )
    query = _rows(query)
    gallery = None if gallery is None else _rows(gallery)
    query_labels, gallery_labels = _numbered(query_labels, gallery_labels, query.device)
    n_gallery = len(query) if gallery is None else len(gallery)
    if query_labels is None and (relevant is None or average == "macro"):
        raise ValueError("query_labels are needed unless relevant is given and average is micro")
    pairs = None if relevant is None else _pairs("relevant", relevant, len(query), n_gallery, query)
    own_index = _own_index(
        query,
        query_labels,
        gallery,
        gallery_labels,
        exclude_self,
        query_index_in_gallery,
        by_labels=relevant is None,
    )
    names = dict.fromkeys([*metrics, *(f"recall_at_{k}" for k in recall_at)])
    wanted = [RankMetric.parse(name) for name in names]
    columns: list[tuple[str, RankMetric, Ties]] = [
        (m.name, m, "optimistic" if m.kind == "recall_margin" else "index") for m in wanted
    ]
    if tie_bounds:
        bounds: tuple[Ties, ...] = ("optimistic", "pessimistic")
        columns += [
            (f"{m.name}_{ties}", m, ties)
            for m in wanted
            if m.kind != "recall_margin"
            for ties in bounds
        ]

    left_out = _left_out(own_index, junk, n_gallery)
    task = ranking_task(
        query,
        None if query_labels is None else query_labels.to(torch.int64),
        gallery,
        None if gallery_labels is None else gallery_labels.to(torch.int64),
        left_out,
        metric,
        pairs,
    )
    shared = share_over_ranks and is_distributed()
    ranking = Ranking(
        task,
        _caps(wanted),
        sorted({ties for _, _, ties in columns}),
        memory_budget_bytes,
        part=rank() if shared else 0,
        parts=world_size() if shared else 1,
        reduce=all_reduce_sum if shared else None,
    )
    per_query = query.new_zeros((len(columns), len(query)), dtype=torch.float64)
    for block in ranking.blocks():
        _score_block(block, columns, per_query)
        del block  # The next one is opened in its room.
    if shared and not ranking.symmetric:
        per_query = all_reduce_sum(per_query)

    others = n_gallery - torch.bincount(left_out[0], minlength=len(query))
    for row, (_, m, _) in enumerate(columns):
        if m.kind == "mean_precision_1_to_100":
            per_query[row, others < 100] = torch.nan
    lone_queries = task.n_relevant == 0
    per_query[:, lone_queries] = 0.0 if lone == "zero" else torch.nan

    counted = slice(None) if lone == "zero" else ~lone_queries
    groups = torch.zeros_like(lone_queries) if query_labels is None else query_labels
    means = _means(per_query[:, counted], groups[counted], average)
    result = {name: mean for (name, _, _), mean in zip(columns, means, strict=True)}
    result["queries"] = float(len(query))
    result["lone_queries"] = float(lone_queries.sum())
    if return_per_query:
        return result, {name: per_query[row] for row, (name, _, _) in enumerate(columns)}
    return result


def _rows(rows: Rows) -> Tensor:
    """Rows as a tensor; an array, which may be mapped from a file, is read where it lies."""
    if isinstance(rows, Tensor):
        return rows
    array = np.asarray(rows)
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = array.astype(array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        # PyTorch cannot promise not to write; we do.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


def _numbered(
    labels: Labels | None, others: Labels | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Labels of both sides as tensors; equal strings become equal numbers."""
    if labels is None:
        return None, None
    sides = [side for side in (labels, others) if side is not None]
    arrays: Sequence[np.ndarray | None] = [
        None if isinstance(side, Tensor) else np.asarray(side) for side in sides
    ]
    words = [array is not None and array.dtype.kind in "OSU" for array in arrays]
    if any(words):
        if not all(words):
            raise TypeError("labels of the queries and of the gallery must both be strings or not")
        texts = [array.astype(str) for array in arrays if array is not None]
        codes = np.unique(np.concatenate(texts), return_inverse=True)[1].reshape(-1)
        arrays = np.split(codes, [len(texts[0])])[: len(texts)]
    tensors = [
        side if isinstance(side, Tensor) else torch.tensor(array, device=device)
        for side, array in zip(sides, arrays, strict=True)
    ]
    return tensors[0], tensors[1] if len(tensors) == 2 else None


def _own_index(
    query: Tensor,
    query_labels: Tensor | None,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    exclude_self: bool | None,
    query_index_in_gallery: Tensor | None,
    by_labels: bool,
) -> Tensor:
    """Check the inputs; the gallery number to leave out for each query, -1 for none."""
    if by_labels and (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels must be given together")
    sides = [("query", query, query_labels)]
    if gallery is not None:
        sides.append(("gallery", gallery, gallery_labels))
    for name, embeddings, labels in sides:
        shape = None if labels is None else tuple(labels.shape)
        if embeddings.ndim != 2 or shape not in (None, tuple(embeddings.shape[:1])):
            raise ValueError(
                f"{name} embeddings {tuple(embeddings.shape)} and labels {shape} must be [N, D] "
                "and [N]"
            )
        if not embeddings.is_floating_point():
            raise TypeError(f"{name} embeddings must be floating point, got {embeddings.dtype}")
        if labels is None:
            continue
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"{name} labels must be integers, got {labels.dtype}")
    if gallery is not None and gallery.shape[1] != query.shape[1]:
        raise ValueError(
            f"query and gallery embeddings have {query.shape[1]} and {gallery.shape[1]} dimensions"
        )
    if query_index_in_gallery is not None:
        if gallery is None or exclude_self is False:
            raise ValueError("query_index_in_gallery needs a gallery and exclude_self not False")
        if query_index_in_gallery.shape != query.shape[:1]:
            raise ValueError("query_index_in_gallery must hold one number per query")
        if len(query) and int(query_index_in_gallery.max()) >= len(gallery):
            raise ValueError("query_index_in_gallery points behind the end of the gallery")
        return query_index_in_gallery.to(torch.int64)
    if exclude_self or (exclude_self is None and gallery is None):
        if gallery is not None and len(gallery) < len(query):
            raise ValueError("exclude_self needs a gallery that begins with the queries")
        return torch.arange(len(query), device=query.device)
    return torch.full((len(query),), -1, dtype=torch.int64, device=query.device)


def _left_out(own_index: Tensor, junk: Listed | None, n_gallery: int) -> tuple[Tensor, Tensor]:
    """The different pairs (query, gallery number) to leave out, [J] each, in query order."""
    rows = (own_index >= 0).nonzero().flatten()
    items = own_index[rows]
    if junk is None:
        return rows, items
    junk_rows, junk_items = _pairs("junk", junk, len(own_index), n_gallery, own_index)
    pairs = torch.cat([rows, junk_rows]) * n_gallery + torch.cat([items, junk_items])
    pairs = pairs.unique()
    return pairs // n_gallery, pairs % n_gallery


def _pairs(
    what: str, listed: Listed, n: int, n_gallery: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """The pairs (query, gallery number) of lists, [J] each, in query order."""
    if isinstance(listed, Tensor | np.ndarray):
        mask = torch.as_tensor(listed, device=like.device)
        if mask.dtype != torch.bool or mask.shape != (n, n_gallery):
            raise ValueError(
                f"a {what} mask must be bool [{n}, {n_gallery}], got {mask.dtype} "
                f"{list(mask.shape)}"
            )
        rows, items = mask.nonzero(as_tuple=True)
        return rows, items
    if isinstance(listed, list):
        if len(listed) != n:
            raise ValueError(f"{what} lists items for {len(listed)} queries, and there are {n}")
        sizes = [len(own) for own in listed]
        flat = [int(item) for own in listed for item in own]
        listed = np.asarray(flat, dtype=np.int64), np.cumsum([0, *sizes])
    items, offsets = (torch.as_tensor(part, device=like.device).to(torch.int64) for part in listed)
    lengths = offsets.diff()
    if (
        offsets.shape != (n + 1,)
        or items.ndim != 1
        or int(offsets[0]) != 0
        or int(offsets[-1]) != len(items)
        or bool((lengths < 0).any())
    ):
        raise ValueError(
            f"{what} must be (numbers [J], offsets [Nq + 1]) with offsets ascending from 0 to J"
        )
    if len(items) and not 0 <= int(items.min()) <= int(items.max()) < n_gallery:
        raise ValueError(f"{what} numbers must lie in 0 .. {n_gallery - 1}")
    return torch.repeat_interleave(lengths), items


def _caps(metrics: Sequence[RankMetric]) -> Callable[[Tensor, Tensor], Tensor]:
    def caps(m: Tensor, n_relevant: Tensor) -> Tensor:
        widest = torch.full((len(n_relevant), len(m)), -1, device=m.device)
        for metric in metrics:
            widest = torch.maximum(widest, metric.caps(m, n_relevant))
        return widest

    return caps


def _score_block(
    block: QueryBlock, columns: Sequence[tuple[str, RankMetric, Ties]], per_query: Tensor
) -> None:
    """Write the values of a finished block into `per_query` [columns, Nq]."""
    answered = (block.n_relevant > 0).nonzero().flatten()
    if not len(answered):
        return
    width = block.scores.shape[1]
    position = torch.arange(1, width + 1, device=answered.device)
    for rows in answered.split(max(1, _RANKS_AT_ONCE // width)):
        n_relevant = block.n_relevant[rows]
        ranks = {ties: block.negatives_before(ties, rows).add_(position) for ties in block.counts}
        for row, (_, metric, ties) in enumerate(columns):
            per_query[row, block.query_index[rows]] = metric.values(ranks[ties], n_relevant)


def _means(values: Tensor, labels: Tensor, average: Average) -> list[float]:
    """Means of [columns, n] over queries, or over classes of the class means; NaN if n is 0."""
    if values.shape[1] == 0:
        return [float("nan")] * len(values)
    if average == "macro":
        classes, member = labels.unique(return_inverse=True)
        sums = values.new_zeros((len(values), len(classes))).index_add_(1, member, values)
        values = sums / torch.bincount(member, minlength=len(classes))
    means: list[float] = values.mean(1).tolist()
    return means
