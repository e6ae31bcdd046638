"""Training by one process and by two gloo ranks, and how the two must agree.

All recipes run as one sweep in one process, and again as one sweep of two ranks under torchrun.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
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


def write_recipes(recipes, folder):
    """Each recipe as an option of the group ``experiment`` in a folder of its own."""
    folder.mkdir(parents=True)
    for name, (parts, settings, steps) in recipes.items():
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
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def one_and_two(recipes, folder):
    """Train recipes, {name: (parts, settings, steps per epoch)}; run folders of both by name."""
    write_recipes(recipes, folder / "conf" / "experiment")
    typed = ["-m", "--config-dir", "conf", *SETTINGS, f"experiment={','.join(recipes)}"]
    train(folder, [], *typed, "hydra.sweep.dir=one")
    two_ranks = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    train(folder, two_ranks, *typed, "trainer=ddp_cpu", "hydra.sweep.dir=two")
    return {
        name: [folder / sweep / str(number) for sweep in ("one", "two")]
        for number, name in enumerate(recipes)
    }


def assert_equal(one, two, recipe):
    """Losses, judgements, states and metrics of two runs of a recipe."""
    parts, _, steps = recipe
    steps *= 2

    history = [pd.read_csv(run / "history.csv") for run in (one, two)]
    assert history[0].columns.equals(history[1].columns)
    losses = [rows["train/loss"].dropna() for rows in history]
    assert len(losses[0]) == steps
    assert losses[0].nunique() > steps // 2
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-8)
    pd.testing.assert_frame_equal(history[0], history[1], rtol=1e-6, atol=1e-6)
    if "pseudo_labels" not in parts:
        judged = [pd.read_parquet(run / "selection.parquet") for run in (one, two)]
        assert len(judged[0]) >= steps * 20
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
    if "memory.index" in states[0] and parts.get("loss") == "memory_contrastive":
        assert int(states[0]["memory.index"].max()) > 0
        assert torch.equal(states[0]["memory.index"], states[1]["memory.index"])

    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, two)]
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[0].items():
        if not name.startswith("time/") and value is not None:
            assert abs(metrics[1][name] - value) < 1e-6, name
