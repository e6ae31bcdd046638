"""The benchmark of transport plans runs and compares like with like."""

import json
import subprocess
import sys

import pytest
from support import paths

SCRIPT = paths.ROOT / "scripts" / "bench_sinkhorn.py"


@pytest.mark.slow
def test_all_contenders_find_the_same_plan(tmp_path):
    pytest.importorskip("ot")
    out = tmp_path / "out.json"
    command = [sys.executable, str(SCRIPT), "--sizes", "64", "--repeats", "1", "--threads", "1"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())["results"]
    assert {line["contender"] for line in results} == {"log", "scaling", "released", "loop", "pot"}
    assert all(line["seconds"] > 0 for line in results)
    assert all(line["greatest_difference_from_log"] < 1e-4 for line in results)
