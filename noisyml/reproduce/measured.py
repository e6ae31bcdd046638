"""Published figures with what was measured beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from noisyml.reports.provenance import short_commit
from noisyml.reports.statistics import Difference, mean_interval
from noisyml.reproduce.cells import Cell, Scale
from noisyml.reproduce.figures import UNITS, Figure, PublishedTable
from noisyml.reproduce.jobs import Job
from noisyml.runs.folder import RunFolder
from noisyml.storage.reading import DamagedFileError, read_json


@dataclass(frozen=True)
class Line:
    """One published figure beside the runs that repeat it.

    Attributes:
        number: of its row.
        figure: published.
        metric: name in ``metrics.json``, None where it is not measured.
        measured: mean over finished runs with its interval, in the published unit; None if none is.
        planned: runs in all.
        commits: of the finished runs.
        lacking: why it is not run, or empty.
    """

    number: int
    figure: Figure
    metric: str | None
    measured: Difference | None
    planned: int
    commits: tuple[str, ...]
    lacking: str

    @property
    def difference(self) -> float | None:
        """Measured less published, None where nothing was measured."""
        return None if self.measured is None else self.measured.mean - self.figure.value


@dataclass(frozen=True)
class Reproduction:
    """A table with its measured figures.

    Attributes:
        table: as published.
        scale: ``paper`` or ``desk``, where data and networks are other ones.
        lines: a figure each.
    """

    table: PublishedTable
    scale: Scale
    lines: tuple[Line, ...]


def measure(
    table: PublishedTable,
    scale: Scale,
    found: Sequence[Cell],
    jobs: Mapping[int, Sequence[Job]],
    runs: Path,
    lacking: Mapping[int, str],
) -> Reproduction:
    """The figures of cells beside their finished runs.

    Args:
        table: of the cells.
        scale: of the runs.
        found: cells to show.
        jobs: of each cell, by its number.
        runs: folder of all runs.
        lacking: why a cell that has words is not run here, by its number.
    """
    lines = []
    for cell in found:
        own = jobs.get(cell.number, ())
        finished = [job.folder(runs) for job in own if job.is_finished(runs)]
        metrics = [folder.metrics() for folder in finished]
        commits = tuple(dict.fromkeys(filter(None, map(_commit, finished))))
        for figure, metric in zip(cell.figures, cell.metrics, strict=True):
            factor = UNITS.get(figure.unit, 1.0)
            values = [
                m[metric] / factor for m in metrics if metric in m and math.isfinite(m[metric])
            ]
            why = cell.lacking or lacking.get(cell.number, "")
            if not why and metric is None:
                why = f"{figure.metric} is not measured"
            lines.append(
                Line(
                    number=cell.number,
                    figure=figure,
                    metric=metric,
                    measured=mean_interval(values) if values else None,
                    planned=len(own),
                    commits=commits,
                    lacking=why,
                )
            )
    return Reproduction(table, scale, tuple(lines))


def _commit(folder: RunFolder) -> str | None:
    """The commit of a run, short; None where it is not known."""
    file = folder.environment_file
    try:
        commit = read_json(file, "").get("commit") if file.is_file() else None
    except DamagedFileError:
        return None
    return short_commit(str(commit)) if commit else None
