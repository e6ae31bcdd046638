"""The benchmarks of TLDR and InsCLR and the comparison of reducers, at sizes of a second."""

import json
import sys

import pytest
from support import paths


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Call a script's main with words of the command line; what it writes."""
    monkeypatch.syspath_prepend(str(paths.ROOT / "scripts"))

    def run(name, *words):
        module = __import__(name)
        out = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [name, *words, "--out", str(out)])
        module.main()
        return json.loads(out.read_text())

    return run


def test_parts_of_a_fit_agree_with_the_released_form(script):
    pytest.importorskip("faiss")
    sizes = ["--batch", "16", "--width", "32", "--dim", "8", "--codes", "4", "--n", "300"]
    found = script("bench_tldr", "--rows", "loss", "step", "graph", "--repeats", "1", *sizes)
    assert found["step"]["projector"] == "mlp-2-32"
    assert found["graph"]["same_neighbours"] > 0.999
    assert all(found[row]["times_as_fast"] > 0 for row in ("loss", "step", "graph"))


def test_the_memory_loss_agrees_with_the_released_form(script):
    sizes = ["--batch", "8", "--memory", "300", "--dim", "6", "--n", "2000", "--bank-dim", "6"]
    found = script("bench_insclr", "--rows", "loss", "--repeats", "1", *sizes)
    assert found["loss"]["times_as_fast"] > 0


@pytest.mark.further
def test_reducers_are_compared_and_shown(script, monkeypatch, tmp_path, capsys):
    module = __import__("compare_reducers")
    monkeypatch.setitem(module.TLDR_SETTINGS, "digits", {"batch_size": 128, "epochs": 11})
    few = ["--dims", "4", "8", "--seeds", "0", "--methods", "PCA", "TLDR"]
    records = script("compare_reducers", *few)
    assert {(r["method"], r["dims"]) for r in records} == {
        ("inputs", 64), ("PCA", 4), ("PCA", 8), ("TLDR", 4), ("TLDR", 8)
    }  # fmt: skip
    assert all(0 < r["map"] < 1 for r in records)
    script("compare_reducers", "--table", str(tmp_path / "compare_reducers.json"),
           "--plot", str(tmp_path / "p.png"))  # fmt: skip
    assert "| TLDR |" in capsys.readouterr().out
    assert (tmp_path / "p.png").stat().st_size > 1000
    monkeypatch.setattr(module, "measured", None)  # nothing is measured twice
    assert script("compare_reducers", *few) == records
    (tmp_path / "compare_reducers.json").unlink()
    wrong = script("compare_reducers", "--wrong", "0.4", "--dims", "4", "--seeds", "0")
    everything, chosen = wrong
    assert everything["wrong_among_kept"] == pytest.approx(0.4, abs=0.01)
    assert chosen["wrong_among_kept"] < 0.1
