"""The search for the nearest of moving centroids beside float64 distances to all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from noisyml.similarity import kmeans as module
from noisyml.similarity.exact import kernels, nearest
from noisyml.similarity.exact.nearest import NearestCentroids
from noisyml.similarity.kmeans import kmeans

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no compiled loops here")


class Case:
    """Rows with the search over them, and the answers by float64."""

    def __init__(self, x: Tensor, metric: str = "l2", free: Tensor | None = None) -> None:
        exact = x.double()
        self.free = torch.arange(len(x)) if free is None else free
        scale = None if metric == "l2" else exact.norm(dim=1).reciprocal()
        mean = exact.mean(0) if scale is None else torch.zeros(x.shape[1]).double()
        self.rows = exact - mean if scale is None else exact * scale[:, None]
        self.search = NearestCentroids(x, mean, scale, self.rows.square().sum(1), self.free)

    def check(self, centroids: Tensor) -> None:
        """The nearest of centroids of the rows (of the mean-free ones)."""
        exact = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(self.rows[self.free], centroids.double(), compute_mode=exact)
        assert torch.equal(self.search(centroids), distances.argmin(1))


def random_rows(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dim", "offset"), [(16, 0.0), (45, 3.0), (96, 300.0)])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_labels_are_those_of_float64_however_centroids_move(
    dim: int, offset: float, metric: str
) -> None:
    x = random_rows(500, dim) * torch.linspace(0.2, 2.0, 500)[:, None] + offset
    case = Case(x, metric)
    centroids = case.rows[torch.randperm(500, generator=torch.Generator().manual_seed(1))[:90]]
    centroids = centroids.float()
    case.check(centroids)
    for step, size in enumerate((0.3, 0.05, 0.01, 0.001, 0.0, 0.001)):
        centroids = centroids + size * random_rows(90, dim, step) * case.rows.std()
        case.check(centroids)
    # One goes far away, and comes back elsewhere.
    for place in (50.0 * case.rows[:1], case.rows[3:4]):
        centroids = torch.cat([place.float(), centroids[1:]])
        case.check(centroids)
    case.search.forget()
    case.check(centroids.flip(0))


def test_only_free_rows_are_asked_for() -> None:
    free = torch.arange(0, 300, 3)
    case = Case(random_rows(300, 40), free=free)
    for scale in (1.0, 0.9):
        case.check(scale * random_rows(80, 40, 1))
    assert Case(random_rows(9, 40), free=free[:0]).search(random_rows(80, 40)).shape == (0,)


def test_equal_centroids_go_to_the_lowest_number() -> None:
    x = torch.randint(-2, 3, (300, 8), generator=torch.Generator().manual_seed(0)).float()
    x -= x.mean(0).round()
    case = Case(torch.cat([x, -x]))  # of mean zero
    centroids = x[:100].repeat(2, 1)
    for _ in range(2):
        case.check(centroids)
    case.check(centroids.roll(7, dims=0))


def test_crowded_centroids_are_compared_by_a_float32_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nearest, "_MOST_PAIRS", 0.0)
    monkeypatch.setattr(kernels, "_LEAST_ROOM", 4)
    case = Case(random_rows(300, 40))
    crowd = 1e-3 * random_rows(90, 40, 1)
    for move in (0.0, 1e-4, 1e-5):
        case.check(crowd + move * random_rows(90, 40, 2))


def test_rows_whose_bound_holds_are_compared_with_fast_centroids_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = random_rows(640, 32) + 20 * random_rows(80, 32, 1).repeat(8, 1)
    case = Case(x)
    centroids = case.rows[:80].float()
    case.check(centroids)
    compared: list[tuple[int, int]] = []
    compare = NearestCentroids._compare

    def counted(self: NearestCentroids, rows: Tensor, columns: nearest._Columns) -> None:
        compared.append((len(rows), len(columns.number)))
        compare(self, rows, columns)

    monkeypatch.setattr(NearestCentroids, "_compare", counted)
    case.check(centroids)
    assert compared == []
    case.check(centroids + 0.01)
    assert compared == []
    case.check(torch.cat([centroids[:1] + 100.0, centroids[1:]]))
    assert sum(rows * columns for rows, columns in compared) < 640 * 80 / 2


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_k_means_is_that_of_plain_products(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = random_rows(700, 48) + 1.5 * random_rows(70, 48, 1)[torch.arange(700) % 70]
    labels = torch.full((700,), -1)
    labels[:200] = torch.arange(200) % 10
    runs = []
    for least in (2, 10**9):
        monkeypatch.setattr(module, "_BOUNDED", least)
        runs.append(
            [
                kmeans(x, 70, metric=metric, backend="torch", tolerance=0.0, labels=pinned, seed=3)
                for pinned in (None, labels)
            ]
        )
    for bounded, plain in zip(*runs, strict=True):
        assert torch.equal(bounded.labels, plain.labels)
        assert bounded.n_iterations == plain.n_iterations > 4
        assert bounded.inertia == pytest.approx(plain.inertia, rel=1e-6)
        torch.testing.assert_close(bounded.centroids, plain.centroids)


def test_arrays_are_read_where_they_lie_and_little_memory_takes_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BOUNDED", 2)
    made = []
    plain = module.NearestCentroids

    def noted(*given: Tensor) -> NearestCentroids:
        made.append(given[0].data_ptr())
        return plain(*given)

    monkeypatch.setattr(module, "NearestCentroids", noted)
    rows = random_rows(300, 32).numpy()
    rows.flags.writeable = False
    found = kmeans(rows, 20, backend="torch", seed=1)
    assert made == [rows.ctypes.data]
    again = kmeans(rows, 20, backend="torch", seed=1, memory_budget_bytes=1000)
    half = kmeans(rows[:, ::2], 20, backend="torch", seed=1)
    assert len(made) == 1
    assert torch.equal(found.labels, again.labels)
    assert half.labels.shape == found.labels.shape
