"""Training loss and validation metrics over steps."""

from __future__ import annotations

from collections.abc import Sequence

from noisyml.reports.artefacts import read_history
from noisyml.reports.sections.base import Picture, ReportedRuns, axis_label, curves


def training(runs: ReportedRuns) -> list[Picture]:
    """Training loss and validation metrics over steps."""
    frames = {}
    for group in runs.groups:
        read = [runs.read(read_history, run) for run in runs.members(group)]
        frames[group] = [frame for frame in read if frame is not None]
    names = dict.fromkeys(str(n) for fs in frames.values() for f in fs for n in f.columns)
    metrics = {name: axis_label(name) for name in _curve_metrics(list(names))}
    bands = "; bands: one standard deviation over seeds" if len(runs.frame) > 1 else ""
    caption = (
        f"Training loss and validation over training steps{bands}. A loss that runs away "
        "leaves the picture."
    )
    return curves(runs, metrics, "training step", frames, "training_curves", caption)


def _curve_metrics(names: Sequence[str]) -> list[str]:
    """The training loss and up to two validation metrics among the columns of a history."""
    losses = [n for n in ("train/loss", "train/loss_epoch", "train/loss_step") if n in names]
    losses = losses or [n for n in names if n.startswith("train/") and "loss" in n]
    known = [f"val/{n}" for n in ("map_at_r", "precision_at_1", "accuracy", "map_macro")]
    validation = [n for n in known if n in names]
    validation = validation or [n for n in names if n.startswith("val/") and "loss" not in n]
    return [*losses[:1], *validation[:2]]
