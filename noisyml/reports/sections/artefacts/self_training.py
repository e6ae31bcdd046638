"""Scores of the models of self-training, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from noisyml.reports.artefacts import reading
from noisyml.reports.plots import NARROW, PALETTE, WIDTH, dress, new_figure
from noisyml.reports.sections.base import Picture, RunSection
from noisyml.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "self_training.csv"
#: What a stage learns from, by the last letter of its choices.
_KINDS = {"": "first stage", "h": "human labels", "p": "pseudo-labels"}


def show(run: RunFolder, alone: bool) -> Iterator[Picture]:
    """A figure of the scores, if the run consists of such stages."""
    path = run.path / FILE
    if not path.is_file():
        return
    with reading(path):
        table = pd.read_csv(path, keep_default_na=True)
        table["choices"] = table["choices"].fillna("").astype(str)
        table["adopted"] = table["adopted"].fillna("").astype(str)
        scores = [c for c in ("test/miou", "test/accuracy") if c in table]
        table["number"].astype(int)
    if scores:
        caption = (
            "Test score of the model of each stage; the line leads to the last one. Models were "
            "compared on held-out or validation labels, never on these."
        )
        yield Picture("self_training", partial(stages_figure, table, scores[0]), caption)


def stages_figure(table: pd.DataFrame, score: str, *, narrow: bool = False) -> Figure:
    """Scores over the number of the stage, candidates by what they learn from.

    Args:
        table: a row per model, columns ``number choices adopted`` and the score.
        score: the column to draw.
        narrow: for a narrow screen.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(NARROW, 3.2) if narrow else new_figure(0.6 * WIDTH, 3.2)
    axes = figure.subplots()
    last = table[table["adopted"].str.contains("last")]
    if len(last):
        final = str(last["choices"].iloc[0])
        way = table[[final.startswith(choices) for choices in table["choices"]]]
        axes.plot(way["number"], way[score], color=PALETTE[0], linewidth=1.5, zorder=1)
    kinds = table["choices"].map(lambda choices: _KINDS.get(choices[-1:], "mixture"))
    for number, kind in enumerate(dict.fromkeys(kinds)):
        rows = table[kinds == kind]
        colour = PALETTE[number % len(PALETTE)]
        axes.scatter(rows["number"], rows[score], s=26, color=colour, label=kind, zorder=2)
    axes.set_xlabel("stage")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel({"test/miou": "test mIoU", "test/accuracy": "test accuracy"}[score])
    axes.legend(frameon=False, fontsize=8)
    dress(axes, "")
    return figure


SECTION = RunSection(52, show)
