"""The table of results as text: Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence

import pandas as pd

from noisyml.reports.settings import ABSENT
from noisyml.reports.tables import Cell, ResultTable, Row, aggregate


def markdown_table(table: ResultTable) -> str:
    """The table in Markdown; what stands out is bold."""
    headings, numbers = _headings(table)
    lines = [
        markdown_row([escape_markdown(heading) for heading in headings]),
        markdown_row(["---:" if number else "---" for number in numbers]),
    ]
    for row in table.rows:
        cells = [f"**{cell}**" if cell.best else str(cell) for cell in row.cells]
        lines.append(markdown_row(_in_order(table, row, cells, escape_markdown)))
    return "\n".join(lines) + "\n"


def latex_table(table: ResultTable) -> str:
    """The table for LaTeX with the package booktabs; what stands out is bold."""
    lead = ["group"] if table.results_first else list(table.keys)
    tail = ["runs", *table.keys] if table.results_first else []
    before = len(lead) + (not table.results_first)
    columns = "l" * len(lead) + "r" * (not table.results_first) + "r" * len(table.columns)
    columns += "r" + "l" * len(table.keys) if table.results_first else ""
    spans, rules, place = [""] * before, [], before
    for section, span in table.sections:
        spans.append(rf"\multicolumn{{{span}}}{{c}}{{{escape_latex(section)}}}")
        rules.append(rf"\cmidrule(lr){{{place + 1}-{place + span}}}")
        place += span
    labels = [column.label for column in table.columns]
    middle = [*lead, *([] if table.results_first else ["runs"]), *labels, *tail]
    lines = [
        "% needs \\usepackage{booktabs}",
        *(f"% in all runs: {' '.join(f'{k}={v}'.split())}" for k, v in table.constant),
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        latex_row([*spans, *[""] * len(tail)]),
        " ".join(rules),
        latex_row(list(map(escape_latex, middle))),
        r"\midrule",
    ]
    for position, row in enumerate(table.rows):
        if position and row.block != table.rows[position - 1].block:
            lines.append(r"\midrule")
        cells = [_latex_cell(cell) for cell in row.cells]
        lines.append(latex_row(_in_order(table, row, cells, escape_latex)))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv_table(runs: pd.DataFrame, table: ResultTable) -> str:
    """The figures of the table in full: per metric its mean, its deviation and its runs.

    Args:
        runs: what `load_runs` returned.
        table: made of it.
    """
    metrics = [column.metric for column in table.columns]
    figures = aggregate(runs, table.keys, metrics)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    named = [(metric, statistic) for metric in metrics for statistic in ("mean", "std", "n")]
    writer.writerow([*table.keys, "runs", *(" ".join(pair) for pair in named)])
    for position, row in enumerate(table.rows):
        values = [figures[pair].iloc[position] for pair in named]
        numbers = ["" if pd.isna(value) else f"{value:.10g}" for value in values]
        writer.writerow([*map(harmless, row.values), row.runs, *numbers])
    return text.getvalue()


def _headings(table: ResultTable) -> tuple[list[str], list[bool]]:
    """Headings in one row, and True for columns of numbers."""
    results = [column.heading for column in table.columns]
    keys = list(table.keys)
    if table.results_first:
        order = ["group", *results, "runs", *keys]
        return order, [False, *[True] * (len(results) + 1), *[False] * len(keys)]
    return [*keys, "runs", *results], [*[False] * len(keys), *[True] * (len(results) + 1)]


def _in_order(
    table: ResultTable, row: Row, cells: Sequence[str], escape: Callable[[str], str]
) -> list[str]:
    values, runs = [escape(value) for value in row.values], escape(row.runs)
    if table.results_first:
        return [escape(row.name), *cells, runs, *values]
    return [*values, runs, *cells]


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table, of cells that are escaped already."""
    return f"| {' | '.join(cells)} |"


def latex_row(cells: Sequence[str]) -> str:
    """A row of a LaTeX table, of cells that are escaped already."""
    return " & ".join(cells).rstrip() + r" \\"


def _latex_cell(cell: Cell) -> str:
    if cell.mean == ABSENT:
        return "--"
    spread = rf" $\pm$ {cell.std}" if cell.std else ""
    return (rf"\textbf{{{cell.mean}}}" if cell.best else cell.mean) + spread


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    ABSENT: "--",
    **{sign: rf"\{sign}" for sign in "#$%&_{}"},
}


def escape_latex(text: str) -> str:
    """Text that stays text in LaTeX, whatever a file or class is called."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


def escape_markdown(text: str) -> str:
    """Text that stays text in a Markdown table, whatever a file or class is called."""
    line = " ".join(text.split())
    return re.sub(r"([\\|`*<>\[\]]|\b_|_\b)", r"\\\1", line)


def harmless(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    number = re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", text)
    return f"'{text}" if text[:1] in "=+-@\t\r" and text and not number else text
