"""Seeded k-means: Euclidean or spherical, semi-supervised if asked, on one process or on shards.

Lloyd's iteration with k-means++ seeding (Arthur and Vassilvitskii, SODA 2007). Distances are
computed block by block, never N x K, and with many clusters only where bounds and 8-bit products do
not rule a centroid out (`noisyml.similarity.exact.nearest`); class sums, the inertia and the
movement of the centroids are float64. With `sharded` every rank holds a part of the rows and gets
what one process would find. Rows with a known class can be pinned to the cluster of that class
(semi-supervised k-means of Vaze et al., "Generalized Category Discovery", CVPR 2022, and PromptCAL,
CVPR 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from noisyml.checks import Count, NonNegative, Seed, checked
from noisyml.distributed import all_reduce_sum, gather, rank
from noisyml.errors import UserError
from noisyml.similarity.approximate.faiss_indexes import has_faiss, require_faiss
from noisyml.similarity.exact.nearest import NearestCentroids, supported
from noisyml.similarity.exact.plan import device_of
from noisyml.similarity.exact.sources import RowSource

Array = Tensor | NDArray[np.floating]

#: Centroids that share one minimum: the minimum of groups is several times faster than an argmin.
_GROUP = 64
#: From so many clusters on products are faster than the search of faiss.
_MANY_CLUSTERS = 32
#: From so many numbers in all centroids on bounds and integers are faster than products.
_BOUNDED = 100_000
#: Rows of a block: large enough for a full-speed product, small enough to stay in the cache.
_BLOCK_ROWS = {"cpu": 1024, "cuda": 2**16}
#: Numbers read at once where no product with all centroids is formed: as float64 they stay in the
#: cache, and the memory of one block serves the next.
_READ_NUMBERS = 2**18
#: Rows that faiss, which cuts its tiles itself, and products with one centroid get at once.
_MANY_ROWS = 2**14


@dataclass(frozen=True)
class KMeans:
    """A clustering.

    Attributes:
        labels: [n] int64, the cluster of every row (of this rank).
        centroids: [K, D], means of their rows (unit norm for cosine), float64 for float64 rows,
            else float32; the same on all ranks.
        inertia: sum over all rows of the squared distance to the centroid they were assigned to,
            before that centroid moved to the mean of its rows.
        n_iterations: Lloyd iterations of the best start.
    """

    labels: Tensor
    centroids: Tensor
    inertia: float
    n_iterations: int


class _Rows:
    """This rank's rows with what all blocks share: scale, common mean, squared norms.

    Attributes:
        mean: [D] float64, of all ranks' rows; zero for cosine. Distances are those of rows minus
            this mean, which keeps float32 products accurate far from the origin.
        scale: [n] float64, 1 / norm for cosine (0 for a zero row), else None.
        squares: [n] float64, squared norms of the scaled rows minus the mean.
        total: rows of all ranks.
    """

    def __init__(
        self,
        x: Array,
        metric: Literal["l2", "cosine"],
        device: torch.device | str | None,
        sharded: bool,
    ) -> None:
        if x.ndim != 2:
            raise ValueError(f"rows must be [n, D], got {tuple(x.shape)}")
        self._x = x
        self.sharded = sharded
        self.device = device_of(x, device)
        double = x.dtype in (torch.float64, np.float64)
        self.dtype = torch.float64 if double else torch.float32
        self.read_rows = max(1, _READ_NUMBERS // max(1, x.shape[1]))
        self.scale: Tensor | None = None
        norms = torch.empty(len(x), dtype=torch.float64, device=self.device)
        sums = torch.zeros(x.shape[1], dtype=torch.float64, device=self.device)
        for start, stop in self.spans(self.read_rows):
            block = self.raw(start, stop).to(torch.float64)
            norms[start:stop] = block.square().sum(1)
            sums += block.sum(0)
        self._check(norms)
        self.total = int(
            self.sum(torch.tensor(float(len(x)), dtype=torch.float64, device=self.device))
        )
        if metric == "cosine":
            self.scale = torch.where(norms > 0, norms.rsqrt(), 0.0)
            self.squares = (norms > 0).to(torch.float64)
            self.mean = torch.zeros_like(sums)
        else:
            self.mean = self.sum(sums) / max(self.total, 1)
            self.squares = norms
            for start, stop in self.spans(self.read_rows):
                block = self.raw(start, stop).to(torch.float64) - self.mean
                self.squares[start:stop] = block.square_().sum(1)

    def __len__(self) -> int:
        return len(self._x)

    def _check(self, norms: Tensor) -> None:
        broken = (~norms.isfinite()).nonzero().flatten()
        if int(self.sum(torch.tensor(float(len(broken)), dtype=torch.float64, device=self.device))):
            where = f"row {int(broken[0])}" if len(broken) else "a row of another process"
            raise UserError(
                f"The rows to cluster hold NaN or infinite values ({where}); look for a diverged "
                "loss, lower the learning rate or use an earlier checkpoint."
            )

    def spans(self, size: int) -> list[tuple[int, int]]:
        return [(s, min(s + size, len(self._x))) for s in range(0, len(self._x), size)]

    def raw(self, start: int, stop: int) -> Tensor:
        """Rows as they were given, in the dtype of the computation."""
        block = self._x[start:stop]
        if isinstance(block, Tensor):
            return block.detach().to(self.device, self.dtype)
        # A copy also where the dtype fits: a memory map may be read-only.
        return torch.from_numpy(np.array(block)).to(self.device, self.dtype)

    def in_place(self) -> Tensor | None:
        """All rows where they lie, if that is memory or a mapped file with float32 rows."""
        x = self._x
        if isinstance(x, np.ndarray):
            if x.dtype != np.float32 or not x.flags.c_contiguous:
                return None
            x = RowSource(x, "given", self.device).block(0, len(x))
        return x.detach() if self.device.type == "cpu" and supported(x) else None

    def scaled(self, start: int, stop: int) -> Tensor:
        """Rows, of unit norm for cosine; not centred."""
        block = self.raw(start, stop)
        if self.scale is None:
            return block
        return block * self.scale[start:stop, None].to(self.dtype)

    def centred(self, index: Tensor) -> Tensor:
        """Chosen rows [m, D] float64 minus the mean, of this rank."""
        chosen: Tensor
        if isinstance(self._x, Tensor):
            chosen = self._x.detach()[index.to(self._x.device)]
        else:
            chosen = torch.from_numpy(np.array(self._x[index.cpu().numpy()]))
        chosen = chosen.to(self.device, torch.float64)
        if self.scale is not None:
            chosen = chosen * self.scale[index, None]
        return chosen - self.mean

    def sum(self, x: Tensor) -> Tensor:
        """Sum over ranks, if rows are spread over them."""
        return all_reduce_sum(x) if self.sharded else x

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' parts, if rows are spread over them."""
        return gather(x) if self.sharded else x

    @property
    def rank(self) -> int:
        return rank() if self.sharded else 0

    def pick(self, weight: Tensor, uniform: float) -> Tensor:
        """One row of all ranks, drawn by inverse CDF with probability in proportion to `weight`.

        Args:
            weight: [n] float64, non-negative, positive for some row of some rank.
            uniform: in [0, 1).

        Returns:
            [D] float64, centred; the same on all ranks.
        """
        cumulative = weight.cumsum(0)
        shares = self.gather(cumulative[-1:] if len(weight) else weight.new_zeros(1))
        up_to = shares.cumsum(0)
        target = uniform * up_to[-1]
        # Rounding may put the target at the very end: the last row with weight takes it.
        last = int(shares.nonzero()[-1])
        owner = min(int((up_to <= target).sum()), last)
        found = torch.zeros_like(self.mean)
        if owner == self.rank and len(weight):
            before = up_to[owner - 1] if owner else up_to.new_zeros(())
            place = torch.searchsorted(cumulative, target - before, right=True)
            final = int(torch.searchsorted(cumulative, cumulative[-1]))
            found = self.centred(place.clamp(max=final)[None])[0]
        return self.sum(found)


def _plus_plus(
    rows: _Rows, allowed: Tensor, fixed: Tensor, uniforms: NDArray[np.float64]
) -> Tensor:
    """Centred centroids [L + m, D]: the `fixed` ones, then m drawn with squared distances."""
    centroids = [*fixed]
    weight = torch.where(allowed, torch.inf, 0.0).to(torch.float64)
    if len(fixed):
        _approach(rows, fixed, weight)
    for uniform in uniforms:
        # Before the first centroid all rows are alike, and so they are if each coincides with one.
        spread = rows.sum(weight.sum())
        usable = bool(centroids) and float(spread) > 0
        centroid = rows.pick(weight if usable else allowed.to(torch.float64), float(uniform))
        centroids.append(centroid)
        _approach(rows, centroid[None], weight)
    return torch.stack(centroids)


def _approach(rows: _Rows, centroids: Tensor, nearest: Tensor) -> None:
    """Lower the squared distances `nearest` [n] to what new centroids [m, D] offer."""
    directions = centroids.to(rows.dtype).T
    if len(centroids) == 1:
        directions = directions[:, 0]  # a matrix times a vector is faster
    offset = centroids.square().sum(1) + 2 * (centroids @ rows.mean)
    for start, stop in rows.spans(max(1, _MANY_ROWS // len(centroids))):
        product = (rows.raw(start, stop) @ directions).view(stop - start, -1).to(torch.float64)
        if rows.scale is not None:
            product *= rows.scale[start:stop, None]
        distance = (offset - 2 * product).amin(1).add_(rows.squares[start:stop]).clamp_(min=0)
        torch.minimum(nearest[start:stop], distance, out=nearest[start:stop])


@checked
def plus_plus_centroids(
    x: Array,
    uniforms: NDArray[np.float64],
    *,
    metric: Literal["l2", "cosine"] = "l2",
    labels: Tensor | None = None,
    sharded: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Class means of the labelled rows, then k-means++ centroids among the unlabelled ones.

    Args:
        x: [n, D] float.
        uniforms: [m], one number in [0, 1) per centroid to be drawn: the first is uniform among
            the rows if there are no class means; every other is drawn by inverse CDF with
            probability in proportion to the squared distance to the nearest centroid so far.
        metric: ``cosine`` draws among unit rows.
        labels: [n] int64, -1 for unlabelled; None: nothing is labelled.
        sharded: every rank holds a part of the rows; a collective call.
        device: where to compute; None for that of the rows.

    Returns:
        [L + m, D] float64, the same on all ranks.

    Raises:
        UserError: NaN or infinite rows, or a class below the largest label without rows.

    Source: Arthur and Vassilvitskii, SODA 2007, section 2.2.

    Example:
        >>> rows = torch.tensor([[0.0], [0.0], [4.0]])
        >>> plus_plus_centroids(rows, np.array([0.1, 0.9])).flatten().tolist()
        [0.0, 4.0]
    """
    rows = _Rows(x, metric, device, sharded)
    pinned = _pinned(rows, labels)
    fixed = _class_means(rows, pinned)
    found = _plus_plus(rows, _candidates(rows, pinned), fixed, np.asarray(uniforms))
    return found + rows.mean


def _pinned(rows: _Rows, labels: Tensor | None) -> Tensor:
    if labels is None:
        return torch.full((len(rows),), -1, dtype=torch.int64, device=rows.device)
    if labels.shape != (len(rows),):
        raise ValueError(f"labels {tuple(labels.shape)} must be [{len(rows)}]")
    return labels.to(rows.device, torch.int64)


def _candidates(rows: _Rows, pinned: Tensor) -> Tensor:
    """Rows that may become a centroid: unlabelled and, for cosine, not zero."""
    allowed = pinned < 0
    return allowed if rows.scale is None else allowed & (rows.scale > 0)


def _class_means(rows: _Rows, pinned: Tensor) -> Tensor:
    """Centred means [L, D] of the labelled classes ``0 .. L - 1``, of unit norm for cosine."""
    largest = pinned.max()[None] if len(pinned) else pinned.new_full((1,), -1)
    n_classes = int(rows.gather(largest).max()) + 1
    if n_classes <= 0:
        return rows.mean.new_zeros(0, len(rows.mean))
    counts = torch.zeros(n_classes, dtype=torch.float64, device=rows.device)
    sums = torch.zeros(n_classes, len(rows.mean), dtype=torch.float64, device=rows.device)
    for start, stop in rows.spans(rows.read_rows):
        known = (pinned[start:stop] >= 0).nonzero().flatten()
        classes = pinned[start:stop][known]
        counts += torch.bincount(classes, minlength=n_classes)
        sums.index_add_(0, classes, rows.scaled(start, stop)[known].to(torch.float64))
    counts = rows.sum(counts)
    if bool((counts == 0).any()):
        absent = int((counts == 0).nonzero()[0])
        raise UserError(
            f"No row carries the label {absent}, though larger labels occur: number the labelled "
            f"classes 0..{int((counts > 0).sum()) - 1} without gaps."
        )
    means = rows.sum(sums) / counts[:, None] - rows.mean
    return means if rows.scale is None else torch.nn.functional.normalize(means, dim=1)


class _Assigner:
    """Finds the nearest centroid of every row, and keeps the sums of the clusters.

    Only rows that change their cluster touch the sums.
    """

    def __init__(
        self,
        rows: _Rows,
        pinned: Tensor,
        n_clusters: int,
        backend: Literal["torch", "faiss"],
        memory_budget_bytes: int,
    ) -> None:
        self.rows = rows
        self.pinned = pinned
        self.n_clusters = n_clusters
        self.backend = backend
        padded = n_clusters + (-n_clusters % _GROUP)
        row_bytes = padded * rows.dtype.itemsize
        # faiss cuts its tiles itself; ours must leave room for the distances to all centroids.
        most = _BLOCK_ROWS.get(rows.device.type, _BLOCK_ROWS["cuda"])
        ours = max(1, min(most, memory_budget_bytes // row_bytes, len(rows)))
        self.spans = rows.spans(_MANY_ROWS if backend == "faiss" else ours)
        self._search: NearestCentroids | None = None
        in_place = rows.in_place() if backend == "torch" else None
        width = len(rows.mean)
        pays = n_clusters > 1 and n_clusters * width >= _BOUNDED
        if in_place is not None and pays and len(rows) * width <= memory_budget_bytes:
            self._free = (pinned < 0).nonzero().flatten()
            given = in_place, rows.mean, rows.scale, rows.squares
            self._search = NearestCentroids(*given, self._free)
        elif backend == "torch":
            self._buffer = torch.empty(ours, padded, dtype=rows.dtype, device=rows.device)
        self.reset()

    def reset(self) -> None:
        """Forget where rows were, as before a new start."""
        rows, shape = self.rows, (self.n_clusters, len(self.rows.mean))
        self._labels: Tensor | None = None
        self._sums = torch.zeros(shape, dtype=torch.float64, device=rows.device)
        if self._search is not None:
            self._search.forget()

    def __call__(self, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Labels [n], and the counts [K] and centred sums [K, D] float64 of all ranks."""
        rows = self.rows
        labels = self._nearest(centroids)
        self._move(labels)
        counts = rows.sum(torch.bincount(labels, minlength=self.n_clusters).to(torch.float64))
        return labels, counts, rows.sum(self._sums) - counts[:, None] * rows.mean

    def _nearest(self, centroids: Tensor) -> Tensor:
        rows, labels = self.rows, self.pinned.clone()
        matrix = centroids.to(rows.dtype)
        if self._search is not None:
            labels[self._free] = self._search(matrix)
            return labels
        # argmin |x - m - c|^2 = argmin |c|^2 / 2 + m.c - x.c: the rows need not be copied.
        exact = matrix.to(torch.float64)
        bias = (0.5 * exact.square().sum(1) + exact @ rows.mean).to(rows.dtype)
        padding = -self.n_clusters % _GROUP
        matrix, bias = pad(matrix, (0, 0, 0, padding)), pad(bias, (0, padding), value=torch.inf)
        for start, stop in self.spans:
            block = rows.scaled(start, stop)
            if self.backend == "faiss":
                nearest = self._by_faiss(block, centroids)
            else:
                nearest = self._by_product(block, matrix, bias)
            known = labels[start:stop]
            known.copy_(torch.where(known >= 0, known, nearest))
        return labels

    def _move(self, labels: Tensor) -> None:
        """Bring the sums up to date with the rows' new labels."""
        rows, before = self.rows, self._labels
        for start, stop in rows.spans(rows.read_rows):
            here = labels[start:stop]
            if before is None:
                self._sums.index_add_(0, here, rows.scaled(start, stop).to(torch.float64))
                continue
            changed = (here != before[start:stop]).nonzero().flatten()
            if len(changed):
                movers = rows.scaled(start, stop)[changed].to(torch.float64)
                self._sums.index_add_(0, here[changed], movers)
                self._sums.index_add_(0, before[start:stop][changed], movers, alpha=-1)
        self._labels = labels

    def _by_product(self, block: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
        scores = self._buffer[: len(block)]
        torch.addmm(bias, block, matrix.T, alpha=-1, out=scores)
        groups = scores.view(len(block), -1, _GROUP)
        best = groups.amin(2).argmin(1)
        inside = groups[torch.arange(len(block), device=block.device), best].argmin(1)
        return best * _GROUP + inside

    def _by_faiss(self, block: Tensor, centroids: Tensor) -> Tensor:
        import faiss

        points = (block - self.rows.mean.to(block.dtype)).numpy()
        _, nearest = faiss.knn(points, centroids.to(torch.float32).numpy(), 1)
        return torch.from_numpy(nearest[:, 0])


def _reseed(
    assigner: _Assigner, centroids: Tensor, labels: Tensor, empty: Tensor, moved: Tensor
) -> None:
    """Move the centroids of `empty` clusters to the unlabelled rows farthest from their own."""
    rows = assigner.rows
    distances = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for start, stop in rows.spans(rows.read_rows):
        block = rows.scaled(start, stop).to(torch.float64) - rows.mean
        distances[start:stop] = (block - centroids[labels[start:stop]]).square_().sum(1)
    distances[~_candidates(rows, assigner.pinned)] = 0
    # A stable order, the same whatever the shards: by distance, then by row number.
    mine = distances.sort(descending=True, stable=True).indices[: len(empty)]
    far, places = rows.gather(distances[mine]), rows.gather(rows.centred(mine))
    order = far.sort(descending=True, stable=True).indices[: len(empty)]
    order = order[far[order] > 0]
    moved[empty[: len(order)]] = places[order]


def _lloyd(
    assigner: _Assigner, centroids: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, float, int]:
    """Labels, centred centroids, inertia and iterations from one start."""
    rows = assigner.rows
    assigner.reset()
    spread = rows.sum(rows.squares.sum())
    best_labels, best_centroids, best_inertia = assigner.pinned, centroids, float("inf")
    done, moving = 0, True
    while moving and done < max_iterations:
        labels, counts, sums = assigner(centroids)
        inertia = float(spread - 2 * (centroids * sums).sum() + counts @ centroids.square().sum(1))
        moved = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
        if rows.scale is not None:
            norms = moved.norm(dim=1, keepdim=True)
            moved = torch.where(norms > 0, moved / norms, centroids)
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            _reseed(assigner, centroids, labels, empty, moved)
        if inertia < best_inertia:
            best_labels, best_centroids, best_inertia = labels, moved, max(inertia, 0.0)
        shift = float((moved - centroids).norm(dim=1).sum())
        centroids = moved
        moving = shift > 0 and shift**2 >= tolerance
        done += 1
    return best_labels, best_centroids, best_inertia, done


@checked
def kmeans(
    x: Array,
    n_clusters: Count,
    *,
    metric: Literal["l2", "cosine"] = "l2",
    labels: Tensor | None = None,
    init: Literal["k-means++", "random"] | Tensor = "k-means++",
    n_init: Count = 1,
    max_iterations: Count = 300,
    tolerance: NonNegative = 1e-4,
    seed: Seed = 0,
    backend: Literal["auto", "torch", "faiss"] = "auto",
    sharded: bool = False,
    device: torch.device | str | None = None,
    memory_budget_bytes: Count = 2**28,
) -> KMeans:
    """Clusters of the rows from the best of `n_init` starts.

    A cluster that loses all its rows is moved to the unlabelled row farthest from its own centroid
    (several: to the farthest rows, in the order of the cluster numbers); where no row has a
    positive distance it stays.

    Args:
        x: [n, D] float: a tensor on any device, an array or a memory map, read in blocks. Half
            precision is computed in float32.
        n_clusters: K, at least 1.
        metric: ``l2``; or ``cosine`` (spherical k-means): unit rows and unit centroids, distances
            are squared Euclidean ones between these, 2 - 2 cosine. A zero row stays zero.
        labels: [n] int64, -1 for unlabelled. A row of class c belongs to cluster c throughout, and
            cluster c starts at the mean of its class. Classes are ``0 .. L - 1``, none empty.
        init: the K - L other centroids: drawn among unlabelled rows; or all K given as [K, D].
        n_init: starts; the lowest inertia wins, the earliest of equals.
        max_iterations: of one start.
        tolerance: stop when the squared sum of the distances the centroids moved by is below it, in
            squared units of the rows (the rule and the default of the released GCD code).
        seed: of all draws.
        backend: what finds the nearest centroid. ``faiss`` needs rows of at most float32 on a CPU;
            ``auto`` takes it there for fewer than 32 clusters if it is installed, else ``torch``,
            which is faster for many (scripts/bench_kmeans.py).
        sharded: every rank holds its part of the rows (any number, also none), in rank order; a
            collective call that gives the clustering of all rows.
        device: where to compute; None for that of the rows.
        memory_budget_bytes: of the block of distances, or of the rows rounded to 8 bits, a byte a
            number (without room for these all distances are computed, on a CPU); faiss has its
            own, of 16 MiB.

    Raises:
        UserError: a `backend` that is not installed, NaN or infinite rows, more clusters than
            (unlabelled) rows, more labelled classes than clusters, or labels with gaps.
        ValueError: shapes that do not fit, an unknown `init`, or a `backend` that cannot take the
            rows.

    Example:
        >>> rows = torch.tensor([[0.0, 0.0], [0.0, 1.0], [8.0, 8.0], [8.0, 9.0]])
        >>> found = kmeans(rows, 2)
        >>> found.inertia, sorted(found.centroids.tolist())
        (1.0, [[0.0, 0.5], [8.0, 8.5]])
    """
    rows = _Rows(x, metric, device, sharded)
    pinned = _pinned(rows, labels)
    fixed = _class_means(rows, pinned)
    allowed = _candidates(rows, pinned)
    n_allowed = int(rows.sum(allowed.sum().to(torch.float64)))
    n_new = n_clusters - len(fixed)
    if n_new < 0:
        raise UserError(
            f"{len(fixed)} labelled classes do not fit into {n_clusters} clusters: raise the "
            "number of clusters."
        )
    if n_new > n_allowed:
        raise UserError(
            f"{n_new} clusters cannot be started among {n_allowed} rows: lower the number of "
            "clusters or give more rows."
        )
    engine = _engine(backend, rows, n_clusters)
    assigner = _Assigner(rows, pinned, n_clusters, engine, memory_budget_bytes)
    best: tuple[Tensor, Tensor, float, int] | None = None
    for start in _starts(rows, allowed, fixed, init, n_clusters, n_init, seed):
        found = _lloyd(assigner, start, max_iterations, tolerance)
        if best is None or found[2] < best[2]:
            best = found
    assert best is not None
    centroids = (best[1] + rows.mean).to(rows.dtype)
    return KMeans(best[0], centroids, inertia=best[2], n_iterations=best[3])


def _engine(
    backend: Literal["auto", "torch", "faiss"], rows: _Rows, n_clusters: int
) -> Literal["torch", "faiss"]:
    fits = rows.device.type == "cpu" and rows.dtype == torch.float32
    if backend == "faiss" and not fits:
        raise ValueError("backend='faiss' needs float32 rows on a CPU: use 'auto' or 'torch'")
    if backend == "auto":
        return "faiss" if fits and n_clusters < _MANY_CLUSTERS and has_faiss() else "torch"
    if backend == "faiss":
        require_faiss("A k-means with backend=faiss", "backend=torch does without it")
    return backend


def _starts(
    rows: _Rows,
    allowed: Tensor,
    fixed: Tensor,
    init: Literal["k-means++", "random"] | Tensor,
    n_clusters: int,
    n_init: int,
    seed: int,
) -> list[Tensor]:
    """Centred centroids [K, D] float64 of every start."""
    if isinstance(init, Tensor):
        if init.shape != (n_clusters, len(rows.mean)) or n_init != 1:
            raise ValueError(
                f"given centroids {tuple(init.shape)} must be [{n_clusters}, {len(rows.mean)}] and "
                "are one start (n_init=1)"
            )
        given = init.to(rows.mean)
        if rows.scale is not None:
            given = torch.nn.functional.normalize(given, dim=1)
        return [given - rows.mean]
    generator = np.random.default_rng(seed)
    n_new = n_clusters - len(fixed)
    if init == "k-means++":
        draws = generator.random((n_init, n_new))
        return [_plus_plus(rows, allowed, fixed, uniforms) for uniforms in draws]
    if init != "random":
        raise ValueError(f"init must be 'k-means++', 'random' or a tensor, got {init!r}")
    places = allowed.nonzero().flatten()
    sizes = rows.gather(torch.tensor([len(places)], device=rows.device))
    first = int(sizes[: rows.rank].sum())
    starts = []
    for _ in range(n_init):
        chosen = torch.from_numpy(generator.choice(int(sizes.sum()), n_new, replace=False))
        chosen = chosen.to(rows.device) - first
        mine = ((chosen >= 0) & (chosen < len(places))).nonzero().flatten()
        drawn = rows.mean.new_zeros(n_new, len(rows.mean))
        drawn[mine] = rows.centred(places[chosen[mine]])
        starts.append(torch.cat([fixed, rows.sum(drawn)]))
    return starts
