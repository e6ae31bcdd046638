"""Trials of claims as tables and as data."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from noisyml.reports.formats import escape_markdown, markdown_row
from noisyml.reports.settings import ABSENT
from noisyml.reports.statistics import Difference, paired_difference
from noisyml.reproduce.claims import RESULTS_FILE, Claim, Trial
from noisyml.reproduce.jobs import Job
from noisyml.reproduce.times import wall_seconds
from noisyml.storage.files import write_atomically
from noisyml.storage.reading import read_json

HEADINGS = ("claim", "paper", "metric", "with", "without", "effect", "95 % interval", "verdict")


@dataclass(frozen=True)
class Stored:
    """The result of a trial as the package keeps it.

    Attributes:
        verdict: then.
        first: metric of the first arm, pair by pair.
        second: of the other.
        lower_is_better: True for errors.
        keys: hashes of the runs' configurations, of both arms.
        seconds: that all runs took together, by the clock.
    """

    verdict: str
    first: tuple[float, ...]
    second: tuple[float, ...]
    lower_is_better: bool
    keys: tuple[tuple[str, ...], tuple[str, ...]]
    seconds: float

    @property
    def seconds_per_run(self) -> float:
        """In mean."""
        return self.seconds / max(1, sum(map(len, self.keys)))

    @property
    def difference(self) -> Difference:
        """As of `Trial`."""
        sign = -1.0 if self.lower_is_better else 1.0
        return paired_difference([sign * x for x in self.first], [sign * x for x in self.second])


def markdown(trials: Sequence[Trial]) -> str:
    """A table, a line per claim."""
    lines = [
        markdown_row(list(HEADINGS)),
        markdown_row(["---"] * 3 + ["---:"] * 4 + ["---"]),
        *(markdown_row([escape_markdown(text) for text in _row(trial)]) for trial in trials),
    ]
    return "\n".join(lines) + "\n"


def short_markdown(trials: Sequence[Trial]) -> str:
    """The same without the places in the papers and the figures of both arms."""
    chosen = [HEADINGS.index(name) for name in ("claim", "effect", "95 % interval", "verdict")]
    lines = [
        markdown_row(["paper", *(HEADINGS[column] for column in chosen)]),
        markdown_row(["---", "---", "---:", "---:", "---"]),
    ]
    for trial in trials:
        row = _row(trial)
        texts = [trial.claim.paper, *(row[column] for column in chosen)]
        lines.append(markdown_row([escape_markdown(text) for text in texts]))
    return "\n".join(lines) + "\n"


def explanations(trials: Sequence[Trial]) -> str:
    """Known reasons of verdicts that are not the paper's, a line each."""
    return "".join(
        f"- {trial.claim.name}: {trial.claim.explanation}\n"
        for trial in trials
        if trial.verdict != "holds" and trial.claim.explanation
    )


def _row(trial: Trial) -> list[str]:
    claim, found = trial.claim, trial.difference
    return [
        f"{claim.statement} ({claim.data})",
        f"{claim.paper}: {claim.source}",
        claim.metric.removeprefix("test/"),
        f"{sum(trial.first) / len(trial.first):.3f}",
        f"{sum(trial.second) / len(trial.second):.3f}",
        f"{found.mean:+.3f}",
        f"{found.low:+.3f} to {found.high:+.3f}" if found.count > 1 else ABSENT,
        f"{trial.verdict} ({found.count} pair{'s' * (found.count > 1)})",
    ]


def write_verdicts(
    trials: Sequence[Trial], stem: Path, runs: Path, jobs: Mapping[str, Sequence[Sequence[Job]]]
) -> Path:
    """Write ``STEM.md``, ``.csv`` and ``.json``; the path of the first.

    Args:
        trials: to write.
        stem: path without an ending.
        runs: folder of all runs.
        jobs: both arms of each claim.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(stem.with_suffix(".md"), markdown(trials))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *HEADINGS, "explanation"])
    for trial in trials:
        writer.writerow([trial.claim.name, *_row(trial), trial.claim.explanation])
    write_atomically(stem.with_suffix(".csv"), text.getvalue())
    content = {trial.claim.name: _as_data(trial, runs, jobs[trial.claim.name]) for trial in trials}
    write_atomically(stem.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    return stem.with_suffix(".md")


def _as_data(trial: Trial, runs: Path, arms: Sequence[Sequence[Job]]) -> dict[str, object]:
    done = [
        (one, other)
        for one, other in zip(*arms, strict=True)
        if one.is_finished(runs) and other.is_finished(runs)
    ]
    times = [wall_seconds(job, runs) for pair in done for job in pair]
    found = trial.difference
    return {
        "verdict": trial.verdict,
        "effect": round(found.mean, 6),
        "low": round(found.low, 6) if found.count > 1 else None,
        "high": round(found.high, 6) if found.count > 1 else None,
        "metric": trial.claim.metric,
        "lower_is_better": trial.claim.lower_is_better,
        "first": [round(x, 6) for x in trial.first],
        "second": [round(x, 6) for x in trial.second],
        "keys": [[job.key for job in arm] for arm in zip(*done, strict=True)],
        "seconds": round(math.fsum(t for t in times if t is not None), 1),
    }


def stored_results(file: Path = RESULTS_FILE) -> dict[str, Stored]:
    """The results that the package keeps, by the claim's name."""
    content = read_json(file, "reinstall noisyml")
    return {
        name: Stored(
            verdict=str(entry["verdict"]),
            first=tuple(entry["first"]),
            second=tuple(entry["second"]),
            lower_is_better=bool(entry["lower_is_better"]),
            keys=(tuple(entry["keys"][0]), tuple(entry["keys"][1])),
            seconds=float(entry["seconds"]),
        )
        for name, entry in content.items()
    }


def stored_trials(claims: Sequence[Claim]) -> list[Trial]:
    """Those of the claims that the package keeps results of, with them."""
    results = stored_results()
    return [
        Trial(claim, results[claim.name].first, results[claim.name].second)
        for claim in claims
        if claim.name in results
    ]
