"""Map of training embeddings by what is known of them: old and new classes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from noisyml.reports.artefacts import read_table
from noisyml.reports.sections.artefacts.embedding_map import map_figure
from noisyml.reports.sections.base import Picture, RunSection
from noisyml.runs.folder import RunFolder

FILE = "discovery_map.parquet"


def show(run: RunFolder, alone: bool) -> Iterator[Picture]:
    """A figure of the map, if the run has one."""
    table = read_table(run.path / FILE, ["x", "y", "label", "label_name"])
    if table is None or table.empty:
        return
    caption = f"{len(table):,} training embeddings on their two principal axes, by kind of class."
    yield Picture("discovery_map", partial(map_figure, table), caption)


SECTION = RunSection(21, show, frozenset({FILE}))
