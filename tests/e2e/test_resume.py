"""A killed run, resumed, ends exactly where the uninterrupted one ends."""

import json
import shutil
import signal

import pandas as pd
import pytest
import torch
import yaml
from support.shell import TINY

from noisyml.runs.metric_names import COSTS

SETTINGS = [
    *TINY,
    "callbacks.checkpoint.every_n_steps=7",
    "callbacks.history.every_n_steps=1",
]

# What is dropped out is drawn by PyTorch's own generator.
PRISM = ["selector=prism_vmf", "selector.warmup_steps=4", "backbone.dropout=0.2"]
CLUSTERS = ["pseudo_labels=kmeans", "method.pseudo_labels.num_clusters=16", "trainer.max_epochs=3"]
LAST_TWO = ["model_choice=[last,mean_last]", "mean_last_epochs=2"]


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def timeless(run):
    metrics = json.loads((run / "metrics.json").read_text())
    return {k: v for k, v in metrics.items() if not k.startswith(COSTS)}


@pytest.mark.parametrize(
    ("killed_at", "parts"),
    [
        (9, PRISM),
        # Class statistics and clusters are made when an epoch begins, and not again after a resume.
        (29, ["method=iaa", "method.start=0", "method.update_every=1", *CLUSTERS]),
        pytest.param(
            40,
            ["method=proxynca_pp", "sampler.samples_per_class=8", "scheduler=plateau", "seed=3"],
            marks=pytest.mark.slow,
        ),
        # Targets per sample, and the weights after each of the last epochs.
        (29, ["method=bare", "head=linear", "loss=sat", "loss.warmup_epochs=0", *LAST_TWO]),
    ],
    ids=[
        "first-epoch",
        "iaa-clusters",
        "proxynca_pp",
        "bare-sat",
    ],
)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(shell, killed_at, parts):
    typed = ["train", *SETTINGS, *parts]
    status, said = shell(*typed, "name=whole")
    assert status == 0, said
    (whole,) = shell.runs()

    victim = f"+callbacks.kill={{_target_: support.saboteur.KillAt, step: {killed_at}}}"
    killed = shell.apart(*typed, "name=killed", victim)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (broken,) = [run for run in shell.runs() if run != whole]
    assert not (broken / "metrics.json").exists()
    # The saboteur must not strike again.
    config = yaml.safe_load((broken / "config.yaml").read_text())
    del config["callbacks"]["kill"]
    (broken / "config.yaml").write_text(yaml.safe_dump(config))

    status, said = shell("train", f"resume={broken}")
    assert status == 0, said
    assert timeless(broken) == timeless(whole)
    expected, resumed = weights(whole), weights(broken)
    assert expected.keys() == resumed.keys()
    for name in expected:
        if isinstance(expected[name], torch.Tensor):
            torch.testing.assert_close(
                resumed[name], expected[name], rtol=0, atol=0, equal_nan=True, msg=name
            )
        else:
            assert expected[name] == resumed[name], name
    pd.testing.assert_frame_equal(
        pd.read_csv(whole / "history.csv"), pd.read_csv(broken / "history.csv")
    )
    if (whole / "selection.parquet").exists():
        judged = [pd.read_parquet(run / "selection.parquet") for run in (whole, broken)]
        pd.testing.assert_frame_equal(*judged)


def test_resuming_a_finished_run_leaves_it_alone(shell):
    assert shell("train", *TINY)[0] == 0
    (run,) = shell.runs()
    before = (run / "metrics.json").stat().st_mtime_ns
    status, said = shell("train", f"resume={run}")
    assert status == 0
    assert "finished already" in said
    assert (run / "metrics.json").stat().st_mtime_ns == before


def test_a_sweep_typed_again_trains_only_what_is_missing(shell):
    sweep = ["train", "-m", *TINY, "seed=0,1", "hydra.sweep.dir=outputs/train/again"]
    assert shell(*sweep)[0] == 0
    first, second = shell.runs()
    kept = (first / "metrics.json").read_text()
    shutil.rmtree(second)
    status, said = shell(*sweep)
    assert status == 0
    assert "finished already" in said
    assert (first / "metrics.json").read_text() == kept
    assert (second / "metrics.json").exists()


def test_resuming_nothing_is_one_sentence(shell):
    status, said = shell("train", "resume=nowhere")
    assert status == 2
    assert said.strip() == "noisyml: nowhere holds no run (no config.yaml); nothing to resume."


def test_a_resumed_run_keeps_its_parts_but_may_train_longer(shell):
    assert shell("train", *TINY)[0] == 0
    (run,) = shell.runs()
    before = (run / "config.yaml").read_text()
    for typed, sentence in (
        ("loss=triplet", "keeps its loss"),
        ("trainer.max_epoch=3", "Did you mean 'trainer.max_epochs'?"),
        ("trainer.max_epochs=many", "should be a number"),
    ):
        status, said = shell("train", f"resume={run}", typed)
        assert status == 2
        assert sentence in said
        assert (run / "config.yaml").read_text() == before
    status, said = shell("train", f"resume={run}", "trainer.max_epochs=3")
    assert status == 0, said
    assert pd.read_csv(run / "history.csv")["epoch"].max() == 2
    assert set(pd.read_parquet(run / "selection.parquet")["epoch"]) == {0, 1, 2}
    assert yaml.safe_load((run / "overrides.yaml").read_text())[-1] == "trainer.max_epochs=3"
    # Weights after each epoch are kept from when they are asked for.
    late = ["trainer.max_epochs=4", "model_choice=[last,mean_last]", "mean_last_epochs=3"]
    status, said = shell("train", f"resume={run}", *late)
    assert status == 2
    assert "needs the weights epoch_0002, epoch_0003, which this run did not keep" in said


def test_ctrl_c_leaves_a_run_that_can_go_on(shell):
    """The second run is interrupted from inside, as the terminal would."""
    stop = "+callbacks.stop={_target_: support.saboteur.InterruptAt, step: 9}"
    done = shell.apart("train", *TINY, stop)
    assert done.returncode == 130, done.stderr
    assert "Go on with: noisyml train resume=" in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = shell.runs()
    assert "interrupted" in (run / "status.json").read_text()


def test_two_processes_do_not_share_a_folder(shell):
    from noisyml.errors import UserError
    from noisyml.runs.folder import RunFolder

    folder = RunFolder(shell.folder / "run")
    with (
        folder.claimed(),
        pytest.raises(UserError, match="Another process is working"),
        folder.claimed(),
    ):
        pass
