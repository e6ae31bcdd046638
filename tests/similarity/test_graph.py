"""Sparse neighbour graphs against their dense definitions and the released affinity graphs."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import paths, vectors
from support.vectors import close
from torch import Tensor

from noisyml.checks import ArgumentError
from noisyml.similarity import diffusion
from noisyml.similarity.diffusion import (
    _Diffusion,
    affinity_graph,
    affinity_of_counts,
    diffuse,
    personalised_diffusion,
    transition,
)
from noisyml.similarity.graph import (
    Graph,
    connected_components,
    consensus,
    knn_graph,
    mutual,
    symmetrise,
    transpose,
)

GOLDEN = paths.GOLDEN / "promptcal"
CASES = ("graph_a.npz", "graph_b.npz", "graph_c.npz", "graph_d.npz")
load = functools.partial(vectors.arrays, GOLDEN)


def neighbours(
    n: int, k: int, seed: int = 0, clusters: int = 4, width: int = 6
) -> tuple[Tensor, Tensor]:
    """Neighbour lists [n, k] and their cosines, of clustered rows."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, width, generator=generator, dtype=torch.float64)
    x = centres[torch.arange(n) % clusters]
    x = x + torch.randn(n, width, generator=generator, dtype=torch.float64)
    x = torch.nn.functional.normalize(x, dim=1)
    scores = (x @ x.T).fill_diagonal_(-torch.inf)
    found = scores.topk(k)
    return found.indices, found.values


def canonical(graph: Graph) -> bool:
    key = graph.rows() * graph.n_columns + graph.columns
    return bool((key.diff() > 0).all()) and int(graph.offsets[-1]) == len(graph.weights)


@pytest.mark.parametrize("name", CASES)
def test_every_link_of_the_chain_equals_the_released_one(name: str) -> None:
    case = load(name)
    _, quantile, steps = case["hp"].tolist()
    closed = knn_graph(torch.from_numpy(case["knn_ind"]), self_loops=True)
    counts = consensus(closed)
    assert torch.equal(counts.dense(), torch.from_numpy(case["consensus"]))
    walk = transition(counts)
    close(walk.dense(), case["transition"])
    close(diffuse(walk, steps=int(steps)).dense(), case["diffused"])
    n_query = len(case["queries"])
    block = (slice(n_query), slice(n_query, None))
    close(walk.dense(*block), case["transition_block"])
    nodes = torch.from_numpy(np.concatenate([case["queries"], case["memory"]]))
    close((nodes @ nodes.T)[block], case["similarity_block"])

    affinity = affinity_graph(closed, quantile=quantile, steps=int(steps))
    assert affinity.mean_nonzero == pytest.approx(float(case["mean_nonzero"]), rel=1e-9)
    assert affinity.threshold == pytest.approx(float(case["threshold"]), rel=1e-9)
    assert torch.equal(affinity.graph.dense(*block) > 0, torch.from_numpy(case["affinity"]))


def test_neighbour_lists_become_edges() -> None:
    index = torch.tensor([[1, 2], [0, -1], [2, 0]])
    scores = torch.tensor([[0.5, 0.25], [0.75, 9.0], [1.0, 0.125]])
    graph = knn_graph(index, scores)
    expected = torch.tensor([[0, 0.5, 0.25], [0.75, 0, 0], [0.125, 0, 0]], dtype=torch.float64)
    assert torch.equal(graph.dense(), expected)
    assert torch.equal(graph.dense(slice(1, 3), slice(0, 1)), expected[1:3, :1])
    assert graph.dense(slice(2, 2)).shape == (0, 3)
    closed = knn_graph(index, self_loops=True)
    assert torch.equal(closed.dense(), ((expected > 0) | torch.eye(3, dtype=torch.bool)).double())
    assert knn_graph(torch.full((3, 2), -1)).columns.numel() == 0
    assert knn_graph(torch.zeros(0, 2, dtype=torch.int64)).n_rows == 0


@given(n=st.integers(6, 40), k=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_set_operations_equal_their_dense_definitions(n: int, k: int, seed: int) -> None:
    index, scores = neighbours(n, k, seed)
    # Cosines may be negative: absent must not be mistaken for 0.
    graph = knn_graph(index, scores)
    dense = torch.full((n, n), torch.nan, dtype=torch.float64).scatter(1, index, scores)
    there = ~dense.isnan()
    close(transpose(graph).dense(), dense.T.nan_to_num())

    both = there & there.T
    close(mutual(graph).dense(), torch.where(both, torch.minimum(dense, dense.T), 0.0))
    assert len(mutual(graph).columns) == int(both.sum())

    either = there | there.T
    larger = torch.fmax(dense, dense.T)
    close(symmetrise(graph).dense(), torch.where(either, larger, 0.0))
    mean = (dense.nan_to_num() + dense.T.nan_to_num()) / 2
    close(symmetrise(graph, "mean").dense(), mean)
    assert len(symmetrise(graph).columns) == int(either.sum())
    for made in (graph, transpose(graph), mutual(graph), symmetrise(graph)):
        assert canonical(made)


@given(
    n=st.integers(8, 40),
    k=st.integers(1, 5),
    seed=st.integers(0, 1000),
    steps=st.integers(0, 3),
    quantile=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    exclude=st.booleans(),
    budget=st.sampled_from([16, 500, 3000, 2**29]),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.further
def test_the_affinity_graph_equals_its_dense_definition(
    n: int, k: int, seed: int, steps: int, quantile: float, exclude: bool, budget: int
) -> None:
    index, _ = neighbours(n, k, seed)
    closed = knn_graph(index, self_loops=True)
    o = closed.dense()
    c = (o.T @ o).fill_diagonal_(0)
    assert torch.equal(consensus(closed, memory_budget_bytes=budget).dense(), c)
    p = c / (c.sum(1, keepdim=True) + 1e-10)
    q = p
    for _ in range(steps):
        q = p @ q @ p.T + torch.eye(n, dtype=torch.float64)
    walk = transition(consensus(closed))
    found = diffuse(walk, steps=steps, memory_budget_bytes=budget)
    assert canonical(found)
    close(found.dense(), q)

    counted = torch.ones(n, n, dtype=torch.bool)
    if exclude:
        counted.fill_diagonal_(False)
    values = found.dense()[counted & (found.dense() != 0)]
    affinity = affinity_graph(
        closed,
        quantile=quantile,
        steps=steps,
        exclude_diagonal=exclude,
        memory_budget_bytes=budget,
    )
    assert affinity.mean_nonzero == pytest.approx(float(values.mean()), rel=1e-12)
    above = values[values > affinity.mean_nonzero]
    expected = affinity.mean_nonzero
    if len(above):
        expected = float(np.quantile(above.numpy(), quantile))
    assert affinity.threshold == pytest.approx(expected, rel=1e-12)
    edges = (found.dense() > affinity.threshold).fill_diagonal_(False)
    assert torch.equal(affinity.graph.dense() > 0, edges)
    assert canonical(affinity.graph)


@pytest.mark.further
def test_the_budget_changes_no_bit() -> None:
    index, _ = neighbours(120, 6, seed=1)
    closed = knn_graph(index, self_loops=True)
    whole = affinity_graph(closed, quantile=0.5, steps=2)
    spans = _Diffusion(transition(consensus(closed)), 2, 4000)._spans
    assert len(spans) > 10
    for budget in (16, 4000, 100_000):
        found = affinity_graph(closed, quantile=0.5, steps=2, memory_budget_bytes=budget)
        assert (found.mean_nonzero, found.threshold) == (whole.mean_nonzero, whole.threshold)
        assert torch.equal(found.graph.columns, whole.graph.columns)
        assert torch.equal(found.graph.weights, whole.graph.weights)


def test_scipy_multiplies_where_pytorch_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    index, _ = neighbours(50, 4, seed=2)
    closed = knn_graph(index, self_loops=True)
    expected = affinity_graph(closed, quantile=0.5, steps=2)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    monkeypatch.setattr(torch.sparse, "mm", lambda *_: pytest.fail("needs MKL"))
    found = affinity_graph(closed, quantile=0.5, steps=2)
    assert torch.equal(found.graph.columns, expected.graph.columns)
    close(found.graph.weights, expected.graph.weights)


def test_equal_entries_leave_no_edge() -> None:
    # Two nodes that see each other: all entries of the transition matrix are equal.
    closed = knn_graph(torch.tensor([[1], [0]]), self_loops=True)
    affinity = affinity_graph(closed, quantile=0.5, steps=0)
    assert affinity.threshold == affinity.mean_nonzero
    assert affinity.graph.columns.numel() == 0
    lonely = affinity_graph(knn_graph(torch.full((4, 1), -1), self_loops=True), quantile=0.5)
    assert lonely.graph.columns.numel() == 0
    nobody = knn_graph(torch.zeros(0, 1, dtype=torch.int64), self_loops=True)
    assert affinity_graph(nobody, quantile=0.5).graph.n_rows == 0
    assert diffuse(nobody).n_rows == 0


def test_components_ignore_the_direction_of_edges() -> None:
    index = torch.tensor([[1], [2], [-1], [4], [-1], [-1]])
    found = connected_components(knn_graph(index))
    assert found.dtype == torch.int64
    assert found.tolist() == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.95])
def test_personalised_diffusion_solves_its_linear_system(alpha: float) -> None:
    index, scores = neighbours(60, 5, seed=3)
    graph = symmetrise(knn_graph(index, scores.clamp(min=0)), "mean")
    w = graph.dense()
    scale = torch.where(w.sum(1) > 0, w.sum(1).rsqrt(), 0.0)
    s = scale[:, None] * w * scale
    seeds = torch.eye(60, dtype=torch.float64)[:, :7]
    eye = torch.eye(60, dtype=torch.float64)
    expected = torch.linalg.solve(eye - alpha * s, (1 - alpha) * seeds)
    found = personalised_diffusion(graph, seeds, alpha=alpha, tolerance=1e-13)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    # The stopping rule keeps its promise about the error left.
    rough = personalised_diffusion(graph, seeds, alpha=alpha, tolerance=1e-3)
    left = (rough - expected).norm(dim=0)
    assert float(left.max()) <= 1e-3 * alpha / (1 - alpha) * math.sqrt(60) + 1e-12
    assert personalised_diffusion(graph, seeds[:, :0]).shape == (60, 0)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="more than once"):
        knn_graph(torch.tensor([[1, 1], [0, -1]]))
    with pytest.raises(ValueError, match=r"must be in 0\.\.1"):
        knn_graph(torch.tensor([[2], [0]]))
    with pytest.raises(ValueError, match="same shape"):
        knn_graph(torch.tensor([[1], [0]]), torch.zeros(2, 2))
    chain = knn_graph(torch.tensor([[1], [2], [-1]]))
    with pytest.raises(ValueError, match="not symmetric"):
        personalised_diffusion(chain, torch.zeros(3, 1))
    pair = knn_graph(torch.tensor([[1], [0]]), torch.tensor([[-1.0], [-1.0]]))
    with pytest.raises(ValueError, match="negative"):
        personalised_diffusion(pair, torch.zeros(2, 1))
    with pytest.raises(ArgumentError, match=r"alpha=1\.0 must be a number from 0 to below 1"):
        personalised_diffusion(pair, torch.zeros(2, 1), alpha=1.0)
    with pytest.raises(ValueError, match="seeds"):
        personalised_diffusion(pair, torch.zeros(3, 1))
    with pytest.raises(ArgumentError, match=r"quantile=1\.5 must be a number from 0 to 1"):
        affinity_graph(chain, quantile=1.5)
    with pytest.raises(ArgumentError, match="steps=-1 must be a whole number of at least 0"):
        diffuse(chain, steps=-1)
    with pytest.raises(ArgumentError, match="combine=min must be max or mean"):
        symmetrise(chain, "min")
    with pytest.raises(ArgumentError, match="memory_budget_bytes=0 must be a whole number"):
        consensus(chain, memory_budget_bytes=0)
    narrow = Graph(torch.tensor([0, 0]), torch.zeros(0).long(), torch.zeros(0).double(), 2)
    for function in (mutual, symmetrise, connected_components, diffuse):
        with pytest.raises(ValueError, match="square"):
            function(narrow)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("exclude_diagonal", [False, True])
def test_the_dense_way_cuts_the_same_edges(
    steps: int, exclude_diagonal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _ = neighbours(400, 8, seed=3, clusters=1, width=50)
    closed = knn_graph(index, self_loops=True)
    counts = consensus(closed)
    monkeypatch.setattr(diffusion, "_ABOVE_ROUNDING", 200.0 if steps == 1 else 0.1)
    assert diffusion._factored(closed, counts, steps) is not None

    def by(dense: bool, given: Graph | None) -> diffusion.Affinity:
        monkeypatch.setattr(diffusion, "_is_dense", lambda *_: dense)
        return affinity_of_counts(
            counts,
            neighbours=given,
            quantile=0.6,
            steps=steps,
            exclude_diagonal=exclude_diagonal,
        )

    expected = by(False, None)
    for found in (by(True, None), by(True, closed)):
        # The mean tells entries that are 0 from those that are rounding.
        assert found.mean_nonzero == pytest.approx(expected.mean_nonzero, rel=1e-12)
        assert found.threshold == pytest.approx(expected.threshold, rel=1e-12)
        assert torch.equal(found.graph.columns, expected.graph.columns)
        assert torch.equal(found.graph.offsets, expected.graph.offsets)
        close(found.graph.weights, expected.graph.weights)


def test_factors_of_the_walk_are_used_where_zero_is_told_from_rounding() -> None:
    index, _ = neighbours(600, 8, clusters=1, width=50)
    closed = knn_graph(index, self_loops=True)
    counts = consensus(closed)
    factors = diffusion._factored(closed, counts, 1)
    assert factors is not None
    rows = torch.rand(600, 5, dtype=torch.float64)
    torch.testing.assert_close(factors.times(rows), transition(counts).dense() @ rows)
    # More steps make entries too small, and neighbourhoods that hardly overlap are dearer.
    assert diffusion._factored(closed, counts, 6) is None
    index, _ = neighbours(600, 3, clusters=150)
    few = knn_graph(index, self_loops=True)
    assert diffusion._factored(few, consensus(few), 1) is None


def test_hubs_are_diffused_densely_where_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    index, _ = neighbours(600, 40, clusters=1)
    walk = transition(consensus(knn_graph(index, self_loops=True)))
    entries = len(walk.columns)
    assert diffusion._is_dense(walk, entries, 1, 2**29)
    assert not diffusion._is_dense(walk, entries, 1, 2**20)
    assert not diffusion._is_dense(walk, entries, 0, 2**29)
    index, _ = neighbours(600, 3, clusters=150)
    walk = transition(consensus(knn_graph(index)))
    assert not diffusion._is_dense(walk, len(walk.columns), 1, 2**29)
