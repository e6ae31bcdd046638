"""A report as HTML and as Markdown."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from noisyml import __version__
from noisyml.reports import plots
from noisyml.reports.formats import escape_markdown, markdown_row, markdown_table
from noisyml.reports.page import LEGEND, Report


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
    if report.shared:
        parts.append(_one_line(report.shared))
    parts.append(markdown_table(report.table).rstrip())
    parts.append(LEGEND)
    searched = [
        replace(t, title=f"{s.title}: {t.title}") for s in report.searches for t in s.tables
    ]
    for table in (*searched, *report.comparisons):
        lines = [markdown_row(["---"] * len(table.headings))]
        lines += [markdown_row(list(map(escape_markdown, row))) for row in table.rows]
        parts.append(f"## {escape_markdown(table.title)}\n\n{escape_markdown(table.caption)}")
        parts.append("\n".join([markdown_row(list(map(escape_markdown, table.headings))), *lines]))
    if report.unfinished:
        lines = [f"- {_one_line(f'{r.name}: {r.state}. {r.problem}')}" for r in report.unfinished]
        parts.append("## Runs without a result\n\n" + "\n".join(lines))
    shown = []
    for picture in report.pictures:
        shown.append(f"![{_one_line(picture.caption)}](plots/{picture.name}.png)")
        shown += [_one_line(picture.named)] if picture.named else []
    parts += [*shown, *(f"    {command}" for command in report.commands)]
    return "\n\n".join(parts) + "\n"


def _one_line(text: str) -> str:
    """Text as one line of Markdown without markup."""
    return re.sub(r"([<>\[\]`*|])", r"\\\1", " ".join(text.split()))
