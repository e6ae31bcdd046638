"""Map of test embeddings on two principal axes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from noisyml.reports.artefacts import read_table
from noisyml.reports.plots import (
    MARKERS,
    NARROW,
    PALETTE,
    TEXT,
    WIDTH,
    dress,
    new_figure,
    plain,
    shorten,
)
from noisyml.reports.sections.base import Picture, RunSection
from noisyml.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "embedding_map.parquet"
MAP_CLASSES = 20
NAMED_AMONG_MANY = 12  # classes in colour where there are more than `MAP_CLASSES`
OTHER_DOTS = "#b4bac4"


def show(run: RunFolder, alone: bool) -> Iterator[Picture]:
    """A figure of the map, if the run has one."""
    table = read_embedding_map(run)
    if table is not None:
        caption = f"{len(table):,} test embeddings projected on their two principal axes."
        yield Picture("embedding_map", partial(map_figure, table), caption)


def read_embedding_map(run: RunFolder) -> pd.DataFrame | None:
    """The map of test embeddings: ``x y label label_name``."""
    table = read_table(run.path / FILE, ["x", "y", "label", "label_name"])
    return None if table is None or table.empty else table


def map_figure(table: pd.DataFrame, *, narrow: bool = False) -> Figure:
    """Test embeddings on two principal axes; the most frequent classes stand out in colour.

    Args:
        table: columns ``x y label label_name``.
        narrow: the names stand below the map and not beside it.
    """
    frequent = table["label"].value_counts().index
    shown = list(frequent if len(frequent) <= MAP_CLASSES else frequent[:NAMED_AMONG_MANY])
    lines = -(-(len(shown) + 1) // 2)
    figure = new_figure(NARROW, 3.7 + 0.17 * lines) if narrow else new_figure(0.5 * WIDTH, 3.4)
    axes = figure.subplots()
    rest = table[~table["label"].isin(shown)]
    axes.scatter(rest["x"], rest["y"], s=5, color=OTHER_DOTS, linewidths=0, rasterized=True)
    for number, label in enumerate(sorted(shown)):
        points = table[table["label"] == label]
        axes.scatter(
            points["x"],
            points["y"],
            s=15,
            color=PALETTE[number % len(PALETTE)],
            marker=MARKERS[number // len(PALETTE) % len(MARKERS)],
            alpha=0.85,
            linewidths=0,
            rasterized=True,
            label=plain(shorten(str(points["label_name"].iloc[0]), 22)),
        )
    if len(rest):
        axes.scatter(
            [],
            [],
            s=12,
            color=OTHER_DOTS,
            linewidths=0,
            label=f"{len(frequent) - len(shown)} other classes",
        )
    middle = (table[["x", "y"]].max() + table[["x", "y"]].min()) / 2
    half = 0.54 * float((table[["x", "y"]].max() - table[["x", "y"]].min()).max()) or 1.0
    axes.set_xlim(middle["x"] - half, middle["x"] + half)
    axes.set_ylim(middle["y"] - half, middle["y"] + half)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("first principal axis")
    axes.set_ylabel("second principal axis")
    dress(axes, "")
    figure.legend(
        loc="outside lower left" if narrow else "outside right center",
        ncols=2 if narrow else 1,
        frameon=False,
        labelcolor=TEXT,
        fontsize=8.5 if narrow else 7.5,
        handletextpad=0.2,
        labelspacing=0.35,
    )
    return figure


SECTION = RunSection(20, show, frozenset({FILE}))
