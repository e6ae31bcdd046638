"""Every method with state of its own trains the same on two gloo processes as on one."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from test_training_ddp import train

SHORT = ["trainer.max_epochs=2", "trainer.limit_train_batches=5"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    return train(folder, "loss=triplet_sampled", *SHORT)


@pytest.mark.parametrize(
    "parts",
    [
        ["method=cbml", "pseudo_labels=kmeans", "pseudo_labels.num_clusters=16"],
        ["method=iaa", "method.start=0", "method.update_every=1", "selector=prism_avg"],
        ["method=proxynca_pp", "sampler.samples_per_class=8", "selector=prism_proxy"],
        ["method=rkd", "head=mlp", "method.task_weight=0.1", "selector=prism_avg"],
        [
            "method=rkd_classification",
            "stages=classification_teacher",
            "distillation=rkd_hinton",
            "selector=prism_proxy",
        ],
    ],
    ids=["cbml-clusters", "iaa", "proxynca_pp", "rkd", "rkd_classification"],
)
def test_two_processes_equal_one(tmp_path, teacher, parts):
    if "method=rkd" in parts:
        parts = [*parts, f"teacher.checkpoint={teacher}"]
    runs = []
    for name, trainer in (("one", "trainer=cpu"), ("two", "trainer=ddp_cpu")):
        (tmp_path / name).mkdir()
        runs.append(train(tmp_path / name, trainer, *SHORT, *parts))

    losses = [pd.read_csv(run / "history.csv")["train/loss"].dropna() for run in runs]
    assert len(losses[0]) == 10
    assert losses[0].nunique() > 5
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-8)
    states = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in runs
    ]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(
                states[1][name], tensor, rtol=1e-6, atol=1e-8, equal_nan=True, msg=name
            )
    metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[0].items():
        if not name.startswith("time/") and value is not None:
            assert abs(metrics[1][name] - value) < 1e-6, name
