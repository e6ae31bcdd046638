"""Stages of a run: the runs that went before it (a teacher, a search), with their test metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator

from noisyml.reports.artefacts import reading
from noisyml.reports.sections.base import RunSection, TextTable
from noisyml.reports.settings import ABSENT
from noisyml.reports.tables import Column, default_test_metrics
from noisyml.runs.folder import CONFIG_FILE, STAGES_FOLDER, RunFolder

PLANS_FILE = "stages.json"


def show(run: RunFolder, alone: bool) -> Iterator[TextTable]:
    """A table with a row per stage and one for the run itself, if it has stages."""
    folders = stage_folders(run)
    if not folders:
        return
    rows = {**{folder.path.name: folder for folder in folders}, "this run": run}
    metrics = {name: _metrics(folder) for name, folder in rows.items()}
    present = dict.fromkeys(metric for known in metrics.values() for metric in known)
    columns = [Column.of(metric) for metric in default_test_metrics(list(present))]
    yield TextTable(
        "Stages",
        "Runs that went before this one, in their order; each has a folder below stages/.",
        ("stage", "state", *(column.heading for column in columns)),
        tuple(
            (
                name,
                str(folder.status().get("state", ABSENT)),
                *(c.text(metrics[name].get(c.metric, float("nan"))) for c in columns),
            )
            for name, folder in rows.items()
        ),
    )


def stage_folders(run: RunFolder) -> list[RunFolder]:
    """The stages of a run that were begun, as they were planned, or else by name.

    Raises:
        Unreadable: ``stages.json`` is broken.
    """
    below = run.path / STAGES_FOLDER
    found = sorted(path.parent.name for path in below.glob(f"*/{CONFIG_FILE}"))
    plans = run.path / PLANS_FILE
    if plans.is_file():
        with reading(plans):
            planned = [str(plan["name"]) for plan in json.loads(plans.read_bytes())["stages"]]
        found.sort(key=lambda name: planned.index(name) if name in planned else len(planned))
    return [RunFolder(below / name) for name in found]


def _metrics(run: RunFolder) -> dict[str, float]:
    if not run.metrics_file.is_file():
        return {}
    with reading(run.metrics_file):
        return run.metrics()


SECTION = RunSection(50, show)
