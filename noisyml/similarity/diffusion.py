"""Diffusion on neighbour graphs: affinity propagation and random walks with restart.

Diffused matrices are computed in blocks of rows within a budget of memory; the same bits whatever
the block size. `affinity_graph` is the chain of PromptCAL (Zhang et al., CVPR 2023): consensus,
diffusion, threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from noisyml.checks import Count, OpenShare, Positive, Share, WholeNonNegative, checked
from noisyml.similarity.graph import (
    Graph,
    check_square,
    consensus,
    csr_rows,
    from_edges,
    knn_graph,
    transpose,
)
from noisyml.similarity.sparse import (
    EntryBudget,
    FactoredWalk,
    add,
    csr,
    entries_within,
    multiply,
    row_blocks,
)

#: Bins of the histogram that locates an order statistic.
_BINS = 2**16


def transition(graph: Graph, *, eps: float = 1e-10) -> Graph:
    """Rows scaled to sum (almost) 1: ``weights / (row sum + eps)``.

    Args:
        graph: non-negative weights.
        eps: keeps an isolated node finite.

    Example:
        >>> import torch
        >>> from noisyml.similarity.graph import knn_graph
        >>> graph = knn_graph(torch.tensor([[1, 2], [0, -1], [0, -1]]))
        >>> transition(graph).dense().round(decimals=3).tolist()
        [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
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
        check_square(transition)
        self.n = transition.n_rows
        self.steps = steps
        self._graph = transition
        self._p = csr_rows(transition)
        reverse = transpose(transition)
        self._p_t = csr_rows(reverse)
        self._room = entries_within(memory_budget_bytes)
        # An upper bound of every row's entries; a quarter of the budget leaves space for the
        # factors of a product and for what follows it.
        bound = transition.offsets.diff().to(torch.float64)
        for factor in [transition] * steps + [reverse] * steps:
            reached = torch.zeros_like(bound).index_add_(0, factor.rows(), bound[factor.columns])
            bound = reached.clamp_(max=self.n)
        self._spans = row_blocks(bound + 1, max(self._room // 4, 1))
        self._kept: dict[int, _Block] = {}

    def _rows(self, start: int, stop: int) -> Tensor:
        powers = [self._identity(start, stop)]
        for step in range(self.steps):
            mine = csr_rows(self._graph, start, stop)
            powers.append(mine if step == 0 else multiply(powers[-1], self._p))
        if self.steps == 0:
            return csr_rows(self._graph, start, stop)
        rows = multiply(powers[-1], self._p)
        for power in reversed(powers[:-1]):
            rows = add(multiply(rows, self._p_t), power)
        return rows

    def _identity(self, start: int, stop: int) -> Tensor:
        columns = torch.arange(start, stop, device=self._graph.columns.device)
        return csr(
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


@checked
def diffuse(
    transition: Graph, *, steps: WholeNonNegative = 1, memory_budget_bytes: EntryBudget = 2**28
) -> Graph:
    """The diffused graph ``Q_{t+1} = P Q_t P^T + I`` after `steps` steps from ``Q_0 = P``.

    Not symmetric in general. Its number of edges grows with every step; `affinity_graph` thresholds
    it without ever holding all of it.

    Args:
        transition: P, square; see the function of that name.
        steps: eta, at least 0.
        memory_budget_bytes: of intermediate products.

    Raises:
        ValueError: a graph that is not square.

    Source: PromptCAL, affinity propagation (after Yang et al., "Affinity Learning with Diffusion on
    Tensor Product Graph", TPAMI 2013).

    Example:
        >>> import torch
        >>> from noisyml.similarity.graph import knn_graph
        >>> walk = transition(knn_graph(torch.tensor([[1], [0]])))
        >>> diffuse(walk).dense().round(decimals=3).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
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
    return from_edges(rows, columns, weights, transition.n_rows, transition.n_columns)


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


@checked
def affinity_graph(
    neighbours: Graph,
    *,
    quantile: Share,
    steps: WholeNonNegative = 1,
    exclude_diagonal: bool = False,
    memory_budget_bytes: EntryBudget = 2**29,
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
        ValueError: a graph that is not square.

    Source: PromptCAL, CVPR 2023 (affinity graph generation).

    Example:
        >>> import torch
        >>> from noisyml.similarity.graph import knn_graph
        >>> neighbours = torch.tensor([[1, 2], [0, 2], [0, 1], [2, 1]])
        >>> closed = knn_graph(neighbours, self_loops=True)
        >>> found = affinity_graph(closed, quantile=0.5, exclude_diagonal=True)
        >>> found.graph.rows().tolist(), found.graph.columns.tolist()
        ([1, 2], [0, 0])
    """
    counts = consensus(neighbours, memory_budget_bytes=memory_budget_bytes)
    return affinity_of_counts(
        counts,
        neighbours=neighbours,
        quantile=quantile,
        steps=steps,
        exclude_diagonal=exclude_diagonal,
        memory_budget_bytes=memory_budget_bytes,
    )


@checked
def affinity_of_counts(
    counts: Graph,
    *,
    neighbours: Graph | None = None,
    quantile: Share,
    steps: WholeNonNegative = 1,
    exclude_diagonal: bool = False,
    memory_budget_bytes: EntryBudget = 2**29,
) -> Affinity:
    """`affinity_graph` from consensus counts on: transition, diffusion and the double threshold.

    Args:
        counts: see `consensus`.
        neighbours: what they were counted from, where they are just that; faster where the diffused
            matrix is dense, and equal up to rounding (some 1e-15).
        quantile: see `affinity_graph`.
        steps: see `affinity_graph`.
        exclude_diagonal: see `affinity_graph`.
        memory_budget_bytes: of the diffused matrix.
    """
    walk = transition(counts)
    factored = None if neighbours is None else _factored(neighbours, counts, steps)
    entries = len(walk.columns) if factored is None else 2 * factored.neighbours.values().numel()
    if _is_dense(walk, entries, steps, memory_budget_bytes):
        return _dense_affinity(walk, factored, quantile, steps, exclude_diagonal)
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
    graph = from_edges(torch.cat(rows), torch.cat(columns), torch.cat(weights), n, n)
    return Affinity(graph, mean, threshold)


#: Rows whose similarities to all nodes are formed at a time.
_ROWS_AT_ONCE = 1024


@torch.no_grad()
def nearest_nodes(nodes: Tensor, k: Count) -> Tensor:
    """The k nearest other nodes of each node by inner product, [N, k] int64.

    Args:
        nodes: [N, D] float, unit norm for cosines; compared in their own precision, at least
            float32.
        k: at most N - 1.

    Example:
        >>> nearest_nodes(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), 1).flatten().tolist()
        [1, 0, 1]
    """
    with torch.autocast(nodes.device.type, enabled=False):
        rows = nodes.detach().to(torch.promote_types(nodes.dtype, torch.float32))
        found = []
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            scores = rows[start : start + _ROWS_AT_ONCE] @ rows.T
            own = torch.arange(len(scores), device=rows.device)
            scores[own, start + own] = -torch.inf
            found.append(scores.topk(k, dim=1).indices)
    return torch.cat(found)


#: Edges between queries and a memory: those of the diffused graph, or of the plain neighbours.
Edges = Literal["diffused", "neighbours"]


class QueryAffinity(NamedTuple):
    """Rows of a memory that are pseudo-positives of queries.

    Attributes:
        edges: bool [Q, M].
        mean_nonzero: see `Affinity`; 0 for plain neighbours.
        threshold: see `Affinity`; 0 for plain neighbours.
    """

    edges: Tensor
    mean_nonzero: float
    threshold: float


@torch.no_grad()
@checked
def query_affinity(
    queries: Tensor,
    memory: Tensor,
    *,
    k: Count,
    quantile: Share,
    steps: WholeNonNegative = 1,
    exclude_diagonal: bool = False,
    edges: Edges = "diffused",
    labels: Tensor | None = None,
    index: Tensor | None = None,
    memory_budget_bytes: EntryBudget = 2**29,
) -> QueryAffinity:
    """Pseudo-positives of queries in a memory: `affinity_graph` of both, the block between them.

    Args:
        queries: [Q, D], unit norm, Q + M > 1.
        memory: [M, D], unit norm.
        k: neighbours of a node; of fewer other nodes all.
        quantile: see `affinity_graph`.
        steps: see `affinity_graph`.
        exclude_diagonal: see `affinity_graph`.
        edges: ``diffused``, or ``neighbours``: the k nearest nodes alone, the graph's baseline.
        labels: [Q + M] int64 of all nodes, negative: none; None: labels do not enter. Pairs of one
            class get the largest count there is and pairs of two classes none, before diffusion.
        index: neighbours of all nodes [Q + M, k] int64, where they are known already.
        memory_budget_bytes: of the diffused matrix.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
        >>> found = query_affinity(rows[:1], rows[1:], k=1, quantile=0.5, edges="neighbours")
        >>> found.edges.tolist()
        [[True, False, False]]
    """
    nodes = torch.cat([queries, memory])
    k = min(k, len(nodes) - 1)
    index = nearest_nodes(nodes, k) if index is None else index
    block = (slice(len(queries)), slice(len(queries), None))
    if edges == "neighbours":
        return QueryAffinity(knn_graph(index).dense(*block) > 0, 0.0, 0.0)
    closed = knn_graph(index, self_loops=True)
    counts = consensus(closed, memory_budget_bytes=memory_budget_bytes)
    if labels is not None:
        counts = _linked(counts, labels, k + 1)
    found = affinity_of_counts(
        counts,
        neighbours=closed if labels is None else None,
        quantile=quantile,
        steps=steps,
        exclude_diagonal=exclude_diagonal,
        memory_budget_bytes=memory_budget_bytes,
    )
    return QueryAffinity(found.graph.dense(*block) > 0, found.mean_nonzero, found.threshold)


def _linked(counts: Graph, labels: Tensor, most: int) -> Graph:
    """Counts in which pairs of one class have `most`, and pairs of two classes have no edge."""
    rows, columns = counts.rows(), counts.columns
    free = (labels[rows] < 0) | (labels[columns] < 0)
    known = (labels >= 0).nonzero().flatten()
    order = known[labels[known].argsort(stable=True)]
    _, classes, sizes = labels[order].unique(return_inverse=True, return_counts=True)
    size, first = sizes[classes], (sizes.cumsum(0) - sizes)[classes]
    left = order.repeat_interleave(size)
    place = torch.arange(len(left), device=left.device) - (size.cumsum(0) - size).repeat_interleave(
        size
    )
    right = order[first.repeat_interleave(size) + place]
    apart = left != right
    linked = counts.weights.new_full((int(apart.sum()),), float(most))
    return from_edges(
        torch.cat([rows[free], left[apart]]),
        torch.cat([columns[free], right[apart]]),
        torch.cat([counts.weights[free], linked]),
        counts.n_rows,
        counts.n_columns,
    )


#: Dense N x N matrices of float64 that the dense diffusion holds at a time.
_DENSE_MATRICES = 3
#: Cost of a step of a sparse product, in multiplications of a sparse with a dense matrix.
_SPARSE_COST = 30
#: Below so many nodes sparse products are fast whatever they hold.
_FEW_ROWS = 512
#: Rows from which the cost of a product is estimated.
_SAMPLED_ROWS = 128


#: Least entry that is told from rounding, in units of double precision of the longest sum.
_ABOVE_ROUNDING = 200.0


def _factored(
    neighbours: Graph, counts: Graph, steps: int, eps: float = 1e-10
) -> FactoredWalk | None:
    """The walk by its factors, where these are cheaper and leave no doubt about what is 0."""
    if 4 * len(neighbours.columns) >= len(counts.columns):
        return None
    ones = replace(neighbours, weights=torch.ones_like(neighbours.weights))
    held = counts.weights.new_zeros(counts.n_rows)
    sums = held.index_add(0, counts.rows(), counts.weights) + eps
    held.index_add_(0, ones.columns, ones.weights.to(held))
    found = FactoredWalk(csr_rows(ones), csr_rows(transpose(ones)), held, sums)
    rounding = torch.finfo(held.dtype).eps * float(held.max())
    return found if found.least(2 * steps + 1) > _ABOVE_ROUNDING * rounding else None


def _is_dense(walk: Graph, entries: int, steps: int, memory_budget_bytes: int) -> bool:
    """True if dense matrices are the faster way, and fit into the budget.

    Nodes that are neighbours of many (hubs) fill the diffused matrix. What sparse products would
    cost is estimated from a sample of rows.

    Args:
        walk: P.
        entries: multiplications of a product with a dense matrix, over its columns.
        steps: of the diffusion.
        memory_budget_bytes: for the dense matrices.
    """
    n = walk.n_rows
    if steps == 0 or n < _FEW_ROWS or _DENSE_MATRICES * 8 * n * n > memory_budget_bytes:
        return False
    lengths = walk.offsets.diff().to(torch.float64)
    mine = min(n, _SAMPLED_ROWS)
    part = max(mine // 4, 1)
    matrix, work = csr_rows(walk), 0.0
    for start in {int(at) for at in np.linspace(0, n - part, 4)}:
        reached = multiply(csr_rows(walk, start, start + part), matrix)
        work += float(lengths[reached.col_indices()].sum())
    sparse = _SPARSE_COST * work * n / (4 * part)
    return sparse > 2.0 * entries * n + _SPARSE_COST * float(n) * n


def _dense_affinity(
    walk: Graph,
    factored: FactoredWalk | None,
    quantile: float,
    steps: int,
    exclude_diagonal: bool,
) -> Affinity:
    """`affinity_of_counts` with products of sparse matrices and a dense one."""
    n, matrix = walk.n_rows, csr_rows(walk)
    diffused = walk.dense()

    def walked(dense: Tensor) -> Tensor:
        return torch.sparse.mm(matrix, dense) if factored is None else factored.times(dense)

    for _ in range(steps):
        # (P (P Q)^T)^T = P Q P^T.
        diffused = walked(walked(diffused).T.contiguous()).T
        diffused.diagonal().add_(1)
    if factored is not None:
        diffused.masked_fill_(diffused < factored.least(2 * steps + 1) / 2, 0.0)
    diagonal = diffused.diagonal().clone()
    if exclude_diagonal:
        diffused.diagonal().zero_()
    count = int(diffused.count_nonzero())
    mean = math.fsum(diffused.sum(dim=1).tolist()) / count if count else 0.0
    above = diffused[diffused > mean]
    threshold = _interpolated(above, quantile) if len(above) else mean
    diffused.diagonal().copy_(diagonal)
    edge = diffused > threshold
    edge.fill_diagonal_(False)
    rows, columns = edge.nonzero(as_tuple=True)
    return Affinity(from_edges(rows, columns, diffused[edge], n, n), mean, threshold)


def _interpolated(values: Tensor, quantile: float) -> float:
    """The quantile of values [n], between its two neighbours as NumPy's default."""
    position = quantile * (len(values) - 1)
    low = math.floor(position)
    ranks = sorted({low, math.ceil(position)})
    found = np.partition(values.cpu().numpy(), ranks)[ranks].tolist()
    return float(found[0] + (position - low) * (found[-1] - found[0]))


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


@checked
def personalised_diffusion(
    graph: Graph,
    seeds: Tensor,
    *,
    alpha: OpenShare = 0.99,
    tolerance: Positive = 1e-6,
    max_iterations: Count = 2000,
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
        ValueError: a graph that is not symmetric and non-negative, or seeds that do not fit it.

    Source: Zhou et al., "Ranking on Data Manifolds", NeurIPS 2003; Iscen et al., "Efficient
    Diffusion on Region Manifolds", CVPR 2017, eq. 2.

    Example:
        >>> import torch
        >>> from noisyml.similarity.graph import knn_graph, symmetrise
        >>> graph = symmetrise(knn_graph(torch.tensor([[1], [2], [-1]])))
        >>> found = personalised_diffusion(graph, torch.tensor([[1.0], [0.0], [0.0]]), alpha=0.5)
        >>> found.flatten().round(decimals=3).tolist()
        [0.583, 0.236, 0.083]
    """
    check_square(graph)
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
    walk = csr_rows(
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
