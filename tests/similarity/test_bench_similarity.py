"""The benchmark's rows run, those for a GPU included: they are not to rot where there is none."""

import json
import runpy
import sys

import pytest
from support import paths

from noisyml.conformance import forked

SCRIPT = paths.ROOT / "scripts" / "bench_similarity.py"


def benchmark(*arguments):
    sys.argv = [str(SCRIPT), *arguments]
    sys.path.insert(0, str(SCRIPT.parent))  # as Python does for a script
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.processes
@pytest.mark.parametrize("row", ["cuda", "memory"])
def test_a_row_runs_at_a_tiny_size(tmp_path, row):
    out, said = tmp_path / "out.json", tmp_path / "said.txt"
    typed = ["--row", row, "--smoke", "--threads", "1", "--out", str(out)]
    waiting = {"OMP_WAIT_POLICY": "passive"}  # what the script would start itself again for
    process = forked.start(benchmark, *typed, out=said, env=waiting)
    assert forked.finish(process, 200) == 0, said.read_text()
    report = json.loads(out.read_text())
    if row == "memory":
        assert {line["search"] for line in report["results"]} == {"exact", "fast", "faiss"}
        return
    assert report["ceiling"]["seconds_of_half_the_matrix"] > 0
    for result in report["results"]:
        assert set(result["runs"]) == {"exact", "fast", "faiss", "product"}
        assert set(result["peak_extra_bytes"]) == set(result["runs"])
