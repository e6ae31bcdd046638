"""Two gloo processes train exactly what one process trains: losses, masks, memory, metrics.

All recipes run as one sweep in one process, and again as one sweep of two ranks under torchrun.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

SETTINGS = [
    "selection.warmup_steps=4",
    # Active pairs and kept sets are cut at thresholds, which magnifies rounding from step to step;
    # in double precision the two runs stay together long enough to be compared.
    "trainer.precision=64-true",
    "+memory.dtype={_target_: hydra.utils.get_object, path: torch.float64}",
    "trainer.max_epochs=2",
    "callbacks.history.every_n_steps=1",
    "report=false",
]
#: What a recipe uses unless it says otherwise.
PARTS = {"dataset": "digits", "noise": "symmetric", "backbone": "mlp"}
SMALL_HEAD = {"hidden_features": [32], "out_features": 16}

SEVERAL = {"dataset": "mosaic", "noise": "multilabel_mixed"}
MOSAIC = {"backbone": {"image_size": [8, 24]}, "dataset": {"num_train": 320, "num_test": 100}}

#: Recipe to (parts, settings, steps per epoch).
RECIPES = {
    "vmf-memory": (
        {"selector": "prism_vmf", "loss": "memory_contrastive", "head": "mlp"},
        {"loss": {"relu_form": True}, "head": SMALL_HEAD},
        8,
    ),
    "avg-proxies": (
        {"selector": "prism_avg", "loss": "proxy_nca", "head": "mlp"},
        {"method": {"param_groups": {"loss": {"lr": 0.01}}}, "head": SMALL_HEAD},
        8,
    ),
    "cbml-clusters": (
        {"method": "cbml", "pseudo_labels": "kmeans"},
        {"pseudo_labels": {"num_clusters": 16}},
        5,
    ),
    "iaa": (
        {"method": "iaa", "selector": "prism_avg"},
        {"method": {"start": 0.0, "update_every": 1}},
        5,
    ),
    "proxynca_pp": (
        {"method": "proxynca_pp", "selector": "prism_proxy"},
        {"sampler": {"samples_per_class": 8}},
        5,
    ),
    "rkd": (
        {"method": "rkd", "head": "mlp", "selector": "prism_avg", "stages": "teacher"},
        {},
        5,
    ),
    "rkd_classification": (
        {
            "method": "rkd_classification",
            "stages": "classification_teacher",
            "selector": "prism_proxy",
        },
        {},
        5,
    ),
    "co_teaching": (
        {"method": "co_teaching"},
        {"method": {"num_gradual": 1, "predict": "mean"}},
        5,
    ),
    "co_teaching_plus": (
        {"method": "co_teaching_plus"},
        {"method": {"num_gradual": 1, "warmup_epochs": 1, "predict": "best"}},
        5,
    ),
    "jocor": ({"method": "jocor"}, {"method": {"num_gradual": 1}}, 5),
    "bare-elr": ({"method": "bare", "loss": "elr"}, {}, 5),
    "curriculum-sat": (
        {"method": "classification", "selector": "curriculum", "loss": "sat"},
        {"selector": {"warmup_epochs": 1}, "loss": {"warmup_epochs": 0}},
        5,
    ),
    "cdr-forward": (
        {"method": "cdr", "loss": "forward_correction", "selector": "bare"},
        {"loss": {"estimation_epoch": 1}},
        5,
    ),
    # Two memories, and corrections in the second epoch.
    "ccml-elr": (
        {"method": "ccml", "loss": "multilabel_elr", **SEVERAL},
        {"method": {"flip_bound": 0.5, "flip_share": 0.5}, **MOSAIC},
        5,
    ),
    "multilabel-sat": (
        {"method": "multilabel", "loss": "multilabel_sat", **SEVERAL},
        {"loss": {"warmup_epochs": 1}, **MOSAIC},
        5,
    ),
    "jocor_multilabel": (
        {"method": "jocor_multilabel", **SEVERAL},
        {"method": {"gradual_epochs": 1, "tau": 0.2}, **MOSAIC},
        5,
    ),
    "eac": (
        {"method": "eac", "selector": "prism_proxy", "backbone": "small_cnn"},
        # Batch norm would see half a batch on each rank.
        {"backbone": {"widths": [8, 16], "halve_after": [1], "frozen_batchnorm": True}},
        5,
    ),
}


def write_recipes(folder):
    """Each recipe as an option of the group ``experiment`` in a folder of its own."""
    folder.mkdir(parents=True)
    for name, (parts, settings, steps) in RECIPES.items():
        # The method comes first: it chooses parts itself.
        parts = PARTS | parts
        if parts["backbone"] == "mlp":
            small = {"hidden_features": [32]} | settings.get("backbone", {})
            settings = settings | {"backbone": small}
        chosen = dict(sorted(parts.items(), key=lambda part: part[0] != "method"))
        recipe = {
            "defaults": [{f"override /{group}": part} for group, part in chosen.items()],
            "noise": {"rate": 0.4},
            **settings,
            "trainer": {"limit_train_batches": steps},
        }
        text = "# @package _global_\n" + yaml.safe_dump(recipe, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text)


def train(folder, launcher, *overrides):
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "noisyml", "train", *overrides],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NOISYML_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """Run folders of all recipes by one process and by two ranks."""
    folder = tmp_path_factory.mktemp("ddp")
    write_recipes(folder / "conf" / "experiment")
    typed = [
        "-m",
        "--config-dir",
        "conf",
        *SETTINGS,
        f"experiment={','.join(RECIPES)}",
    ]
    train(folder, [], *typed, "hydra.sweep.dir=one")
    two_ranks = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    train(folder, two_ranks, *typed, "trainer=ddp_cpu", "hydra.sweep.dir=two")
    return {
        name: [folder / sweep / str(number) for sweep in ("one", "two")]
        for number, name in enumerate(RECIPES)
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_equal_one(sweeps, recipe):
    one, two = sweeps[recipe]
    steps = 2 * RECIPES[recipe][2]

    history = [pd.read_csv(run / "history.csv") for run in (one, two)]
    assert history[0].columns.equals(history[1].columns)
    losses = [rows["train/loss"].dropna() for rows in history]
    assert len(losses[0]) == steps
    assert losses[0].nunique() > steps // 2
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-8)
    pd.testing.assert_frame_equal(history[0], history[1], rtol=1e-6, atol=1e-6)
    if "pseudo_labels" not in RECIPES[recipe][0]:
        judged = [pd.read_parquet(run / "selection.parquet") for run in (one, two)]
        assert len(judged[0]) >= steps * 32
        for column in set(judged[0]) - {"p_clean"}:
            # A judgement of entries is a list.
            assert np.array_equal(*(np.stack(rows[column]) for rows in judged)), column
        np.testing.assert_allclose(*(np.stack(rows["p_clean"]) for rows in judged), atol=1e-6)

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
    if recipe == "vmf-memory":
        assert int(states[0]["memory.index"].max()) > 0
        assert torch.equal(states[0]["memory.index"], states[1]["memory.index"])

    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, two)]
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[0].items():
        if not name.startswith("time/") and value is not None:
            assert abs(metrics[1][name] - value) < 1e-6, name


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "noisyml",
            "train",
            *SETTINGS,
            "dataset=digits",
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
