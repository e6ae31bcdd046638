"""Sparse neighbour graphs: mutual and symmetric edges, consensus, components.

A graph comes from neighbour lists ``index [N, k]`` and stays sparse: memory is a small multiple of
its edges, and products that could grow are taken in blocks of rows within a budget. Edges are
ordered by row and column, sums run in a fixed order, so results are the same bits whatever the
block size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.sparse
import torch
from scipy.sparse import csgraph
from torch import Tensor

from noisyml.checks import checked
from noisyml.similarity.sparse import EntryBudget, csr, entries_within, multiply, row_blocks


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


def from_edges(
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


def check_square(graph: Graph) -> None:
    """Refuse a graph whose edges lead to another set of nodes.

    Raises:
        ValueError: the graph is not square.
    """
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

    Example:
        >>> import torch
        >>> graph = knn_graph(torch.tensor([[1], [2], [-1]]))
        >>> graph.dense().tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
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
    return from_edges(rows, columns, weights, n, n)


def transpose(graph: Graph) -> Graph:
    """Every edge reversed.

    Example:
        >>> import torch
        >>> transpose(knn_graph(torch.tensor([[1], [-1]]))).dense().tolist()
        [[0.0, 0.0], [1.0, 0.0]]
    """
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

    Example:
        >>> import torch
        >>> mutual(knn_graph(torch.tensor([[1], [0], [0]]))).dense().tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    check_square(graph)
    reverse = transpose(graph)
    key, reverse_key = _key(graph), _key(reverse)
    if len(key) == 0:
        return graph
    place = torch.searchsorted(reverse_key, key).clamp_(max=len(key) - 1)
    both = reverse_key[place] == key
    weights = torch.minimum(graph.weights, reverse.weights[place])
    return _keep(replace(graph, weights=weights), both)


@checked
def symmetrise(graph: Graph, combine: Literal["max", "mean"] = "max") -> Graph:
    """The union of the graph and its transpose.

    Args:
        graph: square.
        combine: weight of an edge. ``max``: the larger of the weights that exist. ``mean``: half
            the sum of both directions, where a missing edge counts as 0.

    Raises:
        ValueError: the graph is not square.

    Example:
        >>> import torch
        >>> chain = knn_graph(torch.tensor([[1], [-1]]))
        >>> symmetrise(chain, "mean").dense().tolist()
        [[0.0, 0.5], [0.5, 0.0]]
    """
    check_square(graph)
    reverse = transpose(graph)
    key, edge = torch.cat([_key(graph), _key(reverse)]).unique(return_inverse=True)
    both = torch.cat([graph.weights, reverse.weights])
    weights = both.new_zeros(len(key))
    if combine == "max":
        weights.scatter_reduce_(0, edge, both, "amax", include_self=False)
    else:
        weights.index_add_(0, edge, both).mul_(0.5)
    rows, columns = key // graph.n_columns, key % graph.n_columns
    return from_edges(rows, columns, weights, graph.n_rows, graph.n_columns)


def connected_components(graph: Graph) -> Tensor:
    """The component of every node [N] int64, numbered from 0; edges count in both directions.

    Raises:
        ValueError: the graph is not square.

    Example:
        >>> import torch
        >>> connected_components(knn_graph(torch.tensor([[1], [-1], [-1]]))).tolist()
        [0, 0, 1]
    """
    check_square(graph)
    _, labels = csgraph.connected_components(graph.to_scipy(), directed=True, connection="weak")
    return torch.from_numpy(labels.astype(np.int64)).to(graph.columns.device)


def csr_rows(graph: Graph, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows ``start : stop`` of the graph as a sparse CSR tensor."""
    stop = graph.n_rows if stop is None else stop
    first, last = int(graph.offsets[start]), int(graph.offsets[stop])
    return csr(
        graph.offsets[start : stop + 1] - first,
        graph.columns[first:last],
        graph.weights[first:last],
        graph.n_columns,
    )


@checked
def consensus(neighbours: Graph, *, memory_budget_bytes: EntryBudget = 2**28) -> Graph:
    """Number of neighbourhoods that contain both nodes: ``O^T O`` without its diagonal.

    Args:
        neighbours: closed neighbourhoods O of N nodes (`knn_graph` with `self_loops`); the weights
            are not looked at.
        memory_budget_bytes: of intermediate products; the result has at most N (k + 1)^2 edges.

    Returns:
        A symmetric graph of counts.

    Source: PromptCAL, section 3.3 of the method (consensus kNN graph).

    Example:
        >>> import torch
        >>> closed = knn_graph(torch.tensor([[1], [0], [1]]), self_loops=True)
        >>> consensus(closed).dense().tolist()
        [[0.0, 2.0, 0.0], [2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    ones = replace(neighbours, weights=torch.ones_like(neighbours.weights))
    reverse, whole = transpose(ones), csr_rows(ones)
    n = ones.n_columns
    lengths = ones.offsets.diff()
    work = lengths.new_zeros(n).index_add_(0, reverse.rows(), lengths[reverse.columns])
    keys, counts = [], []
    for start, stop in row_blocks(work, entries_within(memory_budget_bytes)):
        block = multiply(csr_rows(reverse, start, stop), whole)
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
