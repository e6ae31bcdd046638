"""Estimates of the time that runs take: from finished ones, else from the images they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from noisyml.reproduce.cells import Scale
from noisyml.reproduce.jobs import Job

#: Images a second that training is taken to manage where no run is finished, and on what: round
#: numbers and no measurements.
ASSUMED: Mapping[Scale, tuple[float, str]] = {
    "paper": (300.0, "a ResNet-50 at 224 pixels on one GPU"),
    "desk": (3000.0, "a small network on one core"),
}


def estimate(
    cells: Sequence[tuple[Sequence[Job], float]],
    runs: Path,
    scale: Scale = "desk",
    before: Mapping[str, float] = MappingProxyType({}),
) -> str:
    """A sentence on the time of all runs that are not finished.

    Args:
        cells: the jobs of each cell, and the images that one of them trains on (0: not known).
        runs: folder of all runs.
        scale: of the runs.
        before: seconds that such runs took when the package's results were made, by the job's key.
    """
    rate, network = ASSUMED[scale]
    seconds: dict[str, float] = {}
    stored: dict[str, float] = {}
    guessed: dict[str, float] = {}
    unknown = set()
    for jobs, samples in cells:
        done = [wall_seconds(job, runs) for job in jobs if job.is_finished(runs)]
        known = [s for s in done if s is not None]
        for job in jobs:
            if job.is_finished(runs):
                continue
            if known:
                seconds[job.key] = sum(known) / len(known)
            elif job.key in before:
                stored[job.key] = before[job.key]
            elif samples:
                guessed[job.key] = samples / rate
            else:
                unknown.add(job.key)
    parts = []
    if seconds:
        parts.append(f"{in_words(sum(seconds.values()))} by the time that finished runs took")
    if stored:
        parts.append(
            f"{in_words(sum(stored.values()))} for {len(stored)} runs by the time that the stored "
            "results took"
        )
    if guessed:
        parts.append(
            f"{in_words(sum(guessed.values()))} for {len(guessed)} runs at {rate:.0f} images a "
            f"second (assumed: {network})"
        )
    if unknown:
        parts.append(f"{len(unknown)} runs of unknown length")
    return f"Estimate: {'; '.join(parts) or 'nothing to do'}."


def wall_seconds(job: Job, runs: Path) -> float | None:
    """Seconds of a run's last start, from beginning to end, None where they are not known."""
    status = job.folder(runs).status()
    began, ended = status.get("began"), status.get("ended")
    if isinstance(began, int | float) and isinstance(ended, int | float):
        return float(ended - began)
    return None


def in_words(seconds: float) -> str:
    """A time in the unit that suits it."""
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
