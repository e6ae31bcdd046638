"""Histogram of the trust in each label, as judged in the last epoch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from noisyml.reports import plots
from noisyml.reports.artefacts import read_judgements
from noisyml.reports.sections.base import Picture, RunSection
from noisyml.runs.folder import RunFolder


def show(run: RunFolder, alone: bool) -> Iterator[Picture]:
    """A figure, if the run's selector gave at least two different scores."""
    judged = read_judgements(run)
    if judged is None:
        return
    last = judged.last
    scored = last[last["p_clean"].notna()]
    if scored["p_clean"].nunique() < 2:
        return
    wrong = scored["wrong"].to_numpy() if judged.truth_known else None
    draw = partial(plots.trust_figure, scored["p_clean"].clip(0, 1).to_numpy(), wrong)
    of = "entries (a class of a sample) of" if judged.entries else "of"
    caption = (
        f"Trust in each label (p_clean) as judged in the last epoch, "
        f"{len(scored):,} {of} {judged.samples:,} training samples."
    )
    yield Picture("p_clean", draw, caption)


SECTION = RunSection(10, show)
