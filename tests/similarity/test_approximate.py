"""Approximate search: how much it finds, that it says so, and that it repeats itself."""

from __future__ import annotations

import math
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from support import paths, vectors
from torch import Tensor

from noisyml.errors import UserError
from noisyml.similarity.approximate import lists as list_module
from noisyml.similarity.approximate import search
from noisyml.similarity.approximate.search import ApproximateTopK, approximate_topk
from noisyml.similarity.kmeans import kmeans
from noisyml.storage import unfinished

GOLDEN = paths.GOLDEN / "tldr"
#: Indexes and what makes them.
KINDS = (("ivf", "faiss"), ("ivf", "torch"), ("ivfpq", "faiss"), ("hnsw", "faiss"))
kinds = pytest.mark.parametrize(("index", "backend"), KINDS)


def rows(n: int = 1500, dim: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(30, dim, generator=generator)
    x = centres[torch.randint(30, (n,), generator=generator)]
    return x + 0.5 * torch.randn(n, dim, generator=generator)


def all_scores(queries: Tensor, gallery: Tensor, metric: str) -> Tensor:
    q, g = queries.double(), gallery.double()
    if metric == "cosine":
        q, g = (torch.nn.functional.normalize(x, dim=1) for x in (q, g))
    return -(torch.cdist(q, g) ** 2) if metric == "l2" else q @ g.T


@kinds
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_scores_are_true_and_the_recall_is_what_was_found(
    index: str, backend: str, metric: str
) -> None:
    gallery, queries = rows(), rows(200, seed=1)
    found = approximate_topk(queries, gallery, 5, metric=metric, index=index, backend=backend)
    scores = all_scores(queries, gallery, metric)
    torch.testing.assert_close(
        found.scores.double(), scores.gather(1, found.index), rtol=1e-4, atol=1e-4
    )
    assert torch.all(found.scores[:, :-1] >= found.scores[:, 1:])
    exact = scores.topk(5).indices
    hits = (found.index[:, :, None] == exact[:, None]).any(2).double().mean()
    assert found.recall == pytest.approx(float(hits), abs=1e-12)
    assert (found.kind, found.backend) == (index, backend)
    assert found.recall > (0.75 if metric == "ip" else 0.95)


@kinds
def test_the_same_seed_gives_the_same_answer(index: str, backend: str) -> None:
    gallery = rows()
    threads = faiss.omp_get_max_threads()
    first = approximate_topk(gallery, gallery, 5, index=index, backend=backend, seed=4)
    again = approximate_topk(gallery, gallery, 5, index=index, backend=backend, seed=4)
    assert torch.equal(first.index, again.index)
    assert torch.equal(first.scores, again.scores)
    assert first.recall == again.recall
    assert faiss.omp_get_max_threads() == threads


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_excluded_rows_do_not_appear_and_do_not_cost_a_place(backend: str) -> None:
    gallery = rows(600)
    own = torch.arange(600)
    ivf = {"index": "ivf", "backend": backend}
    found = approximate_topk(gallery, gallery, 4, **ivf, n_probes=1, exclude=own)
    assert not (found.index == own[:, None]).any()
    whole = ivf | {"n_lists": 5, "n_probes": 5}
    everything = approximate_topk(gallery, gallery, 4, **whole, exclude=own)
    scores = all_scores(gallery, gallery, "cosine").fill_diagonal_(-torch.inf)
    assert torch.equal(everything.index.sort().values, scores.topk(4).indices.sort().values)
    assert everything.recall == 1.0
    pairs = torch.stack([own, everything.index[:, 0]], dim=1)
    second = approximate_topk(gallery, gallery, 3, **whole, exclude=pairs)
    assert torch.equal(second.index[:, 0], everything.index[:, 1])
    as_array = approximate_topk(gallery.numpy(), gallery, 3, **whole, exclude=pairs.numpy())
    assert torch.equal(as_array.index, second.index)


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_missing_neighbours_are_marked(backend: str) -> None:
    gallery = rows(40)
    lists = {"index": "ivf", "n_lists": 2, "n_probes": 2}
    found = approximate_topk(gallery[:3], gallery, 60, **lists, backend=backend)
    assert found.index.shape == (3, 60)
    assert (found.index[:, 40:] == -1).all()
    assert (found.scores[:, 40:] == -torch.inf).all()
    assert torch.equal(found.index[:, :40].sort().values, torch.arange(40).repeat(3, 1))
    assert found.recall == 1.0


def test_equal_scores_come_in_the_order_of_row_numbers() -> None:
    gallery = torch.eye(4).repeat(25, 1)
    found = approximate_topk(gallery[:4], gallery, 25, index="ivf", n_lists=1)
    assert torch.equal(found.index, torch.arange(100).view(25, 4).T)


def test_our_lists_find_as_much_as_lists_of_faiss() -> None:
    gallery, queries = rows(3000, seed=2), rows(500, seed=3)
    for metric in ("cosine", "l2"):
        found = [
            approximate_topk(queries, gallery, 5, metric=metric, n_probes=3, backend=backend)
            for backend in ("faiss", "torch")
        ]
        assert found[1].recall == pytest.approx(found[0].recall, abs=0.05)
        assert 0.7 < found[0].recall < 1


@pytest.mark.long
def test_blocks_and_reads_of_any_size_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, lists = rows(900), {"index": "ivf", "backend": "torch", "n_probes": 4}
    for metric in ("cosine", "ip", "l2"):
        whole = approximate_topk(gallery, gallery, 7, metric=metric, **lists)
        with monkeypatch.context() as small:
            small.setattr(list_module, "_READ", 7)
            small.setattr(list_module, "_SCORES", 50)
            small.setattr(search, "_QUERIES_AT_ONCE", {"torch": 100})
            parts = approximate_topk(gallery, gallery, 7, metric=metric, **lists)
        assert torch.equal(whole.index, parts.index)
        torch.testing.assert_close(whole.scores, parts.scores, rtol=1e-5, atol=1e-5)


class Killed(Exception):
    pass


@pytest.mark.long
@kinds
def test_a_killed_search_goes_on(
    index: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_QUERIES_AT_ONCE", {"torch": 100, "faiss": 100})
    monkeypatch.setattr(unfinished, "_SAVE_EVERY", 0.0)
    monkeypatch.setattr(unfinished, "_SAVE_SHARE", 0.0)
    x = rows(900)
    settings = {"index": index, "backend": backend, "exclude": torch.arange(900)}
    whole = approximate_topk(x, x, 5, **settings)

    def killed(done: int, total: int) -> None:
        if done >= 0.6 * total:
            raise Killed

    def run(x: Tensor, k: int = 5) -> tuple[int, ApproximateTopK]:
        seen: list[int] = []
        found = approximate_topk(
            x, x, k, keep_in=tmp_path, progress=lambda done, total: seen.append(done), **settings
        )
        return seen[0], found

    def kill() -> None:
        with pytest.raises(Killed):
            approximate_topk(x, x, 5, keep_in=tmp_path, progress=killed, **settings)

    kill()
    first, found = run(x)
    assert first == 500
    assert torch.equal(found.index, whole.index)
    assert torch.equal(found.scores, whole.scores)
    assert not list(tmp_path.iterdir())
    # What was found of other rows, or for another request, is of no use.
    kill()
    other = x.clone()
    other[-1] += 1
    assert run(other)[0] == 0
    kill()
    assert run(x, 4)[0] == 0


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_a_row_as_near_as_the_last_exact_neighbour_is_found(metric: str) -> None:
    centres = torch.nn.functional.normalize(rows(4, 16), dim=1)
    gallery = centres.repeat_interleave(50, 0)
    found = approximate_topk(gallery, gallery, 5, metric=metric, index="hnsw")
    assert (found.index // 50 == torch.arange(200)[:, None] // 50).all()
    assert found.recall == 1.0
    # Another centre's rows are no hits.
    few = approximate_topk(gallery, gallery, 60, metric=metric, index="ivf", n_lists=4, n_probes=1)
    assert few.recall == pytest.approx(50 / 60)


def test_memory_maps_are_read(tmp_path: Path) -> None:
    gallery = rows(500)
    np.save(tmp_path / "gallery.npy", gallery.numpy())
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r", allow_pickle=False)
    found = approximate_topk(mapped[:50], mapped, 3, index="hnsw")
    expected = approximate_topk(gallery[:50], gallery, 3, index="hnsw")
    assert torch.equal(found.index, expected.index)


@pytest.mark.long
def test_more_effort_finds_more() -> None:
    x = torch.randn(3000, 24, generator=torch.Generator().manual_seed(0))
    own = torch.arange(3000)

    def recall(**settings: int | str) -> float:
        return approximate_topk(x, x, 10, exclude=own, recall_sample=400, **settings).recall

    few, many = (recall(index="ivf", n_lists=60, n_probes=p) for p in (2, 20))
    assert few + 0.2 < many < 1
    assert recall(index="ivf", n_lists=60, n_probes=60) == 1.0
    raw, again = (recall(index="ivfpq", n_lists=1, shortlist=s) for s in (0, 200))
    assert raw + 0.1 < again
    low, high = (recall(index="hnsw", n_links=4, ef_construction=20, ef_search=e) for e in (10, 99))
    assert low + 0.05 < high


def test_quantised_graphs_are_as_good_as_the_released_ones() -> None:
    case = vectors.arrays(GOLDEN, "knn_approximate")
    x = torch.from_numpy(case["X"].astype(np.float32))
    overlap = {}
    # TLDR's approximations: one list, 16 or 8 subquantisers, a tenth of the rows to learn from.
    for name, parts in (("medium", 16), ("high", 8)):
        overlap[name] = approximate_topk(
            x,
            x,
            10,
            metric="ip",
            exclude=torch.arange(len(x)),
            index="ivfpq",
            n_lists=1,
            n_subquantisers=parts,
            train_size=len(x) // 10,
            shortlist=0,
            recall_sample=len(x),
        ).recall
        assert overlap[name] == pytest.approx(float(case[f"overlap_at_10_{name}"]), abs=0.1)
    assert overlap["medium"] > overlap["high"]


def test_nothing_asked_nothing_sampled() -> None:
    gallery = rows(300)
    assert math.isnan(approximate_topk(gallery[:0], gallery, 3).recall)
    assert approximate_topk(gallery[:0], gallery, 3).index.shape == (0, 3)
    assert math.isnan(approximate_topk(gallery[:5], gallery, 3, recall_sample=0).recall)


def test_mistakes_are_named() -> None:
    gallery = rows(300)
    broken = gallery.clone()
    broken[17, 3] = torch.nan

    def ask(x: Tensor = gallery, k: int = 3, **settings: object) -> None:
        approximate_topk(gallery[:4], x, k, **settings)

    for settings, words in (
        ({"x": broken}, "gallery embeddings hold NaN"),
        ({"x": gallery[:0]}, "cannot fill 1 inverted lists"),
        ({"index": "ivf", "n_lists": 301}, "300 training rows cannot fill 301 inverted lists"),
        ({"index": "ivfpq", "n_subquantisers": 5}, "5 subquantisers do not divide 16"),
        ({"index": "ivfpq", "n_bits": 10}, "300 training rows cannot fill 1024 codes"),
        ({"index": "flat"}, "index=flat must be auto, ivf, ivfpq or hnsw"),
        ({"index": "hnsw", "device": "cuda"}, "no hnsw index for GPUs"),
        ({"n_bits": 0}, "n_bits=0 must be a whole number from 1 to 16"),
        ({"index": "hnsw", "n_links": 1}, "n_links=1 must be a whole number of at least 2"),
        ({"recall_sample": -1}, "recall_sample=-1 must be a whole number of at least 0"),
        ({"index": "hnsw", "backend": "torch"}, "backend=torch has no index=hnsw: use"),
        ({"backend": "torch", "device": "cuda"}, "backend=torch has no device=cuda: use"),
        ({"device": "tpu"}, "device=tpu must be auto, cpu or cuda"),
    ):
        with pytest.raises(UserError, match=words):
            ask(**settings)
    if faiss.get_num_gpus() == 0:
        with pytest.raises(UserError, match="sees no GPU"):
            ask(device="cuda")
    for settings, words in (
        ({"n_lists": 4, "n_probes": 5}, "n_probes"),
        ({"exclude": torch.zeros(3, dtype=torch.int64)}, "exclude"),
        ({"exclude": torch.full((4,), 300)}, "exclude"),
    ):
        with pytest.raises(ValueError, match=words):
            ask(**settings)


def test_without_faiss_lists_are_ours_and_others_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = rows(100)
    ours = approximate_topk(x, x, 5, backend="torch")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    again = approximate_topk(x, x, 5)
    assert torch.equal(again.index, ours.index)
    assert again.backend == "torch"
    for settings in ({"index": "hnsw"}, {"backend": "faiss"}, {"device": "cuda"}):
        with pytest.raises(UserError, match=r"needs faiss.*noisyml\[faiss-cpu\].*index=exact"):
            approximate_topk(x, x, 5, **settings)
    with pytest.raises(UserError, match=r"needs faiss.*backend=torch does without"):
        kmeans(rows(50), 3, backend="faiss")
    apart = kmeans(rows(50), 3, backend="auto")
    assert torch.equal(apart.labels, kmeans(rows(50), 3, backend="torch").labels)
