"""Elements of a page, and the runs that its sections are about."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import pandas as pd

from noisyml.reports import plots
from noisyml.reports.artefacts import Unreadable
from noisyml.reports.fonts import make_writable
from noisyml.reports.plots import Panel
from noisyml.reports.settings import decides_data, group_name, is_rate
from noisyml.reports.tables import FINISHED, Column, ResultTable, group_order
from noisyml.runs.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")
Group = tuple[object, ...]

PANELS_PER_ROW = 4
SMALLEST_SHARE = 1e-4


@dataclass(frozen=True)
class Picture:
    """A figure that is drawn when it is first asked for.

    Attributes:
        name: of its PNG file.
        draw: makes it; with ``narrow=True`` for a narrow screen.
        caption: what it shows.
        curves: what the page tells about the point under the pointer, see `plots.hover_text`; empty
            for pictures of something else than curves.
    """

    name: str
    draw: Callable[..., Figure]
    caption: str
    curves: str = ""

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {}

    @functools.cached_property
    def figure(self) -> Figure:
        """The figure for paper and wide screens."""
        figure = self.draw()
        make_writable(figure, self._numbers)
        return figure

    @functools.cached_property
    def narrow(self) -> Figure:
        """The same for narrow screens."""
        numbers = dict(self._numbers) if self.figure else {}
        figure = self.draw(narrow=True)
        make_writable(figure, numbers)
        return figure

    @property
    def named(self) -> str:
        """The names that stand as numbers in it, in a sentence; empty if there are none."""
        if not self.figure or not self._numbers:
            return ""
        pairs = ", ".join(f"[{number}] {name}" for name, number in self._numbers.items())
        return f"In the picture: {pairs}."


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
class Thumbs:
    """Thumbnails of samples with their caption."""

    thumbs: tuple[Thumb, ...]
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Pictures with a line of text each.

    Attributes:
        title: heading.
        caption: under the heading, perhaps empty.
        pictures: pairs of a ``data:`` URI and a text.
    """

    title: str
    caption: str
    pictures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TextTable:
    """A plain table of texts.

    Attributes:
        title: heading.
        caption: under the heading, perhaps empty.
        headings: one per column.
        rows: texts by row and column.
    """

    title: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Element: TypeAlias = Picture | Thumbs | Gallery | TextTable


@dataclass(frozen=True)
class RunSection:
    """Part of a report that shows something of one run.

    A module of `noisyml.reports.sections.artefacts` with a ``SECTION`` is on every page.

    Attributes:
        place: order among these sections, the lowest first.
        show: ``(run, alone)`` to what is shown, nothing where the run has none of it; `alone` is
            True for a report on that run alone. It may raise `Unreadable`.
        files: artefacts it shows; others are shown by their kind.
    """

    place: int
    show: Callable[[RunFolder, bool], Iterable[Element]]
    files: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Detail:
    """One run that stands for its group, shown in detail."""

    title: str
    run: str
    pictures: tuple[Picture, ...]
    thumbs: tuple[Thumb, ...] = ()
    thumbs_caption: str = ""
    galleries: tuple[Gallery, ...] = ()
    tables: tuple[TextTable, ...] = ()

    @property
    def empty(self) -> bool:
        """True if nothing is shown."""
        return not (self.pictures or self.thumbs or self.galleries or self.tables)


@dataclass(frozen=True)
class CellNote:
    """A figure of a table beyond its printed digits.

    Attributes:
        exact: the number in full, by which rows are sorted; empty where there is none.
        text: shown where the pointer rests, in lines.
    """

    exact: str
    text: str


@dataclass(frozen=True)
class RunLine:
    """One run in the list of all runs; `notes` are those of `figures`."""

    name: str
    state: str
    problem: str
    seed: str
    values: tuple[str, ...]
    figures: tuple[str, ...]
    notes: tuple[CellNote, ...]


@dataclass
class ReportedRuns:
    """The runs of a report by group, and a list of what of them could not be read.

    Args:
        frame: what `load_runs` returned.
        table: of its results.
        unreadable: sentences on files that were there and broken.

    Attributes:
        keys: settings that vary.
        folders: of the runs, in the order of `frame`.
        finished: True for each run with a result.
        groups: values of `keys`, in the order of the table.
        group_of: group of each run.
        rate_key: the noise rate among `keys`, if it varies and is a number.
        lines_by: keys that make lines of a plot.
        facets_by: keys that make panels of a plot.
        order: names of the lines.
    """

    frame: pd.DataFrame
    table: ResultTable
    unreadable: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = list(self.table.keys)
        self.folders = [RunFolder(Path(path)) for path in self.frame["run"]]
        self.finished = (self.frame["state"] == FINISHED).tolist()
        self.groups: list[Group] = group_order(self.frame, self.keys)
        rows = self.frame[self.keys].itertuples(index=False, name=None)
        self.group_of: list[Group] = list(rows) if self.keys else [()] * len(self.frame)
        self.rate_key = next((k for k in self.keys if is_rate(k) and self._numeric(k)), None)
        self.lines_by = [key for key in self.keys if not decides_data(key)]
        # Where only the data vary, the data make the lines.
        self.facets_by = [key for key in self.keys if decides_data(key)] if self.lines_by else []
        self.lines_by = self.lines_by or self.keys
        self.order = list(dict.fromkeys(self.name(g, self.lines_by) for g in self.groups))

    @property
    def single(self) -> bool:
        """True for a report on one run."""
        return len(self.frame) == 1

    def name(self, group: Group, keys: Sequence[str]) -> str:
        """A group by some of its settings."""
        return group_name(keys, [group[self.keys.index(key)] for key in keys])

    def labels(self, keys: Sequence[str]) -> list[str]:
        """Names of the groups by some of their settings, each once."""
        return list(dict.fromkeys(self.name(group, keys) for group in self.groups))

    def members(self, group: Group) -> list[RunFolder]:
        """The finished runs of a group."""
        rows = zip(self.folders, self.group_of, self.finished, strict=True)
        return [folder for folder, own, finished in rows if own == group and finished]

    def read(self, reader: Callable[[RunFolder], T], run: RunFolder) -> T | None:
        """Result of a reader; a file that is broken becomes a notice on the page."""
        try:
            return reader(run)
        except Unreadable as error:
            self.unreadable.append(f"{run_name(run.path)}: {error}")
            return None

    def _numeric(self, key: str) -> bool:
        values = {group[self.keys.index(key)] for group in self.groups}
        return len(values) > 1 and all(isinstance(value, int | float) for value in values)


def curves(
    runs: ReportedRuns,
    metrics: dict[str, str],
    x_label: str,
    frames: dict[Group, list[pd.DataFrame]],
    name: str,
    caption: str,
) -> list[Picture]:
    """Pictures with curves: a row per metric, a column per data and noise.

    Args:
        runs: of the report.
        metrics: label of the axis by column of `frames`.
        x_label: label of the other axis.
        frames: of the runs of each group, with a column ``step``.
        name: of the picture's file; numbered where one picture is not enough.
        caption: of each picture.
    """
    facets_by, lines_by, order = runs.facets_by, runs.lines_by, runs.order
    if not facets_by and len(lines_by) > 1 and len(order) > len(plots.PALETTE):
        # Too many for one panel: the last setting makes lines, those before it panels.
        facets_by, lines_by = lines_by[:-1], lines_by[-1:]
        order = runs.labels(lines_by)
    facets: dict[str, list[Group]] = {}
    for group in runs.groups:
        if frames.get(group):
            facets.setdefault(runs.name(group, facets_by), []).append(group)
    grid = []
    for metric, label in metrics.items():
        row = []
        for facet, groups in facets.items():
            lines = [
                plots.curve(frames[group], metric, runs.name(group, lines_by)) for group in groups
            ]
            drawn = tuple(line for line in lines if line is not None)
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
        draw = functools.partial(plots.lines_figure, part, order, markers=False, faceted=faceted)
        suffix = f"_{number}" if len(starts) > 1 else ""
        told = plots.hover_text([panel for row in part for panel in row], order)
        pictures.append(Picture(f"{name}{suffix}", draw, caption, told))
    return pictures


def axis_label(metric: str) -> str:
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


def share_text(share: float) -> str:
    """A share in [0, 1] such as p_clean: four digits, what is closer to an end only as that."""
    if 0 < share < SMALLEST_SHARE:
        return f"< {SMALLEST_SHARE:.4f}"
    if 1 - SMALLEST_SHARE < share < 1:
        return f"> {1 - SMALLEST_SHARE:.4f}"
    return f"{share:.4f}"


def run_name(path: Path) -> str:
    """A run by the last two parts of its folder: sweep and number, or name and time."""
    return "/".join(path.resolve().parts[-2:])
