"""Notices on top of the page, for readers of its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from noisyml.reports.artefacts import BROKEN_IMAGES_FILE, read_broken_images, read_manifest
from noisyml.reports.provenance import (
    Fact,
    data_warnings,
    environment_warnings,
    rate_warnings,
    repetition_warnings,
)
from noisyml.reports.sections.base import ReportedRuns, run_name
from noisyml.runs.folder import RunFolder

NAMES_SHOWN = 5

_CHOSEN_ON_TEST = (
    "Figures marked CHOSEN ON TEST use a checkpoint chosen on the test data: they are optimistic "
    "and compare with no others."
)


def notices(runs: ReportedRuns, facts: Sequence[Fact]) -> list[str]:
    """All notices; the last ones say what could not be read for any section of the page.

    Args:
        runs: of the report, their other sections made already.
        facts: of their environments.
    """
    names = [runs.name(group, runs.keys) for group in runs.group_of]
    return [
        *([_CHOSEN_ON_TEST] if _chosen_on_test(runs) else []),
        *environment_warnings(facts),
        *data_warnings(runs.frame, lambda run: runs.read(read_manifest, run)),
        *_left_out(runs),
        *([] if runs.single else repetition_warnings(runs.frame, names)),
        *_without_best(runs),
        *_broken_images(runs),
        *rate_warnings(runs.frame),
        *dict.fromkeys(runs.unreadable),
    ]


def _chosen_on_test(runs: ReportedRuns) -> bool:
    return any(c.metric.startswith("chosen_on_test/") for c in runs.table.columns)


def _left_out(runs: ReportedRuns) -> list[str]:
    """A sentence on runs that repeat a newer one and are left out."""
    names = [run_name(Path(path)) for path in runs.frame.attrs["left_out"]]
    if not names:
        return []
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    listed = ", ".join(names[:NAMES_SHOWN]) + more
    return [
        f"{len(names)} finished {'run was' if len(names) == 1 else 'runs were'} left out, "
        f"because a newer one has the same configuration and seed: {listed}."
    ]


def _without_best(runs: ReportedRuns) -> list[str]:
    """A sentence on runs that were to evaluate a best model and have none."""
    lacking = [run for run in runs.folders if _lacks_best(run)]
    if not lacking:
        return []
    validated = [any(name.startswith("val/") for name in run.metrics()) for run in lacking]
    why = "the validation metric that it follows was undefined in every epoch"
    if not any(validated):
        why = "there is no validation split"
    elif not all(validated):
        why += ", or there is no validation split"
    where = f" in {len(lacking)} of {len(runs.folders)} runs" if len(runs.folders) > 1 else ""
    return [f"No model is the best on validation{where}: {why}."]


def _lacks_best(run: RunFolder) -> bool:
    choice = run.config().get("model_choice") or []
    wanted = "best" in ([choice] if isinstance(choice, str) else choice)
    if not wanted or not run.metrics_file.is_file():
        return False
    return not {"best/epoch", "best/stage"} & set(run.metrics())


def _broken_images(runs: ReportedRuns) -> list[str]:
    """A sentence on images that could not be decoded, per run or at most."""
    counts = [runs.read(read_broken_images, run) or 0 for run in runs.folders]
    most, concerned = max(counts), sum(count > 0 for count in counts)
    if not most:
        return []
    images = f"{most:,} {'image' if most == 1 else 'images'}"
    tail = (
        "could not be decoded and were left out"
        if most != 1
        else ("could not be decoded and was left out")
    )
    up_to = "Up to " if len({count for count in counts if count}) > 1 else ""
    where = f" in {concerned} of {len(counts)} runs" if len(counts) > 1 else ""
    return [f"{up_to}{images} {tail}{where}; {BROKEN_IMAGES_FILE} in the run folder lists them."]
