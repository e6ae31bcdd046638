"""A search as a user types it: killed in the middle of a trial, continued, and shown."""

import json
import time

import pytest
from support.shell import TINY

#: With which a trial is stopped, and one after it is not.
SEED = 11
SEARCH = [
    *("train", "-m", *TINY, "method=classification", "trainer.max_epochs=3"),
    *("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", f"hydra.sweeper.seed={SEED}"),
    *("hydra.sweeper.startup_trials=1", "hydra.sweeper.warmup_epochs=0"),
    "optimizer.lr=tag(log,interval(1e-5,1e-1))",
]


def results(shell, name):
    return json.loads((shell.folder / name / "search.json").read_text())


def states(shell, name):
    files = [shell.folder / name / str(number) / "status.json" for number in range(4)]
    return [json.loads(file.read_text())["state"] for file in files]


@pytest.mark.further
def test_a_killed_search_goes_on_to_the_same_end(shell):
    pytest.importorskip("optuna")
    whole = shell.apart(*SEARCH, "hydra.sweep.dir=whole")
    assert whole.returncode == 0, whole.stderr
    expected = states(shell, "whole")
    assert {"finished", "pruned"} == set(expected)
    last = len(expected) - 1 - expected[::-1].index("finished")  # long enough to be killed

    killed = shell.beside(*SEARCH, "hydra.sweep.dir=killed")
    begun = shell.folder / "killed" / str(last) / "checkpoints" / "last.ckpt"
    while not begun.is_file():
        assert killed.process.is_alive(), killed.err.read_text()
        time.sleep(0.002)
    killed.process.kill()
    assert killed.wait().returncode == -9
    done = [shell.folder / "killed" / str(number) / "status.json" for number in range(last)]
    before = [file.stat().st_mtime_ns for file in done]

    again = shell.apart(*SEARCH, "hydra.sweep.dir=killed")
    assert again.returncode == 0, again.stderr
    assert [file.stat().st_mtime_ns for file in done] == before  # none was trained again
    assert states(shell, "killed") == expected
    assert results(shell, "killed") == results(shell, "whole")
    best, same = (
        json.loads((shell.folder / n / "best.json").read_text()) for n in ("whole", "killed")
    )
    assert best == same

    # A run that was stopped is done, unless it is changed; then it is no trial any more.
    pruned = shell.folder / "killed" / str(expected.index("pruned"))
    status, said = shell("train", f"resume={pruned}")
    assert status == 0
    assert "is pruned already" in said
    status, said = shell("train", f"resume={pruned}", "trainer.max_epochs=4")
    assert status == 0, said
    assert json.loads((pruned / "status.json").read_text())["state"] == "finished"
