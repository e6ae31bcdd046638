"""Content of a report, before it becomes HTML or Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from noisyml.reports.provenance import Fact
from noisyml.reports.sections.base import CellNote, Detail, Picture, RunLine, TextTable
from noisyml.reports.settings import decides_data
from noisyml.reports.tables import SIGNIFICANCE, Column, ResultTable

LEGEND = (
    "Mean ± standard deviation over seeds (ddof 1), fractions of 1. Bold: the best of its column "
    "among rows with the same data and noise, and what the seeds do not tell from it (Welch's "
    f"t-test, {SIGNIFICANCE:.0%}); nothing where they tell no row apart, or where one seed is all."
)


@dataclass(frozen=True)
class Report:
    """Content of the page."""

    title: str
    summary: str
    made: str
    notices: tuple[str, ...]
    unfinished: tuple[RunLine, ...]
    table: ResultTable
    notes: tuple[tuple[CellNote, ...], ...]
    csv: str
    across: tuple[Picture, ...]
    training: tuple[Picture, ...]
    trust: tuple[Picture, ...]
    details: tuple[Detail, ...]
    details_note: str
    comparisons: tuple[TextTable, ...]
    configurations: tuple[TextTable, ...]
    runs: tuple[RunLine, ...]
    run_columns: tuple[Column, ...]
    searches: tuple[Detail, ...]
    commands: tuple[str, ...]
    environment: tuple[Fact, ...]
    other_metrics: tuple[tuple[str, str], ...] = ()
    config: str = ""

    @property
    def pictures(self) -> list[Picture]:
        """All figures in the order of the page."""
        detailed = [picture for detail in self.details for picture in detail.pictures]
        searched = [picture for search in self.searches for picture in search.pictures]
        return [*searched, *self.across, *self.training, *self.trust, *detailed]

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
        """Explanation of the table."""
        return LEGEND

    @property
    def shared(self) -> str:
        """The settings that all runs share, in a sentence; empty for a single run."""
        if self.single or not self.table.constant:
            return ""
        return "In all runs: " + ", ".join(f"{k} {v}" for k, v in self.table.constant) + "."

    @property
    def single(self) -> bool:
        """True for a report on one run."""
        return len(self.runs) == 1
