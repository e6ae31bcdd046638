"""k-means against the released semi-supervised runs, brute force, faiss and its own invariances."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support import paths, vectors
from torch import Tensor

from noisyml.checks import ArgumentError
from noisyml.errors import UserError
from noisyml.similarity.kmeans import KMeans, kmeans, plus_plus_centroids

GOLDEN = paths.GOLDEN / "promptcal"
CASES = ("sskmeans_a.npz", "sskmeans_b.npz", "sskmeans_c.npz")
load = functools.partial(vectors.arrays, GOLDEN)


def blobs(
    n: int = 500, clusters: int = 7, dim: int = 8, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + clusters)
    y = torch.randint(clusters, (n,), generator=generator)
    centres = 5.0 * torch.randn(clusters, dim, generator=generator, dtype=torch.float64)
    x = centres[y] + torch.randn(n, dim, generator=generator, dtype=torch.float64) + offset
    return x, y


def check(found: KMeans, labels: np.ndarray, inertia: np.ndarray, centres: np.ndarray) -> None:
    assert found.labels.tolist() == labels.tolist()
    assert found.inertia == pytest.approx(float(inertia), rel=1e-9)
    torch.testing.assert_close(found.centroids, torch.from_numpy(centres), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_semi_supervised_runs_equal_the_released_ones(name: str) -> None:
    case = load(name)
    k, n_classes, seed, restarts, iterations = case["hp"].tolist()
    x = torch.from_numpy(np.concatenate([case["l_feats"], case["u_feats"]]))
    unlabelled = np.full(len(case["u_feats"]), -1)
    y = torch.from_numpy(np.concatenate([case["l_targets"], unlabelled]))

    def uniforms(state: np.random.RandomState) -> np.ndarray:
        return np.array([state.rand() for _ in range(k - n_classes)])

    start = plus_plus_centroids(x, uniforms(np.random.RandomState(seed)), labels=y)
    expected = torch.from_numpy(case["init_centres_seeded"])
    torch.testing.assert_close(start, expected, rtol=1e-9, atol=1e-11)
    once = kmeans(x, k, labels=y, init=expected, max_iterations=iterations)
    check(once, case["once_labels"], case["once_inertia"], case["once_centres"])

    state = np.random.RandomState(seed)
    starts = [plus_plus_centroids(x, uniforms(state), labels=y) for _ in range(restarts)]
    runs = [kmeans(x, k, labels=y, init=start, max_iterations=iterations) for start in starts]
    best = min(runs, key=lambda run: run.inertia)
    check(best, case["best_labels"], case["best_inertia"], case["best_centres"])
    assert torch.equal(best.labels[y >= 0], y[y >= 0])


@pytest.mark.parametrize("name", CASES)
def test_plain_runs_equal_the_released_ones(name: str) -> None:
    case = load(name)
    k, _, seed, restarts, iterations = case["hp"].tolist()
    x = torch.from_numpy(case["u_feats"])
    state = np.random.RandomState(seed)
    runs = []
    for _ in range(restarts):
        # The released code draws the first row by its number, the others by one uniform each.
        first = (state.randint(len(x)) + 0.5) / len(x)
        start = plus_plus_centroids(x, np.array([first, *state.rand(k - 1)]))
        runs.append(kmeans(x, k, init=start, max_iterations=iterations, tolerance=1e-6))
    # Several starts may end in the same optimum, and rounding decides whose numbering is the
    # stored one: one of them must agree in everything.
    lowest = min(run.inertia for run in runs)
    optimal = [run for run in runs if run.inertia < lowest * (1 + 1e-9)]
    match = [run for run in optimal if run.labels.tolist() == case["plain_labels"].tolist()]
    assert match
    check(match[0], case["plain_labels"], case["plain_inertia"], case["plain_centres"])


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("clusters", [1, 5, 70])
def test_a_converged_clustering_is_a_fixed_point(
    metric: str, dtype: torch.dtype, clusters: int
) -> None:
    x, _ = blobs()
    x = x.to(dtype)
    found = kmeans(x, clusters, metric=metric, tolerance=0.0, backend="torch", seed=3)
    rows = x.double()
    if metric == "cosine":
        rows = torch.nn.functional.normalize(rows, dim=1)
    assert found.centroids.dtype == dtype
    distances = torch.cdist(rows, found.centroids.double()) ** 2
    nearest = distances.gather(1, found.labels[:, None])[:, 0]
    assert torch.all(nearest <= distances.amin(1) + (1e-4 if dtype == torch.float32 else 1e-9))
    assert found.inertia == pytest.approx(float(nearest.sum()), rel=1e-5)
    for cluster in range(clusters):
        mean = rows[found.labels == cluster].mean(0)
        if metric == "cosine":
            mean = mean / mean.norm()
        torch.testing.assert_close(found.centroids[cluster], mean.to(dtype))


def test_both_backends_find_the_same_clusters_far_from_the_origin() -> None:
    x, y = blobs(offset=1000.0)
    x = x.float()
    runs = [kmeans(x, 7, backend=b, n_init=5) for b in ("torch", "faiss", "auto")]
    for run in runs:
        assert torch.equal(run.labels, runs[0].labels)
        assert run.inertia == pytest.approx(runs[0].inertia, rel=1e-9)
        # The planted clusters are well apart: each is found whole.
        pairs = torch.stack([run.labels, y]).unique(dim=1)
        assert pairs.shape[1] == 7


@pytest.mark.long
def test_neither_the_budget_nor_the_kind_of_array_matters(tmp_path: Path) -> None:
    x, _ = blobs(n=700)
    expected = kmeans(x, 70, seed=1)
    for budget in (1, 100_000):
        found = kmeans(x, 70, seed=1, memory_budget_bytes=budget)
        assert torch.equal(found.labels, expected.labels)
        torch.testing.assert_close(found.centroids, expected.centroids, rtol=1e-12, atol=1e-12)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    assert torch.equal(kmeans(mapped, 70, seed=1).labels, expected.labels)
    half = kmeans(x.half(), 7, seed=1)
    assert half.centroids.dtype == torch.float32
    assert torch.equal(half.labels, kmeans(x.half().float(), 7, seed=1).labels)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_the_seed_decides_and_more_starts_are_never_worse(init: str) -> None:
    x, _ = blobs(n=300, clusters=12)
    one = kmeans(x, 12, init=init, seed=5)
    again = kmeans(x, 12, init=init, seed=5)
    assert torch.equal(one.labels, again.labels)
    assert torch.equal(one.centroids, again.centroids)
    inertias = {kmeans(x, 12, init=init, seed=seed).inertia for seed in range(6)}
    assert len(inertias) > 1
    assert kmeans(x, 12, init=init, seed=5, n_init=10).inertia <= one.inertia


def test_random_starts_are_distinct_unlabelled_rows() -> None:
    x = torch.arange(12.0, dtype=torch.float64)[:, None]
    y = torch.full((12,), -1)
    y[:4] = 0
    found = kmeans(x, 9, labels=y, init="random", max_iterations=1)
    assert torch.equal(found.labels[:4], torch.zeros(4, dtype=torch.int64))
    # Eight distinct starts among eight unlabelled rows: every one keeps its own.
    assert found.labels[4:].unique().numel() == 8


def test_an_empty_cluster_moves_to_the_farthest_row() -> None:
    x = torch.tensor([[0.0], [1.0], [10.0], [14.0], [30.0]], dtype=torch.float64)
    init = torch.tensor([[0.5], [12.0], [1000.0]], dtype=torch.float64)
    found = kmeans(x, 3, init=init, tolerance=0.0)
    # 30 is farther from the centroid it was assigned to (12) than any other row is from its own.
    assert found.labels.tolist() == [0, 0, 1, 1, 2]
    assert found.centroids.flatten().tolist() == [0.5, 12.0, 30.0]
    # A labelled row is never taken.
    y = torch.tensor([-1, -1, -1, -1, 0])
    pinned = kmeans(x, 3, labels=y, init=torch.tensor([[30.0], [5.0], [1000.0]]).double())
    assert pinned.labels[4] == 0
    assert pinned.labels.unique().numel() == 3


def test_more_clusters_than_distinct_rows_leave_some_empty() -> None:
    x = torch.tensor([[0.0, 1.0], [5.0, 1.0]], dtype=torch.float64).repeat(6, 1)
    found = kmeans(x, 4, max_iterations=20)
    assert found.inertia == pytest.approx(0.0, abs=1e-12)
    assert found.centroids.isfinite().all()
    assert found.labels[::2].unique().numel() == 1


def test_zero_rows_under_cosine_start_no_cluster() -> None:
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    found = kmeans(x, 2, metric="cosine")
    assert found.labels[2] != found.labels[3]
    torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(2).double())
    with pytest.raises(UserError, match="3 clusters cannot be started among 2 rows"):
        kmeans(x, 3, metric="cosine")


def test_quality_and_speed_rest_on_the_same_objective_as_faiss() -> None:
    import faiss

    x, _ = blobs(n=600, clusters=20, dim=16)
    reference = faiss.Kmeans(
        16, 20, niter=25, nredo=5, seed=0, min_points_per_centroid=1, verbose=False
    )
    reference.train(x.float().numpy())
    assert kmeans(x, 20, n_init=5).inertia <= 1.05 * float(reference.obj[-1])


def test_mistakes_are_named() -> None:
    x, _ = blobs(n=20)
    broken = x.clone()
    broken[7, 1] = torch.inf
    with pytest.raises(UserError, match="row 7"):
        kmeans(broken, 2)
    with pytest.raises(UserError, match="21 clusters cannot be started among 20 rows"):
        kmeans(x, 21)
    y = torch.full((20,), -1)
    y[:3] = torch.tensor([0, 2, 2])
    with pytest.raises(UserError, match=r"label 1, .* 0\.\.1"):
        kmeans(x, 5, labels=y)
    y[3] = 1
    with pytest.raises(UserError, match="3 labelled classes do not fit into 2 clusters"):
        kmeans(x, 2, labels=y)
    for arguments, words in (
        ({"n_clusters": 2, "init": "pca"}, "init"),
        ({"n_clusters": 2, "init": x[:3]}, "given centroids"),
        ({"n_clusters": 2, "backend": "faiss"}, "float32"),
        ({"n_clusters": 2, "labels": y[:5]}, "labels"),
    ):
        with pytest.raises(ValueError, match=words):
            kmeans(x, **arguments)
    for arguments, words in (
        ({"n_clusters": 0}, "n_clusters=0 must be a whole number of at least 1"),
        ({"n_clusters": 2, "metric": "ip"}, "metric=ip must be l2 or cosine"),
        ({"n_clusters": 2, "backend": "numpy"}, "backend=numpy must be auto, torch or faiss"),
        ({"n_clusters": 2, "tolerance": -1.0}, "tolerance=-1.0 must be a number of at least 0"),
    ):
        with pytest.raises(ArgumentError, match=re.escape(words)):
            kmeans(x, **arguments)
    with pytest.raises(ValueError, match="rows must be"):
        kmeans(x[0], 1)
