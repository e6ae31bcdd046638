"""Losses and areas under the margin of right and of wrong labels."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from noisyml.reports import plots
from noisyml.reports.sections.base import Element, Picture, RunSection
from noisyml.reports.sections.ledger import MARGINS, Ledger, read_ledger
from noisyml.runs.folder import RunFolder

#: Share of samples at either end that the axes leave out.
TAIL = 0.002

AREA = "area under the margin"


def show(run: RunFolder, alone: bool) -> Iterator[Element]:
    """Histograms of what the run's ledger has: losses, areas under the margin, or both."""
    ledger = read_ledger(run)
    if ledger is None:
        return
    shown = _shown(ledger)
    said = {
        "loss": "Loss of every training sample at its last visit.",
        AREA: "Area under the margin: the mean over all visits of a sample's margin, "
        f"{MARGINS[ledger.measured_on]}.",
    }
    if shown:
        caption = " ".join(said[title] for title in shown)
        yield Picture("losses", functools.partial(losses_figure, ledger), caption)


def _shown(ledger: Ledger) -> dict[str, NDArray[np.float64]]:
    """The quantities of which a ledger has any value, by title."""
    quantities = {"loss": ledger.loss, AREA: ledger.margin}
    return {title: values for title, values in quantities.items() if np.isfinite(values).any()}


def losses_figure(ledger: Ledger, *, narrow: bool = False) -> Figure:
    """Histograms of loss and area under the margin, right and wrong labels apart."""
    shown = _shown(ledger)
    number = len(shown)
    rows, columns = (number, 1) if narrow else (1, number)
    size = (plots.NARROW, 2.5 * number) if narrow else (0.36 * plots.WIDTH * number, 2.8)
    figure = plots.new_figure(*size)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, values) in zip(grid, shown.items(), strict=True):
        finite = np.isfinite(values)
        low, high = np.quantile(values[finite], [TAIL, 1 - TAIL])
        parts = [(finite, "all labels", plots.FAINT)]
        if ledger.wrong is not None:
            parts = [
                (finite & ~ledger.wrong, "label right", plots.RIGHT_COLOUR),
                (finite & ledger.wrong, "label wrong", plots.WRONG_COLOUR),
            ]
        for chosen, label, colour in parts:
            clipped = np.clip(values[chosen], low, high)
            counts, edges = np.histogram(
                clipped, plots.HISTOGRAM_BINS, range=(low, max(high, low + 1e-6))
            )
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.45)
            axes.stairs(counts, edges, color=colour, linewidth=1.3, label=label)
        axes.set_xlabel(title)
        axes.set_ylabel("samples")
        plots.dress(axes, "")
        axes.grid(axis="x", visible=False)
    if ledger.wrong is not None:
        grid[0].legend(frameon=False, labelcolor=plots.TEXT, fontsize=8.5)
    return figure


SECTION = RunSection(place=15, show=show)
