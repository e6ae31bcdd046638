"""Comparisons of run folders: equal up to rounding, or to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra.utils import get_class

from noisyml.conformance.recipes import Recipe
from noisyml.runs.folder import RunFolder
from noisyml.runs.metric_names import COSTS


def weights(run: Path) -> dict[str, Any]:
    """The state of the method in the last checkpoint."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return dict(checkpoint["state_dict"])


def assert_same_state(expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse two states that differ in a bit.

    Raises:
        AssertionError: they do; with the first name.
    """
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                found[name], value, rtol=0, atol=0, equal_nan=True, msg=f"{name} differs"
            )
        else:
            assert found[name] == value, name


def assert_same_judgements(expected: Path, found: Path) -> None:
    """Refuse two runs whose selectors judged differently in a bit.

    Raises:
        AssertionError: they did.
    """
    files = [RunFolder(run).selection_file for run in (expected, found)]
    assert files[0].is_file() == files[1].is_file(), "only one of the runs has judgements"
    if files[0].is_file():
        expected_rows, found_rows = (pd.read_parquet(file) for file in files)
        pd.testing.assert_frame_equal(expected_rows, found_rows)


def _method(run: Path) -> Any:
    """The class of a run's method."""
    return get_class(RunFolder(run).config()["method"]["_target_"])


def assert_equal(one: Path, two: Path, recipe: Recipe) -> None:
    """Refuse two runs of a recipe that differ by more than the order of sums explains.

    Args:
        one: run folder of one process.
        two: run folder of two ranks.
        recipe: of both.

    Raises:
        AssertionError: losses, judgements, states or metrics differ.
    """
    parts, steps = recipe.parts, 2 * recipe.steps
    history = [pd.read_csv(run / "history.csv") for run in (one, two)]
    apart = sorted(map(str, set(history[0]) ^ set(history[1])))
    assert not apart, f"only one of the runs logs {', '.join(apart)}"
    losses = [rows["train/loss"].dropna().to_numpy() for rows in history]
    assert len(losses[0]) == len(losses[1]) == steps, "a step has no loss"
    if len(set(losses[0])) <= steps // 2:
        assert not _method(one).learns, "most steps have the same loss"
    differs = ~np.isclose(losses[1], losses[0], rtol=1e-8, atol=0)
    if differs.any():
        step = int(differs.argmax())
        raise AssertionError(
            f"in step {step} two processes have the loss {losses[1][step]:.9g} and one "
            f"{losses[0][step]:.9g}: a loss reads the gathered batch (distributed.gather), and "
            f"chance comes from distributed.agreed_generator"
        )
    pd.testing.assert_frame_equal(history[0], history[1], rtol=1e-6, atol=1e-6)
    judges = [(run / "selection.parquet").is_file() for run in (one, two)]
    if any(judges) or ("pseudo_labels" not in parts and "selector" in _method(one).needs_parts):
        assert all(judges), "no judgements were written: training_step returns no `outcome`"
        judged = [pd.read_parquet(run / "selection.parquet") for run in (one, two)]
        assert len(judged[0]) >= steps * 20
        scores = {"p_clean", "log_odds", "loss", "margin"} & set(judged[0])
        for column in set(judged[0]) - scores:
            # A judgement of entries is a list.
            said = [np.stack(list(rows[column])) for rows in judged]
            assert np.array_equal(said[0], said[1]), f"two processes judge otherwise: {column}"
        for column in scores:
            trust = [np.stack(list(rows[column])) for rows in judged]
            np.testing.assert_allclose(trust[1], trust[0], rtol=1e-4, atol=1e-6)

    states = [weights(run) for run in (one, two)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(
                states[1][name],
                tensor,
                rtol=1e-6,
                atol=1e-8,
                equal_nan=True,
                msg=f"two processes end with another {name} than one",
            )
    if "memory.index" in states[0] and parts.get("loss") == "memory_contrastive":
        assert int(states[0]["memory.index"].max()) > 0
        assert torch.equal(states[0]["memory.index"], states[1]["memory.index"])

    metrics = [json.loads((run / "metrics.json").read_text(encoding="utf-8")) for run in (one, two)]
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[0].items():
        if not name.startswith(COSTS) and value is not None:
            found = metrics[1][name]
            assert abs(found - value) < 1e-6, f"{name} is {found} on two processes, {value} on one"
