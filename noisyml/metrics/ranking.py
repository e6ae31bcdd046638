"""Exact ranks of the relevant gallery items, without a sorted row and without an N x N matrix.

Every retrieval metric follows from one table: how many *irrelevant* items stand before the m-th
relevant item of a query. Three observations make that table cheap.

* Only negatives that score above the query's lowest relevant item that can still matter count.
  A relevant item overtaken by more negatives than any requested metric looks at is dead, and its
  score leaves the threshold. A blockwise matrix product and one maximum per group of 64 items find
  the few candidates.
* The product is only a filter. Its rounding error has a proven bound, so a candidate that is
  farther than this bound from every relevant score is placed without further work; the rest are
  scored again exactly.
* When the queries are the gallery, the product of two blocks serves both of them: half the work.

What an exact score is. Rows (unit rows for cosine) are split into two limbs: multiples of 2^-26 of
the power of two above the row's norm, and the rest in multiples of 2^-46. Products of such numbers
and their partial sums fit into float64 without rounding, so the inner product of two rows is the
same bits in whatever order, block, process or matrix shape it is computed. Hence identical rows tie
exactly, results do not depend on the block size or the number of processes, and embeddings are told
apart down to a relative 1e-14 whatever their type.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from noisyml.errors import UserError

Ties = Literal["index", "optimistic", "pessimistic"]

#: Columns (rows) of a tile that share one maximum in the search for candidates.
_GROUP = 64
#: Largest tile edge; 2048 x 2048 float32 are 16 MiB.
_LARGEST_TILE = 2048
#: Pairs, or rows of a product, scored exactly at once: 512 rows of 512 float64 are 2 MiB.
_ROWS_AT_ONCE = 512
#: Scoring one pair by itself costs about as much as this many elements of a matrix product.
_PAIR_COST = 64
#: Spacing of rows in the sort key that packs (row, score) into one float64; scores lie in [-2, 2].
_KEY_STRIDE = 8.0

_GRID_BITS = 26
_SECOND_GRID_BITS = 46


class Rows:
    """The embeddings of one side, scaled and rounded on the fly so that no second copy is kept.

    Args:
        embeddings: [N, D], any floating dtype.
        norms: [N] float64, the rows' norms.
        metric: ``cosine`` divides each row by its norm (a zero row stays zero, and so do all its
            scores); ``l2`` divides all rows by `scale`.
        scale: a power of two not below any norm, common to queries and gallery; used by ``l2``.
    """

    def __init__(
        self, embeddings: Tensor, norms: Tensor, metric: Literal["cosine", "l2"], scale: float
    ) -> None:
        self.embeddings = embeddings
        double = embeddings.dtype == torch.float64
        self._filter_dtype = torch.float64 if double else torch.float32
        if metric == "cosine":
            self._factor = torch.where(norms > 0, 1.0 / norms, 0.0)
            self.norms = (norms > 0).to(torch.float64)
            self._grid = torch.full_like(norms, 2.0**_GRID_BITS)
            self.half_squares: Tensor | None = None
        else:
            self._factor = torch.full_like(norms, 1.0 / scale)
            self.norms = norms / scale
            exponent = torch.frexp(self.norms).exponent.to(torch.int64).clamp(min=-900)
            # 2^(26 - exponent), put together from bits: powers of two must be exact.
            self._grid = ((1023 + _GRID_BITS - exponent) << 52).view(torch.float64)
            self.half_squares = torch.zeros_like(norms)
            for start in range(0, len(norms), _LARGEST_TILE):
                part = torch.arange(
                    start, min(start + _LARGEST_TILE, len(norms)), device=norms.device
                )
                high, low = self.exact(part)
                square = (high * high).sum(1)
                cross = (high * low).sum(1)
                self.half_squares[part] = 0.5 * (square + (cross + cross))

    def __len__(self) -> int:
        return len(self.embeddings)

    def filtered(self, index: Tensor) -> Tensor:
        """Rows `index` [n] for the filter product: float32 [m, D], zero-padded to whole groups."""
        rows = self.embeddings[index].to(self._filter_dtype)
        rows = rows * self._factor[index, None].to(self._filter_dtype)
        padding = -len(index) % _GROUP
        return torch.nn.functional.pad(rows.to(torch.float32), (0, 0, 0, padding))

    def exact(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """First and second limbs of rows `index` [n]: float64 [n, D] each."""
        rows = self.embeddings[index].to(torch.float64).mul_(self._factor[index, None])
        grid = self._grid[index, None]
        high = (rows * grid).round_().div_(grid)
        grid = grid * 2.0 ** (_SECOND_GRID_BITS - _GRID_BITS)
        return high, rows.sub_(high).mul_(grid).round_().div_(grid)


def checked_norms(embeddings: Tensor, what: str) -> Tensor:
    """Row norms [N] float64 of [N, D] embeddings, computed in blocks.

    Raises:
        UserError: a row holds NaN or an infinity.
    """
    norms = torch.empty(len(embeddings), dtype=torch.float64, device=embeddings.device)
    for start in range(0, len(embeddings), _LARGEST_TILE):
        block = embeddings[start : start + _LARGEST_TILE].to(torch.float64)
        norms[start : start + _LARGEST_TILE] = (block * block).sum(1).sqrt_()
    broken = (~torch.isfinite(norms)).nonzero().flatten()
    if len(broken):
        raise UserError(
            f"{len(broken)} of {len(norms)} {what} embeddings hold NaN or infinite values (first: "
            f"row {int(broken[0])}), so they cannot be ranked; look for a diverged loss, lower the "
            "learning rate or evaluate an earlier checkpoint."
        )
    return norms


def _input_rounding() -> float:
    """Relative rounding of the inputs that the current float32 matmul precision allows.

    PyTorch may lower the precision of float32 products process-wide; the filter's error bound
    follows it, so the results do not change. If its two ways of asking are mixed it refuses to
    answer, and the coarsest is assumed.
    """
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        precision = "medium"
    return {"highest": 0.0, "high": 2.0**-11}.get(precision, 2.0**-8)


class PairScores:
    """Scores of (query, gallery) pairs: larger is nearer.

    ``cosine``: the inner product of unit rows. ``l2``: minus half the squared distance, in units
    of the common scale squared.
    """

    def __init__(self, query: Rows, gallery: Rows) -> None:
        self.query = query
        self.gallery = gallery
        dim = query.embeddings.shape[1]
        # Error of a float32 inner product of length D in any order (Higham, Accuracy and Stability
        # of Numerical Algorithms, eq. 3.5), of its rounded inputs, and of the grid.
        self._relative_error = 1.01 * (
            (dim + 32) * 2.0**-24 + math.sqrt(dim) * 2.0**-25 + 2.1 * _input_rounding()
        )

    def error_bound(self, query_index: Tensor, gallery_index: Tensor) -> Tensor:
        """For each query [n]: how far `tile` may be from `exact`, over the given gallery items."""
        norms = self.query.norms[query_index]
        if self.gallery.half_squares is None:
            return torch.full_like(norms, self._relative_error)
        return self._relative_error * 0.5 * (norms + self.gallery.norms[gallery_index].max()) ** 2

    def tile(
        self, query_rows: Tensor, query_index: Tensor, gallery_rows: Tensor, gallery_index: Tensor
    ) -> Tensor:
        """Filter scores float32 [m, n] of padded blocks; -inf in the padding."""
        scores = query_rows @ gallery_rows.T
        n_query, n_gallery = len(query_index), len(gallery_index)
        if self.query.half_squares is not None and self.gallery.half_squares is not None:
            scores[:n_query].sub_(self.query.half_squares[query_index, None].to(torch.float32))
            scores[:, :n_gallery].sub_(self.gallery.half_squares[gallery_index].to(torch.float32))
        scores[n_query:] = -torch.inf
        scores[:, n_gallery:] = -torch.inf
        return scores

    def exact(self, query_index: Tensor, gallery_index: Tensor) -> Tensor:
        """Exact scores float64 [n] of the pairs (query_index[i], gallery_index[i]).

        Many pairs among few rows go through a matrix product, few pairs one by one; both give the
        same bits because nothing rounds.
        """
        scores = torch.empty(len(query_index), dtype=torch.float64, device=query_index.device)
        if not self._by_product(query_index, gallery_index, scores):
            for start in range(0, len(query_index), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                if not self._by_product(query_index[part], gallery_index[part], scores[part]):
                    self._one_by_one(query_index[part], gallery_index[part], scores[part])
        if self.query.half_squares is not None and self.gallery.half_squares is not None:
            # The sum of the two halves first: it does not depend on which side is the query.
            scores -= (
                self.query.half_squares[query_index] + self.gallery.half_squares[gallery_index]
            )
        return scores

    def exact_block(self, query_index: Tensor, gallery_index: Tensor) -> Tensor:
        """Exact scores float64 [n, m] of all pairs of query_index [n] and gallery_index [m]."""
        shape = (len(query_index), len(gallery_index))
        scores = torch.empty(shape, dtype=torch.float64, device=query_index.device)
        for top in range(0, shape[0], _ROWS_AT_ONCE):
            left = self.query.exact(query_index[top : top + _ROWS_AT_ONCE])
            for side in range(0, shape[1], _ROWS_AT_ONCE):
                right = self.gallery.exact(gallery_index[side : side + _ROWS_AT_ONCE])
                scores[top : top + _ROWS_AT_ONCE, side : side + _ROWS_AT_ONCE] = _products(
                    left, right
                )
        if self.query.half_squares is not None and self.gallery.half_squares is not None:
            scores -= (
                self.query.half_squares[query_index, None]
                + self.gallery.half_squares[gallery_index]
            )
        return scores

    def _by_product(self, query_index: Tensor, gallery_index: Tensor, scores: Tensor) -> bool:
        """Fill `scores` from matrix products of the rows involved if that is cheaper."""
        rows, row_of = query_index.unique(return_inverse=True)
        columns, column_of = gallery_index.unique(return_inverse=True)
        if len(rows) * len(columns) > _PAIR_COST * len(row_of):
            return False
        step = _ROWS_AT_ONCE
        block_columns = -(-len(columns) // step)
        block_of = row_of // step * block_columns + column_of // step
        order = block_of.argsort()
        bounds = [0, *torch.bincount(block_of).cumsum(0).tolist()]
        held = -1
        for block, (first, last) in enumerate(itertools.pairwise(bounds)):
            if first == last:
                continue
            top, side = block // block_columns * step, block % block_columns * step
            if top != held:
                held, left = top, self.query.exact(rows[top : top + step])
            right = self.gallery.exact(columns[side : side + step])
            products = _products(left, right)
            pairs = order[first:last]
            scores[pairs] = products[row_of[pairs] - top, column_of[pairs] - side]
        return True

    def _one_by_one(self, query_index: Tensor, gallery_index: Tensor, scores: Tensor) -> None:
        """Fill `scores` pair by pair."""
        left, right = self.query.exact(query_index), self.gallery.exact(gallery_index)
        cross = (left[0] * right[1]).sum(1) + (left[1] * right[0]).sum(1)
        scores.copy_(cross + (left[0] * right[0]).sum(1))


def _products(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
    """Inner products [n, m] of rows in two limbs.

    Each of the three products is exact, so their sum is the same with the sides swapped.
    """
    products = left[0] @ right[1].T
    products += left[1] @ right[0].T
    products += left[0] @ right[0].T
    return products


@dataclass
class QueryBlock:
    """Consecutive queries (in class order) and what is known about their relevant items.

    Attributes:
        query_index: original query numbers [b].
        scores: exact scores of the relevant items, descending, -inf in the padding [b, R].
        gallery_index: their original gallery numbers; ascending among equal scores [b, R].
        n_relevant: [b].
        caps: how many negatives before the m-th relevant item leave it of interest [b, R].
        counts: per tie rule, negatives by the number of relevant items that beat them [b, R + 1].
        threshold: score of the lowest relevant item still of interest, +inf if none [b].
    """

    query_index: Tensor
    scores: Tensor
    gallery_index: Tensor
    n_relevant: Tensor
    caps: Tensor
    counts: dict[Ties, Tensor]
    threshold: Tensor
    alive: bool = True
    fresh: bool = True

    def __post_init__(self) -> None:
        rows = torch.arange(len(self.scores), device=self.scores.device)[:, None]
        keys = rows * _KEY_STRIDE - self.scores.clamp(min=-_KEY_STRIDE / 2)
        self._keys = keys.flatten()
        self._key_slack = 4 * _KEY_STRIDE * max(1, len(self.scores)) * 2.0**-52
        self.update_threshold()

    def negatives_before(self, ties: Ties) -> Tensor:
        """How many negatives stand before the m-th relevant item, int64 [b, R]; if more than its
        cap, some number above the cap."""
        return self.counts[ties].cumsum(1)[:, :-1]

    def update_threshold(self) -> None:
        """Drop relevant items that no requested metric can see any more."""
        # The optimistic count is the smallest: what it declares dead is dead under every tie rule.
        ties: Ties = "optimistic" if "optimistic" in self.counts else next(iter(self.counts))
        living = (self.negatives_before(ties) <= self.caps).sum(1)
        if self.scores.shape[1]:
            last = self.scores.gather(1, (living - 1).clamp(min=0)[:, None]).squeeze(1)
            self.threshold = torch.where(living > 0, last, torch.inf)
        self.alive = bool((living > 0).any())

    def add(
        self,
        rows: Tensor,
        gallery_index: Tensor,
        approximate: Tensor,
        error: Tensor,
        exact: PairScores,
    ) -> None:
        """Count negatives: row of this block, gallery number and filter score of each [n]."""
        width = self.scores.shape[1]
        middle = rows * _KEY_STRIDE - approximate
        margin = error[rows] + self._key_slack
        surely_beaten_by = torch.searchsorted(self._keys, middle - margin) - rows * width
        # A case is open if the next relevant item is not surely worse.
        following = (rows * width + surely_beaten_by).clamp(max=len(self._keys) - 1)
        is_open = (surely_beaten_by < self.n_relevant[rows]) & (
            self._keys[following] <= middle + margin
        )
        open_cases = is_open.nonzero().flatten()
        slots = dict.fromkeys(self.counts, surely_beaten_by)
        if len(open_cases):
            row, item = rows[open_cases], gallery_index[open_cases]
            score = exact.exact(self.query_index[row], item)
            for ties in self.counts:
                slots[ties] = surely_beaten_by.clone()
                slots[ties][open_cases] = self._beaten_by(row, item, score, ties)
        for ties, slot in slots.items():
            ones = torch.ones_like(slot, dtype=torch.int32)
            self.counts[ties].view(-1).index_add_(0, rows * (width + 1) + slot, ones)

    def _beaten_by(self, row: Tensor, item: Tensor, score: Tensor, ties: Ties) -> Tensor:
        """Number of relevant items ranked before each negative: bisection over the block's rows."""
        low = torch.zeros_like(row)
        high = self.n_relevant[row]
        width = self.scores.shape[1]
        for _ in range(width.bit_length()):
            middle = ((low + high) // 2).clamp(max=width - 1)
            rival = self.scores[row, middle]
            if ties == "optimistic":
                wins = rival >= score
            elif ties == "pessimistic":
                wins = rival > score
            else:
                wins = (rival > score) | (
                    (rival == score) & (self.gallery_index[row, middle] < item)
                )
            searching = low < high
            low = torch.where(searching & wins, middle + 1, low)
            high = torch.where(searching & ~wins, middle, high)
        return low


def scan_tile(
    scores: Tensor,
    side: Literal["rows", "columns"],
    block: QueryBlock,
    gallery_index: Tensor,
    exact: PairScores,
    hits_at_once: int,
) -> None:
    """Count the negatives of one tile of filter scores that stand before relevant items.

    Args:
        scores: [m, n] float32, multiples of the group size, -inf where nothing is to be counted.
        side: whether the queries of `block` are the tile's rows or its columns.
        block: the queries.
        gallery_index: original gallery numbers along the other side.
        exact: the judge of close cases.
        hits_at_once: groups of candidates to expand together.
    """
    if not block.alive:
        return
    axis = 0 if side == "rows" else 1
    error = exact.error_bound(block.query_index, gallery_index)
    n_queries = len(block.query_index)
    peaks = scores.unflatten(1 - axis, (_GROUP, -1)).amax(1 - axis)
    if axis == 1:
        peaks = peaks.T
    peaks = peaks[:n_queries]
    n_groups = peaks.shape[1]
    within = torch.arange(_GROUP, device=scores.device) * n_groups
    # A block that has seen no negative yet has low thresholds: a few groups first raise them.
    stages = [0, 1, 4, n_groups] if block.fresh and n_groups > 4 else [0, n_groups]
    block.fresh = False
    for first, last in itertools.pairwise(stages):
        floor = (block.threshold - error).to(torch.float32)
        floor = torch.nextafter(floor, torch.full_like(floor, -torch.inf))
        rows, groups = (peaks[:, first:last] >= floor[:, None]).nonzero(as_tuple=True)
        for start in range(0, len(rows), hits_at_once):
            hit = rows[start : start + hits_at_once]
            items = (groups[start : start + hits_at_once] + first)[:, None] + within
            values = scores[hit[:, None], items] if axis == 0 else scores[items, hit[:, None]]
            which, member = (values >= floor[hit, None]).nonzero(as_tuple=True)
            block.add(
                hit[which],
                gallery_index[items[which, member]],
                values[which, member].to(torch.float64),
                error,
                exact,
            )
        if len(rows):
            block.update_threshold()
        if not block.alive:
            return


@dataclass(frozen=True)
class RankingTask:
    """Queries, gallery and the classes that relate them.

    Attributes:
        scores: exact and filter scores.
        query_class, gallery_class: class numbers [Nq], [Ng], ascending with the class size.
        own_index: each query's own gallery number, to be left out, or -1 [Nq].
        n_relevant: relevant gallery items of each query, itself left out [Nq].
        symmetric: the queries are the gallery, in the same order.
    """

    scores: PairScores
    query_class: Tensor
    gallery_class: Tensor
    own_index: Tensor
    n_relevant: Tensor
    symmetric: bool


def ranking_task(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    own_index: Tensor | None,
    metric: Literal["cosine", "l2"],
) -> RankingTask:
    """Relate queries to a gallery (None: the queries themselves).

    Args:
        query: [Nq, D] float.
        query_labels: [Nq] int64.
        gallery: [Ng, D] float or None.
        gallery_labels: [Ng] int64 or None.
        own_index: gallery number of each query or -1, int64 [Nq]; None leaves nothing out.
        metric: how to compare.

    Raises:
        UserError: NaN or infinite embeddings.
    """
    query_norms = checked_norms(query, "query")
    symmetric = gallery is None
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

    if own_index is None:
        own_index = torch.full_like(query_labels, -1)
    n_relevant = sizes[member[: len(query_labels)]]
    if len(items):
        own_class = gallery_class[own_index.clamp(min=0)]
        n_relevant = n_relevant - ((own_index >= 0) & (own_class == query_class)).to(torch.int64)
    return RankingTask(
        PairScores(query_rows, gallery_rows),
        query_class,
        gallery_class,
        own_index,
        n_relevant,
        symmetric,
    )


class Ranking:
    """Walks over the tiles of a task; yields finished `QueryBlock`s.

    Args:
        task: what to rank.
        caps: (m [R], n_relevant [b, 1]) -> [b, R]: the largest number of negatives before the m-th
            relevant item (m from 0) at which some metric still sees it.
        ties: the tie rules to count under.
        memory_budget_bytes: bound on the working memory; it decides the tile size and whether the
            blocks of a symmetric task can all be open at once.
        part: this process's number.
        parts: how many processes share the work.
        reduce: sums an integer tensor over the processes.
    """

    def __init__(
        self,
        task: RankingTask,
        caps: Callable[[Tensor, Tensor], Tensor],
        ties: Sequence[Ties],
        memory_budget_bytes: int,
        part: int = 0,
        parts: int = 1,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.task = task
        self._caps = caps
        self._ties = list(ties)
        self._part, self._parts = part, parts
        self._reduce = reduce or (lambda counts: counts)
        # A quarter for the tile; the rest for its rows, the candidates and the exact rows.
        edge = math.isqrt(memory_budget_bytes // 16)
        self._edge = min(_LARGEST_TILE, max(_GROUP, edge // _GROUP * _GROUP))
        self._block_bytes = memory_budget_bytes // 4
        self._hits_at_once = max(_GROUP, memory_budget_bytes // 2**14)

        self._gallery_order = task.gallery_class.argsort(stable=True)
        self._sorted_classes = task.gallery_class[self._gallery_order]
        order = task.query_class.argsort(stable=True)
        per_relevant = 3 * 8 + 4 * len(self._ties) + 8
        state = per_relevant * int(task.n_relevant.sum())
        #: True if both sides of every product are used.
        self.symmetric = task.symmetric and state <= memory_budget_bytes // 2
        self._query_order = order if self.symmetric else order[task.n_relevant[order] > 0]

    def blocks(self) -> Iterator[QueryBlock]:
        """Finished blocks; in a symmetric walk the same on all processes, else this one's share."""
        return self._symmetric_blocks() if self.symmetric else self._query_blocks()

    def _query_slices(self) -> list[slice]:
        """Blocks of queries, smaller where classes are so large that their scores fill memory."""
        n_relevant = self.task.n_relevant[self._query_order].cpu()
        slices, start = [], 0
        while start < len(n_relevant):
            length = self._edge
            while length > _GROUP:
                widest = int(n_relevant[start : start + length].max())
                if length * widest * 64 <= self._block_bytes:
                    break
                length = max(_GROUP, length // 2 // _GROUP * _GROUP)
            slices.append(slice(start, min(start + length, len(n_relevant))))
            start += length
        return slices

    def _open(self, query_index: Tensor) -> QueryBlock:
        """A block with the exact scores of its relevant items and no negatives counted."""
        task = self.task
        classes = task.query_class[query_index]
        start = torch.searchsorted(self._sorted_classes, classes)
        size = torch.searchsorted(self._sorted_classes, classes, right=True) - start
        n_relevant = task.n_relevant[query_index]
        width = int(n_relevant.max()) if len(n_relevant) else 0
        # One column more than relevant items: the query itself is among its class.
        offset = torch.arange(width + 1, device=classes.device)
        place = start[:, None] + offset
        items = self._gallery_order[place.clamp(max=max(0, len(self._gallery_order) - 1))]
        relevant = (offset < size[:, None]) & (items != task.own_index[query_index, None])
        shape = (len(query_index), width + 1)
        scores = torch.full(shape, -torch.inf, dtype=torch.float64, device=classes.device)
        first, last = int(start.min()), int((start + size).max())
        if len(query_index) * (last - first) <= 4 * int(n_relevant.sum()):
            # Large classes: the block's whole stretch of the gallery is little more than its pairs.
            stretch = task.scores.exact_block(query_index, self._gallery_order[first:last])
            near = (place - first).clamp(max=last - first - 1)
            scores = torch.where(relevant, stretch.gather(1, near), scores)
        else:
            rows, column = relevant.nonzero(as_tuple=True)
            scores[rows, column] = task.scores.exact(query_index[rows], items[rows, column])
        scores, by_score = scores.sort(dim=1, descending=True, stable=True)
        scores, items = scores[:, :width].contiguous(), items.gather(1, by_score[:, :width])
        counts: dict[Ties, Tensor] = {
            ties: torch.zeros(shape, dtype=torch.int32, device=classes.device)
            for ties in self._ties
        }
        caps = self._caps(offset[:width], n_relevant[:, None])
        caps = torch.where(offset[:width] < n_relevant[:, None], caps, -1)
        threshold = torch.full_like(
            scores[:, 0] if width else start, torch.inf, dtype=torch.float64
        )
        return QueryBlock(query_index, scores, items, n_relevant, caps, counts, threshold)

    def _tile(
        self, rows: Tensor, query_index: Tensor, columns: Tensor, gallery_index: Tensor
    ) -> Tensor:
        """Filter scores with relevant items and the queries themselves struck out."""
        task = self.task
        scores = task.scores.tile(rows, query_index, columns, gallery_index)
        inner = scores[: len(query_index), : len(gallery_index)]
        left, right = task.query_class[query_index], task.gallery_class[gallery_index]
        if int(left[0]) <= int(right[-1]) and int(right[0]) <= int(left[-1]):
            inner.masked_fill_(left[:, None] == right, -torch.inf)
        return scores

    def _symmetric_blocks(self) -> Iterator[QueryBlock]:
        order, exact = self._query_order, self.task.scores
        blocks = [self._open(order[part]) for part in self._query_slices()]
        n = len(blocks)
        tiles = [(i, i) for i in range(n)] + [(i, j) for i in range(n) for j in range(i + 1, n)]
        held, rows = -1, torch.empty(0)
        for i, j in tiles[self._part :: self._parts]:
            first, second = blocks[i], blocks[j]
            if not (first.alive or second.alive):
                continue
            if i != held:
                held, rows = i, exact.query.filtered(first.query_index)
            columns = rows if i == j else exact.query.filtered(second.query_index)
            scores = self._tile(rows, first.query_index, columns, second.query_index)
            scan_tile(scores, "rows", first, second.query_index, exact, self._hits_at_once)
            if i != j:
                scan_tile(scores, "columns", second, first.query_index, exact, self._hits_at_once)
        for block in blocks:
            block.counts = {ties: self._reduce(counts) for ties, counts in block.counts.items()}
            yield block

    def _query_blocks(self) -> Iterator[QueryBlock]:
        task, order = self.task, self._gallery_order
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        slices = self._query_slices()
        for part in slices[self._part :: self._parts]:
            block = self._open(self._query_order[part])
            rows = task.scores.query.filtered(block.query_index)
            own = task.own_index[block.query_index]
            own_place = torch.where(own >= 0, place[own.clamp(min=0)], -1)
            for start in range(0, len(order), self._edge):
                if not block.alive:
                    break
                items = order[start : start + self._edge]
                columns = task.scores.gallery.filtered(items)
                scores = self._tile(rows, block.query_index, columns, items)
                here = ((own_place >= start) & (own_place < start + len(items))).nonzero().flatten()
                scores[here, own_place[here] - start] = -torch.inf
                scan_tile(scores, "rows", block, items, task.scores, self._hits_at_once)
            yield block
