"""Losses and areas under the margin of right and of wrong labels."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from noisyml.reports import plots
from noisyml.reports.sections.base import Element, Picture, RunSection
from noisyml.reports.sections.ledger import Ledger, read_ledger
from noisyml.runs.folder import RunFolder

#: Share of samples at either end that the axes leave out.
TAIL = 0.002


def show(run: RunFolder, alone: bool) -> Iterator[Element]:
    """Two histograms, where the run has a ledger."""
    ledger = read_ledger(run)
    if ledger is not None and np.isfinite(ledger.loss).any():
        yield Picture(
            "losses",
            functools.partial(losses_figure, ledger),
            "Left: loss of every training sample at its last visit. Right: its margin, own logit "
            "less the largest other one, averaged over all visits (area under the margin).",
        )


def losses_figure(ledger: Ledger, *, narrow: bool = False) -> Figure:
    """Histograms of loss and area under the margin, right and wrong labels apart."""
    columns = 1 if narrow else 2
    size = (plots.NARROW, 5.0) if narrow else (0.72 * plots.WIDTH, 2.8)
    figure = plots.new_figure(*size)
    grid = figure.subplots(2 // columns, columns, squeeze=False).ravel()
    for axes, values, title in zip(
        grid, (ledger.loss, ledger.margin), ("loss", "area under the margin"), strict=True
    ):
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
