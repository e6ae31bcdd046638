"""Overview of the runs: summary, one line per run, all metrics of a single one."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from noisyml.reports.sections.base import CellNote, Group, ReportedRuns, RunLine, run_name
from noisyml.reports.settings import ABSENT, DESCRIBING, Settings, text_of, values_of
from noisyml.reports.statistics import CONFIDENCE, mean_interval
from noisyml.reports.tables import Column, metric_names

#: Seeds whose figures stand beside a mean.
SEEDS_SHOWN = 12


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
    columns = runs.table.columns
    common = home([folder.path for folder in runs.folders])
    lines = []
    for position, (folder, group) in enumerate(zip(runs.folders, runs.group_of, strict=True)):
        row = runs.frame.iloc[position]
        inside = folder.path.resolve().relative_to(common.resolve())
        name = str(inside) if len(runs.folders) > 1 else run_name(folder.path)
        numbers = [float(row[c.metric]) if c.metric in row else math.nan for c in columns]
        figures = tuple(c.text(value) for c, value in zip(columns, numbers, strict=True))
        notes = tuple(CellNote(exact, exact) for exact in map(_exact, numbers))
        seed = row["seed"] or ABSENT
        values = tuple(text_of(value) for value in group)
        state, problem = str(row["state"]), str(row["problem"])
        lines.append(RunLine(name, state, problem, seed, values, figures, notes))
    return lines


def cell_notes(runs: ReportedRuns) -> list[tuple[CellNote, ...]]:
    """Of every figure of the table of results the mean in full, its interval, and each seed's."""
    return [
        tuple(_note(runs, group, column) for column in runs.table.columns) for group in runs.groups
    ]


def _note(runs: ReportedRuns, group: Group, column: Column) -> CellNote:
    if column.metric not in runs.frame:
        return CellNote("", "no run has it")
    told = zip(runs.group_of, runs.finished, strict=True)
    mine = [own == group and finished for own, finished in told]
    values = runs.frame.loc[mine, ["seed", column.metric]].dropna()
    if values.empty:
        return CellNote("", "no run has it")
    numbers = values[column.metric].astype(float)
    lines = [f"{column.heading} ({column.metric})", f"mean {_exact(numbers.mean())}"]
    if len(numbers) > 1:
        found = mean_interval(numbers.to_numpy())
        ends = f"{_exact(found.low)} to {_exact(found.high)}"
        lines.append(f"{CONFIDENCE:.0%} interval {ends} (Student's t, {len(numbers)} runs)")
    shown = list(zip(values["seed"], numbers, strict=True))[:SEEDS_SHOWN]
    lines += [f"seed {seed or ABSENT}: {_exact(value)}" for seed, value in shown]
    if len(numbers) > SEEDS_SHOWN:
        lines.append(f"and {len(numbers) - SEEDS_SHOWN} more")
    return CellNote(_exact(numbers.mean()), "\n".join(lines))


def _exact(value: float) -> str:
    """A number with all the digits that could matter; empty for none."""
    return f"{value:.6g}" if math.isfinite(value) else ""


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
