"""Compare runs: a table over seeds, plots and one self-contained HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from noisyml.reports.report import Report
    from noisyml.reports.tables import Cell, ResultTable

#: Share of the terminal's width above which settings no longer stand in each of its tables.
LEAD_SHARE = 0.6


def main(arguments: list[str]) -> int:
    """Write the report on the runs named and print its table and where it lies.

    Raises:
        UserError: a folder is missing or holds no run, or an option names nothing known.
    """
    options = _parser().parse_intermixed_args(arguments)

    from noisyml.reports.report import build_report, home, save_report

    report = build_report(
        options.run_dirs, by=options.group_by, metrics=options.metrics, title=options.title
    )
    written = save_report(report, options.out or home(options.run_dirs))
    _print_report(report)
    print(f"page   {written.html}")
    print(f"table  {written.markdown} (also .tex, .csv)")
    if written.plots:
        print(f"plots  {written.plots[0].parent} ({len(written.plots)} files)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="noisyml report",
        description="Compare runs: a table over seeds, plots and one self-contained HTML page.",
    )
    parser.add_argument(
        "run_dirs",
        metavar="RUN_DIR",
        nargs="+",
        type=Path,
        help="folder of a run, or of a sweep (all runs below it are taken)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write; default: the run's folder, or the one the runs have in common",
    )
    parser.add_argument(
        "--group-by",
        type=_names,
        metavar="KEY,...",
        help="settings that make a group, e.g. selector,noise.rate; default: those that differ",
    )
    parser.add_argument(
        "--metrics",
        type=_names,
        metavar="NAME,...",
        help="metrics of the table, e.g. test/map_at_r,selection/auroc; a name without '/' means "
        "the test metric under every choice of checkpoint",
    )
    parser.add_argument("--title", help="heading of the page; default: the folder")
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print_report(report: Report) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(Text(f"{report.title}: {report.summary}", style="bold"))
    if report.shared:
        console.print(Text(report.shared))
    for table in _terminal_tables(report.table, console.width):
        console.print(table)
    for line in report.unfinished:
        console.print(Text(f"{line.name}: {line.state}. {line.problem}", style="yellow"))
    for notice in report.notices:
        console.print(Text(f"Note: {notice}", style="yellow"))


def _terminal_tables(table: ResultTable, width: int) -> list[Table]:
    """The result table for a terminal `width` characters wide.

    A table too wide is split into several; a single row without settings is turned on its side.
    Where the settings alone would leave no room, they are listed once and the rows numbered.
    Names from files are shown as they stand.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if len(table.rows) == 1 and not table.keys:
        upright = Table(box=None, show_header=False, pad_edge=False)
        for column, cell in zip(table.columns, table.rows[0].cells, strict=True):
            upright.add_row(Text(column.heading), Text(str(cell)))
        return [upright]

    gap, edges = 2, 2
    tops = [
        column.section.removeprefix("Test, ")
        .removesuffix(" checkpoint")
        .replace("validation", "val")
        for column in table.columns
    ]
    needed = [
        gap + max(map(len, [top, column.label, *(_compact(row.cells[c]) for row in table.rows)]))
        for c, (top, column) in enumerate(zip(tops, table.columns, strict=True))
    ]
    keys: tuple[str, ...] = table.keys
    leads = [(*row.values, row.runs) for row in table.rows]
    taken = edges + _widths([*keys, "runs"], leads, gap)
    shown = []
    if taken + max(needed, default=0) > width or taken > LEAD_SHARE * width:
        shown.append(_legend(table))
        keys = ("group",)
        leads = [(str(number), row.runs) for number, row in enumerate(table.rows, 1)]
        taken = edges + _widths([*keys, "runs"], leads, gap)
    parts: list[list[int]] = [[]]
    used = taken
    for c, space in enumerate(needed):
        if parts[-1] and used + space > width:
            parts.append([])
            used = taken
        parts[-1].append(c)
        used += space

    for part in parts:
        one = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0))
        for key in keys:
            one.add_column(Text(f"\n{key}"), no_wrap=True)
        one.add_column(Text("\nruns"), justify="right", no_wrap=True)
        for c in part:
            heading = Text(f"{tops[c]}\n{table.columns[c].label}")
            one.add_column(heading, justify="right", no_wrap=True)
        for position, (row, lead) in enumerate(zip(table.rows, leads, strict=True)):
            following = table.rows[position + 1 : position + 2]
            ends = bool(following) and following[0].block != row.block
            cells = [
                Text(_compact(row.cells[c]), style="bold" if row.cells[c].best else "")
                for c in part
            ]
            one.add_row(*map(Text, lead), *cells, end_section=ends)
        shown.append(one)
    return shown


def _widths(headings: list[str], rows: list[tuple[str, ...]], gap: int) -> int:
    """Characters that columns of text take up, gaps included."""
    columns = zip(headings, *rows, strict=True)
    return sum(gap + max(map(len, column)) for column in columns)


def _legend(table: ResultTable) -> Table:
    """The settings of each row, numbered; long lines are folded."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    legend = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    legend.add_column("group", no_wrap=True)
    legend.add_column("settings", overflow="fold")
    for number, row in enumerate(table.rows, 1):
        pairs = zip(table.keys, row.values, strict=True)
        legend.add_row(str(number), Text(", ".join(f"{key}={value}" for key, value in pairs)))
    return legend


def _compact(cell: Cell) -> str:
    return f"{cell.mean}±{cell.std}" if cell.std else cell.mean
