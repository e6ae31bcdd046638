"""A reproduction as Markdown, LaTeX (booktabs), CSV, one HTML page and a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from noisyml import __version__
from noisyml.reports import plots
from noisyml.reports.formats import (
    escape_latex,
    escape_markdown,
    harmless,
    latex_row,
    markdown_row,
)
from noisyml.reports.settings import ABSENT
from noisyml.reports.statistics import CONFIDENCE
from noisyml.reproduce.measured import Line, Reproduction
from noisyml.storage.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
HEADINGS = ("published", "measured", "interval", "difference", "runs")


@dataclass(frozen=True)
class Written:
    """Files of a reproduction."""

    markdown: Path
    latex: Path
    csv: Path
    html: Path
    plot: Path | None


def write(found: Reproduction, folder: Path) -> Written:
    """Write all files of a reproduction into a folder, by the table's name."""
    name = found.table.name
    written = Written(
        markdown=folder / f"{name}.md",
        latex=folder / f"{name}.tex",
        csv=folder / f"{name}.csv",
        html=folder / f"{name}.html",
        plot=folder / f"{name}.png" if _drawn(found) else None,
    )
    write_atomically(written.markdown, markdown(found))
    write_atomically(written.latex, latex(found))
    write_atomically(written.csv, as_csv(found))
    write_atomically(written.html, html(found))
    if written.plot is not None:
        figure = picture(found)
        plots.save_png(figure, written.plot)
    return written


def summary(found: Reproduction) -> str:
    """The share of the table that was repeated, and what a reader must know, in sentences."""
    measured = [line for line in found.lines if line.measured is not None]
    parts = [f"{len(measured)} of {len(found.lines)} figures measured"]
    if found.scale == "desk":
        parts.append(
            "at desk scale: the same comparison on embedded data with small networks, whose "
            "figures are not the published ones and are not subtracted from them"
        )
    if found.table.secondary:
        parts.append("published figures were read from a secondary source")
    if found.table.approximate:
        parts.append("published figures were read off a picture")
    commits = sorted({commit for line in measured for commit in line.commits})
    if commits:
        parts.append(f"commit {', '.join(commits)}")
    return "; ".join(parts) + "."


def legend() -> str:
    """Explanation of the columns."""
    return (
        f"Measured: mean over training and noise seeds, with Student's {CONFIDENCE:.0%} interval, "
        "in the published unit. Difference: measured less published."
    )


def texts(found: Reproduction, line: Line) -> list[str]:
    """The cells of a line after its setting and metric."""
    published = _number(line.figure.value)
    if line.figure.std is not None:
        published += f" ± {_number(line.figure.std)}"
    if line.measured is None:
        return [published, ABSENT, ABSENT, ABSENT, line.lacking or f"0 of {line.planned}"]
    m = line.measured
    spread = f"{m.low:.2f} to {m.high:.2f}" if math.isfinite(m.low) else ABSENT
    gap = line.difference if found.scale == "paper" else None
    count = str(m.count) if m.count == line.planned else f"{m.count} of {line.planned}"
    return [
        published,
        f"{m.mean:.2f}",
        spread,
        ABSENT if gap is None else f"{gap:+.2f}",
        count,
    ]


def setting_keys(found: Reproduction) -> list[str]:
    """The settings that stand in columns of their own, in their order."""
    return list(dict.fromkeys(key for line in found.lines for key in line.figure.setting))


def _rows(found: Reproduction) -> list[list[str]]:
    keys = setting_keys(found)
    return [
        [
            *(str(line.figure.setting.get(key, "")) for key in keys),
            f"{line.figure.metric} ({line.figure.unit})",
            *texts(found, line),
        ]
        for line in found.lines
    ]


def markdown(found: Reproduction) -> str:
    """The table in Markdown, with its caption and source."""
    keys = setting_keys(found)
    lines = [
        markdown_row([*map(escape_markdown, keys), "metric", *HEADINGS]),
        markdown_row([*["---"] * (len(keys) + 1), *["---:"] * len(HEADINGS)]),
        *(markdown_row(list(map(escape_markdown, row))) for row in _rows(found)),
    ]
    return (
        "\n\n".join(
            [
                f"# {found.table.name}",
                escape_markdown(found.table.caption)
                + f" Source: {escape_markdown(found.table.source)}.",
                escape_markdown(summary(found)),
                "\n".join(lines),
                legend(),
            ]
        )
        + "\n"
    )


def latex(found: Reproduction) -> str:
    """The table for LaTeX with booktabs, ready to paste."""
    keys = setting_keys(found)
    columns = "l" * (len(keys) + 1) + "r" * len(HEADINGS)
    rows = [latex_row([escape_latex(text) for text in row]) for row in _rows(found)]
    rows = [row.replace("±", r"$\pm$") for row in rows]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            f"% {' '.join(summary(found).split())}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            latex_row([*map(escape_latex, keys), "metric", *HEADINGS]),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def as_csv(found: Reproduction) -> str:
    """All numbers in full."""
    keys = setting_keys(found)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = ["published", "std", "measured", "low", "high", "runs", "planned", "commits", "lacking"]
    writer.writerow([*keys, "metric", "unit", *ends])
    for line in found.lines:
        m = line.measured
        numbers = [None] * 3 if m is None else [m.mean, m.low, m.high]
        writer.writerow(
            [
                *(harmless(str(line.figure.setting.get(key, ""))) for key in keys),
                line.figure.metric,
                line.figure.unit,
                _number(line.figure.value),
                "" if line.figure.std is None else _number(line.figure.std),
                *("" if x is None or not math.isfinite(x) else f"{x:.10g}" for x in numbers),
                0 if m is None else m.count,
                line.planned,
                " ".join(line.commits),
                line.lacking,
            ]
        )
    return text.getvalue()


def html(found: Reproduction) -> str:
    """One page that refers to nothing outside itself."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from noisyml import reports

    styles = Path(reports.__file__).with_name("templates")
    environment = Environment(
        loader=FileSystemLoader([HERE / "templates", styles]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = _drawn(found)
    caption = "Published and measured figures, with the measured ones' intervals."
    return environment.get_template("table.html.j2").render(
        found=found,
        summary=summary(found),
        legend=legend(),
        headings=[*setting_keys(found), "metric", *HEADINGS],
        text_columns=len(setting_keys(found)) + 1,
        rows=_rows(found),
        svg=plots.inline_svg(picture(found), caption) if drawn else "",
        narrow=plots.inline_svg(picture(found, narrow=True), caption, narrow=True) if drawn else "",
        caption=caption,
        version=__version__,
    )


def picture(found: Reproduction, *, narrow: bool = False) -> Figure:
    """Published figures beside measured ones, a line each."""
    lines = _drawn(found)
    width = plots.NARROW if narrow else plots.WIDTH
    figure = plots.new_figure(width, 1.2 + 0.26 * len(lines))
    axes = figure.subplots()
    places = range(len(lines))
    measured = [line.measured for line in lines if line.measured is not None]
    low = [m.mean - m.low if math.isfinite(m.low) else 0.0 for m in measured]
    high = [m.high - m.mean if math.isfinite(m.high) else 0.0 for m in measured]
    axes.errorbar(
        [m.mean for m in measured],
        places,
        xerr=[low, high],
        fmt="o",
        color=plots.PALETTE[0],
        label="measured",
    )
    axes.plot(
        [line.figure.value for line in lines],
        places,
        "D",
        color=plots.PALETTE[1],
        label="published",
        fillstyle="none",
    )
    axes.set_yticks(
        places, [plots.plain(plots.shorten(_short(line), 24 if narrow else 60)) for line in lines]
    )
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlabel(", ".join(dict.fromkeys(line.figure.unit for line in lines)))
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    plots.dress(axes, "")
    return figure


def _short(line: Line) -> str:
    return f"{', '.join(map(str, line.figure.setting.values()))}: {line.figure.metric}"


def _drawn(found: Reproduction) -> Sequence[Line]:
    """The lines of a picture: measured ones."""
    return [line for line in found.lines if line.measured is not None]


def _number(value: float) -> str:
    return f"{value:g}"
