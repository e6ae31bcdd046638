"""Approximate nearest neighbours through faiss, with the recall measured on the spot.

For galleries where exact search (`noisyml.similarity.search`) takes too long: inverted lists
(``ivf``), inverted lists of product-quantised rows (``ivfpq``, Jégou et al., TPAMI 2011) and
navigable small-world graphs (``hnsw``, Malkov and Yashunin, TPAMI 2020). Every answer carries its
recall against exact search on a sample of its own queries, so a bad choice of parameters shows.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyml.checks import Count, Ge, Interval, Seed, WholeNonNegative, checked
from noisyml.errors import UserError
from noisyml.similarity.exact.plan import check_dims
from noisyml.similarity.exact.sources import Array, RowSource
from noisyml.similarity.search import topk

IndexKind = Literal["ivf", "ivfpq", "hnsw"]

#: Rows handed to faiss at once.
_ROWS_AT_ONCE = 2**16
#: Above this many bytes of float32 rows ``auto`` compresses them.
_LARGEST_FLAT_BYTES = 2**33
#: faiss trains its centroids on at most this many rows each, and warns below the second number.
_TRAIN_ROWS_PER_CENTROID, _FEWEST_ROWS_PER_CENTROID = 256, 39
#: Candidates scored exactly at once: so many numbers of gathered gallery rows.
_GATHERED_NUMBERS = 2**24


def has_faiss() -> bool:
    """True if faiss is installed."""
    return importlib.util.find_spec("faiss") is not None


def require_faiss(what: str, otherwise: str) -> None:
    """Refuse what faiss is needed for where it is not installed.

    Args:
        what: needs it, as the beginning of a sentence.
        otherwise: to be done without it.

    Raises:
        UserError: it is not installed.
    """
    if not has_faiss():
        raise UserError(
            f"{what} needs faiss, which is not installed: pip install 'noisyml[faiss-cpu]' (or, "
            f"with a CUDA of its own, 'noisyml[faiss-gpu]'); {otherwise}."
        )


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
    """

    scores: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    recall: float
    kind: IndexKind


class _Rows:
    """Blocks of one side as faiss wants them: float32, contiguous, of unit norm for cosine."""

    def __init__(self, array: Array, what: str, cosine: bool) -> None:
        self._source = RowSource(array, what, torch.device("cpu"))
        self._cosine = cosine
        self._what = what

    def __len__(self) -> int:
        return len(self._source)

    @property
    def dim(self) -> int:
        return self._source.dim

    def block(self, start: int, stop: int) -> Tensor:
        return self._prepared(self._source.block(start, stop), start)

    def take(self, index: Tensor) -> Tensor:
        return self._prepared(self._source.take(index), None)

    def _prepared(self, rows: Tensor, start: int | None) -> Tensor:
        rows = rows.to(torch.float32)
        sound = rows.isfinite().all(1)
        if not bool(sound.all()):
            place = int((~sound).nonzero()[0])
            where = f" (first: row {start + place})" if start is not None else ""
            raise UserError(
                f"The {self._what} embeddings hold NaN or infinite values{where}; look for a "
                "diverged loss, lower the learning rate or use an earlier checkpoint."
            )
        return torch.nn.functional.normalize(rows, dim=1) if self._cosine else rows.contiguous()


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

    Raises:
        UserError: faiss is not installed; shapes that do not fit, NaN or infinite rows, an unknown
            metric or index, fewer rows than lists or codes need, subquantisers that do not divide
            D, no GPU for faiss.
        ValueError: other parameters out of range.
    """
    require_faiss("An approximate search", "index=exact does without it")
    cosine = metric == "cosine"
    source, target = _Rows(queries, "query", cosine), _Rows(gallery, "gallery", cosine)
    check_dims(source.dim, target.dim)
    excluded = _exclusions(exclude, len(source), len(target))
    kind = _kind(index, target)
    wanted = shortlist if shortlist is not None else (4 * k if kind == "ivfpq" else 0)

    if kind == "hnsw":
        built = _small_world(target, metric, n_links, ef_construction, ef_search or max(64, 2 * k))
    else:
        built = _inverted_lists(
            target, metric, kind, n_lists, n_probes, n_subquantisers, n_bits, train_size, seed
        )
    with _filled(built, target, kind, device) as ready:
        scores, found = _search(ready, source, target, k, metric, excluded, wanted)

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
    return ApproximateTopK(scores, found, recall, kind)


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


def _kind(index: Literal["auto", "ivf", "ivfpq", "hnsw"], gallery: _Rows) -> IndexKind:
    if index == "auto":
        return "ivfpq" if 4 * len(gallery) * gallery.dim > _LARGEST_FLAT_BYTES else "ivf"
    return index


def _faiss_metric(metric: str) -> int:
    import faiss

    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)


def _inverted_lists(
    gallery: _Rows,
    metric: str,
    kind: IndexKind,
    n_lists: int | None,
    n_probes: int | None,
    n_subquantisers: int | None,
    n_bits: int,
    train_size: int | None,
    seed: int,
) -> Any:
    """A trained, empty IVF or IVF-PQ index."""
    import faiss

    n, dim = len(gallery), gallery.dim
    if n_lists is None:
        n_lists = max(1, min(round(4 * math.sqrt(n)), n // _FEWEST_ROWS_PER_CENTROID))
    if n_probes is None:
        n_probes = min(n_lists, max(8, n_lists // 16))
    if not 1 <= n_probes <= n_lists:
        raise ValueError(f"n_probes={n_probes} must be in 1..n_lists={n_lists}")
    n_codes = 2**n_bits if kind == "ivfpq" else 1
    n_train = min(n, train_size or _TRAIN_ROWS_PER_CENTROID * max(n_lists, n_codes))
    if n_train < n_lists:
        raise UserError(
            f"{n_train} training rows cannot fill {n_lists} inverted lists: lower n_lists, raise "
            "train_size or search exactly."
        )
    index: Any
    quantiser = faiss.IndexFlat(dim, _faiss_metric(metric))
    if kind == "ivf":
        index = faiss.IndexIVFFlat(quantiser, dim, n_lists, _faiss_metric(metric))
    else:
        divisors = [part for part in range(1, dim + 1) if dim % part == 0]
        parts = n_subquantisers or max(d for d in divisors if d <= max(dim // 4, 1))
        if parts not in divisors:
            raise UserError(
                f"{parts} subquantisers do not divide {dim} dimensions: use one of "
                f"{', '.join(map(str, divisors))}."
            )
        if n_train < n_codes:
            raise UserError(
                f"{n_train} training rows cannot fill {n_codes} codes of {n_bits} bits: lower "
                "n_bits, raise train_size or search exactly."
            )
        index = faiss.IndexIVFPQ(quantiser, dim, n_lists, parts, n_bits, _faiss_metric(metric))
        index.pq.cp.seed = seed
        index.pq.cp.min_points_per_centroid = 1
    index.cp.seed = seed
    # The number of rows is ours to judge; faiss would print its opinion.
    index.cp.min_points_per_centroid = 1
    index.nprobe = n_probes
    drawn = np.random.default_rng(seed).choice(n, n_train, replace=False)
    index.train(gallery.take(torch.from_numpy(np.sort(drawn))).numpy())
    return index


def _small_world(
    gallery: _Rows, metric: str, n_links: int, ef_construction: int, ef_search: int
) -> Any:
    """An empty HNSW index."""
    import faiss

    index = faiss.IndexHNSWFlat(gallery.dim, n_links, _faiss_metric(metric))
    index.hnsw.efConstruction = ef_construction
    index.hnsw.efSearch = ef_search
    return index


@contextlib.contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    """faiss uses a single thread inside."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@contextlib.contextmanager
def _filled(index: Any, gallery: _Rows, kind: IndexKind, device: str) -> Iterator[Any]:
    """The index with all gallery rows in it, on the GPU if that is wanted."""
    import faiss

    n_gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    if device == "cuda" and (kind == "hnsw" or n_gpus == 0):
        why = "faiss has no hnsw index for GPUs" if kind == "hnsw" else "faiss sees no GPU here"
        raise UserError(f"The approximate search cannot run on cuda: {why}; use device=cpu.")
    resources = None
    if device != "cpu" and kind != "hnsw" and n_gpus > 0:
        resources = faiss.StandardGpuResources()
        index = faiss.index_cpu_to_gpu(resources, 0, index)
    with _one_thread(kind == "hnsw"):
        for start in range(0, len(gallery), _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, len(gallery))
            index.add(gallery.block(start, stop).numpy())
    yield index
    # The GPU's scratch memory must outlive the index that works in it.
    del index, resources


def _search(
    index: Any,
    queries: _Rows,
    gallery: _Rows,
    k: int,
    metric: str,
    excluded: Tensor,
    shortlist: int,
) -> tuple[Tensor, Tensor]:
    """Scores [Nq, k] float32 and gallery rows [Nq, k] int64."""
    scores = torch.full((len(queries), k), -torch.inf)
    found = torch.full((len(queries), k), -1, dtype=torch.int64)
    n_candidates = max(1, min(max(k, shortlist) + excluded.shape[1], len(gallery)))
    size = _ROWS_AT_ONCE
    if shortlist:
        size = max(1, min(size, _GATHERED_NUMBERS // (n_candidates * gallery.dim)))
    for start in range(0, len(queries), size):
        stop = min(start + size, len(queries))
        block = queries.block(start, stop)
        near, items = (torch.from_numpy(part) for part in index.search(block.numpy(), n_candidates))
        if metric == "l2":
            near = -near
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
    return scores, found


def _exact_scores(queries: Tensor, gallery: _Rows, items: Tensor, metric: str) -> Tensor:
    """Float32 scores [n, m] of the candidates, from the original rows."""
    rows = gallery.take(items.clamp(min=0).flatten()).view(*items.shape, gallery.dim)
    if metric == "l2":
        return -(rows - queries[:, None]).square_().sum(2)
    return torch.bmm(rows, queries[:, :, None])[:, :, 0]


def _recall(
    queries: _Rows, gallery: _Rows, chosen: Tensor, found: Tensor, exact: Tensor, metric: str
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


def _double_scores(queries: Tensor, gallery: _Rows, items: Tensor, metric: str) -> Tensor:
    """Scores float64 [n, m] of gallery rows, each by the same sum whatever its place."""
    rows = gallery.take(items.clamp(min=0).flatten()).view(*items.shape, gallery.dim).double()
    if metric == "l2":
        return -(rows - queries[:, None].double()).square_().sum(2)
    return (rows * queries[:, None].double()).sum(2)
