"""Blocks of scores, and the search for candidates in them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: Tile edges are multiples of it; also how many entries of a row share one maximum in the search
#: for candidates.
GROUP = 64
#: How many entries of a column do. Fewer, because they lie far apart in memory.
_COLUMN_GROUP = 32


def padded(n: int) -> int:
    """`n` rounded up to whole groups."""
    return -(-n // GROUP) * GROUP


def group_maxima(scores: Tensor, queries: Literal["rows", "columns"], size: int) -> Tensor:
    """Maxima [n queries, groups] of stretches of `size` entries of a tile [m padded, n padded]."""
    if queries == "rows":
        return scores.unflatten(1, (-1, size)).amax(2)
    return scores.unflatten(0, (-1, size)).amax(1).T


def kth_bound(scores: Tensor, queries: Literal["rows", "columns"], k: int) -> Tensor:
    """A score that at least k entries of each query of a tile reach; -inf if there are fewer.

    The k-th largest of group maxima, in groups so small that it is not far from the k-th score.
    """
    entries = scores.shape[1] if queries == "rows" else scores.shape[0]
    size = next((s for s in (64, 32, 16, 8, 4, 2) if entries // s >= 2 * k), 1)
    maxima = group_maxima(scores, queries, size)
    if maxima.shape[1] < k:
        return scores.new_full((len(maxima),), -torch.inf)
    return maxima.topk(k, dim=1, sorted=False).values.amin(1)


def reaching(
    scores: Tensor,
    queries: Literal["rows", "columns"],
    floor: Tensor,
    query: Tensor,
    group: Tensor,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Entries of some groups of `size` (see `group_maxima`) that reach the floor of their query.

    Args:
        scores: a tile, contiguous.
        queries: whether its rows or its columns are queries.
        floor: [n queries].
        query, group: int64 [h], the groups.

    Returns:
        queries, places along the other side, and scores of the entries.
    """
    if queries == "columns":
        values = scores.unflatten(0, (-1, size))[group, :, query]
    else:
        per_row = scores.shape[1] // size
        values = scores.view(-1, size).index_select(0, query * per_row + group)
    entry = _true_places(values >= floor[query, None])
    which = entry // size
    place = group[which] * size + (entry - which * size)
    return query[which], place, values.view(-1)[entry]


def _true_places(mask: Tensor) -> Tensor:
    """Flat places of the few true entries of a contiguous bool [n, multiple of 8]: int64."""
    words = mask.view(-1).view(torch.int64).nonzero()
    word, byte = mask.view(-1, 8)[words.squeeze(1)].nonzero(as_tuple=True)
    return words.squeeze(1)[word] * 8 + byte


def candidates(
    scores: Tensor, queries: Literal["rows", "columns"], floor: Tensor, share: float = 1.0
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Entries of a tile that reach the floor [n queries] of their query.

    Returns:
        queries, places along the other side, and scores of the entries, [h] each; or None if they
        lie in more than `share` of all groups.
    """
    # A floor of -inf lets everything pass, but not what has been struck out.
    floor = floor.clamp(min=torch.finfo(torch.float32).min)
    size = GROUP if queries == "rows" else _COLUMN_GROUP
    peaks = group_maxima(scores, queries, size)[: len(floor)]
    if queries == "columns":  # in the order of memory
        group, query = (floor <= peaks.T).nonzero(as_tuple=True)
    else:
        query, group = (peaks >= floor[:, None]).nonzero(as_tuple=True)
    if len(query) > share * peaks.numel():
        return None
    return reaching(scores, queries, floor, query, group, size)
