"""The report: one self-contained page, tables in Markdown, LaTeX and CSV, the plots as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from noisyml.errors import UserError
from noisyml.reports import plots
from noisyml.reports.artefacts import read_environment
from noisyml.reports.formats import csv_table, latex_table
from noisyml.reports.page import Report
from noisyml.reports.provenance import environment_facts, rerun_commands
from noisyml.reports.render import render_html, render_markdown
from noisyml.reports.sections.across import across
from noisyml.reports.sections.base import ReportedRuns
from noisyml.reports.sections.comparisons import comparisons
from noisyml.reports.sections.configurations import configurations
from noisyml.reports.sections.details import details
from noisyml.reports.sections.ledger import memorisation
from noisyml.reports.sections.notices import notices
from noisyml.reports.sections.overview import (
    cell_notes,
    default_title,
    home,
    other_metrics,
    run_lines,
    summary,
)
from noisyml.reports.sections.search import searches
from noisyml.reports.sections.training import training
from noisyml.reports.sections.trust import trust_over_epochs
from noisyml.reports.tables import FINISHED, load_runs, result_table
from noisyml.runs.trials import PRUNED_STATE
from noisyml.storage.files import write_atomically

COMMANDS_SHOWN = 50


@dataclass(frozen=True)
class ReportPaths:
    """Files written by `write_report`."""

    html: Path
    markdown: Path
    latex: Path
    csv: Path
    plots: tuple[Path, ...]


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
    frame = load_runs(paths, by)
    # What a search stopped early has no result to compare.
    pruned = frame["state"] == PRUNED_STATE
    compared = frame if pruned.all() else frame[~pruned]
    runs = ReportedRuns(compared, result_table(compared, metrics))
    everything = ReportedRuns(frame, runs.table)
    figures = across(runs), training(runs), [*trust_over_epochs(runs), *memorisation(runs)]
    shown, note = details(runs)
    searched = searches(everything.folders, runs.unreadable)
    facts = environment_facts([runs.read(read_environment, run) or {} for run in runs.folders])
    lines = run_lines(everything)
    return Report(
        title=title or default_title(everything),
        summary=summary(everything),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        notices=tuple(notices(runs, facts)),
        unfinished=tuple(line for line in lines if line.state not in (FINISHED, PRUNED_STATE)),
        table=runs.table,
        notes=tuple(cell_notes(runs)),
        csv=csv_table(compared, runs.table),
        across=tuple(figures[0]),
        training=tuple(figures[1]),
        trust=tuple(figures[2]),
        details=tuple(shown),
        details_note=note,
        comparisons=tuple(comparisons(runs)),
        configurations=tuple(configurations(runs)),
        runs=tuple(lines),
        run_columns=runs.table.columns,
        searches=tuple(searched),
        commands=tuple(_commands(everything)),
        environment=tuple(facts),
        other_metrics=other_metrics(runs) if runs.single else (),
        config=runs.folders[0].config_file.read_text(encoding="utf-8") if runs.single else "",
    )


def _commands(runs: ReportedRuns) -> list[str]:
    """Commands that repeat the runs, not too many."""
    commands = rerun_commands(runs.folders)
    left = len(commands) - COMMANDS_SHOWN
    return [*commands[:COMMANDS_SHOWN], f"# and {left} more"] if left > 0 else commands


def write_report(
    paths: Sequence[Path],
    out: Path | None = None,
    *,
    by: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    title: str | None = None,
) -> ReportPaths:
    """Write ``report.html``, ``report.md``, ``report.tex``, ``report.csv`` and ``plots/*.png``.

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
        html, markdown, latex, csv = (
            folder / f"report.{ending}" for ending in ("html", "md", "tex", "csv")
        )
        write_atomically(html, render_html(report))
        write_atomically(markdown, render_markdown(report))
        write_atomically(latex, latex_table(report.table))
        write_atomically(csv, report.csv)
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {folder} ({error.strerror}); choose another --out."
        ) from error
    return ReportPaths(html, markdown, latex, csv, tuple(written))
