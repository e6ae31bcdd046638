"""Sparse neighbour graphs: mutual and symmetric edges, consensus, diffusion, components.

A graph comes from neighbour lists ``index [N, k]`` and stays sparse: memory is a small multiple of
its edges, and products that could grow are taken in blocks of rows within a budget. Edges are
ordered by row and column, sums run in a fixed order, so results are the same bits whatever the
block size.

The chain of PromptCAL (Zhang et al., CVPR 2023: consensus, diffusion, threshold) is
`affinity_graph`, and each of its links is a function of its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse
import torch
from scipy.sparse import csgraph
from torch import Tensor

#: Bytes of one stored entry of a product: column int64 and weight float64.
_ENTRY_BYTES = 16
#: Bins of the histogram that locates an order statistic.
_BINS = 2**16


@dataclass(frozen=True)
class Graph:
    """A weighted directed graph in compressed rows.

    Attributes:
        offsets: [N + 1] int64; the edges of node i are ``offsets[i] : offsets[i + 1]``.
        columns: [E] int64, the nodes pointed to, ascending within a row, each at most once.
        weights: [E] float64.
        n_columns: number of nodes that can be pointed to (N for a square graph).
    """

    offsets: Tensor
    columns: Tensor
    weights: Tensor
    n_columns: int

    @property
    def n_rows(self) -> int:
        """Number of nodes N."""
        return len(self.offsets) - 1

    def rows(self) -> Tensor:
        """The node that each edge leaves [E] int64."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.columns))

    def dense(self, rows: slice | None = None, columns: slice | None = None) -> Tensor:
        """The adjacency matrix or a block of it, float64.

        Args:
            rows: the rows wanted, without a step; None for all.
            columns: the columns wanted, without a step; None for all.
        """
        top, bottom, _ = (rows or slice(None)).indices(self.n_rows)
        left, right, _ = (columns or slice(None)).indices(self.n_columns)
        block = self.weights.new_zeros(max(bottom - top, 0), max(right - left, 0))
        if block.numel() == 0:
            return block
        first, last = int(self.offsets[top]), int(self.offsets[bottom])
        row = torch.repeat_interleave(self.offsets[top : bottom + 1].diff())
        column, weight = self.columns[first:last] - left, self.weights[first:last]
        inside = (column >= 0) & (column < right - left)
        block[row[inside], column[inside]] = weight[inside]
        return block

    def to_scipy(self) -> scipy.sparse.csr_matrix:
        """The adjacency matrix for SciPy, on the CPU."""
        arrays = (part.cpu().numpy() for part in (self.weights, self.columns, self.offsets))
        return scipy.sparse.csr_matrix(tuple(arrays), shape=(self.n_rows, self.n_columns))


def _from_edges(
    rows: Tensor, columns: Tensor, weights: Tensor, n_rows: int, n_columns: int
) -> Graph:
    """The graph of distinct edges given in any order."""
    key, order = (rows * n_columns + columns).sort()
    if bool((key[1:] == key[:-1]).any()):
        repeated = int(key[1:][key[1:] == key[:-1]][0])
        raise ValueError(
            f"node {repeated // n_columns} lists node {repeated % n_columns} more than once"
        )
    return Graph(
        offsets=_offsets(torch.bincount(rows, minlength=n_rows)),
        columns=columns[order],
        weights=weights[order],
        n_columns=n_columns,
    )


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _key(graph: Graph) -> Tensor:
    """One ascending number per edge [E]."""
    return graph.rows() * graph.n_columns + graph.columns


def _check_square(graph: Graph) -> None:
    if graph.n_rows != graph.n_columns:
        raise ValueError(f"needs a square graph, not {graph.n_rows} x {graph.n_columns}")


def knn_graph(index: Tensor, scores: Tensor | None = None, *, self_loops: bool = False) -> Graph:
    """The graph of neighbour lists of a self-join: i -> j for every j in ``index[i]``.

    Args:
        index: [N, k] int64, each node's neighbours in any order; -1 stands for none. A node in its
            own list is left out.
        scores: [N, k] float, the edges' weights; None gives every edge the weight 1.
        self_loops: add i -> i with weight 1 (closed neighbourhoods, as `consensus` wants them).

    Raises:
        ValueError: shapes that do not fit, an index out of range, or a neighbour listed twice.
    """
    if index.ndim != 2 or (scores is not None and scores.shape != index.shape):
        raise ValueError(
            f"index {tuple(index.shape)} must be [N, k] and scores of the same shape, got "
            f"{None if scores is None else tuple(scores.shape)}"
        )
    n = len(index)
    if index.numel() and (int(index.min()) < -1 or int(index.max()) >= n):
        raise ValueError(f"neighbours must be in 0..{n - 1} or -1 for none")
    node = torch.arange(n, device=index.device)
    listed = (index >= 0) & (index != node[:, None])
    rows, columns = node[:, None].expand_as(index)[listed], index[listed]
    if scores is None:
        weights = torch.ones(len(rows), dtype=torch.float64, device=index.device)
    else:
        weights = scores[listed].to(torch.float64)
    if self_loops:
        rows, columns = torch.cat([rows, node]), torch.cat([columns, node])
        weights = torch.cat([weights, weights.new_ones(n)])
    return _from_edges(rows, columns, weights, n, n)


def transpose(graph: Graph) -> Graph:
    """Every edge reversed."""
    # Edges are ordered by row already: a stable sort by column orders the transpose.
    columns, order = graph.columns.sort(stable=True)
    return Graph(
        offsets=_offsets(torch.bincount(columns, minlength=graph.n_columns)),
        columns=graph.rows()[order],
        weights=graph.weights[order],
        n_columns=graph.n_rows,
    )


def _keep(graph: Graph, kept: Tensor) -> Graph:
    """The graph with the edges where `kept` [E] bool."""
    count = _offsets(kept.to(torch.int64))[graph.offsets]
    return replace(graph, offsets=count, columns=graph.columns[kept], weights=graph.weights[kept])


def mutual(graph: Graph) -> Graph:
    """Only edges that exist in both directions, each with the smaller of the two weights.

    Raises:
        ValueError: the graph is not square.
    """
    _check_square(graph)
    reverse = transpose(graph)
    key, reverse_key = _key(graph), _key(reverse)
    if len(key) == 0:
        return graph
    place = torch.searchsorted(reverse_key, key).clamp_(max=len(key) - 1)
    both = reverse_key[place] == key
    weights = torch.minimum(graph.weights, reverse.weights[place])
    return _keep(replace(graph, weights=weights), both)


def symmetrise(graph: Graph, combine: Literal["max", "mean"] = "max") -> Graph:
    """The union of the graph and its transpose.

    Args:
        graph: square.
        combine: weight of an edge. ``max``: the larger of the weights that exist. ``mean``: half
            the sum of both directions, where a missing edge counts as 0.

    Raises:
        ValueError: the graph is not square, or an unknown `combine`.
    """
    _check_square(graph)
    if combine not in ("max", "mean"):
        raise ValueError(f"combine must be 'max' or 'mean', got {combine!r}")
    reverse = transpose(graph)
    key, edge = torch.cat([_key(graph), _key(reverse)]).unique(return_inverse=True)
    both = torch.cat([graph.weights, reverse.weights])
    weights = both.new_zeros(len(key))
    if combine == "max":
        weights.scatter_reduce_(0, edge, both, "amax", include_self=False)
    else:
        weights.index_add_(0, edge, both).mul_(0.5)
    rows, columns = key // graph.n_columns, key % graph.n_columns
    return _from_edges(rows, columns, weights, graph.n_rows, graph.n_columns)


def connected_components(graph: Graph) -> Tensor:
    """The component of every node [N] int64, numbered from 0; edges count in both directions.

    Raises:
        ValueError: the graph is not square.
    """
    _check_square(graph)
    _, labels = csgraph.connected_components(graph.to_scipy(), directed=True, connection="weak")
    return torch.from_numpy(labels.astype(np.int64)).to(graph.columns.device)


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    """The product of two sparse CSR tensors; its columns are not sorted within a row.

    PyTorch multiplies sparse matrices with cuSPARSE and MKL; where it was built without MKL, SciPy
    does.
    """
    if left.is_cuda or torch.backends.mkl.is_available():
        return torch.sparse.mm(left, right)
    return _from_scipy(_as_scipy(left) @ _as_scipy(right))


def _add(left: Tensor, right: Tensor) -> Tensor:
    """The sum of two sparse CSR tensors, by the same libraries."""
    if left.is_cuda or torch.backends.mkl.is_available():
        return left + right
    return _from_scipy(_as_scipy(left) + _as_scipy(right))


def _as_scipy(x: Tensor) -> scipy.sparse.csr_matrix:
    parts = (x.values().numpy(), x.col_indices().numpy(), x.crow_indices().numpy())
    return scipy.sparse.csr_matrix(parts, shape=tuple(x.shape))


def _from_scipy(x: scipy.sparse.csr_matrix) -> Tensor:
    return _csr(
        torch.from_numpy(x.indptr.astype(np.int64)),
        torch.from_numpy(x.indices.astype(np.int64)),
        torch.from_numpy(x.data),
        x.shape[1],
    )


def _csr(offsets: Tensor, columns: Tensor, weights: Tensor, n_columns: int) -> Tensor:
    with warnings.catch_warnings():
        # PyTorch calls all of its CSR tensors a beta; nothing the user could act upon.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        return torch.sparse_csr_tensor(
            offsets, columns, weights, size=(len(offsets) - 1, n_columns), check_invariants=False
        )


def _tensor(graph: Graph, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows ``start : stop`` of the graph as a sparse CSR tensor."""
    stop = graph.n_rows if stop is None else stop
    first, last = int(graph.offsets[start]), int(graph.offsets[stop])
    return _csr(
        graph.offsets[start : stop + 1] - first,
        graph.columns[first:last],
        graph.weights[first:last],
        graph.n_columns,
    )


def _row_blocks(entries: Tensor, budget: int) -> list[tuple[int, int]]:
    """Contiguous blocks of rows with at most `budget` `entries` [N] each, of one row at least."""
    total = entries.to(torch.float64).cumsum(0).cpu().numpy()
    blocks, start = [], 0
    while start < len(total):
        done = total[start - 1] if start else 0.0
        stop = max(int(np.searchsorted(total, done + budget, side="right")), start + 1)
        blocks.append((start, stop))
        start = stop
    return blocks


def _entries(memory_budget_bytes: int) -> int:
    if memory_budget_bytes < _ENTRY_BYTES:
        raise ValueError(f"memory_budget_bytes={memory_budget_bytes} holds not even one entry")
    return memory_budget_bytes // _ENTRY_BYTES


def consensus(neighbours: Graph, *, memory_budget_bytes: int = 2**28) -> Graph:
    """How many neighbourhoods contain both nodes: ``O^T O`` without its diagonal.

    Args:
        neighbours: closed neighbourhoods O of N nodes (`knn_graph` with `self_loops`); the weights
            are not looked at.
        memory_budget_bytes: of intermediate products; the result has at most N (k + 1)^2 edges.

    Returns:
        A symmetric graph of counts.

    Source: PromptCAL, section 3.3 of the method (consensus kNN graph).
    """
    ones = replace(neighbours, weights=torch.ones_like(neighbours.weights))
    reverse, whole = transpose(ones), _tensor(ones)
    n = ones.n_columns
    lengths = ones.offsets.diff()
    work = lengths.new_zeros(n).index_add_(0, reverse.rows(), lengths[reverse.columns])
    keys, counts = [], []
    for start, stop in _row_blocks(work, _entries(memory_budget_bytes)):
        block = _multiply(_tensor(reverse, start, stop), whole)
        rows = torch.repeat_interleave(block.crow_indices().diff()) + start
        off_diagonal = rows != block.col_indices()
        key, order = (rows * n + block.col_indices())[off_diagonal].sort()
        keys.append(key)
        counts.append(block.values()[off_diagonal][order])
    key = torch.cat(keys) if keys else lengths.new_zeros(0)
    return Graph(
        offsets=_offsets(torch.bincount(key // n, minlength=n)),
        columns=key % n,
        weights=torch.cat(counts) if counts else ones.weights.new_zeros(0),
        n_columns=n,
    )


def transition(graph: Graph, *, eps: float = 1e-10) -> Graph:
    """Rows scaled to sum (almost) 1: ``weights / (row sum + eps)``.

    Args:
        graph: non-negative weights.
        eps: keeps an isolated node finite.
    """
    rows = graph.rows()
    sums = graph.weights.new_zeros(graph.n_rows).index_add_(0, rows, graph.weights)
    return replace(graph, weights=graph.weights / (sums + eps)[rows])


class _Block(NamedTuple):
    """Rows of a diffused matrix: their numbers, columns and weights, one per stored entry."""

    rows: Tensor
    columns: Tensor
    weights: Tensor


class _Diffusion:
    """The rows of ``Q_{t+1} = P Q_t P^T + I, Q_0 = P``, block by block.

    ``Q_t = P^t P (P^T)^t + sum_{s<t} P^s (P^T)^s``, so a block of rows needs only the same rows of
    the powers of P (Horner's rule on the right). Blocks that fit into the budget are kept; the
    others are computed again whenever somebody walks over them.
    """

    def __init__(self, transition: Graph, steps: int, memory_budget_bytes: int) -> None:
        _check_square(transition)
        if steps < 0:
            raise ValueError(f"steps={steps} must not be negative")
        self.n = transition.n_rows
        self.steps = steps
        self._graph = transition
        self._p = _tensor(transition)
        reverse = transpose(transition)
        self._p_t = _tensor(reverse)
        self._room = _entries(memory_budget_bytes)
        # An upper bound of every row's entries; a quarter of the budget leaves space for the
        # factors of a product and for what follows it.
        bound = transition.offsets.diff().to(torch.float64)
        for factor in [transition] * steps + [reverse] * steps:
            reached = torch.zeros_like(bound).index_add_(0, factor.rows(), bound[factor.columns])
            bound = reached.clamp_(max=self.n)
        self._spans = _row_blocks(bound + 1, max(self._room // 4, 1))
        self._kept: dict[int, _Block] = {}

    def _rows(self, start: int, stop: int) -> Tensor:
        powers = [self._identity(start, stop)]
        for step in range(self.steps):
            mine = _tensor(self._graph, start, stop)
            powers.append(mine if step == 0 else _multiply(powers[-1], self._p))
        if self.steps == 0:
            return _tensor(self._graph, start, stop)
        rows = _multiply(powers[-1], self._p)
        for power in reversed(powers[:-1]):
            rows = _add(_multiply(rows, self._p_t), power)
        return rows

    def _identity(self, start: int, stop: int) -> Tensor:
        columns = torch.arange(start, stop, device=self._graph.columns.device)
        return _csr(
            torch.arange(stop - start + 1, device=columns.device),
            columns,
            self._graph.weights.new_ones(stop - start),
            self.n,
        )

    def blocks(self) -> Iterator[_Block]:
        """All rows, in order."""
        for start, stop in self._spans:
            block = self._kept.get(start)
            if block is None:
                found = self._rows(start, stop)
                rows = torch.repeat_interleave(found.crow_indices().diff()) + start
                block = _Block(rows, found.col_indices(), found.values())
                if len(block.weights) * 2 <= self._room:
                    self._room -= len(block.weights) * 2
                    self._kept[start] = block
            yield block


def diffuse(transition: Graph, *, steps: int = 1, memory_budget_bytes: int = 2**28) -> Graph:
    """The diffused graph ``Q_{t+1} = P Q_t P^T + I`` after `steps` steps from ``Q_0 = P``.

    Not symmetric in general. Its number of edges grows with every step; `affinity_graph` thresholds
    it without ever holding all of it.

    Args:
        transition: P, square; see the function of that name.
        steps: eta, at least 0.
        memory_budget_bytes: of intermediate products.

    Raises:
        ValueError: a graph that is not square or negative `steps`.

    Source: PromptCAL, affinity propagation (after Yang et al., "Affinity Learning with Diffusion on
    Tensor Product Graph", TPAMI 2013).
    """
    blocks = list(_Diffusion(transition, steps, memory_budget_bytes).blocks())
    rows, columns, weights = (
        torch.cat(parts) if parts else empty
        for parts, empty in zip(
            ([b.rows for b in blocks], [b.columns for b in blocks], [b.weights for b in blocks]),
            (transition.columns, transition.columns, transition.weights),
            strict=True,
        )
    )
    return _from_edges(rows, columns, weights, transition.n_rows, transition.n_columns)


class Affinity(NamedTuple):
    """Edges that survived the threshold.

    Attributes:
        graph: edges i -> j with a diffused weight above the threshold, without the diagonal.
        mean_nonzero: T, the mean of the non-zero entries.
        threshold: the quantile of the entries strictly above T; T itself if there is none.
    """

    graph: Graph
    mean_nonzero: float
    threshold: float


def affinity_graph(
    neighbours: Graph,
    *,
    quantile: float,
    steps: int = 1,
    exclude_diagonal: bool = False,
    memory_budget_bytes: int = 2**29,
) -> Affinity:
    """PromptCAL's pseudo positives: consensus, transition, diffusion and a double threshold.

    Memory is bounded by the budget plus the edges that survive; blocks of the diffused matrix that
    do not fit are computed again for each of the passes.

    Args:
        neighbours: closed k-nearest neighbourhoods of N nodes (`knn_graph` with `self_loops`).
        quantile: q in [0, 1], of the entries above their mean (linear interpolation).
        steps: diffusion steps eta.
        exclude_diagonal: leave the diagonal (at least 1 after a diffusion step) out of mean and
            quantile; the released code counts it.
        memory_budget_bytes: of the diffused matrix.

    Raises:
        ValueError: `quantile` outside [0, 1], negative `steps` or a graph that is not square.

    Source: PromptCAL, CVPR 2023 (affinity graph generation).
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile={quantile} must be in [0, 1]")
    walk = transition(consensus(neighbours, memory_budget_bytes=memory_budget_bytes))
    diffusion = _Diffusion(walk, steps, memory_budget_bytes)

    def counted() -> Iterator[_Block]:
        for block in diffusion.blocks():
            if exclude_diagonal:
                counts = block.rows != block.columns
                block = _Block(*(part[counts] for part in block))
            yield block

    def values() -> Iterator[Tensor]:
        return (block.weights for block in counted())

    mean = _mean(counted(), walk.n_rows)
    threshold = _quantile_above(values, mean, quantile)
    rows, columns, weights = [], [], []
    for block in diffusion.blocks():
        edge = (block.weights > threshold) & (block.rows != block.columns)
        rows.append(block.rows[edge])
        columns.append(block.columns[edge])
        weights.append(block.weights[edge])
    n = walk.n_rows
    if not rows:
        return Affinity(replace(walk), mean, threshold)
    graph = _from_edges(torch.cat(rows), torch.cat(columns), torch.cat(weights), n, n)
    return Affinity(graph, mean, threshold)


def _mean(blocks: Iterator[_Block], n_rows: int) -> float:
    """The mean of all streamed weights that are not 0; 0 if there are none.

    Sums of rows first, then their exact sum: no block size enters.
    """
    sums: Tensor | None = None
    count = 0
    for block in blocks:
        if sums is None:
            sums = block.weights.new_zeros(n_rows)
        sums.index_add_(0, block.rows, block.weights)
        count += int(block.weights.count_nonzero())
    return math.fsum(sums.tolist()) / count if sums is not None and count else 0.0


def _quantile_above(values: Callable[[], Iterator[Tensor]], floor: float, quantile: float) -> float:
    """The exact quantile of the streamed values above `floor`, without storing them.

    A histogram finds the bins of the two order statistics; a second pass collects only these bins.
    """
    top = max((float(part.max()) for part in values() if len(part)), default=floor)
    if not top > floor:
        return floor

    def bins(part: Tensor) -> tuple[Tensor, Tensor]:
        above = part[part > floor]
        place = ((above - floor) * (_BINS / (top - floor))).to(torch.int64)
        return above, place.clamp_(max=_BINS - 1)

    histogram = np.zeros(_BINS, dtype=np.int64)
    for part in values():
        histogram += torch.bincount(bins(part)[1], minlength=_BINS).cpu().numpy()
    up_to = histogram.cumsum()
    position = quantile * (int(up_to[-1]) - 1)
    ranks = np.array([math.floor(position), math.ceil(position)])
    wanted = np.searchsorted(up_to, ranks, side="right").tolist()
    collected = []
    for part in values():
        above, place = bins(part)
        collected.append(above[(place == wanted[0]) | (place == wanted[1])])
    candidates = torch.cat(collected).sort().values
    # Bins between the two wanted ones are empty: what is collected is contiguous in rank.
    skipped = up_to[wanted[0]] - histogram[wanted[0]]
    low, high = (float(candidates[rank]) for rank in ranks - skipped)
    return low + (position - math.floor(position)) * (high - low)


def personalised_diffusion(
    graph: Graph,
    seeds: Tensor,
    *,
    alpha: float = 0.99,
    tolerance: float = 1e-6,
    max_iterations: int = 2000,
) -> Tensor:
    """Random walk with restart on the symmetrically normalised graph.

    The fixed point of ``F = alpha D^-1/2 W D^-1/2 F + (1 - alpha) Y``, by iteration from Y.

    Args:
        graph: W [N, N], symmetric and non-negative (see `symmetrise` and `mutual`).
        seeds: Y [N, Q] float, one column per query.
        alpha: share that walks on, in [0, 1).
        tolerance: largest change of an entry of F, relative to the largest seed, at which the
            iteration stops; the error left is at most ``alpha / (1 - alpha)`` times as large in
            the Euclidean norm.
        max_iterations: the most iterations, at least 1.

    Returns:
        F [N, Q] float64.

    Raises:
        ValueError: a graph that is not symmetric and non-negative, or parameters out of range.

    Source: Zhou et al., "Ranking on Data Manifolds", NeurIPS 2003; Iscen et al., "Efficient
    Diffusion on Region Manifolds", CVPR 2017, eq. 2.
    """
    _check_square(graph)
    if not 0 <= alpha < 1 or not tolerance > 0 or max_iterations < 1:
        raise ValueError(
            f"needs 0 <= alpha < 1, tolerance > 0 and max_iterations >= 1, got alpha={alpha}, "
            f"tolerance={tolerance}, max_iterations={max_iterations}"
        )
    if seeds.ndim != 2 or len(seeds) != graph.n_rows:
        raise ValueError(f"seeds {tuple(seeds.shape)} must be [{graph.n_rows}, Q]")
    reverse = transpose(graph)
    if not torch.equal(graph.columns, reverse.columns) or not torch.equal(
        graph.weights, reverse.weights
    ):
        raise ValueError("the graph is not symmetric: apply symmetrise() or mutual() first")
    if bool((graph.weights < 0).any()):
        raise ValueError("the graph has negative weights, which a random walk cannot follow")
    rows = graph.rows()
    degree = graph.weights.new_zeros(graph.n_rows).index_add_(0, rows, graph.weights)
    scale = torch.where(degree > 0, degree.rsqrt(), 0.0)
    walk = _tensor(
        replace(graph, weights=alpha * graph.weights * scale[rows] * scale[graph.columns])
    )
    restart = (1 - alpha) * seeds.to(graph.weights)
    found = seeds.to(graph.weights)
    stop = tolerance * float(found.abs().max()) if found.numel() else 0.0
    for _ in range(max_iterations):
        following = torch.sparse.mm(walk, found) + restart
        change = (following - found).abs().max() if found.numel() else restart.new_zeros(())
        found = following
        if float(change) <= stop:
            break
    return found
