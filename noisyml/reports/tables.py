"""Runs as a table: one row per run, then one row per group of seeds."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from noisyml.errors import UserError
from noisyml.reports.settings import (
    ABSENT,
    Settings,
    decides_data,
    group_name,
    is_rate,
    repetitions,
    same_runs,
    shared_settings,
    text_of,
    values_of,
    varied_keys,
)
from noisyml.runs.folder import RunFolder, find_runs
from noisyml.runs.metric_names import COSTS, MetricNames
from noisyml.storage.reading import DamagedFileError, reading

FINISHED = "finished"

#: Columns of `load_runs` that are neither a setting nor a metric.
FACTS = ("run", "state", "problem", "seed")

_METRIC = re.compile(
    r"(?:(?P<choice>.+)/)?(?P<split>test|val|train|selection|time|memory|noise)/(?P<name>.+)"
)

#: How a checkpoint was chosen (the prefix of a metric's name), in words.
CHOICES = {
    "": "last checkpoint",
    "best": "best on validation",
    "mean_last": "mean of the last epochs",
    "chosen_on_test": "CHOSEN ON TEST",
}

#: Names in runs that were made before a run wrote down its own.
KNOWN_NAMES = MetricNames(
    {
        "precision_at_1": "P@1",
        "r_precision": "R-Precision",
        "map_at_r": "MAP@R",
        "accuracy": "Accuracy",
        "accuracy_top5": "Top-5 acc.",
        "accuracy_topK": "Top-K acc.",
        "map_macro": "mAP macro",
        "map_micro": "mAP micro",
        "f1_macro": "F1 macro",
        "f1_micro": "F1 micro",
        "f1_weighted": "F1 weighted",
        "f1_samples": "F1 samples",
        "lrap": "LRAP",
        "nmi": "NMI",
        "recall_at_K": "R@K",
        "precision_at_K": "P@K",
    },
    frozenset({"coverage", "hamming", "one_error", "nll", "ranking_loss"}),
)

_OTHER_LABELS = {
    "noise/nominal_rate": "nominal",
    "noise/actual_rate": "realised",
    "noise/added_rate": "added",
    "noise/removed_rate": "removed",
    "selection/kept": "share",
    "selection/precision": "precision",
    "selection/recall": "recall",
    "selection/recall_min_class": "recall, worst class",
    "selection/excluded_precision": "left out: truly wrong",
    "selection/excluded_recall": "wrong: left out",
    "selection/suspected_precision": "left out: right suspect",
    "selection/auroc": "AUROC",
    "selection/average_precision": "wrong: average precision",
    "selection/fnr_at_budget": "wrong: missed at budget",
    "selection/precision_at_100": "wrong: of the first 100",
    "time/step_seconds": "s / step",
    "time/train_seconds": "training s",
    "time/processor_seconds": "processor s",
    "time/samples_per_second": "samples / s",
    "memory/peak_mib": "peak MiB",
    "memory/peak_device_mib": "peak MiB, GPU",
}

_SECTIONS = {
    "noise": "Noise rate",
    "selection": "Kept set",
    "time": "Time",
    "memory": "Memory",
    "val": "Validation",
    "train": "Training",
}

#: At most so many test metrics per checkpoint choice in the default table.
TEST_COLUMNS = 4

#: At most so many settings stand in columns before the results.
LEADING_KEYS = 3

#: Two groups differ if their seeds would lie so far apart by chance once in so many times.
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Column:
    """One metric as a column of a table.

    Attributes:
        metric: its name in ``metrics.json``.
        section: heading shared by neighbouring columns; tells how the checkpoint was chosen.
        label: its short name.
        lower_is_better: True for times, losses and errors.
    """

    metric: str
    section: str
    label: str
    lower_is_better: bool = False

    @classmethod
    def of(cls, metric: str, names: MetricNames = KNOWN_NAMES) -> Column:
        """The column of a metric.

        Args:
            metric: its name in ``metrics.json``.
            names: short names of test metrics.
        """
        match = _METRIC.fullmatch(metric)
        if match is None:
            return cls(metric, "Other", metric)
        choice, split, name = match["choice"] or "", match["split"], match["name"]
        label = _OTHER_LABELS.get(f"{split}/{name}") or _test_label(name, names)
        section = _SECTIONS.get(split, f"Test, {CHOICES.get(choice, choice)}")
        if choice and split != "test":
            section = f"{section}, {CHOICES.get(choice, choice)}"
        measure = name.rpartition("/")[2]
        error = "loss" in measure or measure.startswith("fnr_")
        cost = split in ("time", "memory") and not measure.endswith("per_second")
        lower = cost or error or measure in names.lower_is_better
        return cls(metric, section, label, lower)

    @property
    def heading(self) -> str:
        """Section and label in one, for tables with one heading row."""
        if self.section.startswith("Test, "):
            choice = self.section.removeprefix("Test, ")
            return f"{self.label} ({choice.removesuffix(' checkpoint')})"
        return f"{self.section}: {self.label}"

    @property
    def has_a_best(self) -> bool:
        """False for columns that describe and do not rank."""
        return not self.metric.startswith("noise/") and self.metric != "selection/kept"

    def text(self, value: float) -> str:
        """A value with the digits that mean something; a dash where there is none."""
        if not math.isfinite(value):
            return ABSENT
        if self.metric.endswith("/epoch"):
            return f"{value:.0f}"
        if self.metric.startswith(COSTS):
            return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
        if self.metric.startswith(("noise/", "selection/")):
            return f"{value:.3f}"
        return f"{value:.4f}"


@dataclass(frozen=True)
class Cell:
    """One aggregated figure: texts ready to print.

    Attributes:
        mean: mean over seeds, or the value of a single one; a dash if missing.
        std: standard deviation over seeds (ddof 1), empty for fewer than two.
        best: printed in bold, see `_stand_out`.
    """

    mean: str
    std: str
    best: bool

    def __str__(self) -> str:
        return f"{self.mean} ± {self.std}" if self.std else self.mean


@dataclass(frozen=True)
class Row:
    """One group of runs that differ in nothing but their seed.

    Attributes:
        name: of the group, by its settings.
        values: values of the varied settings, as text.
        runs: how many finished, e.g. ``3`` or ``2 of 3``.
        cells: one per column.
        block: number of the block of rows with the same data and noise.
    """

    name: str
    values: tuple[str, ...]
    runs: str
    cells: tuple[Cell, ...]
    block: int


@dataclass(frozen=True)
class ResultTable:
    """The table of results, ready for HTML, Markdown, LaTeX, CSV or the terminal.

    Attributes:
        keys: settings that differ between rows.
        columns: metrics.
        rows: groups of runs.
        constant: settings that all rows share, with their values.
    """

    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    constant: tuple[tuple[str, str], ...] = ()

    @property
    def results_first(self) -> bool:
        """True if the settings are so many that the results would stand far to the right."""
        return len(self.keys) > LEADING_KEYS

    @property
    def sections(self) -> list[tuple[str, int]]:
        """Headings over neighbouring columns and how many columns each spans."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and spans[-1][0] == column.section:
                spans[-1] = (column.section, spans[-1][1] + 1)
            else:
                spans.append((column.section, 1))
        return spans


def load_runs(
    paths: Path | str | Sequence[Path | str], by: Sequence[str] | None = None
) -> pd.DataFrame:
    """One row per run found at or below `paths`.

    Columns: ``run`` (folder), ``state``, ``problem`` (why there are no figures, or empty),
    ``seed`` (text, empty if none), the varied settings, and every metric of ``metrics.json``.
    ``attrs["varied"]`` names the varied settings, ``attrs["constant"]`` has the typed ones and the
    main parts that all runs share, with their values. Of finished runs with equal configuration and
    seed only the newest has a row; ``attrs["left_out"]`` lists the folders of the others,
    ``attrs["names"]`` has the short names of test metrics.

    Args:
        paths: folders of runs or of sweeps, or a single one.
        by: settings (dotted keys) to group by in place of those found to differ.

    Raises:
        UserError: a folder is missing or holds no run, a config cannot be read, or no run has a
            setting named in `by`.
    """
    several = [paths] if isinstance(paths, Path | str) else paths
    folders = find_runs([Path(path) for path in several])
    settings = [_settings(run) for run in folders]
    outcomes = [_outcome(run) for run in folders]
    kept = _newest(folders, settings, [state for state, _, _ in outcomes])
    left_out = [str(run.path) for position, run in enumerate(folders) if position not in kept]
    folders = [folders[i] for i in kept]
    settings = [settings[i] for i in kept]
    outcomes = [outcomes[i] for i in kept]
    keys = varied_keys(settings) if by is None else list(by)
    values = {key: values_of(key, settings) for key in keys}
    for key, column in values.items():
        if all(value == ABSENT for value in column):
            raise UserError(
                f"No run has a setting '{key}' to group by; config.yaml in a run folder lists them."
            )
    seeds = repetitions(settings)
    rows = []
    for position, run in enumerate(folders):
        state, problem, metrics = outcomes[position]
        facts = {"run": str(run.path), "state": state, "problem": problem}
        chosen = {key: values[key][position] for key in keys}
        rows.append({**facts, "seed": seeds[position], **chosen, **metrics})
    frame = pd.DataFrame(rows)
    frame.attrs["varied"] = keys
    frame.attrs["constant"] = {
        key: value for key, value in shared_settings(settings).items() if key not in keys
    }
    frame.attrs["left_out"] = left_out
    frame.attrs["names"] = _names(folders)
    return frame


def metric_names(runs: pd.DataFrame) -> list[str]:
    """The metrics among the columns of `load_runs` for which at least one run has a value.

    Test metrics are among them that no run could compute: a table says so by dashes.
    """
    settings = {*FACTS, *runs.attrs["varied"]}
    names = [str(name) for name in runs.columns if name not in settings]
    return [name for name in names if "test/" in name or runs[name].notna().any()]


def group_order(runs: pd.DataFrame, by: Sequence[str]) -> list[tuple[Any, ...]]:
    """The groups of runs: sorted by what decides the data, then as they were first met."""
    met = list(dict.fromkeys(_tuples(runs, by)))
    ranks = [_ranks([group[i] for group in met]) for i in range(len(by))]
    order = sorted(range(len(met)), key=lambda g: tuple(rank[g] for rank in ranks))
    return [met[g] for g in order]


def aggregate(
    runs: pd.DataFrame, by: Sequence[str] | None = None, metrics: Sequence[str] | None = None
) -> pd.DataFrame:
    """Mean, standard deviation (ddof 1) and number of finished runs of every metric per group.

    Args:
        runs: what `load_runs` returned.
        by: settings to group by; default: those that vary.
        metrics: metrics to aggregate; default: all.

    Returns:
        One row per group in the order of `group_order` (a group without finished runs has n = 0);
        columns are pairs (metric, ``mean`` | ``std`` | ``n``).
    """
    by = list(runs.attrs["varied"] if by is None else by)
    metrics = list(metric_names(runs) if metrics is None else metrics)
    groups = group_order(runs, by)
    place = {group: position for position, group in enumerate(groups)}
    member = np.array([place[group] for group in _tuples(runs, by)])
    finished = (runs["state"] == FINISHED).to_numpy()
    columns: dict[tuple[str, str], pd.Series] = {}
    for metric in metrics:
        values = runs[metric] if metric in runs else pd.Series(np.nan, index=runs.index)
        grouped = values.astype(float)[finished].groupby(member[finished])
        for statistic, series in (("mean", grouped.mean()), ("std", grouped.std(ddof=1))):
            columns[metric, statistic] = series.reindex(range(len(groups)))
        columns[metric, "n"] = grouped.count().reindex(range(len(groups)), fill_value=0)
    frame = pd.DataFrame(columns, index=range(len(groups)))
    if by:
        frame.index = pd.MultiIndex.from_tuples(groups, names=by)
    return frame


def choose_columns(runs: pd.DataFrame, metrics: Sequence[str] | None = None) -> list[Column]:
    """The columns of the table of results.

    Args:
        runs: what `load_runs` returned.
        metrics: names as in ``metrics.json``; a name without ``/`` means ``test/<name>`` and the
            same metric under every other choice of checkpoint. Default: noise rates, test metrics
            by choice of checkpoint, trust in labels, seconds per step, where any run has them.

    Raises:
        UserError: no run has a metric asked for.
    """
    present, names = metric_names(runs), runs.attrs["names"]
    if metrics is not None:
        return [Column.of(name, names) for wanted in metrics for name in _matching(wanted, present)]
    varies_rate = any(is_rate(key) for key in runs.attrs["varied"])
    noise = ["noise/actual_rate"] if varies_rate else ["noise/nominal_rate", "noise/actual_rate"]
    noise += ["noise/added_rate", "noise/removed_rate"]
    selection = [f"selection/{name}" for name in ("kept", "precision", "recall", "auroc")]
    costs = ["time/step_seconds", "time/processor_seconds", "memory/peak_mib"]
    wanted = [*noise, *default_test_metrics(present, names), *selection, *costs]
    return [Column.of(name, names) for name in wanted if name in present]


def result_table(runs: pd.DataFrame, metrics: Sequence[str] | None = None) -> ResultTable:
    """The table of results of `load_runs`, one row per group of seeds.

    Raises:
        UserError: no run has a metric asked for.
    """
    varied = list(runs.attrs["varied"])
    by = [key for key in varied if runs[key].nunique(dropna=False) > 1]
    shared = {key: runs[key].iloc[0] for key in varied if key not in by}
    columns = choose_columns(runs, metrics)
    figures = aggregate(runs, by, [column.metric for column in columns])
    groups = group_order(runs, by)
    data_keys = [i for i, key in enumerate(by) if decides_data(key)]
    blocks = [tuple(group[i] for i in data_keys) for group in groups]
    numbers = {block: number for number, block in enumerate(dict.fromkeys(blocks))}
    block_of = np.array([numbers[block] for block in blocks])
    kept_all = _keeps_everything(runs, by)
    bold = {column.metric: _stand_out(column, figures, block_of, kept_all) for column in columns}
    total, done = _counts(runs, by, groups)
    rows = []
    for g, group in enumerate(groups):
        cells = []
        for column in columns:
            mean, std = (float(figures[column.metric, s].iloc[g]) for s in ("mean", "std"))
            text = column.text(mean)
            decimals = len(text.partition(".")[2])
            spread = f"{std:.{decimals}f}" if math.isfinite(std) else ""
            cells.append(Cell(text, spread, bool(bold[column.metric][g])))
        count = str(done[g]) if done[g] == total[g] else f"{done[g]} of {total[g]}"
        values = tuple(text_of(value) for value in group)
        name = group_name(by, group)
        rows.append(Row(name, values, count, tuple(cells), int(block_of[g])))
    constant = {**runs.attrs["constant"], **shared}
    named = tuple((key, text_of(value)) for key, value in constant.items())
    return ResultTable(tuple(by), tuple(columns), tuple(rows), named)


def _settings(run: RunFolder) -> Settings:
    with reading(run.config_file, "mend it or leave this run out"):
        return Settings.read(run)


def _newest(
    folders: Sequence[RunFolder], settings: Sequence[Settings], states: Sequence[str]
) -> list[int]:
    """Positions of all runs but those of which a newer finished run is a repetition."""
    newest: dict[int, int] = {}
    numbers = same_runs(settings)
    for position in range(len(folders)):
        if states[position] == FINISHED:
            other = newest.setdefault(numbers[position], position)
            if _ended(folders[position]) > _ended(folders[other]):
                newest[numbers[position]] = position
    chosen = set(newest.values())
    return [i for i in range(len(folders)) if states[i] != FINISHED or i in chosen]


def _ended(run: RunFolder) -> float:
    """End of a finished run, in seconds since 1970."""
    ended = run.status().get("ended")
    return float(ended) if isinstance(ended, int | float) else run.metrics_file.stat().st_mtime


def _outcome(run: RunFolder) -> tuple[str, str, dict[str, float]]:
    """State, what is wrong with it in words, and the metrics of a finished run."""
    try:
        status = run.status()
    except DamagedFileError as error:
        return "unreadable", f"status.json is broken: {error.reason}", {}
    state = str(status.get("state", FINISHED if run.metrics_file.is_file() else "unknown"))
    if state != FINISHED:
        reason = next((str(status[k]) for k in ("error", "reason", "message") if k in status), "")
        if state == "interrupted":
            advice = f"continue with {shlex.join(['noisyml', 'train', f'resume={run.path}'])}"
            return state, f"{reason.rstrip('.')}; {advice}" if reason else f"C{advice[1:]}", {}
        return state, reason or _UNFINISHED.get(state, "No result was written."), {}
    if not run.metrics_file.is_file():
        return "incomplete", "metrics.json is missing.", {}
    try:
        return FINISHED, "", run.metrics()
    except DamagedFileError as error:
        return "unreadable", f"metrics.json is broken: {error.reason}", {}


def _names(folders: Sequence[RunFolder]) -> MetricNames:
    """Short names of the metrics of all runs; a damaged file of them is as none."""
    names = MetricNames()
    for run in folders:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            names = names.joined(MetricNames.read(run.metric_names_file))
    return names.joined(KNOWN_NAMES)


_UNFINISHED = {
    "running": "Still running, or killed before it could say so.",
    "failed": "Stopped by an error.",
    "unknown": "Neither status.json nor metrics.json was written.",
}


def _test_label(name: str, names: MetricNames) -> str:
    test_set, _, metric = name.rpartition("/")
    label = names.label(metric)
    if label is None:
        return name
    return f"{test_set}: {label}" if test_set else label


def default_test_metrics(present: Sequence[str], names: MetricNames = KNOWN_NAMES) -> list[str]:
    """Test metrics by choice of checkpoint and test set, the same ones under each choice.

    Those that `names` has, in its order, at most `TEST_COLUMNS` of a test set; others if it has
    none.
    """
    by_choice: dict[str, list[str]] = {}
    for metric in present:
        match = _METRIC.fullmatch(metric)
        if match and match["split"] == "test" and "loss" not in match["name"]:
            by_choice.setdefault(match["choice"] or "", []).append(match["name"])
    found = list(dict.fromkeys(name for group in by_choice.values() for name in group))
    known: list[str] = []
    for test_set in sorted({name.rpartition("/")[0] for name in found}):
        places = {
            name: names.place(name.rpartition("/")[2])
            for name in found
            if name.rpartition("/")[0] == test_set
        }
        named = sorted((place, name) for name, place in places.items() if place is not None)
        known += [name for _, name in named][:TEST_COLUMNS]
    shown = known or found[:TEST_COLUMNS]
    order = sorted(by_choice, key=lambda c: (list(CHOICES).index(c) if c in CHOICES else 9, c))
    prefixes = [f"{choice}/" if choice else "" for choice in order]
    return [f"{prefix}test/{name}" for prefix in prefixes for name in shown]


def _matching(wanted: str, present: Sequence[str]) -> list[str]:
    exact = [name for name in present if name == wanted]
    suffix = f"test/{wanted}"
    bare = [name for name in present if name == suffix or name.endswith(f"/{suffix}")]
    found = exact or bare
    if not found:
        listed = ", ".join(present) or "none"
        raise UserError(f"No finished run has a metric '{wanted}'; there are: {listed}.")
    return sorted(found, key=lambda name: name != suffix)


def _tuples(runs: pd.DataFrame, by: Sequence[str]) -> list[tuple[Any, ...]]:
    if not by:
        return [()] * len(runs)
    return list(zip(*(runs[key].tolist() for key in by), strict=True))


def _ranks(values: Sequence[Any]) -> list[int]:
    """Place of each value in a sensible order: numbers ascending, other values as first met."""
    unique = list(dict.fromkeys(values))
    numbers = sorted(value for value in unique if isinstance(value, int | float))
    others = [value for value in unique if not isinstance(value, int | float)]
    place = {value: rank for rank, value in enumerate([*numbers, *others])}
    return [place[value] for value in values]


def _counts(
    runs: pd.DataFrame, by: Sequence[str], groups: Sequence[tuple[Any, ...]]
) -> tuple[list[int], list[int]]:
    members = _tuples(runs, by)
    finished = [
        group for group, state in zip(members, runs["state"], strict=True) if state == FINISHED
    ]
    return [members.count(g) for g in groups], [finished.count(g) for g in groups]


def _keeps_everything(runs: pd.DataFrame, by: Sequence[str]) -> np.ndarray:
    """[groups] bool: groups that reject nothing, whose recall of 1 is no achievement."""
    kept = aggregate(runs, by, ["selection/kept"])["selection/kept", "mean"].to_numpy(float)
    return kept >= 1.0


def _stand_out(
    column: Column, figures: pd.DataFrame, block_of: np.ndarray, kept_all: np.ndarray
) -> np.ndarray:
    """[groups] bool: the figures of a column that are printed in bold.

    Among rows with the same data and noise, the best mean over seeds and those that the seeds do
    not tell from it (Welch's t-test at `SIGNIFICANCE`, or the same printed digits). None where
    that is all of them, and none where a row with a single seed has a better figure: one seed
    says nothing about the next.
    """
    bold = np.zeros(len(figures), dtype=bool)
    if not column.has_a_best:
        return bold
    mean, std, n = (figures[column.metric, s].to_numpy(float) for s in ("mean", "std", "n"))
    goodness = np.where(np.isfinite(mean), -mean if column.lower_is_better else mean, -np.inf)
    if column.metric == "selection/recall":
        goodness[kept_all] = -np.inf
    repeated = np.isfinite(goodness) & (n > 1)
    for block in np.unique(block_of):
        inside = np.flatnonzero((block_of == block) & np.isfinite(goodness))
        rivals = inside[repeated[inside]]
        if not len(rivals) or goodness[rivals].max() < goodness[inside].max():
            continue
        best = rivals[goodness[rivals].argmax()]
        level = [
            column.text(mean[best]) == column.text(mean[other])
            or not _differ(mean[[best, other]], std[[best, other]], n[[best, other]])
            for other in rivals
        ]
        if not all(level):
            bold[rivals[level]] = True
    return bold


def _differ(mean: np.ndarray, std: np.ndarray, n: np.ndarray) -> bool:
    """True if the seeds of two groups [2], two each at least, tell their means apart."""
    from scipy.special import stdtr

    parts = std**2 / n
    if not parts.any():
        return True
    freedom = parts.sum() ** 2 / (parts**2 / (n - 1)).sum()
    statistic = abs(mean[0] - mean[1]) / math.sqrt(parts.sum())
    return bool(2 * stdtr(freedom, -statistic) < SIGNIFICANCE)
