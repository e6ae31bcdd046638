"""Schedules found by a plateau rule, as released with ProxyNCA++."""

import functools

import numpy as np
import pytest
import torch
from support import paths, vectors
from torch import nn

from noisyml import optim
from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder
from noisyml.stages.policies import replayed
from noisyml.stages.schedules import found_schedule, schedule_of_scores

released = functools.partial(vectors.arrays, paths.GOLDEN / "proxynca_pp", "schedule")


def test_a_schedule_and_its_replay_as_released():
    golden = released()
    scores, lr = golden["val_hmean"].tolist(), float(golden["base_lr"])
    settings = {"factor": float(golden["factor"]), "patience": int(golden["patience"])}
    found = schedule_of_scores(scores, lr, **settings)
    np.testing.assert_allclose(found.rates, golden["lr_at_epoch_start"], rtol=1e-12)
    assert found.milestones == golden["lr_steps"].tolist()
    assert found.best_epoch == golden["best_epoch"]

    epochs = found.best_epoch + 1
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = optim.multistep(
        optimizer, total_steps=2 * epochs, epochs=epochs, milestones=found.milestones, gamma=0.1
    )
    rates = []
    for _ in range(2 * epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert epochs == len(golden["trainval_lr"])
    np.testing.assert_allclose(rates[::2], golden["trainval_lr"])


def test_it_is_the_schedule_that_the_rule_sets():
    scores = [0.5, 0.4, 0.45, 0.3, 0.6, 0.5, 0.5, 0.5, 0.6]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau = optim.Plateau(optimizer, patience=2)
    rates = []
    for score in scores:
        rates.append(optimizer.param_groups[0]["lr"])
        plateau.observe({"val/precision_at_1": score})
    found = schedule_of_scores(scores, 1.0, patience=2)
    assert found.rates == rates
    assert found.milestones == [4, 8]
    assert found.best_epoch == 4


@pytest.mark.parametrize("scores", [[], [0.5, float("nan")]])
def test_a_replay_needs_the_scores_of_all_epochs(scores):
    with pytest.raises(UserError, match="check_val_every_n_epoch"):
        schedule_of_scores(scores, 0.1)


def finished(path, scores, scheduler="noisyml.optim.Plateau", monitor="val/map_at_r", warmup=2):
    run = RunFolder(path)
    path.mkdir()
    rows = [f"{i},{i},{score},0.1" for i, score in enumerate(scores)]
    text = "step,epoch,val/map_at_r,lr\n" + "\n".join(rows) + "\n"
    run.history_file.write_text(text)
    settings = f"{{_target_: {scheduler}, monitor: {monitor}, factor: 0.5, patience: 0, "
    run.config_file.write_text(
        f"scheduler: {settings}threshold: 0.0}}\nmethod: {{warmup_epochs: {warmup}}}\n"
    )
    run.write_status("finished")
    return run


def test_a_run_replays_what_another_found_after_its_own_warm_up(tmp_path):
    """The first two epochs of the other run do not count."""
    run = finished(tmp_path / "run", [0.9, 0.8, 0.5, 0.4, 0.6, 0.3])
    assert found_schedule(run).rates == [1.0, 1.0, 0.5, 0.5]
    settings = replayed(run, warmup_epochs=5)
    assert settings["trainer.max_epochs"] == 8
    assert settings["scheduler"]["epochs"] == 8
    assert settings["scheduler"]["milestones"] == [7]
    assert settings["scheduler"]["gamma"] == 0.5


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"scheduler": "noisyml.optim.cosine"}, "was not trained with scheduler=plateau"),
        ({"monitor": "val/precision_at_1"}, "has no val/precision_at_1 to find"),
    ],
)
def test_a_run_without_such_a_schedule_is_refused(tmp_path, made, said):
    run = finished(tmp_path / "run", [0.5, 0.6, 0.4], **made)
    with pytest.raises(UserError, match=said):
        found_schedule(run)


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    run = finished(tmp_path / "run", [0.5, 0.6, 0.4])
    run.write_status("interrupted")
    with pytest.raises(UserError, match="holds no finished run"):
        found_schedule(run)
