"""The check of a card runs at a tiny size on a CPU, so that it does not rot where there is none."""

import json
import sys

import pytest
from support import paths

from noisyml.conformance import forked


def check(*arguments):
    script = paths.ROOT / "scripts" / "check_gpu.py"
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    import check_gpu

    return check_gpu.main()


@pytest.mark.long
@pytest.mark.processes
def test_search_and_one_rank_are_checked(tmp_path):
    out, said = tmp_path / "out.json", tmp_path / "said.txt"
    typed = ["--device", "cpu", "--n", "400", "--parts", "search", "one_rank", "--out", str(out)]
    waiting = {"OMP_WAIT_POLICY": "passive"}
    process = forked.start(check, *typed, out=said, env=waiting)
    assert forked.finish(process, 300) == 0, said.read_text()
    report = json.loads(out.read_text())
    assert report["search"]["share_of_bfloat16_rate"] > 0
    assert all(report["one_rank"]["same_bits"].values())
    peers = report["search"]["peers"]
    assert peers["cuvs"] == "not installed" or peers["cuvs"]["agrees"]
