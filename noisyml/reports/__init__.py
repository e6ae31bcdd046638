"""Reports: run folders in, tables, plots and one self-contained page out."""

from noisyml.reports.report import ReportPaths, render_html, write_report
from noisyml.reports.tables import aggregate, load_runs, markdown_table, result_table

__all__ = [
    "ReportPaths",
    "aggregate",
    "load_runs",
    "markdown_table",
    "render_html",
    "result_table",
    "write_report",
]
