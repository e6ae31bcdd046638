"""Metrics over noise rates, or group by group: the figures under the table of results."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from noisyml.reports import plots
from noisyml.reports.plots import Line, Panel
from noisyml.reports.sections.base import PANELS_PER_ROW, Picture, ReportedRuns, axis_label
from noisyml.reports.settings import decides_data
from noisyml.reports.tables import Column, aggregate

_CAPTIONS = {"test": "Test metrics of the last checkpoint", "trust": "Trust in labels"}


def across(runs: ReportedRuns) -> list[Picture]:
    """Metrics against the noise rate, or group by group where no rate varies."""
    if len(runs.groups) < 2:
        return []
    metrics = [column.metric for columns in _plotted(runs) for column in columns]
    figures = aggregate(runs.frame, runs.keys, metrics)
    pictures = []
    for columns in _plotted(runs):
        what = "test" if columns[0].metric.startswith("test/") else "trust"
        if runs.rate_key is None or not _rate_varies(runs, runs.rate_key):
            pictures.append(_by_group(runs, columns, figures, what))
        else:
            pictures += _by_rate(runs, columns, figures, what, runs.rate_key)
    return pictures


def _plotted(runs: ReportedRuns) -> list[list[Column]]:
    """Columns worth a plot, one list per figure: test metrics, then trust in labels."""
    test = [c for c in runs.table.columns if c.metric.startswith("test/")]
    trust = [
        c
        for c in runs.table.columns
        if c.metric in ("selection/precision", "selection/recall", "selection/auroc")
    ]
    return [columns[:PANELS_PER_ROW] for columns in (test, trust) if columns]


def _rate_varies(runs: ReportedRuns, rate_key: str) -> bool:
    """True if some runs differ in the noise rate alone, as far as their data go."""
    rest = [key for key in runs.keys if decides_data(key) and key != rate_key]
    rates: dict[str, set[object]] = {}
    for group in runs.groups:
        rates.setdefault(runs.name(group, rest), set()).add(group[runs.keys.index(rate_key)])
    return any(len(found) > 1 for found in rates.values())


def _by_group(
    runs: ReportedRuns, columns: Sequence[Column], figures: pd.DataFrame, what: str
) -> Picture:
    labels = [runs.name(group, runs.keys) for group in runs.groups]
    panels = []
    for column in columns:
        lines = [
            Line(
                label,
                np.zeros(1),
                *(figures[column.metric, s].to_numpy(float)[g : g + 1] for s in ("mean", "std")),
            )
            for g, label in enumerate(labels)
        ]
        panels.append(Panel("", axis_label(column.metric), "", tuple(lines)))
    caption = f"{_CAPTIONS[what]} by group; bars: one standard deviation over seeds."
    return Picture(f"{what}_by_group", partial(plots.dots_figure, panels, labels), caption)


def _by_rate(
    runs: ReportedRuns, columns: Sequence[Column], figures: pd.DataFrame, what: str, rate_key: str
) -> list[Picture]:
    """Metrics over the noise rate: a panel each, or a figure each where lines would crowd."""
    lines_by = [key for key in runs.lines_by if key != rate_key]
    panels_by = [key for key in runs.facets_by if key != rate_key]
    crowded = len(runs.labels(lines_by)) > len(plots.PALETTE) and len(lines_by) > 1
    if crowded:
        # The setting with most values gets panels, the others stay lines to compare in each.
        split = max(lines_by, key=lambda key: len(runs.labels([key])))
        lines_by.remove(split)
        panels_by.append(split)
    grid = [
        [
            Panel(
                facet,
                "nominal noise rate",
                axis_label(column.metric),
                _lines_over(runs, rate_key, column, figures, panels_by, facet, lines_by),
            )
            for column in columns
        ]
        for facet in runs.labels(panels_by)
    ]
    grid = [row for row in grid if any(panel.lines for panel in row)]
    if not grid:
        return [_by_group(runs, columns, figures, what)]
    order = runs.labels(lines_by)
    caption = f"{_CAPTIONS[what]} over noise rates; bands: one standard deviation over seeds."
    name = f"{what}_by_noise_rate"
    if not crowded:
        draw = partial(plots.lines_figure, grid, order, markers=True, faceted=False)
        told = plots.hover_text([panel for row in grid for panel in row], order)
        return [Picture(name, draw, caption, told)]
    return [
        Picture(
            f"{name}_{column.metric.rpartition('/')[2]}",
            partial(plots.multiples_figure, [row[c] for row in grid], order, PANELS_PER_ROW),
            f"{column.heading}. {caption}",
            plots.hover_text([row[c] for row in grid], order),
        )
        for c, column in enumerate(columns)
    ]


def _lines_over(
    runs: ReportedRuns,
    rate_key: str,
    column: Column,
    figures: pd.DataFrame,
    panels_by: Sequence[str],
    facet: str,
    lines_by: Sequence[str],
) -> tuple[Line, ...]:
    """A metric over the noise rate for the groups of one panel."""
    rate = runs.keys.index(rate_key)
    lines = []
    for label in runs.labels(lines_by):
        at = [
            g
            for g, group in enumerate(runs.groups)
            if runs.name(group, panels_by) == facet
            and runs.name(group, lines_by) == label
            and figures[column.metric, "n"].iloc[g] > 0
        ]
        if at:
            x = np.array([float(str(runs.groups[g][rate])) for g in at])
            mean, std = (figures[column.metric, s].to_numpy(float)[at] for s in ("mean", "std"))
            lines.append(Line(label, x, mean, std))
    return tuple(lines)
