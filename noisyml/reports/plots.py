"""The pictures of a report: figures that read well on white paper and on a dark screen.

A figure is drawn once and written twice: as a PNG on white, and as SVG for the page, where the
colours of text and grid follow the page.
"""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

#: Okabe and Ito's colours for all kinds of colour vision, without black and yellow, which vanish
#: on a dark and on a white page, and with a blue light enough for both.
PALETTE = ("#2182C4", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))

RIGHT_COLOUR, WRONG_COLOUR = PALETTE[0], PALETTE[1]

#: Written as they stand into PNG, and replaced by the page's own colours in SVG.
TEXT, GRID, FAINT = "#31363f", "#d8dce3", "#9aa1ac"
_THEME = {TEXT: "currentColor", GRID: "var(--grid)", FAINT: "var(--faint)"}

WIDTH = 10.0  # inches; 9-point text is then as large as the page's own small print
NARROW = 3.75  # of a figure drawn for a telephone, 360 pixels
DPI = 140  # of PNG files and of point clouds inside SVG
CURVE_POINTS = 200
LEGEND_CHARACTERS = 140  # of 9-point text side by side in a figure of full width
LABEL_CHARACTERS = 28  # of 9-point text along a panel
FENCE = 10  # a curve this many interquartile ranges beyond the quartiles of all has run away
FEW_POINTS = 3  # a curve of at most so many points is marked at each of them
HISTOGRAM_BINS = 40
SATURATED = 0.8  # share of samples in two bins above which a scale tells nothing

Scale = Literal["linear", "logit", "rank"]


@dataclass(frozen=True)
class Line:
    """One curve: x and mean [n], std [n] over seeds (NaN where there is a single one)."""

    label: str
    x: NDArray[np.floating]
    mean: NDArray[np.floating]
    std: NDArray[np.floating]


@dataclass(frozen=True)
class Panel:
    """One pair of axes and its curves."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]


def lines_figure(
    rows: Sequence[Sequence[Panel]],
    order: Sequence[str],
    *,
    markers: bool,
    faceted: bool,
    narrow: bool = False,
) -> Figure:
    """A grid of line plots with one legend; bands show one standard deviation over seeds.

    Args:
        rows: panels, row by row, all rows equally long.
        order: every label of the report: a label keeps its colour in all its figures.
        markers: mark the points (few, measured) or not (a long curve).
        faceted: panels of one row show the same quantity, those of one column the same runs; then
            axes are shared and labelled at the edges of the grid.
        narrow: one panel below the other.
    """
    if narrow:
        rows, faceted = [[panel] for panels in rows for panel in panels], False
    columns = len(rows[0])
    width = NARROW if narrow else WIDTH if columns > 1 else 0.58 * WIDTH
    present = {line.label for panels in rows for panel in panels for line in panel.lines}
    labels = [name for name in order if name in present]
    figure = new_figure(width, 2.35 * len(rows) + _legend_height(labels, width))
    grid = figure.subplots(
        len(rows),
        columns,
        squeeze=False,
        sharex="col" if faceted else False,
        sharey="row" if faceted else False,
    )
    handles = {}
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            axes = grid[row, column]
            for line in panel.lines:
                style = order.index(line.label)
                handles[line.label] = _draw_line(axes, line, style, markers)
            if markers:
                axes.set_xticks(sorted({float(x) for line in panel.lines for x in line.x}))
            else:
                axes.xaxis.get_major_locator().set_params(integer=True)
            dress(axes, panel.title if row == 0 or not faceted else "")
            if row == len(rows) - 1 or not faceted:
                axes.set_xlabel(panel.x_label)
            if column == 0 or not faceted:
                axes.set_ylabel(_folded(panel.y_label, LABEL_CHARACTERS))
    # Only now: a limit set earlier would stop a shared axis from growing with the later panels.
    for axes, panel in zip(grid.flat, (panel for panels in rows for panel in panels), strict=True):
        sharing = [axes, *axes.get_shared_x_axes().get_siblings(axes)]
        places = {float(x) for one in sharing for drawn in one.lines for x in drawn.get_xdata()}
        if len(places) == 1 and not markers:
            only = places.pop()
            axes.set_xlim(only - 1, only + 1)
            axes.set_xticks([only])
        if panel.y_label.endswith("(fraction)"):
            low, high = axes.get_ylim()
            axes.set_ylim(top=min(high, 1 + 0.03 * (1 - low)))
        else:
            _cut_runaways(axes)
    _legend(figure, handles, labels)
    return figure


def multiples_figure(
    panels: Sequence[Panel], order: Sequence[str], columns: int, *, narrow: bool = False
) -> Figure:
    """Panels of one quantity in rows of `columns`, on the same axes; one legend, marked points.

    Args:
        panels: in reading order.
        order: every label of the report: a label keeps its colour in all its figures.
        columns: panels in a row.
        narrow: one panel in a row.
    """
    columns, width = (1, NARROW) if narrow else (min(columns, len(panels)), WIDTH)
    rows = -(-len(panels) // columns)
    labels = [name for name in order if any(name == ln.label for p in panels for ln in p.lines)]
    figure = new_figure(width, 2.1 * rows + _legend_height(labels, width))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    handles = {}
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        panel = panels[place]
        for line in panel.lines:
            handles[line.label] = _draw_line(axes, line, order.index(line.label), True)
        dress(axes, panel.title)
        if place + columns >= len(panels):
            axes.set_xlabel(panel.x_label)
            axes.tick_params(labelbottom=True)
        if place % columns == 0:
            axes.set_ylabel(panel.y_label)
    grid.flat[0].set_xticks(sorted({x for p in panels for line in p.lines for x in line.x}))
    _legend(figure, handles, labels)
    return figure


def _cut_runaways(axes: Axes) -> None:
    """Let a curve that runs away leave the picture rather than flatten all others."""
    sharing = [axes, *axes.get_shared_y_axes().get_siblings(axes)]
    drawn = [np.asarray(line.get_ydata(), float) for one in sharing for line in one.lines]
    values = np.concatenate(drawn) if drawn else np.empty(0)
    if not len(values := values[np.isfinite(values)]):
        return
    first, third = np.quantile(values, (0.25, 0.75))
    reach = FENCE * (third - first)
    low, high = axes.get_ylim()
    if reach > 0 and (values.min() < first - reach or values.max() > third + reach):
        axes.set_ylim(max(low, first - reach), min(high, third + reach))


def _legend_columns(labels: Sequence[str], width: float) -> int:
    longest = 8 + max(len(name) for name in labels)  # line and gap are as wide as 8 letters
    fitting = int(LEGEND_CHARACTERS * width / WIDTH / longest)
    return max(1, min(len(labels), 6, fitting))


def _legend_height(labels: Sequence[str], width: float) -> float:
    """Inches that the legend takes."""
    if len(labels) < 2:
        return 0.0
    return 0.1 + 0.2 * -(-len(labels) // _legend_columns(labels, width))


def _legend(figure: Figure, handles: Mapping[str, Line2D], labels: Sequence[str]) -> None:
    """One legend above all axes, unless there is a single line."""
    if len(labels) < 2:
        return
    figure.legend(
        [handles[name] for name in labels],
        [plain(name) for name in labels],
        loc="outside upper left",
        ncols=_legend_columns(labels, figure.get_figwidth()),
        frameon=False,
        labelcolor=TEXT,
        fontsize=9,
        handlelength=2.2,
    )


def dots_figure(panels: Sequence[Panel], labels: Sequence[str], *, narrow: bool = False) -> Figure:
    """Groups that lie on no axis: one row per group, a dot at the mean, a bar of one std.

    Args:
        panels: one per metric; each line is a group with a single value.
        labels: the groups from top to bottom.
        narrow: one panel below the other.
    """
    height = 0.9 + 0.34 * len(labels)
    if narrow:
        figure = new_figure(NARROW, height * len(panels))
        grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    else:
        figure = new_figure(WIDTH if len(panels) > 1 else 0.7 * WIDTH, height)
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    folded = [plain(_folded(label, 20 if narrow else 40)) for label in labels]
    for axes, panel in zip(grid, panels, strict=True):
        for line in panel.lines:
            place = labels.index(line.label)
            spread = np.nan_to_num(line.std)
            axes.errorbar(
                line.mean,
                [place],
                xerr=spread,
                fmt="o",
                ms=6,
                capsize=3,
                color=PALETTE[0],
                elinewidth=1.4,
            )
        dress(axes, panel.title)
        axes.set_xlabel(panel.x_label)
        axes.set_yticks(range(len(labels)), folded)
        axes.set_ylim(len(labels) - 0.5, -0.5)
    return figure


def curve(histories: Sequence[pd.DataFrame], metric: str, label: str) -> Line | None:
    """The mean curve of a metric over several runs' histories, thinned to `CURVE_POINTS`.

    Long series are averaged within equal spans of steps, each run for itself, then over runs.
    None if no run logged the metric.
    """
    parts = [
        frame[["step", metric]].dropna().assign(run=number)
        for number, frame in enumerate(histories)
        if metric in frame and frame[metric].notna().any()
    ]
    if not parts:
        return None
    points = pd.concat(parts, ignore_index=True).astype(float)
    if points["step"].nunique() > CURVE_POINTS:
        edges = np.linspace(points["step"].min(), points["step"].max(), CURVE_POINTS + 1)
        span = np.clip(np.digitize(points["step"], edges) - 1, 0, CURVE_POINTS - 1)
        points["step"] = (edges[span] + edges[span + 1]) / 2
    per_run = points.groupby(["step", "run"])[metric].mean().groupby("step")
    mean, std = per_run.mean(), per_run.std(ddof=1)
    return Line(label, mean.index.to_numpy(float), mean.to_numpy(), std.to_numpy())


def choose_scale(p_clean: NDArray[np.floating]) -> Scale:
    """The scale on which a histogram of `p_clean` (in [0, 1], no NaN) tells most.

    Linear unless more than `SATURATED` of the samples crowd into two bins (one at each end, say);
    then the logit, which spreads out both ends; if they crowd there too, the rank among all, which
    spreads out all that differ, or the linear one again where few do.
    """
    for scale in ("linear", "logit"):
        values, low, high = _scaled(p_clean, scale)
        counts = np.histogram(values, bins=HISTOGRAM_BINS, range=(low, high))[0]
        if np.sort(counts)[-2:].sum() <= SATURATED * len(values):
            return scale
    return "rank" if len(np.unique(p_clean)) > len(p_clean) / 2 else "linear"


def trust_figure(
    p_clean: NDArray[np.floating], wrong: NDArray[np.bool_] | None, *, narrow: bool = False
) -> Figure:
    """Histogram of `p_clean`, rightly and wrongly labelled samples apart where that is known.

    Args:
        p_clean: [n] in [0, 1], no NaN.
        wrong: [n] True where the label is wrong; None if unknown.
        narrow: for a telephone.
    """
    scale = choose_scale(p_clean)
    values, low, high = _scaled(p_clean, scale)
    figure = new_figure(NARROW if narrow else 0.48 * WIDTH, 2.9)
    axes = figure.subplots()
    bins = 20 if scale == "rank" else HISTOGRAM_BINS
    parts = (
        [(values, "all labels", FAINT)]
        if wrong is None
        else [
            (values[~wrong], f"label right ({(~wrong).sum():,})", RIGHT_COLOUR),
            (values[wrong], f"label wrong ({wrong.sum():,})", WRONG_COLOUR),
        ]
    )
    tallest, least = 0, len(values)
    for part, label, colour in parts:
        counts, edges = np.histogram(part, bins=bins, range=(low, high))
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.45)
        axes.stairs(counts, edges, color=colour, linewidth=1.3, label=label)
        tallest = max(tallest, int(counts.max()))
        least = min(least, int(np.median(counts[counts > 0]))) if counts.any() else least
    crowded = tallest > 50 * max(least, 1)
    if crowded:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.minorticks_off()
    else:
        axes.set_ylim(bottom=0, top=1.08 * tallest)
    axes.set_xlim(low, high)
    axes.set_ylabel("samples (log scale)" if crowded else "samples")
    axes.set_xlabel(
        {
            "linear": "p_clean",
            "logit": "p_clean (logit scale; what lies outside\nis in the outer bins)",
            "rank": "share of samples trusted less\n(rank of p_clean)",
        }[scale]
    )
    if scale == "logit":
        _logit_ticks(axes, high)
    dress(axes, "")
    axes.grid(axis="x", visible=False)
    if wrong is not None:
        figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=TEXT, fontsize=9)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    _settle(figure)
    FigureCanvasAgg(figure).print_png(path)


def hover_text(panels: Sequence[Panel], order: Sequence[str]) -> str:
    """Curves as JSON, for a page that tells the values under the pointer; empty if there are none.

    Args:
        panels: in the order of their axes.
        order: as the figure was drawn with.
    """
    if not any(panel.lines for panel in panels):
        return ""

    def shown(values: NDArray[np.floating]) -> list[float | None]:
        return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]

    told = [
        {
            "x": panel.x_label,
            "y": panel.y_label,
            "lines": [
                {
                    "label": line.label,
                    "colour": PALETTE[order.index(line.label) % len(PALETTE)],
                    "points": list(
                        zip(shown(line.x), shown(line.mean), shown(line.std), strict=True)
                    ),
                }
                for line in panel.lines
            ],
        }
        for panel in panels
    ]
    return json.dumps(told, separators=(",", ":"))


def _axes_text(figure: Figure) -> str:
    """Place and limits of each of the axes as JSON: left, top, right, bottom, x and y limits.

    Places are in the units of the SVG, y growing downwards as there.
    """
    wide, high = 72 * figure.get_size_inches()
    found = []
    for axes in figure.axes:
        box = axes.get_position()
        place = [wide * box.x0, high * (1 - box.y1), wide * box.x1, high * (1 - box.y0)]
        limits = [*axes.get_xlim(), *axes.get_ylim()]
        found.append([float(f"{number:.7g}") for number in [*place, *limits]])
    return json.dumps(found, separators=(",", ":"))


def inline_svg(figure: Figure, description: str, *, narrow: bool = False) -> Markup:
    """The figure as an ``<svg>`` element for the page: no external reference, theme colours.

    ``data-axes`` tells the page's script where the axes lie.

    Args:
        figure: to be written.
        description: for those who cannot see it.
        narrow: shown on narrow screens alone, in place of the figure that is not.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    _settle(figure)
    buffer = io.StringIO()
    papers = [figure.patch, *(axes.patch for axes in figure.axes)]
    for paper in papers:
        paper.set_visible(False)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Names inside the two figures differ: a browser does not look into the one it hides.
    salt = "narrow" if narrow else "wide"
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    for paper in papers:
        paper.set_visible(True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg, count=2)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for drawn, themed in _THEME.items():
        svg = svg.replace(drawn, themed)
    full = NARROW if narrow else WIDTH
    share = round(100 * float(figure.get_figwidth()) / full, 1)
    opening = Markup(
        '<svg class="{}" role="img" aria-label="{}" data-axes="{}" style="width:{}%"'
    ).format(salt, description, _axes_text(figure), share)
    svg = re.sub(r'^<svg width="[^"]*" height="[^"]*"', lambda _: str(opening), svg, count=1)
    return Markup(svg)  # matplotlib escapes every text it writes


def _settle(figure: Figure) -> None:
    """Lay the figure out once: otherwise every file written lays it out again."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def plain(text: str) -> str:
    """Text that matplotlib shows as it stands: no formula between dollars, no hidden legend."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def shorten(text: str, longest: int) -> str:
    """Text cut to `longest` characters with an ellipsis."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _folded(text: str, longest: int) -> str:
    """Text in up to two lines of about `longest` characters, cut beyond that."""
    lines = textwrap.wrap(text, longest)
    return text if len(lines) < 2 else f"{lines[0]}\n{shorten(' '.join(lines[1:]), longest)}"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_line(axes: Axes, line: Line, style: int, markers: bool) -> Line2D:
    colour = PALETTE[style % len(PALETTE)]
    dash = DASHES[style // len(PALETTE) % len(DASHES)]
    drawn = axes.plot(
        line.x,
        line.mean,
        color=colour,
        linestyle=dash,
        linewidth=1.6,
        marker=MARKERS[style % len(MARKERS)] if markers or len(line.x) <= FEW_POINTS else None,
        markersize=5,
    )[0]
    spread = np.isfinite(line.std)
    if spread.any():
        low, high = line.mean - line.std, line.mean + line.std
        axes.fill_between(line.x, low, high, where=spread, color=colour, alpha=0.16, linewidth=0)
    return drawn


def dress(axes: Axes, title: str) -> None:
    """The look all figures share: a left title, a faint grid, no box."""
    if title:
        axes.set_title(
            plain(_folded(title, 28)), loc="left", fontsize=9.5, fontweight="bold", color=TEXT
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT, labelsize=8.5, length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=TEXT, fontsize=9)


def _scaled(
    p_clean: NDArray[np.floating], scale: Scale
) -> tuple[NDArray[np.floating], float, float]:
    """Values on a scale and the range of its axis."""
    if scale == "linear":
        low = float(np.floor(20 * p_clean.min()) / 20)
        return p_clean, low, max(float(np.ceil(20 * p_clean.max()) / 20), low + 0.05)
    if scale == "rank":
        return (pd.Series(p_clean).rank().to_numpy() - 0.5) / len(p_clean), 0.0, 1.0
    with np.errstate(divide="ignore"):
        logit = np.log10(p_clean) - np.log10(1 - p_clean)
    finite = np.abs(logit[np.isfinite(logit)])
    limit = float(np.clip(np.ceil(finite.max(initial=0)), 3, 12))
    return np.clip(logit, -limit, limit), -limit, limit


def _logit_ticks(axes: Axes, high: float) -> None:
    """Probabilities written at their log-odds: 10⁻³, 0.5, 1 − 10⁻³."""
    step = 1 if high <= 3 else 2 if high <= 6 else 4
    outermost = high // step * step
    ticks = np.arange(-outermost, outermost + 0.5, step)
    names = {0: "0.5", -1: "0.1", 1: "0.9"}
    small = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    texts = [
        names.get(int(t)) or f"{'1−' if t > 0 else ''}10{str(-abs(int(t))).translate(small)}"
        for t in ticks
    ]
    axes.set_xticks(ticks, texts)
