"""The report: one self-contained page, a Markdown table and the plots as files."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd

from noisyml import __version__
from noisyml.errors import UserError
from noisyml.reports import plots
from noisyml.reports.artefacts import (
    BROKEN_IMAGES_FILE,
    Judgements,
    Unreadable,
    png_data_uri,
    read_broken_images,
    read_class_maps,
    read_embedding_map,
    read_environment,
    read_history,
    read_judgements,
    read_manifest,
    read_thumbnails,
)
from noisyml.reports.plots import Line, Panel
from noisyml.reports.provenance import (
    Fact,
    data_warnings,
    environment_facts,
    environment_warnings,
    rate_warnings,
    repetition_warnings,
    rerun_commands,
)
from noisyml.reports.settings import (
    ABSENT,
    DESCRIBING,
    Settings,
    decides_data,
    is_rate,
    values_of,
)
from noisyml.reports.tables import (
    FINISHED,
    Column,
    ResultTable,
    aggregate,
    group_order,
    load_runs,
    markdown_table,
    metric_names,
    result_table,
    text_of,
)
from noisyml.runs.folder import RunFolder
from noisyml.storage.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
Group = tuple[object, ...]

#: Groups shown with pictures of one run; a report on that run alone shows any other.
DETAILED_GROUPS = 6
PANELS_PER_ROW = 4
THUMBNAILS_OF_ONE, THUMBNAILS_OF_MANY = 60, 20
THUMBNAIL_PIXELS = 96
COMMANDS_SHOWN = 50
NAMES_SHOWN = 5


@dataclass(frozen=True)
class ReportPaths:
    """Files written by `write_report`."""

    html: Path
    markdown: Path
    plots: tuple[Path, ...]


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its PNG file and what it shows in words."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Thumb:
    """One thumbnail: picture, labels, and whether the label is right (None if unknown)."""

    source: str
    observed: str
    truth: str
    right: bool | None
    p_clean: str
    key: str


@dataclass(frozen=True)
class Detail:
    """Pictures of one run that stands for its group."""

    title: str
    run: str
    pictures: tuple[Picture, ...]
    thumbs: tuple[Thumb, ...]
    thumbs_caption: str


@dataclass(frozen=True)
class RunLine:
    """One run in the list of all runs."""

    name: str
    state: str
    problem: str
    seed: str
    values: tuple[str, ...]
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All that the page says."""

    title: str
    summary: str
    made: str
    notices: tuple[str, ...]
    unfinished: tuple[RunLine, ...]
    table: ResultTable
    across: tuple[Picture, ...]
    training: tuple[Picture, ...]
    trust: tuple[Picture, ...]
    details: tuple[Detail, ...]
    details_note: str
    runs: tuple[RunLine, ...]
    run_columns: tuple[Column, ...]
    commands: tuple[str, ...]
    environment: tuple[Fact, ...]
    other_metrics: tuple[tuple[str, str], ...] = ()
    config: str = ""

    @property
    def pictures(self) -> list[Picture]:
        """All figures in the order of the page."""
        detailed = [picture for detail in self.details for picture in detail.pictures]
        return [*self.across, *self.training, *self.trust, *detailed]

    @property
    def cards(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """The figures of a single run: per section of the table its labels and values."""
        cells = self.table.rows[0].cells
        pairs = [(c.label, cell.mean) for c, cell in zip(self.table.columns, cells, strict=True)]
        cards, start = [], 0
        for section, span in self.table.sections:
            cards.append((section, pairs[start : start + span]))
            start += span
        return cards

    @property
    def data_columns(self) -> list[int]:
        """Positions of the settings that are equal in all rows of a block of the table."""
        return [i for i, key in enumerate(self.table.keys) if decides_data(key)]

    @property
    def judged(self) -> bool:
        """True if a selector's judgements are shown."""
        pictures = [picture.name for detail in self.details for picture in detail.pictures]
        return bool(self.trust) or any(name.endswith("p_clean") for name in pictures)

    @property
    def open_detail(self) -> int:
        """Position of the detail to show unfolded: the first with thumbnails, else the first."""
        return next((i for i, detail in enumerate(self.details) if detail.thumbs), 0)

    @property
    def legend(self) -> str:
        """How to read the table."""
        return _LEGEND

    @property
    def single(self) -> bool:
        """True for a report on one run."""
        return len(self.runs) == 1


def build_report(
    paths: Sequence[Path],
    *,
    by: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    title: str | None = None,
) -> Report:
    """Read the runs at or below `paths` and draw everything the page shows.

    Args:
        paths: folders of runs or of sweeps.
        by: settings to group by in place of those found to differ.
        metrics: metrics of the table in place of the default ones.
        title: heading of the page; default: the name of the common folder.

    Raises:
        UserError: a folder is missing or holds no run, or `by` or `metrics` names nothing known.
    """
    runs = load_runs(paths, by)
    return _Builder(runs, result_table(runs, metrics)).report(title or _default_title(runs))


def render_html(report: Report) -> str:
    """The page as one HTML document that refers to nothing outside itself."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    return template.render(report=report, svg=plots.inline_svg, version=__version__)


def render_markdown(report: Report) -> str:
    """Title, notices, table and unfinished runs in Markdown; pictures by relative link."""
    parts = [f"# {_one_line(report.title)}", _one_line(report.summary)]
    if report.notices:
        parts.append("\n".join(f"- {_one_line(notice)}" for notice in report.notices))
    parts.append(markdown_table(report.table).rstrip())
    parts.append(_LEGEND)
    if report.unfinished:
        lines = [f"- {_one_line(f'{r.name}: {r.state}. {r.problem}')}" for r in report.unfinished]
        parts.append("## Runs without a result\n\n" + "\n".join(lines))
    shown = [f"![{_one_line(p.caption)}](plots/{p.name}.png)" for p in report.pictures]
    parts += [*shown, *(f"    {command}" for command in report.commands)]
    return "\n\n".join(parts) + "\n"


def write_report(
    paths: Sequence[Path],
    out: Path | None = None,
    *,
    by: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    title: str | None = None,
) -> ReportPaths:
    """Write ``report.html``, ``report.md`` and ``plots/*.png``.

    Args:
        paths: folders of runs or of sweeps.
        out: where to write; default: the run's folder, or the folder the runs have in common.
        by: settings to group by in place of those found to differ.
        metrics: metrics of the table in place of the default ones.
        title: heading of the page.

    Raises:
        UserError: a folder is missing or holds no run, `by` or `metrics` names nothing known, or
            the folder cannot be written.
    """
    return save_report(build_report(paths, by=by, metrics=metrics, title=title), out or home(paths))


def save_report(report: Report, folder: Path) -> ReportPaths:
    """Write a built report into `folder`.

    Raises:
        UserError: the folder cannot be written.
    """
    pictures = folder / "plots"
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        written = []
        for picture in report.pictures:
            written.append(pictures / f"{picture.name}.png")
            plots.save_png(picture.figure, written[-1])
        html, markdown = folder / "report.html", folder / "report.md"
        write_atomically(html, render_html(report))
        write_atomically(markdown, render_markdown(report))
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {folder} ({error.strerror}); choose another --out."
        ) from error
    return ReportPaths(html, markdown, tuple(written))


def home(paths: Sequence[Path]) -> Path:
    """Where a report on these folders belongs: in the one given, or in what they have in common."""
    if len(paths) == 1:
        return Path(paths[0])
    return Path(os.path.commonpath([Path(path).resolve() for path in paths]))


_LEGEND = (
    "Mean ± standard deviation over seeds (ddof 1), fractions of 1; bold: best of its column "
    "among rows with the same data and noise."
)

_CHOSEN_ON_TEST = (
    "Figures marked CHOSEN ON TEST use a checkpoint chosen on the test data: they are optimistic "
    "and compare with no others."
)


@dataclass
class _Builder:
    """Gathers a report from the table of runs; remembers what could not be read."""

    runs: pd.DataFrame
    table: ResultTable
    unreadable: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = list(self.table.keys)
        self.folders = [RunFolder(Path(path)) for path in self.runs["run"]]
        self.finished = (self.runs["state"] == FINISHED).tolist()
        self.groups: list[Group] = group_order(self.runs, self.keys)
        rows = self.runs[self.keys].itertuples(index=False, name=None)
        self.group_of: list[Group] = list(rows) if self.keys else [()] * len(self.runs)
        self.rate_key = next((k for k in self.keys if is_rate(k) and self._numeric(k)), None)
        self.lines_by = [key for key in self.keys if not decides_data(key)]
        # Where only the data vary, the data make the lines.
        self.facets_by = [key for key in self.keys if decides_data(key)] if self.lines_by else []
        self.lines_by = self.lines_by or self.keys
        self.order = list(dict.fromkeys(self._name(g, self.lines_by) for g in self.groups))

    def report(self, title: str) -> Report:
        """Everything the page says."""
        across = self._across()
        training = self._training()
        trust = self._trust_over_epochs()
        details, details_note = self._details()
        names = [self._name(group, self.keys) for group in self.group_of]
        environments = [self._read(read_environment, f) or {} for f in self.folders]
        facts = environment_facts(environments)
        lines = self._run_lines()
        notices = [
            *([_CHOSEN_ON_TEST] if self._chosen_on_test() else []),
            *environment_warnings(facts),
            *data_warnings(self.runs, lambda run: self._read(read_manifest, run)),
            *self._left_out(),
            *(repetition_warnings(self.runs, names) if len(self.runs) > 1 else []),
            *self._broken_images(),
            *rate_warnings(self.runs),
            *dict.fromkeys(self.unreadable),
        ]
        single = len(self.runs) == 1
        commands = rerun_commands(self.folders)
        if len(commands) > COMMANDS_SHOWN:
            left = len(commands) - COMMANDS_SHOWN
            commands = [*commands[:COMMANDS_SHOWN], f"# and {left} more"]
        return Report(
            title=title,
            summary=self._summary(),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            notices=tuple(notices),
            unfinished=tuple(line for line in lines if line.state != FINISHED),
            table=self.table,
            across=tuple(across),
            training=tuple(training),
            trust=tuple(trust),
            details=tuple(details),
            details_note=details_note,
            runs=tuple(lines),
            run_columns=self.table.columns,
            commands=tuple(commands),
            environment=tuple(facts),
            other_metrics=self._other_metrics() if single else (),
            config=self.folders[0].config_file.read_text() if single else "",
        )

    def _numeric(self, key: str) -> bool:
        values = {group[self.keys.index(key)] for group in self.groups}
        return len(values) > 1 and all(isinstance(value, int | float) for value in values)

    def _name(self, group: Group, keys: Sequence[str]) -> str:
        """A group by some of its settings: names stand alone, numbers with their setting."""
        parts = []
        for key in keys:
            value = group[self.keys.index(key)]
            number = isinstance(value, int | float) or value in ("true", "false", ABSENT)
            parts.append(f"{key}={text_of(value)}" if number else text_of(value))
        return ", ".join(parts)

    def _read(self, reader: Callable[[RunFolder], T], run: RunFolder) -> T | None:
        """What a reader finds in a run; what is broken becomes a notice on the page."""
        try:
            return reader(run)
        except Unreadable as error:
            self.unreadable.append(f"{_run_name(run.path)}: {error}")
            return None

    def _members(self, group: Group) -> list[RunFolder]:
        """The finished runs of a group."""
        rows = zip(self.folders, self.group_of, self.finished, strict=True)
        return [folder for folder, own, finished in rows if own == group and finished]

    def _summary(self) -> str:
        total, done = len(self.runs), sum(self.finished)
        if total == 1:
            one = self.runs.iloc[0]
            return " · ".join([*self._choices(), f"seed {one['seed'] or ABSENT}", one["state"]])
        seeds = self.runs["seed"].nunique()
        repeated = f"{seeds} {'seed' if seeds == 1 else 'seeds'}"
        counts = [len({group[i] for group in self.groups}) for i in range(len(self.keys))]
        if math.prod(counts) == len(self.groups):
            pairs = zip(counts, self.keys, strict=True)
            what = " × ".join([*(f"{count} {key}" for count, key in pairs), repeated])
        else:
            what = f"{len(self.groups)} groups by {', '.join(self.keys)}; {repeated}"
        states = f"{done} finished" if done < total else "all finished"
        return f"{total} runs ({states}): {what}."

    def _left_out(self) -> list[str]:
        """A sentence on runs that repeat a newer one and are left out."""
        names = [_run_name(Path(path)) for path in self.runs.attrs["left_out"]]
        if not names:
            return []
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        listed = ", ".join(names[:NAMES_SHOWN]) + more
        return [
            f"{len(names)} finished {'run was' if len(names) == 1 else 'runs were'} left out, "
            f"because a newer one has the same configuration and seed: {listed}."
        ]

    def _broken_images(self) -> list[str]:
        """A sentence on images that could not be decoded, per run or at most."""
        counts = [self._read(read_broken_images, run) or 0 for run in self.folders]
        most, concerned = max(counts), sum(count > 0 for count in counts)
        if not most:
            return []
        images = f"{most:,} {'image' if most == 1 else 'images'}"
        tail = (
            "could not be decoded and were left out"
            if most != 1
            else ("could not be decoded and was left out")
        )
        up_to = "Up to " if len({count for count in counts if count}) > 1 else ""
        where = f" in {concerned} of {len(counts)} runs" if len(counts) > 1 else ""
        return [
            f"{up_to}{images} {tail}{where}; {BROKEN_IMAGES_FILE} in the run folder lists them."
        ]

    def _choices(self) -> list[str]:
        """What a single run is made of, group by group."""
        settings = [Settings.read(self.folders[0])]
        named = [(key, values_of(key, settings)[0]) for key in DESCRIBING]
        return [f"{key} {text_of(value)}" for key, value in named if value != ABSENT]

    def _chosen_on_test(self) -> bool:
        return any(c.metric.startswith("chosen_on_test/") for c in self.table.columns)

    def _other_metrics(self) -> tuple[tuple[str, str], ...]:
        row = self.runs.iloc[0]
        names = metric_names(self.runs)
        return tuple((name, Column.of(name).text(float(row[name]))) for name in names)

    def _plotted(self) -> list[list[Column]]:
        """Columns worth a plot, one list per figure: test metrics, then trust in labels."""
        test = [c for c in self.table.columns if c.metric.startswith("test/")]
        trust = [
            c
            for c in self.table.columns
            if c.metric in ("selection/precision", "selection/recall", "selection/auroc")
        ]
        return [columns[:PANELS_PER_ROW] for columns in (test, trust) if columns]

    def _across(self) -> list[Picture]:
        """Metrics against the noise rate, or group by group where no rate varies."""
        if len(self.groups) < 2:
            return []
        metrics = [column.metric for columns in self._plotted() for column in columns]
        figures = aggregate(self.runs, self.keys, metrics)
        pictures = []
        for columns in self._plotted():
            what = "test" if columns[0].metric.startswith("test/") else "trust"
            if self.rate_key is None or not self._rate_varies(self.rate_key):
                pictures.append(self._by_group(columns, figures, what))
            else:
                pictures += self._by_rate(columns, figures, what, self.rate_key)
        return pictures

    def _rate_varies(self, rate_key: str) -> bool:
        """True if some runs differ in the noise rate alone, as far as their data go."""
        rest = [key for key in self.keys if decides_data(key) and key != rate_key]
        rates: dict[str, set[object]] = {}
        for group in self.groups:
            rates.setdefault(self._name(group, rest), set()).add(group[self.keys.index(rate_key)])
        return any(len(found) > 1 for found in rates.values())

    def _by_group(self, columns: Sequence[Column], figures: pd.DataFrame, what: str) -> Picture:
        labels = [self._name(group, self.keys) for group in self.groups]
        panels = []
        for column in columns:
            lines = [
                Line(
                    label,
                    np.zeros(1),
                    *(
                        figures[column.metric, s].to_numpy(float)[g : g + 1]
                        for s in ("mean", "std")
                    ),
                )
                for g, label in enumerate(labels)
            ]
            panels.append(Panel("", _axis_label(column.metric), "", tuple(lines)))
        caption = f"{_CAPTIONS[what]} by group; bars: one standard deviation over seeds."
        return Picture(f"{what}_by_group", plots.dots_figure(panels, labels), caption)

    def _by_rate(
        self, columns: Sequence[Column], figures: pd.DataFrame, what: str, rate_key: str
    ) -> list[Picture]:
        """Metrics over the noise rate: a panel each, or a figure each where lines would crowd."""
        lines_by = [key for key in self.lines_by if key != rate_key]
        panels_by = [key for key in self.facets_by if key != rate_key]
        crowded = len(self._labels(lines_by)) > len(plots.PALETTE) and len(lines_by) > 1
        if crowded:
            # The setting with most values gets panels, the others stay lines to compare in each.
            split = max(lines_by, key=lambda key: len(self._labels([key])))
            lines_by.remove(split)
            panels_by.append(split)
        grid = [
            [
                Panel(
                    facet,
                    "nominal noise rate",
                    _axis_label(column.metric),
                    self._lines_over(rate_key, column, figures, panels_by, facet, lines_by),
                )
                for column in columns
            ]
            for facet in self._labels(panels_by)
        ]
        grid = [row for row in grid if any(panel.lines for panel in row)]
        if not grid:
            return [self._by_group(columns, figures, what)]
        order = self._labels(lines_by)
        caption = f"{_CAPTIONS[what]} over noise rates; bands: one standard deviation over seeds."
        name = f"{what}_by_noise_rate"
        if not crowded:
            figure = plots.lines_figure(grid, order, markers=True, faceted=False)
            return [Picture(name, figure, caption)]
        return [
            Picture(
                f"{name}_{column.metric.rpartition('/')[2]}",
                plots.multiples_figure([row[c] for row in grid], order, PANELS_PER_ROW),
                f"{column.heading}. {caption}",
            )
            for c, column in enumerate(columns)
        ]

    def _labels(self, keys: Sequence[str]) -> list[str]:
        """What the groups are called by some of their settings, each name once."""
        return list(dict.fromkeys(self._name(group, keys) for group in self.groups))

    def _lines_over(
        self,
        rate_key: str,
        column: Column,
        figures: pd.DataFrame,
        panels_by: Sequence[str],
        facet: str,
        lines_by: Sequence[str],
    ) -> tuple[Line, ...]:
        """A metric over the noise rate for the groups of one panel."""
        rate = self.keys.index(rate_key)
        lines = []
        for label in self._labels(lines_by):
            at = [
                g
                for g, group in enumerate(self.groups)
                if self._name(group, panels_by) == facet
                and self._name(group, lines_by) == label
                and figures[column.metric, "n"].iloc[g] > 0
            ]
            if at:
                x = np.array([float(str(self.groups[g][rate])) for g in at])
                mean, std = (figures[column.metric, s].to_numpy(float)[at] for s in ("mean", "std"))
                lines.append(Line(label, x, mean, std))
        return tuple(lines)

    def _grids(
        self,
        metrics: dict[str, str],
        x_label: str,
        frames: dict[Group, list[pd.DataFrame]],
        name: str,
        caption: str,
    ) -> list[Picture]:
        """Curves of `metrics` (column: axis label): a row each, a column per data and noise."""
        facets_by, lines_by, order = self.facets_by, self.lines_by, self.order
        if not facets_by and len(lines_by) > 1 and len(order) > len(plots.PALETTE):
            # Too many for one panel: the last setting makes lines, those before it panels.
            facets_by, lines_by = lines_by[:-1], lines_by[-1:]
            order = self._labels(lines_by)
        facets: dict[str, list[Group]] = {}
        for group in self.groups:
            if frames.get(group):
                facets.setdefault(self._name(group, facets_by), []).append(group)
        grid = []
        for metric, label in metrics.items():
            row = []
            for facet, groups in facets.items():
                curves = [
                    plots.curve(frames[group], metric, self._name(group, lines_by))
                    for group in groups
                ]
                drawn = tuple(line for line in curves if line is not None)
                row.append(Panel(facet, x_label, label, drawn))
            if any(panel.lines for panel in row):
                grid.append(row)
        if not grid:
            return []
        faceted = len(facets) > 1
        if not faceted:
            grid = [[row[0] for row in grid]]
        starts = range(0, len(grid[0]), PANELS_PER_ROW)
        pictures = []
        for number, start in enumerate(starts, 1):
            part = [row[start : start + PANELS_PER_ROW] for row in grid]
            figure = plots.lines_figure(part, order, markers=False, faceted=faceted)
            suffix = f"_{number}" if len(starts) > 1 else ""
            pictures.append(Picture(f"{name}{suffix}", figure, caption))
        return pictures

    def _training(self) -> list[Picture]:
        """Training loss and validation metrics over steps."""
        frames = {}
        for group in self.groups:
            read = [self._read(read_history, run) for run in self._members(group)]
            frames[group] = [frame for frame in read if frame is not None]
        names = dict.fromkeys(str(n) for fs in frames.values() for f in fs for n in f.columns)
        metrics = {name: _axis_label(name) for name in _curve_metrics(list(names))}
        bands = "; bands: one standard deviation over seeds" if len(self.runs) > 1 else ""
        caption = (
            f"Training loss and validation over training steps{bands}. A loss that runs away "
            "leaves the picture."
        )
        return self._grids(metrics, "training step", frames, "training_curves", caption)

    def _trust_over_epochs(self) -> list[Picture]:
        """Share kept, precision and recall of the kept set over epochs."""
        frames = {}
        for group in self.groups:
            read = [self._read(read_judgements, run) for run in self._members(group)]
            frames[group] = [
                judged.by_epoch.rename(columns={"epoch": "step"})
                for judged in read
                if judged is not None
            ]
        if all((frame["kept"] == 1).all() for own in frames.values() for frame in own):
            return []
        metrics = {n: _axis_label(f"selection/{n}") for n in ("precision", "recall", "kept")}
        caption = "What the selector kept, epoch by epoch."
        if any("precision" in frame for own in frames.values() for frame in own):
            caption += (
                " Precision: share of right labels among those kept; recall: share of right labels "
                "that were kept."
            )
        return self._grids(metrics, "epoch", frames, "kept_set_by_epoch", caption)

    def _details(self) -> tuple[list[Detail], str]:
        """One run of each of the groups with most noise, complete blocks first."""
        able = [group for group in self.groups if self._members(group)]
        blocks: dict[str, list[Group]] = {}
        for group in able:
            blocks.setdefault(self._name(group, self.facets_by), []).append(group)
        chosen = [group for block in reversed(blocks.values()) for group in block]
        chosen = sorted(chosen[:DETAILED_GROUPS], key=self.groups.index)
        details = []
        for number, group in enumerate(chosen, 1):
            prefix = "" if len(self.groups) == 1 else f"group_{number}_"
            detail = self._detail(self._members(group)[0], self._name(group, self.keys), prefix)
            if detail.pictures or detail.thumbs:
                details.append(detail)
        left = len(able) - len(chosen)
        note = (
            f"One run of each of the {len(chosen)} groups with most noise, of {len(able)} groups; "
            "noisyml report RUN_DIR shows any other run."
            if left
            else ""
        )
        return details, note if details else ""

    def _detail(self, run: RunFolder, title: str, prefix: str) -> Detail:
        pictures = []
        judged = self._read(read_judgements, run)
        if judged is not None:
            picture = _trust_picture(judged, f"{prefix}p_clean")
            pictures += [picture] if picture else []
        table = self._read(read_embedding_map, run)
        if table is not None:
            caption = f"{len(table):,} test embeddings projected on their two principal axes."
            figure = plots.map_figure(table)
            pictures.append(Picture(f"{prefix}embedding_map", figure, caption))
        maps = self._read(read_class_maps, run)
        if maps is not None and len(maps):
            figure = plots.class_maps_figure(maps)
            pictures.append(Picture(f"{prefix}class_maps", figure, _CLASS_MAPS_CAPTION))
        limit = THUMBNAILS_OF_ONE if len(self.runs) == 1 else THUMBNAILS_OF_MANY
        thumbs, thumbs_caption = self._thumbs(run, limit)
        return Detail(title, _run_name(run.path), tuple(pictures), thumbs, thumbs_caption)

    def _thumbs(self, run: RunFolder, limit: int) -> tuple[tuple[Thumb, ...], str]:
        found = self._read(read_thumbnails, run)
        if found is None or len(found) == 0:
            return (), ""
        shown = min(limit, len(found))
        thumbs = tuple(
            Thumb(
                source=png_data_uri(found.images[i], THUMBNAIL_PIXELS),
                observed=str(found.observed_name[i]),
                truth=str(found.clean_name[i]) or "none of the classes",
                right=found.right[i],
                p_clean=f"{found.p_clean[i]:.3g}",
                key=str(found.key[i]),
            )
            for i in range(shown)
        )
        known = [thumb for thumb in thumbs if thumb.right is not None]
        caption = f"The {shown} training samples trusted least"
        if known:
            caption += f"; {sum(not t.right for t in known)} of them are indeed wrongly labelled"
        return thumbs, f"{caption}."

    def _run_lines(self) -> list[RunLine]:
        common = home([folder.path for folder in self.folders])
        lines = []
        for position, (folder, group) in enumerate(zip(self.folders, self.group_of, strict=True)):
            row = self.runs.iloc[position]
            inside = folder.path.resolve().relative_to(common.resolve())
            name = str(inside) if len(self.folders) > 1 else _run_name(folder.path)
            figures = tuple(
                c.text(float(row[c.metric])) if c.metric in row else ABSENT
                for c in self.table.columns
            )
            seed = row["seed"] or ABSENT
            values = tuple(text_of(value) for value in group)
            lines.append(
                RunLine(name, str(row["state"]), str(row["problem"]), seed, values, figures)
            )
        return lines


_CAPTIONS = {"test": "Test metrics of the last checkpoint", "trust": "Trust in labels"}

_CLASS_MAPS_CAPTION = (
    "Where the classifier looks in some training samples: class activation maps of the label given "
    "in the data and of the network's answer. Orange speaks for the class, blue against it, "
    "compared with the average of all classes; colours are as strong as the strongest of both maps."
)


def _trust_picture(judged: Judgements, name: str) -> Picture | None:
    last = judged.last
    scored = last[last["p_clean"].notna()]
    if scored["p_clean"].nunique() < 2:
        return None
    wrong = scored["wrong"].to_numpy() if judged.truth_known else None
    figure = plots.trust_figure(scored["p_clean"].clip(0, 1).to_numpy(), wrong)
    of = "entries (a class of a sample) of" if judged.entries else "of"
    caption = (
        f"Trust in each label (p_clean) as judged in the last epoch, "
        f"{len(scored):,} {of} {judged.samples:,} training samples."
    )
    return Picture(name, figure, caption)


def _curve_metrics(names: Sequence[str]) -> list[str]:
    """The training loss and up to two validation metrics among the columns of a history."""
    losses = [n for n in ("train/loss", "train/loss_epoch", "train/loss_step") if n in names]
    losses = losses or [n for n in names if n.startswith("train/") and "loss" in n]
    known = [f"val/{n}" for n in ("map_at_r", "precision_at_1", "accuracy", "map_macro")]
    validation = [n for n in known if n in names]
    validation = validation or [n for n in names if n.startswith("val/") and "loss" not in n]
    return [*losses[:1], *validation[:2]]


def _axis_label(metric: str) -> str:
    """A metric with its unit for an axis."""
    if "loss" in metric:
        return "training loss" if metric.startswith("train/") else metric
    unit = "seconds" if metric.startswith("time/") else "fraction"
    split, _, name = metric.partition("/")
    label = Column.of(f"test/{name}" if split == "val" else metric).label
    if split == "selection":
        words = {"auroc": "AUROC of p_clean", "kept": "share kept"}
        return f"{words.get(name, f'{label} of kept set')} ({unit})"
    if split == "val":
        label = f"validation {label.lower() if label.isalpha() and label.istitle() else label}"
    return f"{label} ({unit})"


def _run_name(path: Path) -> str:
    """A run by the last two parts of its folder: sweep and number, or name and time."""
    return "/".join(path.resolve().parts[-2:])


def _default_title(runs: pd.DataFrame) -> str:
    folders = [Path(path).resolve() for path in runs["run"]]
    common = Path(os.path.commonpath(folders))
    # A job's number or a time says nothing without the name of what was run.
    return _run_name(common) if common.name[:1].isdigit() else common.name or "Runs"


def _one_line(text: str) -> str:
    """Text as one line of Markdown without markup."""
    return re.sub(r"([<>\[\]`*|])", r"\\\1", " ".join(text.split()))
