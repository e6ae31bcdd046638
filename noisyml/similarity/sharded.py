"""Nearest neighbours where every process holds a part of the rows.

The gallery goes round in blocks: its owner broadcasts each, and every process works it into the
lists of its own queries. So no process ever holds more than one block of foreign rows, and since
scores do not depend on where they are computed, the answers are those of one process with all rows
in rank order, to the bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from noisyml import distributed
from noisyml.checks import Count, check_arguments
from noisyml.errors import UserError
from noisyml.similarity.exact.arithmetic import Side, centre_of
from noisyml.similarity.exact.plan import (
    Task,
    TopK,
    block_sizes,
    check_dims,
    checked_exclude,
    device_of,
    positions,
    spread_out,
    stretches,
)
from noisyml.similarity.exact.sources import Array, RowSource
from noisyml.similarity.search import find

T = TypeVar("T")


class ShardedGallery:
    """The rows of all processes in rank order; every process must ask for the same panels.

    Args:
        local: this process's rows, [n_r, D]; n_r may be 0.
        side: what is known of them.
        sizes: n_r of all ranks.
    """

    def __init__(self, local: RowSource, side: Side, sizes: list[int]) -> None:
        double = torch.tensor([local.dtype == torch.float64], device=local.device)
        self.dtype = torch.float64 if distributed.gather(double).any() else torch.float32
        halves = side.half_squares
        self.side = Side(
            side.metric,
            side.centre,
            distributed.gather(side.factor),
            distributed.gather(side.norms),
            None if halves is None else distributed.gather(halves),
        )
        self._local = local
        self._starts = [0, *itertools.accumulate(sizes)]

    def panels(self, size: int) -> Iterator[slice]:
        """Stretches of at most `size` rows, none of which spans two ranks."""
        for start, stop in itertools.pairwise(self._starts):
            for part in stretches(stop - start, size):
                yield slice(start + part.start, start + part.stop)

    def panel(self, which: slice) -> Tensor:
        """The rows [n, D] of a panel, from their owner."""
        owner = max(r for r in range(len(self._starts) - 1) if self._starts[r] <= which.start)
        if not distributed.is_distributed():
            return self._local.block(which.start, which.stop)
        start = self._starts[owner]
        if owner == distributed.rank():
            # A copy: blocks may lie in a file that is open for reading only.
            rows = self._local.block(which.start - start, which.stop - start)
            rows = rows.to(self.dtype, copy=True)
        else:
            shape = (which.stop - which.start, self._local.dim)
            rows = torch.empty(shape, dtype=self.dtype, device=self._local.device)
        dist.broadcast(rows, src=owner)
        return rows

    def needed(self, wanted: list[bool]) -> list[bool]:
        """Panels that any process wants."""
        flags = torch.tensor(wanted, dtype=torch.int64, device=self._local.device)
        return (distributed.all_reduce_sum(flags) > 0).tolist()

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Up to n of this process's own rows: their numbers [m], rows [m, D]."""
        some = spread_out(len(self._local), n).to(self._local.device)
        return some + self._starts[distributed.rank()], self._local.take(some)


def sharded_topk(
    local_queries: Array,
    local_gallery: Array,
    k: Count,
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
    """The k nearest of all processes' gallery rows for every query of this process.

    A collective call: every process of the default group makes it, with the same options. Without a
    process group it is `noisyml.similarity.search.topk`.

    Args:
        local_queries: [nq_r, D], this process's queries; nq_r may be 0.
        local_gallery: [ng_r, D], this process's rows of the gallery; ng_r may be 0.
        k: neighbours wanted, at least 1.
        metric: ``cosine``, ``ip`` or ``l2``.
        exclude: int64 [nq_r] or [nq_r, m], gallery rows to leave out per query; -1 for none.
        precision, memory_budget_bytes, device, query_block, gallery_block, progress: as in `topk`.

    Returns:
        `TopK` of this process's queries; gallery rows are numbered through all ranks in order.

    Raises:
        UserError: as `topk`; on all ranks, whichever rank the mistake is on.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[0.0], [1.0], [5.0]])
        >>> sharded_topk(rows[:1], rows, 2, metric="l2").index.tolist()
        [[0, 1]]
    """
    where = device_of(local_queries, device)
    with torch.no_grad():
        asked = {"k": k, "metric": metric, "precision": precision}
        _agreed(where, lambda: check_arguments(sharded_topk, asked))
        source, target = _agreed(
            where,
            lambda: (
                RowSource(local_queries, "query", where),
                RowSource(local_gallery, "gallery", where),
            ),
        )
        _agreed(where, lambda: check_dims(source.dim, target.dim))
        _check_dims(target)
        sizes = distributed.shard_sizes(len(target), where)
        excluded = _agreed(where, lambda: checked_exclude(exclude, len(source), sum(sizes), where))
        centre = _common_centre(target, sizes) if metric == "l2" else None
        mine, theirs = _agreed(
            where, lambda: (Side.of(source, metric, centre), Side.of(target, metric, centre))
        )
        gallery = ShardedGallery(target, theirs, sizes)
        blocks = block_sizes(source.dim, where, memory_budget_bytes, query_block, gallery_block)
        task = Task(source, mine, gallery, k, excluded, None, precision == "fast")
        return find(task, blocks, progress)


def sharded_self_topk(
    local: Array,
    k: Count,
    *,
    metric: Literal["cosine", "ip", "l2"] = "cosine",
    precision: Literal["exact", "fast"] = "exact",
    memory_budget_bytes: int | None = None,
    device: torch.device | str | None = None,
    query_block: int | None = None,
    gallery_block: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TopK:
    """The k nearest other rows, of all processes, for every row of this process.

    A collective call like `sharded_topk`. Products of a process's own rows with each other serve
    both sides; those with foreign rows are computed by either process for itself.

    Args:
        local: [n_r, D], this process's rows; n_r may be 0.
        k: neighbours wanted, at least 1.
        metric: ``cosine``, ``ip`` or ``l2``.
        precision, memory_budget_bytes, device, query_block, gallery_block, progress: as in `topk`.

    Returns:
        `TopK` of this process's rows; rows are numbered through all ranks in order.

    Raises:
        UserError: as `topk`; on all ranks, whichever rank the mistake is on.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[0.0], [1.0], [5.0]])
        >>> sharded_self_topk(rows, 1, metric="l2").index.tolist()
        [[1], [0], [1]]
    """
    where = device_of(local, device)
    with torch.no_grad():
        asked = {"k": k, "metric": metric, "precision": precision}
        _agreed(where, lambda: check_arguments(sharded_self_topk, asked))
        source = _agreed(where, lambda: RowSource(local, "given", where))
        _check_dims(source)
        sizes = distributed.shard_sizes(len(source), where)
        centre = _common_centre(source, sizes) if metric == "l2" else None
        side = _agreed(where, lambda: Side.of(source, metric, centre))
        gallery = ShardedGallery(source, side, sizes)
        blocks = block_sizes(source.dim, where, memory_budget_bytes, query_block, gallery_block)
        start = sum(sizes[: distributed.rank()])
        own = range(start, start + len(source))
        task = Task(source, side, gallery, k, None, own, precision == "fast")
        return find(task, blocks, progress)


def _agreed(device: torch.device, work: Callable[[], T]) -> T:
    """The result of `work`; a user's mistake on one rank ends it on all, so that none waits."""
    mistake, result = None, None
    try:
        result = work()
    except UserError as error:
        mistake = error
    failed = distributed.gather(torch.tensor([mistake is not None], device=device))
    if mistake is not None:
        raise mistake
    if bool(failed.any()):
        raise UserError(
            f"Rank {int(failed.to(torch.int64).argmax())} cannot search with its rows: see its "
            "own message."
        )
    return cast(T, result)


def _check_dims(source: RowSource) -> None:
    dims = distributed.shard_sizes(source.dim, source.device)
    if len(set(dims)) > 1:
        raise UserError(
            f"The ranks hold embeddings of {', '.join(map(str, dims))} dimensions: embed all of "
            "them with the same model."
        )


def _common_centre(source: RowSource, sizes: list[int]) -> Tensor:
    """The centre that one process with all rows would use."""
    start = sum(sizes[: distributed.rank()])
    chosen = positions(sum(sizes))
    chosen = chosen[(chosen >= start) & (chosen < start + len(source))] - start
    return centre_of(distributed.gather(source.take(chosen).to(torch.float64)))
