"""Labels that selectors trusted, epoch by epoch."""

from __future__ import annotations

from noisyml.reports.artefacts import read_judgements
from noisyml.reports.sections.base import Picture, ReportedRuns, axis_label, curves


def trust_over_epochs(runs: ReportedRuns) -> list[Picture]:
    """Share kept, precision and recall of the kept set over epochs."""
    frames = {}
    for group in runs.groups:
        read = [runs.read(read_judgements, run) for run in runs.members(group)]
        frames[group] = [
            judged.by_epoch.rename(columns={"epoch": "step"})
            for judged in read
            if judged is not None
        ]
    if all((frame["kept"] == 1).all() for own in frames.values() for frame in own):
        return []
    metrics = {n: axis_label(f"selection/{n}") for n in ("precision", "recall", "kept")}
    caption = "What the selector kept, epoch by epoch."
    if any("precision" in frame for own in frames.values() for frame in own):
        caption += (
            " Precision: share of right labels among those kept; recall: share of right labels "
            "that were kept."
        )
    return curves(runs, metrics, "epoch", frames, "kept_set_by_epoch", caption)
