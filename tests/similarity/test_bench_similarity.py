"""The benchmark's rows run, those for a GPU included: they are not to rot where there is none."""

import json
import os
import subprocess
import sys

import pytest
from support import paths

SCRIPT = paths.ROOT / "scripts" / "bench_similarity.py"


@pytest.mark.parametrize("row", ["cuda", "memory"])
def test_a_row_runs_at_a_tiny_size(tmp_path, row):
    out = tmp_path / "out.json"
    command = [sys.executable, str(SCRIPT), "--row", row, "--smoke", "--out", str(out)]
    waiting = {"OMP_WAIT_POLICY": "passive"}  # what the script would start itself again for
    done = subprocess.run(
        [*command, "--threads", "1"], env={**os.environ, **waiting}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    if row == "memory":
        assert {line["search"] for line in report["results"]} == {"exact", "fast", "faiss"}
        return
    assert report["ceiling"]["seconds_of_half_the_matrix"] > 0
    for result in report["results"]:
        assert set(result["runs"]) == {"exact", "fast", "faiss", "product"}
        assert set(result["peak_extra_bytes"]) == set(result["runs"])
