"""True labels score a run; they never steer it."""

import json

import numpy as np
import pandas as pd
import torch
from support.shell import TINY

from noisyml.data.views import Batch, FeatureView


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_training_batches_carry_no_true_label():
    batch: Batch = FeatureView(np.zeros((3, 2), np.float32), np.arange(3)).__getitems__([0, 2])
    assert set(batch) == {"index", "label", "features", "broken"}


def test_a_model_chosen_on_the_test_split_is_labelled_as_such(shell):
    status, said = shell("train", *TINY, "model_choice=[last,best,test]", "name=chosen")
    assert status == 0, said
    (run,) = shell.runs()
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"test/map_at_r", "best/test/map_at_r", "chosen_on_test/test/map_at_r"} <= set(metrics)
    on_test = pd.read_csv(run / "history.csv")["on_test/test/map_at_r"].dropna()
    assert abs(metrics["chosen_on_test/test/map_at_r"] - on_test.max()) < 1e-9
    assert abs(metrics["test/map_at_r"] - on_test.iloc[-1]) < 1e-9


def test_the_same_seed_gives_the_same_run_and_another_seed_another(shell):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert shell("train", *TINY, f"seed={seed}", f"name={name}")[0] == 0
    a, b, c = (weights(run) for run in shell.runs())
    name = "encoder.head.layers.0.weight"
    assert torch.equal(a[name], b[name])
    assert not torch.equal(a[name], c[name])
    noise = [pd.read_parquet(run / "noise.parquet")["observed"] for run in shell.runs()]
    assert noise[0].equals(noise[2]), "the noise has its own seed"
