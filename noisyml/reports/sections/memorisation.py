"""Memorisation: shares of right and of wrong labels that a network has learnt, by epoch."""

from __future__ import annotations

from noisyml.reports.sections.base import Picture, ReportedRuns, curves
from noisyml.reports.sections.ledger import read_ledger

LABELS = {
    "right_learnt": "right labels learnt (fraction)",
    "wrong_learnt": "wrong labels learnt (fraction)",
    "wrong_corrected": "wrong labels, true class predicted (fraction)",
}


def memorisation(runs: ReportedRuns) -> list[Picture]:
    """Curves over epochs, where runs have a ledger and wrong labels that are known."""
    frames = {}
    for group in runs.groups:
        read = [runs.read(read_ledger, run) for run in runs.members(group)]
        frames[group] = [
            ledger.by_epoch.rename(columns={"epoch": "step"})
            for ledger in read
            if ledger is not None and ledger.wrong is not None
        ]
    if not any(frames.values()):
        return []
    caption = (
        "What training has learnt by heart: the network predicts the given label of so many "
        "samples (or, of embeddings and of several labels, their margin is positive), at the visit "
        "in which it learns from them."
    )
    return curves(runs, LABELS, "epoch", frames, "memorisation", caption)
