"""Two gloo processes train exactly what one process trains: losses, masks, memory, metrics."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

SETTINGS = [
    "dataset=digits",
    "noise=symmetric",
    "noise.rate=0.4",
    "backbone=mlp",
    "backbone.hidden_features=[32]",
    "head=mlp",
    "head.hidden_features=[32]",
    "head.out_features=16",
    "selection.warmup_steps=4",
    # Active pairs and kept sets are cut at thresholds, which magnifies rounding from step to step;
    # in double precision the two runs stay together long enough to be compared.
    "trainer.precision=64-true",
    "+memory.dtype={_target_: hydra.utils.get_object, path: torch.float64}",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=8",
    "callbacks.history.every_n_steps=1",
    "report=false",
]


def train(folder, *overrides):
    done = subprocess.run(
        [sys.executable, "-m", "noisyml", "train", *SETTINGS, *overrides],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NOISYML_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run,) = [p.parent for p in folder.glob("outputs/train/*/*/metrics.json")]
    return run


@pytest.mark.parametrize(
    "parts",
    [
        ["selector=prism_vmf", "loss=memory_contrastive", "loss.relu_form=true"],
        ["selector=prism_avg", "loss=proxy_nca", "method.param_groups.loss.lr=0.01"],
    ],
    ids=["vmf-memory", "avg-proxies"],
)
def test_two_processes_equal_one(tmp_path, parts):
    runs = {}
    for name, trainer in (("one", ["trainer=cpu"]), ("two", ["trainer=ddp_cpu"])):
        folder = tmp_path / name
        folder.mkdir()
        runs[name] = train(folder, *trainer, *parts)
    one, two = runs["one"], runs["two"]

    history = [pd.read_csv(run / "history.csv") for run in (one, two)]
    assert history[0].columns.equals(history[1].columns)
    losses = [rows["train/loss"].dropna() for rows in history]
    assert len(losses[0]) == 16
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-8)
    pd.testing.assert_frame_equal(history[0], history[1], rtol=1e-6, atol=1e-6)
    judged = [pd.read_parquet(run / "selection.parquet") for run in (one, two)]
    assert len(judged[0]) == 2 * 8 * 64
    for column in ("index", "kept", "epoch"):
        assert judged[0][column].equals(judged[1][column]), column
    np.testing.assert_allclose(judged[0]["p_clean"], judged[1]["p_clean"], atol=1e-6)

    states = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (one, two)
    ]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(
                states[1][name], tensor, rtol=1e-6, atol=1e-8, equal_nan=True, msg=name
            )
    assert torch.equal(states[0]["memory.index"], states[1]["memory.index"])

    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, two)]
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[0].items():
        if not name.startswith("time/") and value is not None:
            assert abs(metrics[1][name] - value) < 1e-6, name
    assert metrics[0]["test/queries"] == metrics[1]["test/queries"]


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "noisyml",
            "train",
            *SETTINGS,
            "trainer=ddp_cpu",
            "sampler=shuffle",
            "sampler.batch_size=33",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be divided among 2 processes" in done.stderr
    assert "Traceback" not in done.stderr
