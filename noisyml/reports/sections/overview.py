"""Overview of the runs: summary, one line per run, all metrics of a single one."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from noisyml.reports.sections.base import ReportedRuns, RunLine, run_name
from noisyml.reports.settings import ABSENT, DESCRIBING, Settings, text_of, values_of
from noisyml.reports.tables import Column, metric_names


def summary(runs: ReportedRuns) -> str:
    """Number and kind of the runs in a sentence, or the parts of a single one."""
    total, done = len(runs.frame), sum(runs.finished)
    if total == 1:
        one = runs.frame.iloc[0]
        return " · ".join([*_choices(runs), f"seed {one['seed'] or ABSENT}", one["state"]])
    seeds = runs.frame["seed"].nunique()
    repeated = f"{seeds} {'seed' if seeds == 1 else 'seeds'}"
    counts = [len({group[i] for group in runs.groups}) for i in range(len(runs.keys))]
    if math.prod(counts) == len(runs.groups):
        pairs = zip(counts, runs.keys, strict=True)
        what = " × ".join([*(f"{count} {key}" for count, key in pairs), repeated])
    else:
        what = f"{len(runs.groups)} groups by {', '.join(runs.keys)}; {repeated}"
    states = f"{done} finished" if done < total else "all finished"
    return f"{total} runs ({states}): {what}."


def _choices(runs: ReportedRuns) -> list[str]:
    """Parts of a single run, group by group."""
    settings = [Settings.read(runs.folders[0])]
    named = [(key, values_of(key, settings)[0]) for key in DESCRIBING]
    return [f"{key} {text_of(value)}" for key, value in named if value != ABSENT]


def other_metrics(runs: ReportedRuns) -> tuple[tuple[str, str], ...]:
    """Name and value of every metric of a single run."""
    row = runs.frame.iloc[0]
    names = metric_names(runs.frame)
    return tuple(
        (name, Column.of(name, runs.frame.attrs["names"]).text(float(row[name]))) for name in names
    )


def run_lines(runs: ReportedRuns) -> list[RunLine]:
    """One line per run."""
    common = home([folder.path for folder in runs.folders])
    lines = []
    for position, (folder, group) in enumerate(zip(runs.folders, runs.group_of, strict=True)):
        row = runs.frame.iloc[position]
        inside = folder.path.resolve().relative_to(common.resolve())
        name = str(inside) if len(runs.folders) > 1 else run_name(folder.path)
        figures = tuple(
            c.text(float(row[c.metric])) if c.metric in row else ABSENT for c in runs.table.columns
        )
        seed = row["seed"] or ABSENT
        values = tuple(text_of(value) for value in group)
        lines.append(RunLine(name, str(row["state"]), str(row["problem"]), seed, values, figures))
    return lines


def default_title(runs: ReportedRuns) -> str:
    """Name of the folder that the runs have in common."""
    folders = [run.path.resolve() for run in runs.folders]
    common = Path(os.path.commonpath(folders))
    # A job's number or a time says nothing without the name of what was run.
    return run_name(common) if common.name[:1].isdigit() else common.name or "Runs"


def home(paths: Sequence[Path]) -> Path:
    """Folder for a report on these: the one given, or what they have in common."""
    if len(paths) == 1:
        return Path(paths[0])
    return Path(os.path.commonpath([Path(path).resolve() for path in paths]))
