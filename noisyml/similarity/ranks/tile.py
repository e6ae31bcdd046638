"""Negatives of a tile of filter scores, or of a list of pairs, counted into a block of queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from noisyml.similarity.exact.arithmetic import sampled_products
from noisyml.similarity.exact.kernels import Pairs
from noisyml.similarity.exact.quantised import CoarseFilter, CoarseRows
from noisyml.similarity.exact.tiles import GROUP, group_maxima, reaching
from noisyml.similarity.ranks.block import QueryBlock
from noisyml.similarity.ranks.scores import PairScores

#: Pairs that are judged together, for each group of candidates that may be.
_PAIRS_PER_HIT = 8
#: With more groups of candidates per query than this, a few groups first raise the thresholds.
_MANY_HITS = 2


@dataclass(frozen=True)
class Tile:
    """Filter scores of all pairs of two blocks.

    Attributes:
        scores: [m, n], multiples of the group size, -inf where nothing is to be counted; float32
            products, or the cheap scores of `coarse` in its unit.
        left, right: the filter's float32 rows, [m, W] and [n, W].
        coarse: the filter that the scores come from and its rows of both sides; None: float32.
    """

    scores: Tensor
    left: Tensor
    right: Tensor
    coarse: tuple[CoarseFilter, CoarseRows, CoarseRows] | None = None

    def top(self, rows: int) -> Tile:
        """The first `rows` rows."""
        coarse = self.coarse and (self.coarse[0], self.coarse[1][:rows], self.coarse[2])
        return Tile(self.scores[:rows], self.left[:rows], self.right, coarse)

    def bar(self, side: Literal["rows", "columns"], floor: Tensor) -> Tensor:
        """The score that an entry needs for its float32 score to reach `floor` [n]."""
        if self.coarse is None:
            return floor
        coarse, left, right = self.coarse
        return coarse.bar(floor, *((left, right) if side == "rows" else (right, left)))

    def scored(
        self, side: Literal["rows", "columns"], query: Tensor, place: Tensor, entries: Tensor
    ) -> Tensor:
        """Float32 scores [h] of the entries of queries `query` [h] at `place` [h]."""
        if self.coarse is None:
            return entries
        mine, theirs = (self.left, self.right) if side == "rows" else (self.right, self.left)
        return sampled_products(mine, theirs, query, place)


def scan_tile(
    tile: Tile,
    side: Literal["rows", "columns"],
    block: QueryBlock,
    first: int,
    gallery_index: Tensor,
    scores: PairScores,
    hits_at_once: int,
    seen: float = 1.0,
) -> None:
    """Count the negatives of one tile of filter scores that stand before relevant items.

    Args:
        tile: filter scores.
        side: whether the queries of `block` are the tile's rows or its columns.
        block: the queries.
        first: number within the block of the query in the tile's first row (column).
        gallery_index: original gallery numbers along the other side.
        scores: the judge of close cases.
        hits_at_once: groups of candidates to expand together.
        seen: share of the gallery seen after this tile, if the tiles are even samples of it.
    """
    if not block.alive or not tile.scores.numel():
        return
    peaks = group_maxima(tile.scores, side, GROUP)
    n_queries = min(len(peaks), len(block.query_index) - first)
    queries = slice(first, first + n_queries)
    peaks = peaks[:n_queries]
    error = scores.filter_error(block.query_index, gallery_index)
    floor = score_floor(block, error, queries)
    bar = tile.bar(side, floor)
    hits = (peaks >= bar[:, None]).nonzero()
    stages = [slice(None)]
    if seen == 1.0 and len(hits) > _MANY_HITS * n_queries and peaks.shape[1] > 4:
        stages = [slice(0, 1), slice(1, 4), slice(4, None)]
    for stage in stages:
        if len(stages) > 1:
            floor = score_floor(block, error, queries)
            bar = tile.bar(side, floor)
            hits = (peaks[:, stage] >= bar[:, None]).nonzero()
        for part in hits.split(hits_at_once) if len(hits) else ():
            row, group = part[:, 0], part[:, 1] + (stage.start or 0)
            query, place, found = reaching(tile.scores, side, bar, row, group, GROUP)
            found = tile.scored(side, query, place, found)
            if tile.coarse is not None:
                real = found >= floor[query]
                query, place, found = query[real], place[real], found[real]
            rows = (query + first).to(torch.int32)
            block.add(rows, gallery_index[place], found, error, scores)
        block.update_thresholds(seen)
        if not block.alive:
            return


def count_pairs(
    pairs: Pairs,
    block: QueryBlock,
    first: int,
    gallery_index: Tensor,
    scores: PairScores,
    hits_at_once: int,
    seen: float = 1.0,
    at_least: int = 0,
) -> None:
    """Count negatives that compiled loops have found one by one; args as of `scan_tile`.

    Args:
        at_least: with fewer in all they wait: `count_waiting` or the next call counts them.
    """
    if not block.alive:
        return
    rows, items = pairs.query.to(torch.int32) + first, gallery_index.index_select(0, pairs.place)
    block.waiting.append(Pairs(rows, items, pairs.score.clone()))
    if at_least and sum(len(some.query) for some in block.waiting) < at_least:
        return
    count_waiting(block, scores, hits_at_once)
    block.update_thresholds(seen)


def count_waiting(block: QueryBlock, scores: PairScores, hits_at_once: int) -> None:
    """Count the negatives of `count_pairs` that still wait."""
    if not block.waiting:
        return
    found = Pairs(*(torch.cat(column) for column in zip(*block.waiting, strict=True)))
    block.waiting.clear()
    if not len(found.query):
        return
    error = scores.pair_error(block.query_index, found.place)
    parts = (column.split(_PAIRS_PER_HIT * hits_at_once) for column in found)
    for rows, items, approximate in zip(*parts, strict=True):
        block.add(rows, items, approximate, error, scores)


def score_floor(block: QueryBlock, error: Tensor, queries: slice) -> Tensor:
    """Filter scores below this float32 [n] surely miss the threshold."""
    floor = block.threshold[queries] - error[queries] - block.score_error[queries]
    rounded = floor.to(torch.float32)
    return torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
