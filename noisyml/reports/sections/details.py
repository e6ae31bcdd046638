"""Runs in detail: one of each group, with all that the sections of artefacts show of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from noisyml.reports.artefacts import read_list
from noisyml.reports.sections.artefacts import run_sections
from noisyml.reports.sections.base import (
    Detail,
    Element,
    Gallery,
    Group,
    Picture,
    ReportedRuns,
    TextTable,
    Thumbs,
    run_name,
)
from noisyml.reports.sections.by_kind import show_by_kind
from noisyml.runs.folder import RunFolder

#: Groups shown with pictures of one run; a report on that run alone shows any other.
DETAILED_GROUPS = 6


def details(runs: ReportedRuns) -> tuple[list[Detail], str]:
    """Details of one run of each of the groups with most noise, complete blocks first."""
    able = [group for group in runs.groups if runs.members(group)]
    blocks: dict[str, list[Group]] = {}
    for group in able:
        blocks.setdefault(runs.name(group, runs.facets_by), []).append(group)
    chosen = [group for block in reversed(blocks.values()) for group in block]
    chosen = sorted(chosen[:DETAILED_GROUPS], key=runs.groups.index)
    found = []
    for number, group in enumerate(chosen, 1):
        prefix = "" if len(runs.groups) == 1 else f"group_{number}_"
        detail = _detail(runs, runs.members(group)[0], runs.name(group, runs.keys), prefix)
        if not detail.empty:
            found.append(detail)
    left = len(able) - len(chosen)
    note = (
        f"One run of each of the {len(chosen)} groups with most noise, of {len(able)} groups; "
        "noisyml report RUN_DIR shows any other run."
        if left
        else ""
    )
    return found, note if found else ""


def _detail(runs: ReportedRuns, run: RunFolder, title: str, prefix: str) -> Detail:
    """All that sections show of a run, artefacts without a section of their own last."""
    elements: list[Element] = []
    for section in run_sections():
        elements += runs.read(partial(_shown, section.show, runs.single), run) or []
    known = {file for section in run_sections() for file in section.files}
    for entry in runs.read(read_list, run) or []:
        if entry.title and entry.file not in known:
            show = partial(show_by_kind, entry)
            elements += runs.read(partial(_shown, show, runs.single), run) or []
    pictures = [replace(e, name=f"{prefix}{e.name}") for e in elements if isinstance(e, Picture)]
    thumbs = [element for element in elements if isinstance(element, Thumbs)]
    return Detail(
        title,
        run_name(run.path),
        tuple(pictures),
        tuple(thumb for element in thumbs for thumb in element.thumbs),
        " ".join(element.caption for element in thumbs),
        tuple(element for element in elements if isinstance(element, Gallery)),
        tuple(element for element in elements if isinstance(element, TextTable)),
    )


def _shown(
    show: Callable[[RunFolder, bool], Iterable[Element]], alone: bool, run: RunFolder
) -> list[Element]:
    """Elements of a section about a run."""
    return list(show(run, alone))
