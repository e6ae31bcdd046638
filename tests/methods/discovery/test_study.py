"""The study of category discovery runs at a tiny size, goes on where it ended, and shows itself."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from support import paths


@pytest.fixture
def study(monkeypatch, tmp_path):
    """The script, on digits with runs of one epoch a stage, and what it prints."""
    monkeypatch.syspath_prepend(str(paths.ROOT / "scripts"))
    module = __import__("study_discovery")
    tiny = replace(module.TASKS["digits"], first=1, second=1, rows=64, hidden=(16,), size=160)
    monkeypatch.setattr(module, "TASKS", {"digits": tiny})

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["study_discovery", "--out", str(tmp_path), *words])
        assert module.main() == 0

    return module, run


@pytest.mark.long
def test_a_study_is_done_once_and_shown(study, tmp_path, capsys):
    module, run = study
    run("--data", "digits", "--seeds", "0")
    first = capsys.readouterr().out
    assert all(arm in first for arm in module.ARMS)
    file = tmp_path / "digits clean 0.json"
    record = json.loads(file.read_text())
    del record["scores"]["GCD"]
    file.write_text(json.dumps(record))
    run("--data", "digits", "--seeds", "0")
    again = capsys.readouterr().out
    assert "GCD" in again
    assert "SimGCD" not in again
    (kept,) = [line for line in first.splitlines() if "0 GCD [" in line]
    assert kept in again, "the same seed, the same figures"

    run("--data", "digits", "--table", "--plot", str(tmp_path / "p.png"))
    assert "| SimGCD, as long |" in capsys.readouterr().out
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_intervals_are_those_of_student(study):
    module, _ = study
    mean, half = module.interval(np.array([1.0, 2.0, 3.0]))
    assert (mean, half) == pytest.approx((2.0, 4.302653 / np.sqrt(3)))
