"""Reports: run folders in, tables, plots and one self-contained page out."""

from noisyml.reports.formats import csv_table, latex_table, markdown_table
from noisyml.reports.report import ReportPaths, render_html, write_report
from noisyml.reports.tables import aggregate, load_runs, result_table

__all__ = [
    "ReportPaths",
    "aggregate",
    "csv_table",
    "latex_table",
    "load_runs",
    "markdown_table",
    "render_html",
    "result_table",
    "write_report",
]
