"""Benchmarks of search, k-means and retrieval metrics, at sizes of a second."""

import json
import sys

import numpy as np
import pytest
from support import paths

from noisyml.similarity.exact import kernels


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Call a script with words of the command line; the JSON that it writes."""
    monkeypatch.syspath_prepend(str(paths.ROOT / "scripts"))

    def run(name, *words):
        out = tmp_path / f"{name}.json"
        typed = [*words, "--threads", "1", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", [name, *typed])
        main = __import__(name).main
        assert main(*([typed] if main.__code__.co_argcount else [])) == 0
        return json.loads(out.read_text())

    return run


def test_classes_are_found_for_images_read_in_blocks(bench):
    sizes = ["--classes", "50", "--images", "300", "--width", "64", "--block", "128"]
    found = bench("bench_zero_shot", *sizes)
    assert found["images"] == 300
    mine, product = (found["results"][name] for name in ("ours", "product"))
    assert 0.2 < mine["fh_at_1"] <= mine["fh_at_10"] <= 1
    assert all(mine[name] == product[name] for name in mine if name.startswith("fh_at"))
    assert found["product_over_ours"] > 0


def test_kmeans_and_its_peers_find_like_clusters(bench):
    pytest.importorskip("faiss")
    found = bench("bench_kmeans", "--sizes", "400x64x4", "--iterations", "8")["results"]
    assert len(found) >= 4
    inertia = {line["contender"]: line["inertia"] for line in found}
    assert inertia["semi-supervised, torch"] == pytest.approx(
        inertia["semi-supervised, faiss"], rel=1e-3
    )
    assert inertia["plain, faiss"] == pytest.approx(inertia["faiss.Kmeans"], rel=0.1)


@pytest.mark.further
@pytest.mark.parametrize("wait", ["sleep", "spin"])
def test_retrieval_metrics_are_those_of_a_peer(monkeypatch, wait):
    pytest.importorskip("pytorch_metric_learning")
    monkeypatch.syspath_prepend(str(paths.ROOT / "scripts"))
    import bench_retrieval as script

    # It fails unless both find the same.
    found = script.compare(300, 16, 1, 1, 0, 50, "pytorch-metric-learning", wait)
    assert found["classes"] == 6
    assert len(found["time_ratios"]) == 1
    assert all(ratio > 0 for ratio in found["time_ratios"])


def test_a_million_rows_in_small(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(paths.ROOT / "scripts"))
    import bench_million as script

    script.write_rows(tmp_path, 200)
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    values = script.metrics_of(tmp_path, 2**27)
    assert values["lone_queries"] == 0
    assert 0.5 < values["precision_at_1"] < 1
    runs = [{"row": "knn", "n": n, "cpu_seconds": n / 100} for n in (100, 200)]
    script.plot({"runs": runs, "limit": {"loops": 1e11}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    if kernels.available():
        assert script.tile_rate(side=64, times=1) > 0
