"""Killed runs of two processes with batch norm, of which each rank keeps its own statistics."""

import random
import signal

import pandas as pd
import pytest
import torch
from e2e.test_resume import timeless, weights

#: A network with batch norm, 18 steps, validation after each six.
TYPED = [
    *("train", "dataset=digits", "noise=symmetric", "noise.rate=0.3", "report=false"),
    *("backbone=small_cnn", "backbone.widths=[8,16]", "method=classification", "sampler=shuffle"),
    *("data.train_size=200", "sampler.batch_size=32", "sampler.drop_last=true"),
    *("trainer=ddp_cpu", "trainer.max_epochs=3"),
    *("callbacks.checkpoint.every_n_steps=2", "callbacks.history.every_n_steps=1"),
]
STEPS = 18


def both(shell, *typed):
    return [process.wait(200) for process in shell.ranks(2, *typed)]


@pytest.mark.further
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_of_two_processes_leave_no_trace(shell, kills):
    for done in both(shell, *TYPED, "hydra.run.dir=whole"):
        assert done.returncode == 0, done.stderr
    whole = shell.folder / "whole"
    expected = weights(whole)
    assert any(name.endswith("running_var") for name in expected)
    chance, equal = random.Random(0), 0
    for kill in range(kills):
        run, step = shell.folder / f"killed_{kill}", chance.randrange(1, STEPS)
        saboteur = f"+callbacks.kill={{_target_: support.saboteur.KillAt, step: {step}}}"
        ended = both(shell, *TYPED, f"hydra.run.dir={run.name}", saboteur)
        assert -signal.SIGKILL in [done.returncode for done in ended], ended
        for done in both(shell, "train", f"resume={run}", "callbacks.kill.step=-1"):
            assert done.returncode == 0, done.stderr
        found = weights(run)
        same = timeless(run) == timeless(whole) and found.keys() == expected.keys()
        same &= all(torch.equal(found[n], x) for n, x in expected.items() if torch.is_tensor(x))
        same &= pd.read_csv(run / "history.csv").equals(pd.read_csv(whole / "history.csv"))
        equal += same
    assert equal == kills
