"""The benchmark of the affinity step runs, and both forms find the same edges."""

import json
import runpy

import pytest
from support import paths

SCRIPT = paths.ROOT / "scripts" / "bench_affinity.py"


def test_both_forms_find_the_same_edges(tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    sizes = ["--batch", "16", "--memory", "184", "--width", "8", "--repeats", "1"]
    sizes += ["--dtype", "float64"]
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *sizes, "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 0
    results = json.loads(out.read_text())["results"]
    assert [line["kind"] for line in results] == ["clusters", "overlapping", "random", "hubs"]
    assert all(line["different_edges"] == 0 for line in results)
    assert any(line["edges"] > 0 for line in results)
