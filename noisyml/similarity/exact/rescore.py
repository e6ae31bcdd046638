"""Second step of a search: shortlisted pairs are scored in float64, and exactly where it is close.

Queries whose shortlists prove nothing are compared with the whole gallery by exact scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from noisyml.similarity.exact import kernels
from noisyml.similarity.exact.arithmetic import (
    double_error,
    exact_pairs,
    exact_products,
    sampled_products,
)
from noisyml.similarity.exact.plan import Blocks, Task, stretches

#: Rows and columns of a block of exact scores, and pairs scored exactly at once.
_EXACT_BLOCK = 512
#: Queries whose shortlists are sorted together.
_QUERIES_AT_ONCE = 8192


def judged(task: Task, blocks: Blocks, index: Tensor) -> tuple[Tensor, Tensor]:
    """Inner scores float64 and gallery numbers of the candidates `index` [Nq, W], in order.

    Where float64 cannot decide the order, or the float32 nearest to a score, stands the exact one.
    """
    scores = torch.full(index.shape, -torch.inf, dtype=torch.float64, device=index.device)
    _score(task, blocks, index, scores)
    for part in stretches(len(index), _QUERIES_AT_ONCE):
        scores[part], order = scores[part].sort(dim=1, descending=True)
        index[part] = index[part].gather(1, order)
    doubtful = torch.cat(
        [
            _doubtful(task, part, scores[part], index[part])
            for part in stretches(len(index), _QUERIES_AT_ONCE)
        ]
        or [index >= 0]
    )
    _score_exactly(task, blocks, index, scores, doubtful)
    for part in stretches(len(index), _QUERIES_AT_ONCE):
        index[part], order = index[part].sort(dim=1)
        scores[part], order = (
            scores[part].gather(1, order).sort(dim=1, descending=True, stable=True)
        )
        index[part] = index[part].gather(1, order)
    return scores, index


def _pairs(
    task: Task, blocks: Blocks, index: Tensor, chosen: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Panels with the chosen pairs of queries and gallery rows that fall into them.

    Yields (panel, its rows, query numbers ascending [n], their slots in `index` [n]).
    """
    panels = list(task.gallery.panels(blocks.gallery))
    ends = torch.tensor([panel.stop for panel in panels], device=index.device)
    wanted = torch.zeros(len(panels) + 1, dtype=torch.bool, device=index.device)
    for part in stretches(len(index), _QUERIES_AT_ONCE):  # there may be many millions of pairs
        of = torch.searchsorted(ends, index[part], right=True)
        wanted[of.masked_fill_(~chosen[part], len(panels)).unique()] = True
    for panel, needed in zip(panels, task.gallery.needed(wanted[:-1].tolist()), strict=True):
        if needed:
            raw = task.gallery.panel(panel)
            here = (index >= panel.start).logical_and_(index < panel.stop).logical_and_(chosen)
            rows, slots = here.nonzero(as_tuple=True)
            del here
            yield panel, raw, rows, slots


def _score(task: Task, blocks: Blocks, index: Tensor, scores: Tensor) -> None:
    """Fill in float64 inner scores of all pairs of `index` [Nq, W] that are not -1."""
    for panel, raw, rows, slots in _pairs(task, blocks, index, index >= 0):
        direct = _multiplied_where_they_lie(task, raw)
        # Rows that need not be copied may be as many as there are.
        size = max(1, len(index)) if direct and task.queries.direct else blocks.query
        starts = torch.arange(0, len(index) + size, size, device=index.device)
        right = raw if direct else task.gallery.side.canonical(raw, panel)
        bounds = torch.searchsorted(rows, starts).tolist()
        for block, (first, last) in enumerate(itertools.pairwise(bounds)):
            if first == last:
                continue
            some, places = rows[first:last], slots[first:last]
            items = index[some, places].to(torch.int64)
            top = block * size
            part = slice(top, min(top + size, len(index)))
            left = task.queries.block(part.start, part.stop)
            which = some - top, items - panel.start
            if direct:
                values = kernels.products(left, right, *which, in_float64=True)
                values *= task.query_side.factor[some] * task.gallery.side.factor[items]
            else:
                values = sampled_products(task.query_side.canonical(left, part), right, *which)
            scores[some, places] = _less_halves(task, values, some, items)


def _multiplied_where_they_lie(task: Task, raw: Tensor) -> bool:
    """True if the compiled loops score pairs in float64 without float64 copies of the rows."""
    return (
        kernels.available()
        and raw.device.type == "cpu"
        and raw.dtype == task.queries.dtype
        and task.query_side.centre is None
        and task.gallery.side.centre is None
    )


def _score_exactly(
    task: Task, blocks: Blocks, index: Tensor, scores: Tensor, chosen: Tensor
) -> None:
    """Replace the chosen inner scores by exact ones."""
    for panel, raw, rows, slots in _pairs(task, blocks, index, chosen):
        for part in stretches(len(rows), _EXACT_BLOCK):
            some, items = rows[part], index[rows[part], slots[part]].to(torch.int64)
            left = task.query_side.limbs(task.queries.take(some), some)
            right = task.gallery.side.limbs(raw[items - panel.start], items)
            values = _less_halves(task, exact_pairs(left, right), some, items)
            scores[some, slots[part]] = _at_most_zero(task, values)


def _less_halves(task: Task, products: Tensor, queries: Tensor, items: Tensor) -> Tensor:
    """Inner products less both halves of the squared norms (l2), or as they are."""
    mine, theirs = task.query_side.half_squares, task.gallery.side.half_squares
    if mine is None or theirs is None:
        return products
    # The sum of the two halves first: it does not depend on which side is the query.
    return products.sub_(mine[queries] + theirs[items])


def _at_most_zero(task: Task, exact: Tensor) -> Tensor:
    """No squared distance is negative, not even by rounding."""
    return exact.clamp_(max=0.0) if task.query_side.metric == "l2" else exact


def _doubtful(task: Task, queries: slice, scores: Tensor, index: Tensor) -> Tensor:
    """Float64 scores [n, W], descending, that decide neither order nor rounding: bool [n, W]."""
    side, double = task.query_side, torch.float64 in (task.queries.dtype, task.gallery.dtype)
    real = index >= 0
    if not len(task.gallery.side.norms):
        return real
    errors = double_error(
        side.norms[queries, None],
        task.gallery.side.norms[index.clamp(min=0).to(torch.int64)],
        side.metric,
        task.queries.dim,
    )
    close = scores[:, :-1] - scores[:, 1:] <= errors[:, :-1] + errors[:, 1:]
    close &= real[:, 1:]
    doubtful = torch.zeros_like(real)
    doubtful[:, :-1] |= close
    doubtful[:, 1:] |= close
    if double:
        doubtful[:, : task.k] = True
    else:
        scale = side.output_scale()
        low = ((scores - errors) * scale).to(torch.float32)
        high = ((scores + errors) * scale).to(torch.float32)
        doubtful[:, : task.k] |= (low != high)[:, : task.k]
    return doubtful & real


def settle(task: Task, blocks: Blocks, lost: Tensor, scores: Tensor, index: Tensor) -> None:
    """Find the neighbours of the queries `lost` [u] by exact scores of everything."""
    k = min(task.k, index.shape[1])
    best = torch.full((len(lost), k), -torch.inf, dtype=torch.float64, device=index.device)
    items = torch.full((len(lost), k), -1, dtype=torch.int64, device=index.device)
    panels = list(task.gallery.panels(blocks.gallery))
    for panel, needed in zip(
        panels, task.gallery.needed([len(lost) > 0] * len(panels)), strict=True
    ):
        if not needed:
            continue
        raw = task.gallery.panel(panel)
        for some in stretches(len(raw) if len(lost) else 0, _EXACT_BLOCK):
            stretch = slice(panel.start + some.start, panel.start + some.stop)
            right = task.gallery.side.limbs(raw[some], stretch)
            for part in stretches(len(lost), _EXACT_BLOCK):
                block = _exact_block(task, lost[part], stretch, right)
                _merge(best[part], items[part], block, stretch.start)
    scores[lost, :k], index[lost, :k] = best, items.to(index.dtype)


def _exact_block(task: Task, queries: Tensor, panel: slice, right: tuple[Tensor, Tensor]) -> Tensor:
    """Exact inner scores of `queries` [n] with a stretch of the gallery; -inf where left out."""
    left = task.query_side.limbs(task.queries.take(queries), queries)
    numbers = torch.arange(panel.start, panel.stop, device=queries.device)
    scores = _less_halves(task, exact_products(left, right), queries[:, None], numbers)
    scores = _at_most_zero(task, scores)
    if task.own is not None:
        scores.masked_fill_(queries[:, None] + task.own.start == numbers, -torch.inf)
    if task.exclude is not None:
        for column in task.exclude[queries].T:
            scores.masked_fill_(column[:, None] == numbers, -torch.inf)
    return scores


def _merge(best: Tensor, items: Tensor, scores: Tensor, start: int) -> None:
    """Work the scores of further gallery items [n, m], numbered from `start`, into best [n, k]."""
    # A later item loses ties, so it must be better than the last one.
    rows, columns = (scores > best[:, -1:]).nonzero(as_tuple=True)
    if not len(rows):
        return
    owner, counts = rows.unique_consecutive(return_counts=True)
    places = torch.arange(len(rows), device=rows.device)
    places -= (counts.cumsum(0) - counts).repeat_interleave(counts)
    shape = (len(owner), int(counts.max()))
    line = torch.arange(len(owner), device=rows.device).repeat_interleave(counts)
    new_scores = scores.new_full(shape, -torch.inf)
    new_items = items.new_full(shape, -1)
    new_scores[line, places] = scores[rows, columns]
    new_items[line, places] = columns + start
    k = best.shape[1]
    merged, order = torch.cat([best[owner], new_scores], 1).sort(
        dim=1, descending=True, stable=True
    )
    best[owner] = merged[:, :k]
    items[owner] = torch.cat([items[owner], new_items], 1).gather(1, order)[:, :k]
