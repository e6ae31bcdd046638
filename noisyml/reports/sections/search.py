"""Searches: the best values, how the trials went, and which settings mattered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisyml.errors import UserError
from noisyml.reports import plots
from noisyml.reports.sections.base import Detail, Picture, TextTable, run_name
from noisyml.reports.tables import Column
from noisyml.runs.folder import RunFolder
from noisyml.runs.trials import PRUNED_STATE, RESULTS_FILE
from noisyml.storage.reading import read_json, reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ADVICE = "type the search again with its hydra.sweep.dir"
_COMPLETE = "complete"
#: Rows at most in the table of trials.
MOST_TRIALS = 100


@dataclass(frozen=True)
class _Trial:
    """One trial: its state, value of the objective (NaN if none), settings, values by epoch."""

    number: int
    state: str
    value: float
    params: dict[str, str]
    epochs: tuple[int, ...]
    reported: tuple[float, ...]


@dataclass(frozen=True)
class _Search:
    """A search as `noisyml.command.studies` wrote it."""

    objective: str
    maximize: bool
    on_test: bool
    sampler: str
    pruner: str
    n_trials: int
    importance: dict[str, float]
    trials: tuple[_Trial, ...]

    @classmethod
    def read(cls, file: Path) -> _Search:
        raw = read_json(file, _ADVICE)
        with reading(file, _ADVICE):
            return cls(
                objective=str(raw["objective"]),
                maximize=raw["direction"] == "maximize",
                on_test=bool(raw["on_test"]),
                sampler=str(raw["sampler"]),
                pruner=str(raw["pruner"]),
                n_trials=int(raw["n_trials"]),
                importance={str(k): float(v) for k, v in raw["importance"].items()},
                trials=tuple(_trial(trial) for trial in raw["trials"]),
            )

    def of_state(self, *states: str) -> list[_Trial]:
        """Trials with a value that ended so."""
        return [t for t in self.trials if t.state in states and np.isfinite(t.value)]

    @property
    def ranked(self) -> list[_Trial]:
        """Finished trials, the best first; of equal ones the first."""
        sign = -1 if self.maximize else 1
        return sorted(self.of_state(_COMPLETE), key=lambda trial: sign * trial.value)


def _trial(raw: dict[str, Any]) -> _Trial:
    reported = sorted((int(e), _number(v)) for e, v in raw["reported"].items())
    return _Trial(
        number=int(raw["number"]),
        state=str(raw["state"]),
        value=_number(raw["value"]),
        params={str(key): _text(value) for key, value in raw["params"].items()},
        epochs=tuple(epoch for epoch, _ in reported),
        reported=tuple(value for _, value in reported),
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def searches(folders: Sequence[RunFolder], unreadable: list[str]) -> list[Detail]:
    """Results of the searches whose trials are among several runs; none for a single run.

    Args:
        folders: of the runs.
        unreadable: receives sentences on files that are there and broken.
    """
    if len(folders) == 1:
        return []
    shown: list[Detail] = []
    for home in dict.fromkeys(folder.path.parent for folder in folders):
        if not (home / RESULTS_FILE).is_file():
            continue
        try:
            search = _Search.read(home / RESULTS_FILE)
        except UserError as error:
            unreadable.append(str(error))
            continue
        if search.ranked:
            shown.append(_shown(search, run_name(home), len(shown) + 1))
    return shown


def _shown(search: _Search, name: str, number: int) -> Detail:
    best = search.ranked[0]
    column = Column.of(search.objective)
    label = "CHOSEN ON TEST: " if search.on_test else ""
    goal = "highest" if search.maximize else "lowest"
    pruned = len(search.of_state(PRUNED_STATE))
    failed = sum(trial.state == "fail" for trial in search.trials)
    counts = [f"{len(search.ranked)} of {search.n_trials} trials finished"]
    counts += [f"{pruned} stopped early ({search.pruner})"] if pruned else []
    counts += [f"{failed} failed"] if failed else []
    caption = (
        f"{column.text(best.value)} in job {best.number}; {', '.join(counts)}; drawn by "
        f"{search.sampler}. The best of many trials is better than the same values would be on "
        f"fresh validation data."
    )
    tables = [
        TextTable(
            title="Best values",
            caption=caption,
            headings=("setting", "value"),
            rows=tuple(best.params.items()),
        )
    ]
    if search.importance:
        tables.append(
            TextTable(
                title="Which settings mattered",
                caption=(
                    f"Share of each in the variance of {search.objective} (fANOVA) over the "
                    f"{len(search.ranked)} trials that finished; rough with so few."
                ),
                headings=("setting", "share"),
                rows=tuple((key, f"{share:.2f}") for key, share in search.importance.items()),
            )
        )
    tables.append(_trial_table(search, column))
    pictures = [
        Picture(
            f"search_{number}",
            partial(_figure, search),
            f"{search.objective}: trial by trial with the best so far, and over epochs. Crosses "
            f"and faint lines: stopped early.",
        )
    ]
    title = f"{label}{goal} {search.objective}"
    return Detail(title=title, run=name, pictures=tuple(pictures), tables=tuple(tables))


def _trial_table(search: _Search, column: Column) -> TextTable:
    """Trials, the best finished ones first, then those stopped, the last to go on first."""
    sign = -1 if search.maximize else 1
    stopped = sorted(
        search.of_state(PRUNED_STATE), key=lambda trial: (-len(trial.epochs), sign * trial.value)
    )
    listed = [*search.ranked, *stopped]
    keys = list(dict.fromkeys(key for trial in listed for key in trial.params))
    rows = [
        (
            str(trial.number),
            "finished" if trial.state == _COMPLETE else trial.state,
            str(trial.epochs[-1]) if trial.epochs else "",
            column.text(trial.value),
            *(trial.params.get(key, "") for key in keys),
        )
        for trial in listed[:MOST_TRIALS]
    ]
    left = len(listed) - len(rows)
    return TextTable(
        title="Trials",
        caption=f"{left} more are left out." if left else "",
        headings=("job", "state", "epochs", search.objective, *keys),
        rows=tuple(rows),
    )


def _figure(search: _Search, *, narrow: bool = False) -> Figure:
    """Trials in their order, and their values over epochs where they have reported any."""
    curves = [trial for trial in search.trials if len(trial.epochs) > 1]
    panels = 2 if curves else 1
    width = plots.NARROW if narrow else plots.WIDTH if curves else 0.58 * plots.WIDTH
    figure = plots.new_figure(width, 2.9 * (panels if narrow else 1))
    shape = (panels, 1) if narrow else (1, panels)
    grid = figure.subplots(*shape, squeeze=False).flat
    _draw_history(grid[0], search)
    if curves:
        _draw_curves(grid[1], search, curves)
    return figure


def _draw_history(axes: Axes, search: _Search) -> None:
    colour = plots.PALETTE[0]
    finished, stopped = search.of_state(_COMPLETE), search.of_state(PRUNED_STATE)
    _scatter(axes, finished, "finished", marker="o", s=22, color=colour)
    if stopped:
        _scatter(axes, stopped, "stopped early", marker="x", s=20, color=plots.FAINT)
    values = np.array([trial.value for trial in finished])
    best = np.maximum.accumulate(values) if search.maximize else np.minimum.accumulate(values)
    places = [trial.number for trial in finished]
    last = max(trial.number for trial in search.trials)
    axes.step(
        [*places, last],
        [*best, best[-1]],
        where="post",
        color=plots.PALETTE[1],
        linewidth=1.4,
        label="best so far",
    )
    plots.dress(axes, "")
    _count_along(axes)
    axes.set_xlabel("trial")
    axes.set_ylabel(plots.plain(search.objective))
    axes.legend(frameon=False, labelcolor=plots.TEXT, fontsize=8.5)
    _cut_far_values(axes, search)


def _scatter(axes: Axes, trials: Sequence[_Trial], label: str, **style: Any) -> None:
    axes.scatter([t.number for t in trials], [t.value for t in trials], label=label, **style)


def _draw_curves(axes: Axes, search: _Search, curves: Sequence[_Trial]) -> None:
    best = search.ranked[0].number
    for trial in curves:
        stopped = trial.state != _COMPLETE
        top = trial.number == best
        axes.plot(
            trial.epochs,
            trial.reported,
            color=plots.PALETTE[1] if top else plots.FAINT if stopped else plots.PALETTE[0],
            linewidth=2.2 if top else 1.1,
            alpha=1.0 if top else 0.8,
            marker="x" if stopped else None,
            markevery=[-1] if stopped else None,
            markersize=5,
            zorder=3 if top else 2,
        )
    plots.dress(axes, "")
    _count_along(axes)
    axes.set_xlabel("epoch")
    axes.set_ylabel(plots.plain(search.objective))
    _cut_far_values(axes, search)


def _count_along(axes: Axes) -> None:
    """Ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _cut_far_values(axes: Axes, search: _Search) -> None:
    """Let an error that runs away leave the picture rather than flatten all others."""
    values = np.array([trial.value for trial in search.of_state(_COMPLETE, PRUNED_STATE)])
    first, third = np.quantile(values, (0.25, 0.75))
    reach = plots.FENCE * (third - first)
    low, high = axes.get_ylim()
    if reach > 0:
        axes.set_ylim(max(low, first - reach), min(high, third + reach))
