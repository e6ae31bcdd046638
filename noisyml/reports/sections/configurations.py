"""Settings in which the groups of a report differ, those that follow from another one included."""

from __future__ import annotations

from noisyml.reports.sections.base import ReportedRuns, TextTable
from noisyml.reports.settings import ABSENT, INCIDENTAL, Settings, text_of
from noisyml.runs.folder import RunFolder

#: Groups at most that have a column each, and settings at most that have a row.
MOST_GROUPS, MOST_SETTINGS = 6, 80


def configurations(runs: ReportedRuns) -> list[TextTable]:
    """A row for each setting that differs; nothing for a single group.

    One run stands for its group. Where groups are many a row lists the values, each with the number
    of groups that have it. Seeds and folders are left out.
    """
    first = {group: runs.folders[runs.group_of.index(group)] for group in runs.groups}
    read = {group: runs.read(_leaves, run) for group, run in first.items()}
    leaves = {group: found for group, found in read.items() if found is not None}
    if len(leaves) < 2:
        return []
    names = dict.fromkeys(key for found in leaves.values() for key in found)
    rows = []
    for key in names:
        values = [found.get(key, ABSENT) for found in leaves.values()]
        if len(set(values)) > 1:
            rows.append((key, *_told(values)))
    if not rows:
        return []
    caption = "Of each group its first run; seeds and folders are left out."
    if len(rows) > MOST_SETTINGS:
        caption += f" The first {MOST_SETTINGS} of {len(rows)} settings; noisyml diff shows all."
    columns = [runs.name(group, runs.keys) for group in leaves]
    if len(columns) > MOST_GROUPS:
        columns = ["values, and how many groups have them"]
    return [
        TextTable(
            "Settings that differ", caption, ("setting", *columns), tuple(rows[:MOST_SETTINGS])
        )
    ]


def _told(values: list[str]) -> list[str]:
    """Texts of the values of all groups, or one text of their counts."""
    if len(values) <= MOST_GROUPS:
        return values
    counts = {value: values.count(value) for value in dict.fromkeys(values)}
    return ["; ".join(f"{value} ({count})" for value, count in counts.items())]


def _leaves(run: RunFolder) -> dict[str, str]:
    found = Settings.read(run).leaves
    return {key: text_of(value) for key, value in found.items() if not INCIDENTAL.search(key)}
