"""First step of a search: products over blocks fill the shortlists of the queries.

Each panel of the gallery meets each block of queries once. A float32 product tells which pairs may
be among the nearest; where a search is told to be fast, a cheaper product goes before it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from noisyml.similarity.exact import kernels
from noisyml.similarity.exact.arithmetic import sampled_products
from noisyml.similarity.exact.float32 import Float32Filter
from noisyml.similarity.exact.kept import KeptSearch
from noisyml.similarity.exact.plan import Blocks, Task, stretches
from noisyml.similarity.exact.quantised import CoarseFilter, CoarseRows, Patience, RoundedRows
from noisyml.similarity.exact.shortlist import Shortlist
from noisyml.similarity.exact.tiles import candidates, kth_bound, padded

log = logging.getLogger(__name__)

#: A coarse product is given up for a tile if more than this share of its groups hold candidates.
_COARSE_SHARE = 0.5
#: Items whose float32 scores give a query its first threshold, at least and per neighbour wanted.
_FIRST_ITEMS, _FIRST_ITEMS_PER_NEIGHBOUR = 1024, 64
#: Rows of the steps in which the diagonal of a self-join is gone along.
_STEP = 512
#: Room for pairs that one scan of a tile may find per thread: one for so many entries.
_ENTRIES_PER_PAIR = 64


class _Left:
    """Rows of a block of queries: prepared for a float32 product once that is asked for.

    Args:
        n: rows, padded to whole groups.
        prepare: gives their float32 rows [n, W].
        raw: the rows as they lie, if they can be multiplied so.
    """

    def __init__(
        self, n: int, prepare: Callable[[], Tensor], raw: kernels.FloatRows | None
    ) -> None:
        self._n, self._prepare, self._raw = n, prepare, raw
        self._prepared: Tensor | None = None

    def __len__(self) -> int:
        return self._n

    def prepared(self) -> Tensor:
        """Float32 rows [n, W]."""
        if self._prepared is None:
            self._prepared = self._prepare()
        return self._prepared

    def exact(self) -> kernels.FloatRows:
        """The rows, as they lie or prepared."""
        return self._raw or kernels.FloatRows(self.prepared())

    def part(self, start: int, stop: int) -> _Left:
        """Rows start .. stop - 1, whole groups."""
        raw = self._raw
        if raw is not None:
            assert raw.factor is not None
            raw = kernels.FloatRows(raw.rows[start:stop], None, raw.factor[start:stop])
        return _Left(stop - start, lambda: self.prepared()[start:stop], raw)


class _Cell(NamedTuple):
    """Queries and gallery rows whose product is due.

    Attributes:
        left: the queries' rows.
        right: the gallery's float32 rows, padded to whole groups.
        queries: the queries' numbers.
        items: the gallery rows' numbers.
        skipped: how many rows of the panel come before them.
        served: where in `right` rows begin that are queries too and want to see the left rows; None
            if there are none.
    """

    left: _Left
    right: Tensor
    queries: slice
    items: slice
    skipped: int
    served: int | None


#: Pairs by the left and by the right rows of a cell.
_Pairs = tuple[kernels.Pairs, kernels.Pairs]


class _Asking(NamedTuple):
    """Queries on one side of a cell.

    Attributes:
        queries: their numbers.
        first_item: gallery number of the first row on the other side.
        offset: where on their own side they begin.
    """

    queries: slice
    first_item: int
    offset: int


def collect(
    task: Task,
    blocks: Blocks,
    product: Float32Filter,
    coarse: CoarseFilter | None,
    shortlist: Shortlist,
    progress: Callable[[int, int], None] | None,
    kept: KeptSearch | None,
) -> None:
    """Fill the shortlist: one product per block of queries and panel of the gallery.

    In a self-join, a product with a panel of this process's own rows also serves these as queries.
    What is kept of panels that are done is not done again.
    """
    panels = list(task.gallery.panels(blocks.gallery))
    lefts = list(stretches(len(task.queries), blocks.query))
    met = [[left for left in lefts if _is_met(task, blocks, left, panel)] for panel in panels]
    begun = 0 if kept is None else kept.restore(shortlist)
    total, done = (sum(len(column) for column in columns) for columns in (met, met[:begun]))
    if begun:
        log.info("Going on: %d of %d blocks are done.", done, total)
        if progress is not None:
            progress(done, total)
    fine_scan = _FineScan(task, blocks, product, shortlist)
    coarse_scan = None if coarse is None else _CoarseScan(task, blocks, coarse, shortlist, kept)
    for number in range(begun, len(panels)):
        panel, column = panels[number], met[number]
        right = product.prepare("right", task.gallery.panel(panel), panel)
        if coarse_scan is not None:
            fine_scan.release()
            coarse_scan.open(right, panel)
        for part in column:
            left = _left(product, task.queries.block(part.start, part.stop), part)
            for cell in _pieces(task, _cell(task, left, right, part, panel), shortlist, coarse):
                if coarse_scan is None or not coarse_scan.scan(cell):
                    fine_scan.scan(cell)
            done += 1
            if progress is not None:
                progress(done, total)
        if kept is not None:
            kept.offer(shortlist, number + 1)


def _left(product: Float32Filter, raw: Tensor, part: slice) -> _Left:
    prepare = partial(product.prepare, "left", raw, part)
    return _Left(padded(len(raw)), prepare, product.where_they_lie("left", raw, part, None))


def _cell(task: Task, left: _Left, right: Tensor, queries: slice, panel: slice) -> _Cell:
    if task.own is None or not _is_own(task.own, panel):
        return _Cell(left, right, queries, panel, 0, None)
    skipped = task.own.start + queries.start - panel.start
    if not 0 <= skipped < panel.stop - panel.start:
        return _Cell(left, right, queries, panel, 0, 0)
    # Queries within the panel: what comes before them has met them, and the square on the diagonal
    # serves both of its sides as rows.
    items = slice(panel.start + skipped, panel.stop)
    served = len(left) if len(left) < len(right) - skipped else None
    return _Cell(left, right[skipped:], queries, items, skipped, served)


def _pieces(
    task: Task, cell: _Cell, shortlist: Shortlist, coarse: CoarseFilter | None
) -> list[_Cell]:
    """The cell, or parts of it that take less time.

    Only float32 scores give first thresholds. The compiled loops do not mind how many candidates
    low ones let through, so if the first items of a cell are enough they get the rest.
    """
    if bool((shortlist.threshold[cell.queries] > -torch.inf).all()):
        return _steps(cell) if _on_diagonal(task, cell) else [cell]
    first = padded(max(_FIRST_ITEMS, _FIRST_ITEMS_PER_NEIGHBOUR * shortlist.k))
    if (
        coarse is None
        or coarse.number_format != "int8_loops"
        or cell.served not in (None, 0)
        or len(cell.right) <= first
    ):
        return [cell]
    start = cell.items.start
    near = cell._replace(right=cell.right[:first], items=slice(start, start + first))
    far = cell._replace(
        right=cell.right[first:],
        items=slice(start + first, cell.items.stop),
        skipped=cell.skipped + first,
    )
    return [near, far]


def _on_diagonal(task: Task, cell: _Cell) -> bool:
    """True if the first item of a cell is its first query."""
    return task.own is not None and task.own.start + cell.queries.start == cell.items.start


def _steps(cell: _Cell) -> list[_Cell]:
    """Of a cell on the diagonal of a self-join what lies above it, in steps of a few rows."""
    cells = []
    for part in stretches(cell.queries.stop - cell.queries.start, _STEP):
        items = slice(cell.items.start + part.start, cell.items.stop)
        left = cell.left.part(part.start, padded(part.stop))
        cells.append(
            _Cell(
                left,
                cell.right[part.start :],
                slice(cell.queries.start + part.start, cell.queries.start + part.stop),
                items,
                cell.skipped + part.start,
                len(left) if len(left) < items.stop - items.start else None,
            )
        )
    return cells


def _asking(task: Task, cell: _Cell) -> list[_Asking]:
    """The queries of a cell: its left rows, and the right rows that are queries too."""
    asking = [_Asking(cell.queries, cell.items.start, 0)]
    if cell.served is not None and task.own is not None:
        first = cell.items.start + cell.served - task.own.start
        partners = slice(first, cell.items.stop - task.own.start)
        asking.append(_Asking(partners, task.own.start + cell.queries.start, cell.served))
    return asking


def _floors(shortlist: Shortlist, cell: _Cell, asking: list[_Asking]) -> tuple[Tensor, Tensor]:
    """Lowest scores of interest to left and right rows of a cell: float32, +inf for none."""
    # A floor of -inf lets everything pass, but not what has been struck out.
    least = torch.finfo(torch.float32).min
    left = shortlist.floor(asking[0].queries).clamp_(min=least)
    right = left.new_full((cell.items.stop - cell.items.start,), torch.inf)
    for some in asking[1:]:
        right[some.offset :] = shortlist.floor(some.queries).clamp_(min=least)
    return left, right


def _add(shortlist: Shortlist, cell: _Cell, asking: list[_Asking], found: _Pairs) -> None:
    """Offer the pairs of a cell."""
    for some, pairs in zip(asking, found, strict=False):
        shortlist.add(
            pairs.query,
            pairs.place,
            pairs.score,
            (some.queries.start - some.offset, some.first_item),
        )


class _FineScan:
    """Candidates by the float32 product of a cell."""

    def __init__(
        self, task: Task, blocks: Blocks, product: Float32Filter, shortlist: Shortlist
    ) -> None:
        self._task, self._shortlist = task, shortlist
        self._size = blocks.query * blocks.gallery
        self._buffer: Tensor | None = None

    def scan(self, cell: _Cell) -> None:
        """Offer the candidates of a cell to the shortlist."""
        shape = (len(cell.left), len(cell.right))
        if self._buffer is None:
            self._buffer = cell.right.new_empty(self._size)
        tile = self._buffer[: shape[0] * shape[1]].view(shape)
        torch.mm(cell.left.prepared(), cell.right.T, out=tile)
        _strike_out(self._task, tile, cell)
        self._meet(tile, "rows", cell.queries)
        asking = _asking(self._task, cell)
        if cell.served is not None:
            self._meet(tile[:, cell.served :], "columns", asking[1].queries)
        if tile.device.type == "cpu" and kernels.available():
            floors = _floors(self._shortlist, cell, asking)
            found = kernels.scan_tile(tile, *floors, tile.numel() // _ENTRIES_PER_PAIR)
            if found is not None:
                _add(self._shortlist, cell, asking, found)
                return
        self._offer(tile, "rows", asking[0])
        if cell.served is not None:
            self._offer(tile[:, cell.served :], "columns", asking[1])

    def release(self) -> None:
        """Give the tile's memory back until the next scan."""
        self._buffer = None

    def _meet(self, scores: Tensor, side: Literal["rows", "columns"], queries: slice) -> None:
        """Give queries that meet their first block a threshold, by its maxima."""
        shortlist = self._shortlist
        if bool((shortlist.threshold[queries] == -torch.inf).any()):
            reached = kth_bound(scores, side, shortlist.k)[: queries.stop - queries.start]
            shortlist.raise_threshold(queries, reached)

    def _offer(self, scores: Tensor, side: Literal["rows", "columns"], asking: _Asking) -> None:
        shortlist, queries = self._shortlist, asking.queries
        found = candidates(scores, side, shortlist.floor(queries))
        assert found is not None  # no share is too large
        shortlist.add(found[0] + queries.start, found[1] + asking.first_item, found[2])


class _CoarseScan:
    """Candidates by the coarse product of a cell, scored in float32 one by one."""

    def __init__(
        self,
        task: Task,
        blocks: Blocks,
        coarse: CoarseFilter,
        shortlist: Shortlist,
        kept: KeptSearch | None,
    ) -> None:
        self._task, self._coarse, self._shortlist = task, coarse, shortlist
        n = len(task.queries)
        fitting = blocks.cache_bytes // (len(coarse.basis) + 16)
        # What does not fit into memory may lie in the folder of the search. Without one the first
        # rows are kept: in a self-join most panels ask for them.
        on_disk = fitting < n and kept is not None and task.queries.device.type == "cpu"
        room = kept.room if on_disk and kept is not None else None
        self._queries = RoundedRows(n if on_disk else min(n, fitting), room)
        self._pairwise, self._height = coarse.number_format == "int8_loops", blocks.query
        self._patience = Patience()

    def open(self, right: Tensor, panel: slice) -> None:
        """Turn to the panel whose float32 rows are `right`."""
        own, size = self._task.own, self._height
        shared = self._pairwise and own is not None and _is_own(own, panel)
        first = 0 if own is None else panel.start - own.start
        if not shared or not self._queries.keeps(first, len(right)):
            self._turn_to(self._coarse.rounded("right", right))
            return
        # Both sides are rounded alike, so the queries of this panel need it once.
        for start in range(0, len(right), size):
            rows = right[start : start + size]
            rounded = partial(self._coarse.rounded, "right", rows)
            self._queries.rows(first + start, len(rows), rounded)
        self._turn_to(self._queries.stretch(first, len(right)))

    def _turn_to(self, rounded: CoarseRows) -> None:
        self._right, self._packed = rounded, self._coarse.packed(rounded)

    def scan(self, cell: _Cell) -> bool:
        """Offer the candidates of a cell to the shortlist; False if there are too many of them."""
        shortlist = self._shortlist
        asking = _asking(self._task, cell)
        if any(bool((shortlist.threshold[some.queries] == -torch.inf).any()) for some in asking):
            return False
        if not self._patience.ready():
            return False
        found = self._by_pairs(cell, asking) if self._pairwise else self._by_tile(cell, asking)
        # If thresholds are still low: come back when they have risen.
        self._patience.tell(found is not None)
        if found is None:
            return False
        _add(shortlist, cell, asking, found)
        return True

    def _by_pairs(self, cell: _Cell, asking: list[_Asking]) -> _Pairs | None:
        """Pairs by the compiled loops, which keep no tile."""
        task, floors = self._task, _floors(self._shortlist, cell, asking)
        items = torch.arange(cell.items.start, cell.items.stop)
        queries = torch.arange(cell.queries.start, cell.queries.stop)
        # What no pair shares: only a query that is a gallery row leaves itself out.
        own = -1 - queries if task.own is None else queries + task.own.start
        skipped, coarse = cell.skipped, self._coarse
        right = self._right[skipped:]
        found = coarse.hits(
            self._left(cell),
            right,
            coarse.packed(right) if skipped else self._packed,
            (cell.left.exact(), kernels.FloatRows(cell.right)),
            floors,
            (own, items),
        )
        if found is None or task.exclude is None:
            return found
        by_left, by_right = found
        excluded = task.exclude[by_left.query.to(torch.int64) + cell.queries.start]
        items = by_left.place.to(torch.int64) + cell.items.start
        stays = (excluded != items[:, None]).all(1)
        return by_left.where(stays), by_right

    def _by_tile(self, cell: _Cell, asking: list[_Asking]) -> _Pairs | None:
        """Pairs by a tile of cheap scores."""
        coarse = self._coarse
        mine, theirs = self._left(cell), self._right[cell.skipped :]
        rows = cell.left.prepared()
        packed = self._packed if not cell.skipped else coarse.packed(theirs)
        tile = coarse.products(mine, theirs, packed)
        _strike_out(self._task, tile, cell)
        by_left = self._found(tile, "rows", asking[0].queries, rows, cell.right, mine, theirs)
        if by_left is None:
            return None
        nothing = by_left.query[:0]
        if cell.served is None:
            return by_left, kernels.Pairs(nothing, nothing, by_left.score[:0])
        served = slice(cell.served, None)
        by_right = self._found(
            tile[:, served], "columns", asking[1].queries, cell.right[served], rows,
            theirs[served], mine,
        )  # fmt: skip
        if by_right is None:
            return None
        return by_left, by_right._replace(query=by_right.query + cell.served)

    def _left(self, cell: _Cell) -> CoarseRows:
        def rounded() -> CoarseRows:
            return self._coarse.rounded("left", cell.left.prepared())

        return self._queries.rows(cell.queries.start, len(cell.left), rounded)

    def _found(
        self,
        tile: Tensor,
        side: Literal["rows", "columns"],
        queries: slice,
        query_rows: Tensor,
        other_rows: Tensor,
        mine: CoarseRows,
        theirs: CoarseRows,
    ) -> kernels.Pairs | None:
        """Entries whose float32 score reaches the floor of their query."""
        floor = self._shortlist.floor(queries)
        bar = self._coarse.bar(floor, mine, theirs)
        passed = candidates(tile, side, bar, _COARSE_SHARE)
        if passed is None:
            return None
        query, place, _ = passed
        scores = sampled_products(query_rows, other_rows, query, place)
        real = scores >= floor[query]
        return kernels.Pairs(query[real], place[real], scores[real])


def _is_own(own: range, panel: slice) -> bool:
    """True if a panel is among this process's queries."""
    return own.start <= panel.start < own.stop


def _is_met(task: Task, blocks: Blocks, queries: slice, panel: slice) -> bool:
    """True if a product of these queries and this panel is due.

    In a self-join, the first panel of this process's rows meets all queries, which gives them their
    first thresholds at once; later panels meet those that are neither in it nor behind themselves.
    """
    if task.own is None or not _is_own(task.own, panel) or panel.start == task.own.start:
        return True
    return blocks.gallery <= queries.start < panel.stop - task.own.start


def _strike_out(task: Task, scores: Tensor, cell: _Cell) -> None:
    """-inf for padding, for the queries themselves and for what they exclude."""
    n_queries = cell.queries.stop - cell.queries.start
    start, stop = cell.items.start, cell.items.stop
    scores[n_queries:] = -torch.inf
    scores[:, stop - start :] = -torch.inf
    if _on_diagonal(task, cell):
        scores.fill_diagonal_(-torch.inf)
    if task.exclude is not None:
        excluded = task.exclude[cell.queries]
        rows, slots = ((excluded >= start) & (excluded < stop)).nonzero(as_tuple=True)
        scores[rows, excluded[rows, slots] - start] = -torch.inf
