"""Exact nearest neighbours of many queries in bounded memory.

A float32 product over blocks is only a filter: its rounding error has a proven bound, so a gallery
item that stays behind the k-th best by more than this bound is out, and one maximum per group of 64
scores finds the few that are not. What is left, k and a few more per query, is scored in float64,
and where even that is too close to call, exactly (see
`noisyml.similarity.exact.arithmetic`). So neighbours and scores depend neither on block sizes nor
on threads, devices or processes, and equal rows tie exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from noisyml.checks import Count, checked
from noisyml.similarity.exact.arithmetic import Side, centre_of
from noisyml.similarity.exact.float32 import Float32Filter, common_scale
from noisyml.similarity.exact.kept import KeptSearch
from noisyml.similarity.exact.plan import (
    Blocks,
    LocalGallery,
    Task,
    TopK,
    block_sizes,
    check_dims,
    checked_exclude,
    device_of,
    positions,
    spread_out,
)
from noisyml.similarity.exact.quantised import (
    TRIAL_GALLERY,
    TRIAL_QUERIES,
    CoarseFilter,
    chosen_filter,
)
from noisyml.similarity.exact.rescore import judged, settle
from noisyml.similarity.exact.scan import collect
from noisyml.similarity.exact.shortlist import Shortlist
from noisyml.similarity.exact.sources import Array, RowSource

__all__ = ["TopK", "find", "self_topk", "topk"]


@checked
def topk(
    queries: Array,
    gallery: Array,
    k: Count,
    *,
    metric: Literal["cosine", "ip", "l2"] = "cosine",
    precision: Literal["exact", "fast"] = "exact",
    exclude: Array | None = None,
    memory_budget_bytes: Count | None = None,
    device: torch.device | str | None = None,
    query_block: Count | None = None,
    gallery_block: Count | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep_in: Path | None = None,
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
            decides the block sizes. Default 128 MiB, on CUDA 2 GiB; on a CPU 256 MiB where
            ``fast`` meets 65,536 gallery rows or more.
        device: where to compute; default the queries' device.
        query_block, gallery_block: rows and columns of a block of scores, rounded up to whole
            groups of 64, instead of the sizes that the budget gives. They do not change the result.
        progress: called with (blocks done, blocks in all) as the search goes on.
        keep_in: a folder of this search alone, in which what is done is kept now and then, so that
            the same call goes on after a kill, to the same bits. Meanwhile rounded rows for which
            the memory budget is too small lie there too.

    Returns:
        `TopK` on the device of the computation.

    Raises:
        UserError: shapes that do not fit, or rows with NaN.

    Example:
        >>> import torch
        >>> gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> found = topk(torch.tensor([[2.0, 1.0]]), gallery, 2)
        >>> found.index.tolist(), [round(score, 3) for score in found.scores[0].tolist()]
        ([[2, 0]], [0.949, 0.894])
    """
    where = device_of(queries, device)
    source = RowSource(queries, "query", where)
    target = RowSource(gallery, "gallery", where)
    check_dims(source.dim, target.dim)
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
        sizes = memory_budget_bytes, query_block, gallery_block
        blocks = block_sizes(source.dim, where, *sizes, len(target) if task.fast else 0)
        return find(task, blocks, progress, keep_in)


@checked
def self_topk(
    x: Array,
    k: Count,
    *,
    metric: Literal["cosine", "ip", "l2"] = "cosine",
    precision: Literal["exact", "fast"] = "exact",
    memory_budget_bytes: Count | None = None,
    device: torch.device | str | None = None,
    query_block: Count | None = None,
    gallery_block: Count | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep_in: Path | None = None,
) -> TopK:
    """The k nearest other rows of every row; the answer of `topk` for half of the multiplications.

    Args:
        x: [N, D], any floating dtype; tensor, NumPy array or `numpy.memmap`.
        k: neighbours wanted, at least 1; may exceed N - 1.
        metric: ``cosine``, ``ip`` or ``l2``.
        precision, memory_budget_bytes, device, query_block, gallery_block, progress,
        keep_in: as in `topk`.

    Raises:
        UserError: as `topk`.

    Example:
        >>> import torch
        >>> found = self_topk(torch.tensor([[0.0], [1.0], [5.0]]), 1, metric="l2")
        >>> found.index.tolist(), found.scores.tolist()
        ([[1], [0], [1]], [[-1.0], [-1.0], [-16.0]])
    """
    where = device_of(x, device)
    source = RowSource(x, "given", where)
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
        sizes = memory_budget_bytes, query_block, gallery_block
        blocks = block_sizes(source.dim, where, *sizes, len(source) if task.fast else 0)
        return find(task, blocks, progress, keep_in)


def find(
    task: Task,
    blocks: Blocks,
    progress: Callable[[int, int], None] | None = None,
    keep_in: Path | None = None,
) -> TopK:
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
    kept = None if keep_in is None else KeptSearch(keep_in, task, blocks)
    collect(task, blocks, product, coarse, shortlist, progress, kept)
    index, lost = shortlist.numbers(), shortlist.lost
    del shortlist  # most of what is kept per query; scores that decide are computed anew
    scores, index = judged(task, blocks, index)
    settle(task, blocks, lost.nonzero().flatten(), scores, index)

    double = torch.float64 in (task.queries.dtype, task.gallery.dtype)
    shape = len(index), task.k
    best = scores.new_full(shape, -torch.inf, dtype=torch.float64 if double else torch.float32)
    numbers = index.new_full(shape, -1, dtype=torch.int64)
    width = min(task.k, index.shape[1])
    best[:, :width] = scores[:, :width].mul_(task.query_side.output_scale())
    numbers[:, :width] = index[:, :width]
    if kept is not None:
        kept.remove()
    return TopK(best, numbers)


def _coarse_filter(task: Task, product: Float32Filter) -> CoarseFilter | None:
    """The cheaper filter that a trial on rows of this process recommends, if any."""
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
