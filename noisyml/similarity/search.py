"""Exact nearest neighbours of many queries in bounded memory.

A float32 product over blocks is only a filter: its rounding error has a proven bound, so a gallery
item that stays behind the k-th best by more than this bound is out, and one maximum per group of 64
scores finds the few that are not. What is left, k and a few more per query, is scored in float64,
and where even that is too close to call, exactly (see
`noisyml.similarity.exact.arithmetic`). So neighbours and scores depend neither on block sizes nor
on threads, devices or processes, and equal rows tie exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from noisyml.errors import UserError
from noisyml.similarity.exact import kernels
from noisyml.similarity.exact.arithmetic import (
    Array,
    RowSource,
    Side,
    centre_of,
    centre_positions,
    checked_metric,
    double_error,
    exact_pairs,
    exact_products,
    sampled_products,
)
from noisyml.similarity.exact.quantised import (
    TRIAL_GALLERY,
    TRIAL_QUERIES,
    CoarseFilter,
    CoarseRows,
    Patience,
    chosen_filter,
)
from noisyml.similarity.exact.shortlist import Shortlist
from noisyml.similarity.exact.tiles import (
    GROUP,
    Float32Filter,
    candidates,
    common_scale,
    kth_bound,
    padded,
)

#: Working memory unless told otherwise, beside inputs and what is kept per query.
_BUDGET_BYTES = {"cpu": 2**27, "cuda": 2**31}
#: Rows and columns of a tile beyond which nothing is gained: 16 MiB on a CPU.
_LARGEST_TILE = {"cpu": (2048, 2048), "cuda": (8192, 16384)}
#: A coarse product is given up for a tile if more than this share of its groups hold candidates.
_COARSE_SHARE = 0.5
#: Items whose float32 scores give a query its first threshold, at least and per neighbour wanted.
_FIRST_ITEMS, _FIRST_ITEMS_PER_NEIGHBOUR = 1024, 64
#: Rows of the steps in which the diagonal of a self-join is gone along.
_STEP = 512
#: Room for pairs that one scan of a tile may find per thread: one for so many entries.
_ENTRIES_PER_PAIR = 64
#: Rows and columns of a block of exact scores, and pairs scored exactly at once.
_EXACT_BLOCK = 512
#: Queries whose shortlists are sorted together.
_QUERIES_AT_ONCE = 8192


class TopK(NamedTuple):
    """The nearest gallery items of each query, best first.

    Attributes:
        scores: [Nq, k], larger is nearer: inner products (``ip``), cosines (``cosine``) or squared
            distances times -1 (``l2``); float64 where an input was float64, else float32. -inf
            where a query has fewer than k candidates.
        index: [Nq, k] int64, gallery row numbers; -1 where a query has fewer than k candidates.
    """

    scores: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class Gallery(Protocol):
    """All rows that are searched, wherever they lie.

    Attributes:
        side: norms and the like of all of them.
        dtype: float32 or float64, of the blocks.
    """

    side: Side
    dtype: torch.dtype

    def panels(self, size: int) -> Iterator[slice]:
        """Consecutive stretches of at most `size` rows; together, all rows."""
        ...

    def panel(self, which: slice) -> Tensor:
        """The rows [n, D] of one of these stretches; not to be written to."""
        ...

    def needed(self, wanted: list[bool]) -> list[bool]:
        """Which panels must be visited if those marked in `wanted` are wanted here."""
        ...

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Up to n rows that this process can read by itself: their numbers [m], rows [m, D]."""
        ...


class LocalGallery:
    """A gallery that this process can read by itself."""

    def __init__(self, source: RowSource, side: Side) -> None:
        self.side = side
        self.dtype = source.dtype
        self._source = source

    def panels(self, size: int) -> Iterator[slice]:
        """See `Gallery`."""
        return stretches(len(self._source), size)

    def panel(self, which: slice) -> Tensor:
        """See `Gallery`."""
        return self._source.block(which.start, which.stop)

    def needed(self, wanted: list[bool]) -> list[bool]:
        """See `Gallery`."""
        return wanted

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """See `Gallery`."""
        numbers = spread_out(len(self._source), n).to(self._source.device)
        return numbers, self._source.take(numbers)


class Task(NamedTuple):
    """What is to be found.

    Attributes:
        queries: this process's queries.
        query_side: their norms and the like.
        gallery: what is searched.
        k: neighbours wanted, at least 1.
        exclude: [Nq, m] int64 gallery numbers to leave out, -1 for none; or None.
        own: if the queries are gallery rows, the stretch of the gallery that they are, in order,
            and each is left out for itself; or None.
        fast: whether a cheaper product may go before the float32 one.
    """

    queries: RowSource
    query_side: Side
    gallery: Gallery
    k: int
    exclude: Tensor | None
    own: range | None
    fast: bool


class Blocks(NamedTuple):
    """Rows and columns of a tile, multiples of `GROUP`; columns a multiple of rows.

    The rest of the budget, `cache_bytes`, may be spent on rounded copies of the queries.
    """

    query: int
    gallery: int
    cache_bytes: int


def topk(
    queries: Array,
    gallery: Array,
    k: int,
    *,
    metric: Literal["cosine", "ip", "l2"] = "cosine",
    precision: Literal["exact", "fast"] = "exact",
    exclude: Array | None = None,
    memory_budget_bytes: int | None = None,
    device: torch.device | str | None = None,
    query_block: int | None = None,
    gallery_block: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TopK:
    """The k nearest gallery rows of every query, exactly; equal scores by lowest row number.

    Args:
        queries: [Nq, D], any floating dtype; tensor, NumPy array or `numpy.memmap`.
        gallery: [Ng, D], likewise.
        k: neighbours wanted, at least 1; may exceed Ng.
        metric: ``cosine`` (a zero row scores 0 with everything), ``ip`` (inner product) or ``l2``
            (squared Euclidean distance).
        precision: ``exact``: float32 products. ``fast``: the same answer, to the bit, with cheaper
            products before them (see `noisyml.similarity.exact.quantised`) where a trial on a
            sample says that they pay; much depends on the data, and on small ones they never do.
        exclude: int64 [Nq] or [Nq, m], gallery rows to leave out per query; -1 for none.
        memory_budget_bytes: working memory beside the inputs and about 100 k bytes per query; it
            decides the block sizes. Default 128 MiB, on CUDA 2 GiB.
        device: where to compute; default the queries' device.
        query_block, gallery_block: rows and columns of a block of scores, rounded up to whole
            groups of 64, instead of the sizes that the budget gives. They do not change the result.
        progress: called with (blocks done, blocks in all) as the search goes on.

    Returns:
        `TopK` on the device of the computation.

    Raises:
        UserError: shapes that do not fit, k < 1, an unknown metric, rows with NaN.
    """
    where = device_of(queries, device)
    source = RowSource(queries, "query", where)
    target = RowSource(gallery, "gallery", where)
    metric = checked_metric(metric)
    check_request(source.dim, target.dim, k, precision)
    excluded = checked_exclude(exclude, len(source), len(target), where)
    with torch.no_grad():
        centre = centre_of(target.take(positions(len(target)))) if metric == "l2" else None
        task = Task(
            source,
            Side.of(source, metric, centre),
            LocalGallery(target, Side.of(target, metric, centre)),
            k,
            excluded,
            None,
            precision == "fast",
        )
        blocks = block_sizes(source.dim, where, memory_budget_bytes, query_block, gallery_block)
        return find(task, blocks, progress)


def self_topk(
    x: Array,
    k: int,
    *,
    metric: Literal["cosine", "ip", "l2"] = "cosine",
    precision: Literal["exact", "fast"] = "exact",
    memory_budget_bytes: int | None = None,
    device: torch.device | str | None = None,
    query_block: int | None = None,
    gallery_block: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TopK:
    """The k nearest other rows of every row; the answer of `topk` for half of the multiplications.

    Args:
        x: [N, D], any floating dtype; tensor, NumPy array or `numpy.memmap`.
        k: neighbours wanted, at least 1; may exceed N - 1.
        metric: ``cosine``, ``ip`` or ``l2``.
        precision, memory_budget_bytes, device, query_block, gallery_block, progress: as in `topk`.

    Raises:
        UserError: as `topk`.
    """
    where = device_of(x, device)
    source = RowSource(x, "given", where)
    metric = checked_metric(metric)
    check_request(source.dim, source.dim, k, precision)
    with torch.no_grad():
        centre = centre_of(source.take(positions(len(source)))) if metric == "l2" else None
        side = Side.of(source, metric, centre)
        task = Task(
            source,
            side,
            LocalGallery(source, side),
            k,
            None,
            range(len(source)),
            precision == "fast",
        )
        blocks = block_sizes(source.dim, where, memory_budget_bytes, query_block, gallery_block)
        return find(task, blocks, progress)


def positions(n: int) -> Tensor:
    """The rows, of n in all, whose mean is the centre of l2 distances: [m] int64."""
    return torch.tensor(centre_positions(n), dtype=torch.int64)


def spread_out(n: int, most: int) -> Tensor:
    """Up to `most` numbers, spread evenly over ``range(n)``: int64 [m]."""
    return torch.arange(min(n, most)) * n // max(1, min(n, most))


def check_request(query_dim: int, gallery_dim: int, k: int, precision: str) -> None:
    """Refuse what cannot be searched.

    Raises:
        UserError: dimensions differ, k < 1 or an unknown precision.
    """
    if precision not in ("exact", "fast"):
        raise UserError(f"Unknown precision {precision!r}: choose exact or fast.")
    if query_dim != gallery_dim:
        raise UserError(
            f"The queries have {query_dim} dimensions and the gallery has {gallery_dim}: embed "
            "both with the same model."
        )
    if k < 1:
        raise UserError(f"Cannot search for k={k} neighbours: ask for at least 1.")


def device_of(queries: Array, device: torch.device | str | None) -> torch.device:
    """Where to compute."""
    if device is not None:
        return torch.device(device)
    return queries.device if isinstance(queries, Tensor) else torch.device("cpu")


def checked_exclude(
    exclude: Array | None, n_queries: int, n_gallery: int, device: torch.device
) -> Tensor | None:
    """`exclude` as int64 [Nq, m].

    Raises:
        UserError: other shapes, other types, or no rows of the gallery.
    """
    if exclude is None:
        return None
    given = torch.as_tensor(exclude, device=device)
    if given.is_floating_point() or given.ndim not in (1, 2) or len(given) != n_queries:
        raise UserError(
            f"exclude has shape {list(given.shape)} and type {given.dtype}: give integer gallery "
            f"rows of shape [{n_queries}] or [{n_queries}, m], one line per query."
        )
    given = given.to(torch.int64)
    given = given[:, None] if given.ndim == 1 else given
    if given.numel() and (int(given.min()) < -1 or int(given.max()) >= n_gallery):
        raise UserError(
            f"exclude holds numbers from {int(given.min())} to {int(given.max())}: gallery rows go "
            f"from 0 to {n_gallery - 1}, and -1 means none."
        )
    return given


def block_sizes(
    dim: int,
    device: torch.device,
    memory_budget_bytes: int | None,
    query_block: int | None,
    gallery_block: int | None,
) -> Blocks:
    """The largest useful tile whose working memory fits into the budget, unless told otherwise."""
    kind = device.type if device.type in _BUDGET_BYTES else "cpu"
    budget = _BUDGET_BYTES[kind] if memory_budget_bytes is None else memory_budget_bytes
    rows, columns = _LARGEST_TILE[kind]

    def needed() -> int:
        # The tile, its maxima and candidates; float32 and float64 copies of its rows.
        return 6 * rows * columns + (rows + columns) * dim * 20

    while needed() > budget and columns > GROUP:
        if columns > 4 * rows or rows == GROUP:
            columns //= 2
        else:
            rows //= 2
    rows = padded(query_block or rows)
    columns = padded(gallery_block or columns)
    columns = max(rows, columns // rows * rows)
    return Blocks(rows, columns, max(0, budget - needed()))


def find(task: Task, blocks: Blocks, progress: Callable[[int, int], None] | None = None) -> TopK:
    """Carry out `task`."""
    n_gallery = len(task.gallery.side.norms)
    scale = common_scale(task.query_side, task.gallery.side)
    product = Float32Filter(task.query_side, task.gallery.side, task.queries.dim, scale)
    # Rounded up: a margin must not come out smaller than the error it stands for.
    margins = (product.errors() * (2.0 + 2.0**-20)).to(torch.float32)
    wide = n_gallery > torch.iinfo(torch.int32).max
    shortlist = Shortlist(
        margins, max(1, min(task.k, n_gallery)), n_gallery, torch.int64 if wide else torch.int32
    )
    coarse = _coarse_filter(task, product) if task.fast else None
    _collect(task, blocks, product, coarse, shortlist, progress)
    index, lost = shortlist.numbers(), shortlist.lost
    del shortlist  # most of what is kept per query; scores that decide are computed anew
    scores, index = _judged(task, blocks, index)
    _settle(task, blocks, lost.nonzero().flatten(), scores, index)

    double = torch.float64 in (task.queries.dtype, task.gallery.dtype)
    shape = len(index), task.k
    best = scores.new_full(shape, -torch.inf, dtype=torch.float64 if double else torch.float32)
    numbers = index.new_full(shape, -1, dtype=torch.int64)
    width = min(task.k, index.shape[1])
    best[:, :width] = scores[:, :width].mul_(task.query_side.output_scale())
    numbers[:, :width] = index[:, :width]
    return TopK(best, numbers)


def _coarse_filter(task: Task, product: Float32Filter) -> CoarseFilter | None:
    """What a trial on rows that this process can read recommends."""
    some = spread_out(len(task.queries), TRIAL_QUERIES).to(task.queries.device)
    items, rows = task.gallery.sample(TRIAL_GALLERY)
    own = task.own is not None
    shift = task.own.start if task.own is not None else 0
    if not len(items):
        return None
    pairs = len(task.queries) * len(task.gallery.side.norms)
    return chosen_filter(
        product, (some, task.queries.take(some)), (items, rows), task.k, pairs, own, shift
    )


def stretches(n: int, size: int) -> Iterator[slice]:
    """``range(n)`` in consecutive slices of at most `size`."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


class _Cell(NamedTuple):
    """Queries and gallery rows whose product is due.

    Attributes:
        left, right: their float32 rows, padded to whole groups.
        queries: the queries' numbers.
        items: the gallery rows' numbers.
        skipped: how many rows of the panel come before them.
        served: where in `right` rows begin that are queries too and want to see the left rows; None
            if there are none.
    """

    left: Tensor
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


def _collect(
    task: Task,
    blocks: Blocks,
    product: Float32Filter,
    coarse: CoarseFilter | None,
    shortlist: Shortlist,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Fill the shortlist: one product per block of queries and panel of the gallery.

    In a self-join, a product with a panel of this process's own rows also serves these as queries.
    """
    panels = list(task.gallery.panels(blocks.gallery))
    lefts = list(stretches(len(task.queries), blocks.query))
    met = [[left for left in lefts if _is_met(task, blocks, left, panel)] for panel in panels]
    total, done = sum(len(column) for column in met), 0
    fine_scan = _FineScan(task, blocks, product, shortlist)
    coarse_scan = None if coarse is None else _CoarseScan(task, blocks, coarse, shortlist)
    for panel, column in zip(panels, met, strict=True):
        right = product.prepare("right", task.gallery.panel(panel), panel)
        if coarse_scan is not None:
            fine_scan.release()
            coarse_scan.open(right, panel)
        for part in column:
            left = product.prepare("left", task.queries.block(part.start, part.stop), part)
            for cell in _pieces(task, _cell(task, left, right, part, panel), shortlist, coarse):
                if coarse_scan is None or not coarse_scan.scan(cell):
                    fine_scan.scan(cell)
            done += 1
            if progress is not None:
                progress(done, total)


def _cell(task: Task, left: Tensor, right: Tensor, queries: slice, panel: slice) -> _Cell:
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
    """Whether the first item of a cell is its first query."""
    return task.own is not None and task.own.start + cell.queries.start == cell.items.start


def _steps(cell: _Cell) -> list[_Cell]:
    """Of a cell on the diagonal of a self-join what lies above it, in steps of a few rows."""
    cells = []
    for part in stretches(cell.queries.stop - cell.queries.start, _STEP):
        items = slice(cell.items.start + part.start, cell.items.stop)
        left = cell.left[part.start : padded(part.stop)]
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
    """Who asks: the left rows, and the right rows that are queries too."""
    asking = [_Asking(cell.queries, cell.items.start, 0)]
    if cell.served is not None and task.own is not None:
        first = cell.items.start + cell.served - task.own.start
        partners = slice(first, cell.items.stop - task.own.start)
        asking.append(_Asking(partners, task.own.start + cell.queries.start, cell.served))
    return asking


def _floors(shortlist: Shortlist, cell: _Cell, asking: list[_Asking]) -> tuple[Tensor, Tensor]:
    """What the left rows and the right rows of a cell want to see: float32, +inf for nothing."""
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
            self._buffer = cell.left.new_empty(self._size)
        tile = self._buffer[: shape[0] * shape[1]].view(shape)
        torch.mm(cell.left, cell.right.T, out=tile)
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


class _RoundedQueries:
    """Rounded rows of all queries, each rounded when it is first asked for.

    In one piece: pieces that stay, among temporaries that do not, would leave holes in the heap.
    """

    def __init__(self, n: int) -> None:
        self._size = padded(n) + GROUP
        self._all: CoarseRows | None = None
        self._known: set[int] = set()

    def rows(
        self, start: int, prepared: Tensor, rounded: Callable[[Tensor], CoarseRows]
    ) -> CoarseRows:
        """Those from number `start` on, given their float32 rows and how to round them; whole
        groups."""
        part = slice(start, start + len(prepared))
        groups = range(part.start, part.stop, GROUP)
        if self._all is None or not self._known.issuperset(groups):
            new = rounded(prepared)
            self._all = self._all or new.room_for(self._size)
            self._all[part].fill(new)
            self._known.update(groups)
        return self._all[part]

    def stretch(self, start: int, n: int) -> CoarseRows:
        """`n` rows from number `start` on that have all been asked for."""
        assert self._all is not None
        return self._all[start : start + n]


class _CoarseScan:
    """Candidates by the coarse product of a cell, scored in float32 one by one."""

    def __init__(
        self, task: Task, blocks: Blocks, coarse: CoarseFilter, shortlist: Shortlist
    ) -> None:
        self._task, self._coarse, self._shortlist = task, coarse, shortlist
        fits = len(task.queries) * (len(coarse.basis) + 16) <= blocks.cache_bytes
        self._queries = _RoundedQueries(len(task.queries)) if fits else None
        self._pairwise, self._height = coarse.number_format == "int8_loops", blocks.query
        self._patience = Patience()

    def open(self, right: Tensor, panel: slice) -> None:
        """Turn to the panel whose float32 rows are `right`."""
        own, size = self._task.own, self._height
        shared = self._pairwise and own is not None and _is_own(own, panel)
        if self._queries is None or not shared or own is None:
            self._turn_to(self._coarse.rounded("right", right))
            return
        # Both sides are rounded alike, so the queries of this panel need it once.
        first, rounded = panel.start - own.start, partial(self._coarse.rounded, "right")
        for start in range(0, len(right), size):
            self._queries.rows(first + start, right[start : start + size], rounded)
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
            (cell.left, cell.right),
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
        packed = self._packed if not cell.skipped else coarse.packed(theirs)
        tile = coarse.products(mine, theirs, packed)
        _strike_out(self._task, tile, cell)
        by_left = self._found(tile, "rows", asking[0].queries, cell.left, cell.right, mine, theirs)
        if by_left is None:
            return None
        nothing = by_left.query[:0]
        if cell.served is None:
            return by_left, kernels.Pairs(nothing, nothing, by_left.score[:0])
        served = slice(cell.served, None)
        by_right = self._found(
            tile[:, served], "columns", asking[1].queries, cell.right[served], cell.left,
            theirs[served], mine,
        )  # fmt: skip
        if by_right is None:
            return None
        return by_left, by_right._replace(query=by_right.query + cell.served)

    def _left(self, cell: _Cell) -> CoarseRows:
        rounded = partial(self._coarse.rounded, "left")
        if self._queries is None:
            return rounded(cell.left)
        return self._queries.rows(cell.queries.start, cell.left, rounded)

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
    """Whether a panel is among this process's queries."""
    return own.start <= panel.start < own.stop


def _is_met(task: Task, blocks: Blocks, queries: slice, panel: slice) -> bool:
    """Whether a product of these queries and this panel is due.

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


def _judged(task: Task, blocks: Blocks, index: Tensor) -> tuple[Tensor, Tensor]:
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
    """Whether the compiled loops can score pairs in float64 without float64 copies of the rows."""
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
    """Which float64 scores [n, W], descending, decide neither order nor rounding: bool [n, W]."""
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


def _settle(task: Task, blocks: Blocks, lost: Tensor, scores: Tensor, index: Tensor) -> None:
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
