"""Approximate nearest neighbours, with the recall measured on the spot.

For galleries where exact search (`noisyml.similarity.search`) takes too long: inverted lists
(``ivf``, by faiss or without it), inverted lists of product-quantised rows (``ivfpq``, Jégou et
al., TPAMI 2011) and navigable small-world graphs (``hnsw``, Malkov and Yashunin, TPAMI 2020), both
by faiss. Every answer carries its recall against exact search on a sample of its own queries, so a
bad choice of parameters shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyml.checks import Count, Ge, Interval, Seed, WholeNonNegative, checked
from noisyml.errors import UserError
from noisyml.similarity.approximate import faiss_indexes
from noisyml.similarity.approximate.faiss_indexes import has_faiss, require_faiss
from noisyml.similarity.approximate.lists import RowLists
from noisyml.similarity.approximate.rows import Find, ListPlan, Rows
from noisyml.similarity.exact.kept import FILE
from noisyml.similarity.exact.plan import check_dims, spread_out
from noisyml.similarity.exact.sources import Array, RowSource
from noisyml.similarity.search import topk
from noisyml.storage.unfinished import Unfinished

IndexKind = Literal["ivf", "ivfpq", "hnsw"]
Backend = Literal["faiss", "torch"]

#: Queries searched at once: faiss takes one after the other, and they read our lists together.
_QUERIES_AT_ONCE: dict[Backend, int] = {"faiss": 2**14, "torch": 2**16}
#: Above this many bytes of float32 rows ``auto`` compresses them.
_LARGEST_FLAT_BYTES = 2**33
#: Candidates scored exactly at once: so many numbers of gathered gallery rows.
_GATHERED_NUMBERS = 2**24
#: Rows that tell one set of rows from another.
_SAMPLE = 256
#: Raise when the meaning of what is kept changes.
_FORMAT = 1


class ApproximateTopK(NamedTuple):
    """Near gallery items of each query, best first.

    Attributes:
        scores: [Nq, k] float32, larger is nearer: inner products (``ip``), cosines (``cosine``) or
            squared distances times -1 (``l2``); -inf where fewer than k candidates were found.
        index: [Nq, k] int64, gallery row numbers; -1 where fewer were found.
        recall: mean share of the exact k nearest that were found, over the sampled queries; a row
            as near as the k-th of them is a hit, so that ties cost nothing; NaN if none was sampled
            or none has a neighbour.
        kind: the index that was used.
        backend: what made it.
    """

    scores: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    recall: float
    kind: IndexKind
    backend: Backend


@checked
def approximate_topk(
    queries: Array,
    gallery: Array,
    k: Count,
    *,
    metric: Literal["cosine", "ip", "l2"] = "cosine",
    exclude: Tensor | NDArray[np.int64] | None = None,
    index: Literal["auto", "ivf", "ivfpq", "hnsw"] = "auto",
    n_lists: Count | None = None,
    n_probes: Count | None = None,
    n_subquantisers: Count | None = None,
    n_bits: Annotated[int, Interval(ge=1, le=16)] = 8,
    n_links: Annotated[int, Ge(2)] = 32,
    ef_construction: Annotated[int, Ge(2)] = 200,
    ef_search: Count | None = None,
    shortlist: WholeNonNegative | None = None,
    train_size: Count | None = None,
    recall_sample: WholeNonNegative = 1000,
    seed: Seed = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    backend: Literal["auto", "faiss", "torch"] = "auto",
    progress: Callable[[int, int], None] | None = None,
    keep_in: Path | None = None,
) -> ApproximateTopK:
    """About the k nearest gallery rows of every query, and how many of them were missed.

    Seeded and deterministic on a CPU: the small-world graph, which depends on the order in which
    threads insert rows, is built by one thread.

    Args:
        queries: [Nq, D], any floating dtype; tensor, NumPy array or `numpy.memmap`, read in blocks.
        gallery: [Ng, D], likewise.
        k: neighbours wanted, at least 1.
        metric: ``cosine``, ``ip`` (inner product) or ``l2`` (squared Euclidean distance).
        exclude: int64 [Nq] or [Nq, m], gallery rows to leave out per query; -1 for none.
        index: ``auto`` takes ``ivf``, and ``ivfpq`` where the rows exceed 8 GiB in float32.
        n_lists: inverted lists; default about 4 sqrt(Ng), with 39 rows each at least.
        n_probes: lists searched per query; default one in 16, at least 8.
        n_subquantisers: parts a row is cut into for ``ivfpq``; must divide D. Default the largest
            divisor up to D / 4.
        n_bits: bits per part, 1 to 16.
        n_links: links per row of ``hnsw``.
        ef_construction: candidates looked at per insertion (``hnsw``).
        ef_search: candidates looked at per query (``hnsw``); default max(64, 2 k).
        shortlist: candidates per query that are scored again with the original rows; 0 trusts the
            index, whose scores are approximate for ``ivfpq``. Default 4 k there, else 0.
        train_size: gallery rows, drawn at random, on which lists and codes are trained; default
            256 per centroid.
        recall_sample: queries, drawn at random, whose exact neighbours are found for `recall`.
        seed: of all draws.
        device: ``auto`` adds and searches on a GPU where faiss sees one (not ``hnsw``).
        backend: ``torch`` has ``ivf`` only, on the CPU, and copies no rows; ``auto`` takes it for
            ``ivf`` where faiss is not installed.
        progress: called with (queries answered, queries in all) once the index is made and as the
            search goes on.
        keep_in: a folder of this search alone, in which what is done is kept now and then, so that
            the same call goes on after a kill; the index is made anew.

    Raises:
        UserError: faiss is needed and not installed; shapes that do not fit, NaN or infinite rows,
            an unknown metric or index, fewer rows than lists or codes need, subquantisers that do
            not divide D, an index that the backend does not have, no GPU for faiss.
        ValueError: other parameters out of range.
    """
    cosine = metric == "cosine"
    source, target = Rows(queries, "query", cosine), Rows(gallery, "gallery", cosine)
    check_dims(source.dim, target.dim)
    excluded = _exclusions(exclude, len(source), len(target))
    kind = _kind(index, target)
    engine = _engine(backend, kind, device)
    wanted = shortlist if shortlist is not None else (4 * k if kind == "ivfpq" else 0)
    kept = None
    if keep_in is not None:
        options = (n_lists, n_probes, n_subquantisers, n_bits, n_links, ef_construction, ef_search)
        request = [k, metric, kind, engine, device, wanted, train_size, seed, *options]
        sides = [source] if queries is gallery else [source, target]
        kept = Unfinished(keep_in / FILE, _facts(request, sides, excluded))

    find: Find
    if kind == "hnsw":
        reach = ef_search or max(64, 2 * k)
        built = faiss_indexes.small_world(target, metric, n_links, ef_construction, reach)
        find = faiss_indexes.filled(built, target, metric, device)
    else:
        codes = 2**n_bits if kind == "ivfpq" else 1
        plan = ListPlan.of(len(target), n_lists, n_probes, train_size, codes)
        if engine == "torch":
            find = RowLists(target, metric, plan, seed).search
        else:
            parts = (kind == "ivfpq", n_subquantisers, n_bits)
            built = faiss_indexes.inverted_lists(target, metric, plan, *parts, seed)
            find = faiss_indexes.filled(built, target, metric, device)
    at_once = _QUERIES_AT_ONCE[engine]
    scores, found = _search(
        find, source, target, k, metric, excluded, wanted, at_once, progress, kept
    )

    generator = np.random.default_rng(seed)
    sample = generator.choice(len(source), min(recall_sample, len(source)), replace=False)
    chosen = torch.from_numpy(np.sort(sample))
    recall = float("nan")
    if len(chosen):
        exact = topk(
            RowSource(queries, "query", torch.device("cpu")).take(chosen),
            gallery,
            k,
            metric=metric,
            exclude=excluded[chosen],
            device="cpu",
        )
        recall = _recall(source, target, chosen, found[chosen], exact.index, metric)
    if kept is not None:
        kept.remove()
    return ApproximateTopK(scores, found, recall, kind, engine)


def _engine(backend: str, kind: IndexKind, device: str) -> Backend:
    """The backend that makes the index.

    Raises:
        UserError: it is not installed, or has no such index.
    """
    if backend == "torch" and (kind != "ivf" or device == "cuda"):
        what = f"index={kind}" if kind != "ivf" else "device=cuda"
        raise UserError(f"backend=torch has no {what}: use backend=faiss, or index=ivf on the CPU.")
    cpu = device != "cuda"
    if backend == "torch" or (backend == "auto" and kind == "ivf" and cpu and not has_faiss()):
        return "torch"
    require_faiss(
        f"An approximate search with index={kind}" + ("" if cpu else " on cuda"),
        "index=ivf on the CPU and index=exact do without it",
    )
    return "faiss"


def _facts(request: list[Any], sides: list[Rows], excluded: Tensor) -> dict[str, Any]:
    """Facts that must be the same for what is kept to be of use."""
    content = hashlib.sha256(excluded.numpy().tobytes())
    for side in sides:
        content.update(side.take(spread_out(len(side), _SAMPLE)).numpy().tobytes())
        for start in range(0, len(side), _QUERIES_AT_ONCE["torch"]):
            block = side.block(start, min(start + _QUERIES_AT_ONCE["torch"], len(side)))
            content.update(block.sum(1).numpy().tobytes())
    sizes = [[len(side), side.dim] for side in sides]
    return {"format": _FORMAT, "request": request, "rows": sizes, "content": content.hexdigest()}


def _exclusions(
    exclude: Tensor | NDArray[np.int64] | None, n_queries: int, n_gallery: int
) -> Tensor:
    """The rows to leave out [Nq, m] int64."""
    if exclude is None:
        return torch.empty(n_queries, 0, dtype=torch.int64)
    table = torch.as_tensor(exclude).cpu()
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or len(table) != n_queries or table.dtype != torch.int64:
        raise ValueError(
            f"exclude {list(table.shape)} {table.dtype} must be int64 [{n_queries}] or "
            f"[{n_queries}, m]"
        )
    if table.numel() and (int(table.min()) < -1 or int(table.max()) >= n_gallery):
        raise ValueError(f"exclude must hold gallery rows 0..{n_gallery - 1}, or -1 for none")
    return table


def _kind(index: Literal["auto", "ivf", "ivfpq", "hnsw"], gallery: Rows) -> IndexKind:
    if index == "auto":
        return "ivfpq" if 4 * len(gallery) * gallery.dim > _LARGEST_FLAT_BYTES else "ivf"
    return index


def _search(
    find: Find,
    queries: Rows,
    gallery: Rows,
    k: int,
    metric: str,
    excluded: Tensor,
    shortlist: int,
    at_once: int,
    progress: Callable[[int, int], None] | None,
    kept: Unfinished | None,
) -> tuple[Tensor, Tensor]:
    """Scores [Nq, k] float32 and gallery rows [Nq, k] int64."""
    scores = torch.full((len(queries), k), -torch.inf)
    found = torch.full((len(queries), k), -1, dtype=torch.int64)
    n_candidates = max(1, min(max(k, shortlist) + excluded.shape[1], len(gallery)))
    size = at_once
    if shortlist:
        size = max(1, min(size, _GATHERED_NUMBERS // (n_candidates * gallery.dim)))
    done = 0
    if kept is not None and (before := kept.restore()):
        done = int(before["done"])
        scores[:done], found[:done] = (torch.from_numpy(before[n]) for n in ("scores", "index"))
    if progress is not None:
        progress(done, len(queries))
    for start in range(done, len(queries), size):
        stop = min(start + size, len(queries))
        block = queries.block(start, stop)
        near, items = find(block, n_candidates)
        if shortlist:
            near = _exact_scores(block, gallery, items, metric)
        banned = (items[:, :, None] == excluded[start:stop, None]).any(2) | (items < 0)
        near = near.masked_fill(banned, -torch.inf)
        items = items.masked_fill(banned, -1)
        # Equal scores in the order of row numbers; what is missing comes last.
        last = items.masked_fill(items < 0, torch.iinfo(torch.int64).max)
        by_item = last.argsort(dim=1, stable=True)
        near, items = near.gather(1, by_item), items.gather(1, by_item)
        order = near.argsort(dim=1, descending=True, stable=True)[:, :k]
        scores[start:stop, : order.shape[1]] = near.gather(1, order)
        found[start:stop, : order.shape[1]] = items.gather(1, order)
        if progress is not None:
            progress(stop, len(queries))
        if kept is not None:
            kept.offer(partial(_so_far, scores, found, stop))
    return scores, found


def _so_far(scores: Tensor, found: Tensor, done: int) -> dict[str, NDArray[Any]]:
    """Arrays to be kept after so many queries."""
    return {
        "done": np.array(done),
        "scores": scores[:done].numpy(),
        "index": found[:done].numpy(),
    }


def _exact_scores(queries: Tensor, gallery: Rows, items: Tensor, metric: str) -> Tensor:
    """Float32 scores [n, m] of the candidates, from the original rows."""
    rows = gallery.take(items.clamp(min=0).flatten()).view(*items.shape, gallery.dim)
    if metric == "l2":
        return -(rows - queries[:, None]).square_().sum(2)
    return torch.bmm(rows, queries[:, :, None])[:, :, 0]


def _recall(
    queries: Rows, gallery: Rows, chosen: Tensor, found: Tensor, exact: Tensor, metric: str
) -> float:
    """Mean share of neighbours at least as near as the last exact one; NaN without neighbours.

    Args:
        queries: all queries.
        gallery: its rows.
        chosen: int64 [n], the queries that are looked at.
        found: int64 [n, k], their gallery rows, -1 where there is none.
        exact: int64 [n, k], the exact ones.
        metric: ``cosine``, ``ip`` or ``l2``.
    """
    shares = []
    k = found.shape[1]
    size = max(1, _GATHERED_NUMBERS // (2 * k * gallery.dim))
    for start in range(0, len(chosen), size):
        part = slice(start, start + size)
        # Both lists are scored alike, so that equal rows have equal scores to the last bit.
        rows = torch.cat([found[part], exact[part]], dim=1)
        scores = _double_scores(queries.take(chosen[part]), gallery, rows, metric)
        reached, wanted = scores[:, :k], scores[:, k:]
        there = exact[part] >= 0
        last = wanted.masked_fill(~there, torch.inf).amin(1, keepdim=True)
        hit = (reached >= last) & (found[part] >= 0)
        some = there.any(1)
        shares.append(hit[some].sum(1).double() / there[some].sum(1))
    share = torch.cat(shares)
    return float(share.mean()) if len(share) else float("nan")


def _double_scores(queries: Tensor, gallery: Rows, items: Tensor, metric: str) -> Tensor:
    """Scores float64 [n, m] of gallery rows, each by the same sum whatever its place."""
    rows = gallery.take(items.clamp(min=0).flatten()).view(*items.shape, gallery.dim).double()
    if metric == "l2":
        return -(rows - queries[:, None].double()).square_().sum(2)
    return (rows * queries[:, None].double()).sum(2)
