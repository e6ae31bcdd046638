"""The trial of four objectives on digits, for one epoch."""

import json

import pytest
from support import paths


@pytest.mark.long
def test_four_objectives_are_compared(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(paths.ROOT / "scripts"))
    module = __import__("trial_otter_digits")
    monkeypatch.setattr(module, "EPOCHS", 1)
    out = tmp_path / "out.json"
    assert module.main(["--rates", "0.6", "--seeds", "2", "--out", str(out)]) == 0
    lines = json.loads(out.read_text())
    assert [line["objective"] for line in lines] == list(module.OBJECTIVES)
    for line in lines:
        apart = [a - b for a, b in zip(line["accuracy"], lines[0]["accuracy"], strict=True)]
        assert line["mean_difference_from_infonce"] == pytest.approx(sum(apart) / 2, abs=1e-6)
    assert "of 2 seeds" in capsys.readouterr().out
