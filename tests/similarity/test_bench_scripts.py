"""Benchmarks of zero-shot search and k-means, at sizes of a second."""

import json
import sys

import pytest
from support import paths


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
