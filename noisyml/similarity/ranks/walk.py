"""Exact ranks of the relevant gallery items, without a sorted row and without an N x N matrix.

Every retrieval metric follows from one table: how many *irrelevant* items stand before the m-th
relevant item of a query. Three observations make that table cheap.

* Only negatives that score above the query's lowest relevant item that can still matter count.
  A relevant item overtaken by more negatives than any requested metric looks at is dead, and its
  score leaves the threshold. A blockwise matrix product and one maximum per group of 64 items find
  the few candidates.
* The product is only a filter. Its rounding error has a proven bound, so a candidate that is
  farther than this bound from every relevant score is placed without further work; the rest are
  scored again more closely and, if that does not tell them apart either, exactly
  (`noisyml.similarity.ranks.scores`). Where it pays, a cheaper filter
  (`noisyml.similarity.exact.quantised`) goes before it, and only what passes gets its float32
  score.
* When the queries are the gallery, the product of two blocks serves both of them: half the work.
  Where classes are so large that not all blocks fit into memory at once, a later block's score to
  reach is guessed from a sample, and what is found for it is kept until its turn
  (`noisyml.similarity.ranks.lending`).

The steps: `task` relates queries to a gallery, `opening` scores a block's relevant items, `walk`
leads blocks of queries past the gallery, `tile` finds the candidates of one meeting, `block` counts
them, `scores` settles close cases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from noisyml.similarity.exact.kernels import FloatRows, Pairs
from noisyml.similarity.exact.plan import spread_out
from noisyml.similarity.exact.quantised import (
    TRIAL_GALLERY,
    TRIAL_QUERIES,
    CoarseFilter,
    CoarseRows,
    Patience,
    RoundedRows,
    chosen_filter,
)
from noisyml.similarity.exact.tiles import GROUP, padded
from noisyml.similarity.ranks.block import QueryBlock, Ties
from noisyml.similarity.ranks.lending import LentPairs, guessed_floors, stretches
from noisyml.similarity.ranks.opening import Opening, inverse
from noisyml.similarity.ranks.task import RankingTask
from noisyml.similarity.ranks.tile import Tile, count_pairs, count_waiting, scan_tile, score_floor

#: Most elements of a tile, and its height over its width: 4096 x 1024 float32 are 16 MiB. The tall
#: shape is the fastest product, and its narrow side is the one to be prepared for every tile.
_LARGEST_TILE = 2**22
_TILE_ASPECT = 4
#: Rows by which queries that have met few items are introduced.
_FIRST_ROWS = 512
#: Pairs of a block that wait to be counted together: each time takes many small operations.
_PAIRS_TOGETHER = 2048
#: The same of pairs that others have found: each time, thresholds are found anew.
_LENT_TOGETHER = 2**17


class _Left(NamedTuple):
    """Rows of queries.

    Attributes:
        rows: the filter's, padded to whole groups.
        rounded: the coarse filter's, if there is one.
    """

    rows: Tensor
    rounded: CoarseRows | None

    def _part(self, part: slice) -> _Left:
        return _Left(self.rows[part], self.rounded and self.rounded[part])

    def below(self, top: int) -> _Left:
        """Without the first `top` rows, whole groups."""
        return self._part(slice(top, None)) if top else self

    def above(self, n: int) -> _Left:
        """The first `n` rows, padded to whole groups."""
        return self._part(slice(0, n + -n % GROUP))


@dataclass(frozen=True)
class _Meeting:
    """Queries of two blocks that are each other's gallery items.

    Attributes:
        first, second: the blocks.
        queries: those of the first, from its beginning.
        items: those of the second, from number `start` on.
        start: where they begin in the second block.
        place: where they begin in the walk.
        above: so many of `queries` serve the second block.
        new: `items` have met nothing yet.
    """

    first: QueryBlock
    second: QueryBlock
    queries: Tensor
    items: Tensor
    start: int
    place: int
    above: int
    new: bool


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
        tile = min(_LARGEST_TILE, memory_budget_bytes // 16)
        self._columns = max(GROUP, math.isqrt(tile // _TILE_ASPECT) // GROUP * GROUP)
        self._edge = self._columns * _TILE_ASPECT
        self._block_bytes = memory_budget_bytes // 4
        self._hits_at_once = max(GROUP, memory_budget_bytes // 2**14)

        self._opening = Opening(task, caps, ties)
        self._gallery_order = self._opening.order
        order = task.query_class.argsort(stable=True)
        # What a block keeps of each relevant item, in bytes.
        self._per_relevant = 3 * 8 + 4 + 4 * len(self._ties)
        state = self._per_relevant * int(task.n_relevant.sum())
        #: True if both sides of every product are used.
        self.symmetric = task.symmetric and state <= memory_budget_bytes // 2
        self._query_order = order if self.symmetric else order[task.n_relevant[order] > 0]
        self._coarse = self._coarse_filter()
        self._rounded: dict[int, CoarseRows] = {}
        self._pairwise = self._coarse is not None and self._coarse.number_format == "int8_loops"
        self._patience = Patience()
        self._space: Tensor | None = None
        #: Scores that queries will likely ask for, if what a block finds is kept for later ones.
        self._floors: Tensor | None = None
        if self._may_lend():
            self._floors = guessed_floors(task, order, self._looked_at(order), self._block_bytes)
        if self._floors is not None:
            self._query_order = order
        # Rounded gallery rows are kept if they fit beside the tile and the blocks that are open.
        coarse_bytes = len(self._gallery_order) * (task.scores.filter.width + 32)
        open_bytes = state if self.symmetric else self._block_bytes
        spare = memory_budget_bytes - 6 * 4 * tile - open_bytes
        self._keeps_rounded = coarse_bytes <= max(self._block_bytes, spare)
        #: Those of a walk of items past themselves, whose stretches begin with whole groups.
        self._all_rounded: RoundedRows | None = None
        both = self.symmetric or self._floors is not None
        if both and self._pairwise and self._keeps_rounded:
            self._all_rounded = RoundedRows(len(self._gallery_order))

    def blocks(self) -> Iterator[QueryBlock]:
        """Finished blocks; in a symmetric walk the same on all processes, else this one's share."""
        return self._symmetric_blocks() if self.symmetric else self._query_blocks()

    def _query_slices(self) -> list[slice]:
        """Blocks of queries, smaller where classes are so large that their scores fill memory."""
        n_relevant = self.task.n_relevant[self._query_order].cpu()
        slices, start = [], 0
        while start < len(n_relevant):
            length = self._edge
            while length > GROUP:
                widest = int(n_relevant[start : start + length].max())
                fitting = self._block_bytes // max(1, widest * self._per_relevant)
                if length <= fitting:
                    break
                length = max(GROUP, fitting // GROUP * GROUP)
            slices.append(slice(start, min(start + length, len(n_relevant))))
            start += length
        return slices

    def _coarse_filter(self) -> CoarseFilter | None:
        """The cheaper filter that a trial on an even sample recommends, if any.

        It takes the scores that matter to a query for its nearest few items: as many as the most
        demanding metric looks at.
        """
        task, n_gallery = self.task, len(self._gallery_order)
        queries = self._query_order[spread_out(len(self._query_order), TRIAL_QUERIES)]
        items = self._gallery_order[spread_out(n_gallery, TRIAL_GALLERY)]
        if not len(queries) or not len(items):
            return None
        looked_at = self._looked_at(queries)
        return chosen_filter(
            task.scores.filter,
            (queries, task.scores.query.raw(queries)),
            (items, task.scores.gallery.raw(items)),
            max(1, round(float(looked_at.to(torch.float64).mean()))),
            len(self._query_order) * n_gallery,
            self.symmetric,
            0,
            # Pairs of a class are no negatives, so they cost nothing however near they are.
            (task.query_class[queries], task.gallery_class[items]),
        )

    def _looked_at(self, query_index: Tensor) -> Tensor:
        """Number of items that the most demanding metric looks at, of each query: int64 [n]."""
        n_relevant = self.task.n_relevant[query_index]
        first = torch.zeros(1, dtype=torch.int64, device=n_relevant.device)
        found = self._caps(first, n_relevant[:, None]).clamp(max=len(self._gallery_order) - 1) + 1
        return found.masked_fill_(n_relevant[:, None] == 0, 0).squeeze(1)

    def _may_lend(self) -> bool:
        """True if a product could serve both sides and blocks do not fit into memory at once."""
        return self.task.symmetric and not self.symmetric and self._parts == 1 and self._pairwise

    def _left(self, query_index: Tensor) -> _Left:
        """The rows of a block of queries."""
        rows = self.task.scores.filtered("left", query_index)
        if self._coarse is None:
            return _Left(rows, None)
        return _Left(rows, self._coarse.rounded("left", rows))

    def _left_of_both(self, block: slice) -> _Left:
        """The rows of queries that are gallery items at the same places of the walk."""
        index = self._query_order[block]
        if self._coarse is None or self._all_rounded is None:
            return self._left(index)
        # Both sides are rounded alike.
        rows = self.task.scores.filtered("left", index)
        starts = range(0, len(rows), self._columns)
        stretches = [rows[start : start + self._columns] for start in starts]
        rounded = partial(self._coarse.rounded, "right")
        for stretch, start in zip(stretches, starts, strict=True):
            self._coarse_right(len(stretch), partial(rounded, stretch), block.start + start)
        return _Left(rows, self._all_rounded.stretch(block.start, len(rows)))

    def _round_all(self) -> None:
        """Round the rows of a walk of items past themselves, if they are kept, a few at a time."""
        if self._all_rounded is None or self._coarse is None:
            return
        for start in range(0, len(self._query_order), self._columns):
            index = self._query_order[start : start + self._columns]
            rows = self.task.scores.filtered("right", index)
            self._coarse_right(len(rows), partial(self._coarse.rounded, "right", rows), start)

    def _coarse_right(self, n: int, rounded: Callable[[], CoarseRows], start: int) -> CoarseRows:
        """The coarse filter's rows of the gallery's stretch of `n` rows that begins at place
        `start`, and how to round them if they are not kept."""
        if self._all_rounded is not None:
            return self._all_rounded.rows(start, n, rounded)
        if start in self._rounded:
            return self._rounded[start]
        found = rounded()
        if self._keeps_rounded:
            self._rounded[start] = found
        return found

    def _pairs(
        self,
        left: _Left,
        query_index: Tensor,
        gallery_index: Tensor,
        start: int,
        floors: tuple[Tensor, Tensor],
    ) -> tuple[Pairs, Pairs] | None:
        """Pairs that reach the floors of rows and columns, found without a tile of scores.

        None if there are too many pairs: see `CoarseFilter.hits`.
        """
        coarse, scores = self._coarse, self.task.scores
        assert coarse is not None
        assert left.rounded is not None
        prepared = partial(scores.filtered, "right", gallery_index)
        others = self._coarse_right(
            padded(len(gallery_index)), lambda: coarse.rounded("right", prepared()), start
        )
        columns = scores.where_they_lie("right", gallery_index) or FloatRows(prepared())
        return coarse.hits(
            left.rounded,
            others,
            coarse.packed(others),
            (FloatRows(left.rows), columns),
            floors,
            (self.task.query_class[query_index], self.task.gallery_class[gallery_index]),
        )

    def _tile(
        self,
        left: _Left,
        query_index: Tensor,
        gallery_index: Tensor,
        start: int,
    ) -> Tile:
        """Filter scores of a padded block and of the stretch of the gallery that begins at place
        `start` of the walk; -inf where nothing is to be counted: relevant items and padding."""
        task = self.task
        rows, rounded = left.rows, left.rounded
        columns = task.scores.filtered("right", gallery_index)
        coarse = None
        if self._coarse is None or rounded is None or self._pairwise:
            shape = (len(rows), len(columns))
            if self._space is None or self._space.numel() < math.prod(shape):
                self._space = rows.new_empty(max(math.prod(shape), self._edge * self._columns))
            tile = torch.mm(rows, columns.T, out=self._space[: math.prod(shape)].view(shape))
        else:
            rounded_columns = partial(self._coarse.rounded, "right", columns)
            others = self._coarse_right(len(columns), rounded_columns, start)
            tile = self._coarse.products(rounded, others, self._coarse.packed(others))
            coarse = self._coarse, rounded, others
        tile[len(query_index) :] = -torch.inf
        tile[:, len(gallery_index) :] = -torch.inf
        ours, theirs = task.query_class[query_index], task.gallery_class[gallery_index]
        # Both sides are in class order: only a corner of the tile holds common classes.
        common = max(int(ours[0]), int(theirs[0])), min(int(ours[-1]), int(theirs[-1]))
        if common[0] <= common[1]:
            (top, side), (bottom, end) = (
                [int(torch.searchsorted(classes, bound, right=upper)) for classes in (ours, theirs)]
                for bound, upper in ((common[0], False), (common[1], True))
            )
            corner = ours[top:bottom, None] == theirs[side:end]
            tile[top:bottom, side:end].masked_fill_(corner, -torch.inf)
        return Tile(tile, rows, columns, coarse)

    def _symmetric_blocks(self) -> Iterator[QueryBlock]:
        order = self._query_order
        slices = self._query_slices()
        blocks = [self._opening.open(order[part]) for part in slices]
        # Upper triangle, block by block; within a column block one narrow stretch after the other.
        tiles = [
            (i, j, start)
            for i in range(len(blocks))
            for j in range(i, len(blocks))
            for start in range(0, len(blocks[j].query_index), self._columns)
        ]
        held = -1
        introduced: set[tuple[int, int]] = set()
        for i, j, start in tiles[self._part :: self._parts]:
            first, second = blocks[i], blocks[j]
            if not (first.alive or second.alive):
                continue
            if i != held:
                held, left = i, self._left_of_both(slices[i])
            items = second.query_index[start : start + self._columns]
            # On the diagonal nothing below it, and the square upon it serves its rows alone.
            until = min(start + len(items), len(first.query_index)) if i == j else None
            queries = first.query_index[:until]
            above = start if i == j else len(queries)
            place = slices[j].start + start
            new = (j, start) not in introduced
            introduced.add((j, start))
            self._meet(_Meeting(first, second, queries, items, start, place, above, new), left)
        for block in blocks:
            count_waiting(block, self.task.scores, self._hits_at_once)
            block.counts = {ties: self._reduce(counts) for ties, counts in block.counts.items()}
            yield block

    def _meet(self, meeting: _Meeting, left: _Left) -> None:
        """Count the negatives that both sides of a meeting find on the other one.

        Queries that have met few items let too many pairs through: they first meet a few rows by
        float32 products, which raises their thresholds.
        """
        height, top = len(meeting.queries), 0
        trying = self._pairwise and self._patience.ready()
        while top < height:
            introducing = trying and top == 0 and height > _FIRST_ROWS
            if trying and not (introducing and meeting.new):
                if self._met_by_pairs(meeting, left.below(top), top):
                    self._patience.tell(True)
                    return
                if not introducing:
                    self._patience.tell(False)
                    trying = False
            bottom = _FIRST_ROWS if introducing else height
            self._met_by_tile(meeting, left, slice(top, bottom))
            top = bottom

    def _met_by_pairs(self, meeting: _Meeting, left: _Left, top: int) -> bool:
        """Count negatives by pairs, from the row `top` on; False if there are too many."""
        first, second, scores = meeting.first, meeting.second, self.task.scores
        queries, items, start = meeting.queries[top:], meeting.items, meeting.start
        mine = slice(top, top + len(queries))
        theirs = slice(start, start + len(items))
        floors = (
            score_floor(first, scores.filter_error(first.query_index, items), mine),
            score_floor(second, scores.filter_error(second.query_index, queries), theirs),
        )
        found = self._pairs(left, queries, items, meeting.place, floors)
        if found is None:
            return False
        by_left, by_right = found
        above = meeting.above - top
        if above < len(queries):
            by_right = by_right.where(by_right.place < above)
        how = {"hits_at_once": self._hits_at_once, "at_least": _PAIRS_TOGETHER}
        count_pairs(by_left, first, top, items, scores, **how)
        count_pairs(by_right, second, start, queries, scores, **how)
        return True

    def _met_by_tile(self, meeting: _Meeting, left: _Left, part: slice) -> None:
        """Count negatives by a tile of filter scores of the rows `part`."""
        queries, items, scores = meeting.queries[part], meeting.items, self.task.scores
        rows = left.below(part.start).above(len(queries))
        tile = self._tile(rows, queries, items, meeting.place)
        scan_tile(tile, "rows", meeting.first, part.start, items, scores, self._hits_at_once)
        above = max(0, min(meeting.above - part.start, len(queries)))
        scan_tile(
            tile.top(above + -above % GROUP),
            "columns",
            meeting.second,
            meeting.start,
            queries[:above],
            scores,
            self._hits_at_once,
        )

    def _query_blocks(self) -> Iterator[QueryBlock]:
        slices = self._query_slices()
        order, bounds = self._gallery_walk(slices)
        if self._floors is not None:
            # The places that rows are kept rounded by.
            width = self._stretch_width(slices[0])
            starts = range(0, len(order), width)
            order, bounds = self._query_order, [(at, min(at + width, len(order))) for at in starts]
        place = inverse(order)
        mine = [self._query_order[part] for part in slices[self._part :: self._parts]]
        again: list[Tensor] = []
        foreseen = (
            self._lent_to(slices, self._floors)
            if self._floors is not None
            else (self._walked(part, order, place, bounds, foresee=True) for part in mine)
        )
        for block in foreseen:
            unsettled = block.unsettled()
            again.append(block.query_index[unsettled])
            # Nothing to report of these now; they come again in a block that is not foreseen.
            block.n_relevant = block.n_relevant.masked_fill(unsettled, 0)
            yield block
            del block  # The next one is opened in its room.
        wrong = torch.cat(again) if again else self._query_order[:0]
        for query_index in wrong.split(max(len(part) for part in mine) if mine else 1):
            if len(query_index):
                yield self._walked(query_index, order, place, bounds, foresee=False)

    def _lent_to(self, slices: Sequence[slice], floors: Tensor) -> Iterator[QueryBlock]:
        """Blocks that have met the gallery, each those after it, and by them those before it."""
        task, order = self.task, self._query_order
        self._round_all()
        lent = LentPairs(slices, self._block_bytes)
        how = {"hits_at_once": self._hits_at_once, "at_least": _LENT_TOGETHER}
        for number, part in enumerate(slices):
            block = self._opening.open(order[part])
            error = task.scores.filter_error(block.query_index, order)
            block.keep_above(floors[part].to(torch.float64) + error)
            for pairs in lent.taken(number):
                count_pairs(pairs, block, 0, order, task.scores, **how)
            count_waiting(block, task.scores, self._hits_at_once)
            block.update_thresholds()
            left, width = self._left_of_both(part), self._stretch_width(part)
            for whole in [*lent.owed(number), *stretches(slices, number, width)]:
                for start in range(whole.start, whole.stop, width):
                    stretch = slice(start, min(start + width, whole.stop))
                    later, asked = stretch.start >= part.stop, floors[stretch]
                    wanted = later and not lent.full
                    if not wanted:
                        asked = torch.full_like(asked, torch.inf)
                    found = self._found_by(block, left, stretch, asked)
                    if later:
                        lent.lend(number, stretch, found if wanted else None)
            count_waiting(block, task.scores, self._hits_at_once)
            yield block
            del block

    def _stretch_width(self, part: slice) -> int:
        """Items that a block of so many queries meets at once, whole groups."""
        height = part.stop - part.start
        widest = self._edge * self._columns // (height + -height % GROUP or GROUP)
        return max(GROUP, min(2 * self._edge, widest // GROUP * GROUP))

    def _found_by(
        self, block: QueryBlock, left: _Left, stretch: slice, asked: Tensor
    ) -> Pairs | None:
        """Count what a block finds in a stretch of the order, and give what queries there find.

        Args:
            block: the queries.
            left: their rows.
            stretch: places in the order.
            asked: floors of the queries there, float32 [n].

        Returns:
            pairs of them and the block's queries; None: not looked for.
        """
        scores, items = self.task.scores, self._query_order[stretch]
        if self._patience.ready():
            error = scores.filter_error(block.query_index, items)
            floor = score_floor(block, error, slice(0, len(block.query_index)))
            found = self._pairs(left, block.query_index, items, stretch.start, (floor, asked))
            self._patience.tell(found is not None)
            if found is not None:
                how = {"hits_at_once": self._hits_at_once, "at_least": _PAIRS_TOGETHER}
                count_pairs(found[0], block, 0, items, scores, **how)
                return found[1]
        tile = self._tile(left, block.query_index, items, stretch.start)
        scan_tile(tile, "rows", block, 0, items, scores, self._hits_at_once)
        return None

    def _walked(
        self,
        query_index: Tensor,
        order: Tensor,
        place: Tensor,
        bounds: list[tuple[int, int]],
        foresee: bool,
    ) -> QueryBlock:
        """The block of queries that has met the whole gallery in the given order."""
        task = self.task
        block = self._opening.open(query_index)
        left = self._left(query_index)
        out_row, out = task.left_out_of(query_index)
        # Those of a query's own class are passed over anyway.
        other = task.query_class[query_index[out_row]] != task.gallery_class[out]
        out_row, out_place = out_row[other], place[out[other]]
        for start, stop in bounds:
            if not block.alive:
                break
            items = order[start:stop]
            here = (out_place >= start) & (out_place < stop)
            left_out = out_row[here], out_place[here] - start
            seen = stop / len(order) if foresee else 1.0
            error = task.scores.filter_error(query_index, items)
            floor = score_floor(block, error, slice(0, len(query_index)))
            nothing = torch.full_like(floor[:1], torch.inf).expand(len(items)).contiguous()
            found = None
            if self._pairwise and self._patience.ready():
                found = self._pairs(left, query_index, items, start, (floor, nothing))
                self._patience.tell(found is not None)
            if found is not None:
                pairs = _without(found[0], *left_out, len(items)) if len(out_row) else found[0]
                count_pairs(pairs, block, 0, items, task.scores, self._hits_at_once, seen)
                continue
            tile = self._tile(left, query_index, items, start)
            tile.scores[left_out] = -torch.inf
            scan_tile(tile, "rows", block, 0, items, task.scores, self._hits_at_once, seen)
        return block

    def _gallery_walk(self, slices: Sequence[slice]) -> tuple[Tensor, list[tuple[int, int]]]:
        """The order in which a block meets the gallery and the bounds of its tiles.

        Every tile is an even sample of the gallery in class order, the first ones small: they raise
        the thresholds cheaply and tell what to expect of the rest.
        """
        order = self._gallery_order
        n = len(order)
        tallest = max((part.stop - part.start for part in slices), default=0)
        step = self._stretch_width(slice(0, tallest))
        rest = torch.arange(n, device=order.device)
        pieces = []
        for size in (GROUP, 4 * GROUP, 16 * GROUP):
            if size > step or 4 * size > len(rest):
                break
            chosen = torch.arange(size, device=order.device) * len(rest) // size
            pieces.append(rest[chosen])
            left = torch.ones_like(rest, dtype=torch.bool)
            left[chosen] = False
            rest = rest[left]
        count = max(1, -(-len(rest) // step))
        pieces.extend(rest[first::count] for first in range(count))
        ends = [0, *itertools.accumulate(len(piece) for piece in pieces)]
        return order[torch.cat(pieces)], list(itertools.pairwise(ends))


def _without(pairs: Pairs, rows: Tensor, places: Tensor, n: int) -> Pairs:
    """The pairs, of a tile `n` wide, that are not among (rows, places) [j]."""
    stays = ~torch.isin(pairs.query.to(torch.int64) * n + pairs.place, rows * n + places)
    return pairs.where(stays)
