"""Pairs that one block of queries finds for blocks whose turn has not come."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from noisyml.similarity.exact.kernels import Pairs
from noisyml.similarity.exact.plan import spread_out
from noisyml.similarity.exact.tiles import GROUP
from noisyml.similarity.ranks.task import RankingTask

#: One item in so many is scored to guess floors, and the most of them.
_SAMPLED, _LARGEST_SAMPLE = 16, 2048
#: Standard deviations of a sample's count by which a floor is guessed too low rather than too high.
_CAUTION = 1.2
#: Pairs that room is made for at once.
_PIECE = 8192
#: As many of them for each block at least: the last one is half empty.
_PIECES_PER_BLOCK = 16
#: Bytes of a pair, if blocks are no longer than 16 bits say.
_BYTES = 10
#: Lending pays if metrics look at no larger share of the items.
_MOST_LOOKED_AT = 1 / 8
#: Queries that tell how many pairs there will be.
_TRIED = 512
#: Queries that are guessed for at a time.
_AT_ONCE = 1024


def guessed_floors(task: RankingTask, order: Tensor, looked_at: Tensor, room: int) -> Tensor | None:
    """The filter score that a query's items of interest will very likely reach, float32 [N], in
    the order of the walk; None if there is no room for all pairs that blocks find for later ones.

    Args:
        task: relates queries that are the gallery's items.
        order: numbers [N] of the queries in class order.
        looked_at: how many items the most demanding metric looks at, of each query in this order,
            int64 [N]; 0 where it looks at none.
        room: bytes of pairs that may be kept.
    """
    n = len(order)
    if not n or int(looked_at.max()) > n * _MOST_LOOKED_AT:
        return None
    sample = _sample(task, order)
    some = spread_out(n, min(n, _TRIED))
    products, floors = _guessed(task, order[some], looked_at[some] / n, *sample)
    negative = task.query_class[order[some], None] != task.gallery_class[sample[0]]
    found = int((negative & (products >= floors[:, None])).count_nonzero()) * n / products.numel()
    # Most are kept when half of the queries have looked for the other half.
    if found * n / 4 * _BYTES > room:
        return None
    parts = [
        _guessed(task, order[part], looked_at[part] / n, *sample)[1]
        for part in torch.arange(n, device=order.device).split(_AT_ONCE)
    ]
    return torch.cat(parts)


def _sample(task: RankingTask, order: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [s] and rows [s, W] of an even share of the items."""
    n = len(order)
    size = min(max(GROUP, n // _SAMPLED // GROUP * GROUP), _LARGEST_SAMPLE, n)
    numbers = order[spread_out(n, size)]
    return numbers, task.scores.filtered("right", numbers)[:size]


def _guessed(
    task: RankingTask, query_index: Tensor, share: Tensor, sampled: Tensor, sample: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores [m, s] of queries and a sample, and the scores that the queries' items of interest
    will very likely reach, float32 [m].

    No relevant item matters that stands behind as many items as a metric looks at. Where this many
    lie is told by a sample: the score of its item whose rank is as large a share of the sample,
    and a few ranks more.

    Args:
        task: relates them.
        query_index: numbers of the queries [m].
        share: of the items that the most demanding metric looks at [m]; 0 where it looks at none.
        sampled, sample: numbers [s] and rows [s, W] of an even share of the items.
    """
    size, m = len(sampled), len(query_index)
    products = task.scores.filtered("left", query_index)[:m] @ sample.T
    expected = share.to(torch.float64) * size
    rank = (expected + _CAUTION * expected.sqrt()).ceil().to(torch.int64).clamp(min=1)
    floors = _ranked(products, rank.clamp(max=size)).masked_fill_(rank > size, -torch.inf)
    return products, floors.masked_fill_(share == 0, torch.inf)


def _ranked(scores: Tensor, rank: Tensor) -> Tensor:
    """The rank-th largest of each row of scores [m, n] on a CPU, ranks from 1: float32 [m]."""
    # NumPy's selection is several times as fast as a partial sort.
    place = scores.shape[1] - rank
    kept = torch.from_numpy(np.partition(scores.numpy(), place.unique().numpy(), axis=1))
    return kept.gather(1, place[:, None]).squeeze(1)


def stretches(slices: Sequence[slice], number: int, width: int) -> list[slice]:
    """A block itself, and what lies behind it in stretches of whole blocks, none of them wider
    than `width` unless it is one block.

    Example:
        >>> stretches([slice(0, 4), slice(4, 8), slice(8, 12), slice(12, 13)], 0, width=8)
        [slice(0, 4, None), slice(4, 12, None), slice(12, 13, None)]
    """
    found = [slices[number]]
    for other in slices[number + 1 :]:
        if len(found) > 1 and other.stop - found[-1].start <= width:
            found[-1] = slice(found[-1].start, other.stop)
        else:
            found.append(other)
    return found


class LentPairs:
    """Negatives found for later blocks, and who has still to be met because they were not kept.

    Args:
        slices: places in the order of all blocks, one after the other.
        room: bytes of pairs that are kept at most.
    """

    def __init__(self, slices: Sequence[slice], room: int) -> None:
        self._bounds = [0, *(part.stop for part in slices)]
        longest = max(stop - start for start, stop in itertools.pairwise(self._bounds))
        small = torch.int16 if longest <= torch.iinfo(torch.int16).max else torch.int32
        bytes_of_pair = small.itemsize + 8
        self._piece = max(
            1, min(_PIECE, room // bytes_of_pair // (_PIECES_PER_BLOCK * len(slices)))
        )
        pieces = room // (self._piece * bytes_of_pair)
        # In one place: what stays among temporaries that do not would leave holes in the heap.
        self._pool = Pairs(
            *(
                torch.empty(pieces * self._piece, dtype=t)
                for t in (small, torch.int32, torch.float32)
            )
        )
        self._free = [piece * self._piece for piece in reversed(range(pieces))]
        self._pieces: list[list[slice]] = [[] for _ in slices]
        self._owed: list[set[int]] = [set() for _ in slices]

    @property
    def full(self) -> bool:
        """True if no more are kept."""
        return not self._free

    def lend(self, source: int, stretch: slice, found: Pairs | None) -> None:
        """Keep what the block `source` found for the queries of a stretch of whole blocks or of a
        part of one; if there is no room, none of what it finds for a block counts.

        Args:
            source: a block's number.
            stretch: places in the order.
            found: queries, counted from the beginning of the stretch, items, counted from the
                beginning of the source, and scores; None: they were not looked for.
        """
        first = bisect.bisect_right(self._bounds, stretch.start) - 1
        blocks = range(first, bisect.bisect_left(self._bounds, stretch.stop))
        if found is None:
            for block in blocks:
                self._owed[block].add(source)
            return
        lows = [self._bounds[block] - stretch.start for block in blocks]
        shares = _in_order(found, lows)
        for block, low, share in zip(blocks, lows, shares, strict=True):
            if source in self._owed[block]:
                continue
            kept = Pairs(share.query - low, share.place + self._bounds[source], share.score)
            if not self._keep(block, kept):
                self._owed[block].add(source)

    def owed(self, block: int) -> list[slice]:
        """The places of the blocks that a block has still to meet."""
        return [
            slice(self._bounds[source], self._bounds[source + 1])
            for source in sorted(self._owed[block])
        ]

    def taken(self, block: int) -> Iterator[Pairs]:
        """Pairs of a block's queries and places in the order, a part at a time; once."""
        owed = self.owed(block)
        for piece in self._pieces[block]:
            found = Pairs(*(column[piece] for column in self._pool))
            for whole in owed:
                found = found.where((found.place < whole.start) | (found.place >= whole.stop))
            yield found
        self._free.extend(piece.start for piece in self._pieces[block])
        self._pieces[block] = []

    def _keep(self, block: int, pairs: Pairs) -> bool:
        """True if there was room for all of a block's new pairs."""
        pieces, done, n = self._pieces[block], 0, len(pairs.query)
        while done < n:
            used = pieces[-1].stop - pieces[-1].start if pieces else self._piece
            if used == self._piece:
                if not self._free:
                    return False
                start, used = self._free.pop(), 0
                pieces.append(slice(start, start))
            start = pieces[-1].start
            more = min(n - done, self._piece - used)
            pieces[-1] = slice(start, start + used + more)
            for column, new in zip(self._pool, pairs, strict=True):
                column[start + used : start + used + more] = new[done : done + more]
            done += more
        return True


def _in_order(pairs: Pairs, starts: Sequence[int]) -> list[Pairs]:
    """The pairs of the queries from each of the `starts`, ascending, to the next one; all pairs'
    queries lie behind the first."""
    if len(starts) == 1:
        return [pairs]
    which = torch.bucketize(pairs.query, torch.tensor(starts[1:], dtype=torch.int32), right=True)
    # Of numbers that short NumPy sorts by counting.
    order = torch.from_numpy(which.to(torch.int16).numpy().argsort(kind="stable"))
    ends = torch.bincount(which, minlength=len(starts)).tolist()
    columns = [column.index_select(0, order).split(ends) for column in pairs]
    return [Pairs(*share) for share in zip(*columns, strict=True)]
