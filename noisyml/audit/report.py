"""An audit of labels from the rows to its files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from noisyml.audit.doors import Door, from_cleanlab, read_export, write_doors
from noisyml.audit.flags import near_duplicates, odd_images, unlike_any_class
from noisyml.audit.issues import (
    checked_reviews,
    cleaned,
    compared,
    decide,
    issues_table,
    with_reviews,
)
from noisyml.audit.judging import Progress, Search
from noisyml.audit.kinds.base import Kind, Verdict
from noisyml.audit.kinds.captions import Captions
from noisyml.audit.kinds.entries import SeveralLabels
from noisyml.audit.kinds.single import OneLabel
from noisyml.audit.planted import PlantedCheck, check_planted
from noisyml.audit.rows import Rows
from noisyml.audit.scores.columns import Score
from noisyml.audit.steps import Arrays, Steps, StoredSteps
from noisyml.checks import Count, Ge, OpenShare, Positive, Seed, Share, WholeNonNegative, checked
from noisyml.errors import UserError, did_you_mean
from noisyml.storage.files import atomic, write_atomically
from noisyml.storage.parquet import to_column
from noisyml.storage.reading import reading
from noisyml.storage.tables import table_for_spreadsheet, table_from_spreadsheet

log = logging.getLogger(__name__)

#: Files of an audit.
ISSUES, CLEANED, SUMMARY = "issues.csv", "cleaned.csv", "summary.json"
DECISIONS, PLAN = "decisions.csv", "plan.csv"

#: How labels of each kind are judged.
KINDS: dict[str, Kind] = {"single": OneLabel(), "multi": SeveralLabels(), "pairs": Captions()}


@checked
@dataclass(frozen=True)
class AuditSettings:
    """Settings of an audit, see ``conf/clean.yaml``."""

    neighbours: Count = 30
    folds: Annotated[int, Ge(2)] = 10
    rounds: Count = 2
    search: Search = "auto"
    scores: list[Score] | None = None
    head_epochs: Count = 20
    rank_by: str = "p_wrong"
    planted_errors: OpenShare = 0.05
    relabel_above: Share | None = 0.9
    drop_above: Share | None = 0.5
    duplicates_above: Share = 0.995
    unlike_deviations: Positive = 4.0
    look_at_images: bool = True
    gallery_rows: WholeNonNegative = 500
    export: list[Door] | None = None
    seed: Seed = 0


@dataclass(frozen=True)
class Audit:
    """Results of an audit.

    Attributes:
        rows: that were judged.
        judged: their labels.
        issues: see `noisyml.audit.issues.issues_table`.
        duplicates: see `noisyml.audit.flags.near_duplicates`.
        check: of the ranking by planted errors; None: none were planted.
        summary: what ``summary.json`` says.
    """

    rows: Rows
    judged: Verdict
    issues: pd.DataFrame
    duplicates: pd.DataFrame
    check: PlantedCheck | None
    summary: dict[str, Any]


def audit(
    rows: Rows,
    settings: AuditSettings,
    folder: Path,
    reviews: tuple[pd.DataFrame, str] | None = None,
    progress: Progress | None = None,
    probabilities: NDArray[Any] | None = None,
    trained: NDArray[Any] | None = None,
) -> Audit:
    """Judge all rows and look for what else is wrong with them; finished steps lie in `folder`.

    Args:
        rows: with features.
        settings: of the audit.
        folder: of the audit.
        reviews: decisions of a reviewer and where they come from.
        progress: called as the work goes on.
        probabilities: out of fold [N, C], of another classifier; None: they are computed.
        trained: trust in each row of a run that trained on it [N], NaN elsewhere; a column.

    Raises:
        UserError: rows are to be ordered by a score that there is not.
    """
    kind = KINDS[rows.target.name]
    there = ["p_wrong", *kind.scores, *(["trained"] if trained is not None else [])]
    if rows.target.exclusive:
        there += settings.scores or []
    if settings.rank_by not in there:
        raise UserError(
            f"rank_by={settings.rank_by} is no score of this audit."
            f"{did_you_mean(settings.rank_by, there)} There are: {', '.join(there)}."
        )
    known = None
    if reviews is not None:
        known = kind.known(
            rows, checked_reviews(*reviews, none=kind.several), reviews[1], rows.paths
        )
    told = (
        *(rows.digest(), settings.neighbours, settings.folds, settings.rounds, settings.seed),
        settings.search,
    )
    reviewed = "" if known is None else _digest(known)
    foreign = "" if probabilities is None else _digest(probabilities)
    steps = StoredSteps(folder / "steps", repr((*told, settings.head_epochs, reviewed, foreign)))
    judged = kind.judge(
        rows, settings, known, progress, steps, rounds=None, probabilities=probabilities
    )
    if trained is not None:
        judged = replace(judged, columns={**judged.columns, "trained": trained})
    check = (
        _planted_check(kind, rows, settings, steps, judged, progress)
        if settings.planted_errors
        else None
    )
    duplicates = near_duplicates(
        judged.index, judged.similarity, rows.given, rows.split, settings.duplicates_above
    )
    distance, far = unlike_any_class(judged.similarity, deviations=settings.unlike_deviations)
    odd = []
    if settings.look_at_images and rows.kind == "images":
        report: Callable[[int, int], None] | None = None
        if progress is not None:
            report = lambda done, total: progress("looking at images", done / total)  # noqa: E731
        odd = odd_images(rows, report)
    issues = issues_table(rows, judged, duplicates, distance, far, odd, settings.rank_by)
    summary = _summary(rows, judged, issues, duplicates, far, len(odd), check, settings)
    return Audit(rows, judged, issues, duplicates, check, summary)


def _digest(values: NDArray[Any]) -> str:
    """SHA-256 of numbers, or of texts."""
    content = repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
    return hashlib.sha256(content).hexdigest()


class _PlantedSteps(Steps):
    """Steps of the judging of planted errors, beside those of the audit, whose neighbours they
    share."""

    def __init__(self, steps: Steps, judged: Verdict) -> None:
        self._steps, self._judged = steps, judged

    def __call__(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        if name == "neighbours":
            judged, recall = self._judged, np.asarray(np.nan)
            return {"index": judged.index, "similarity": judged.similarity, "recall": recall}
        return self._steps(f"planted_{name}", compute)


def _planted_check(
    kind: Kind,
    rows: Rows,
    settings: AuditSettings,
    steps: Steps,
    judged: Verdict,
    progress: Progress | None,
) -> PlantedCheck:
    """Figures of the same judging on labels of which some were flipped on purpose."""
    flipped, numbers = kind.plant(rows, settings.planted_errors, settings.seed)
    again = kind.judge(
        flipped,
        settings,
        progress=None if progress is None else lambda _, share: progress("planted errors", share),
        steps=_PlantedSteps(steps, judged),
        rounds=1,
    )
    return check_planted(again.ranking, numbers)


def _summary(
    rows: Rows,
    judged: Verdict,
    issues: pd.DataFrame,
    duplicates: pd.DataFrame,
    far: NDArray[np.bool_],
    odd: int,
    check: PlantedCheck | None,
    settings: AuditSettings,
) -> dict[str, Any]:
    rate = judged.noise_rate
    decisions = decide(issues, settings.relabel_above, settings.drop_above, judged.decide)
    counted = decisions["decision"].value_counts()
    return {
        "labels": rows.target.words,
        "column": KINDS[rows.target.name].column,
        "rows": len(rows),
        "classes": len(rows.class_names),
        "splits": {str(k): int(v) for k, v in pd.Series(rows.split).value_counts().items()},
        "noise_rate": rate.value,
        "noise_rate_interval": [rate.low, rate.high],
        "told": judged.told,
        "wrong_rows_expected": float(judged.p_wrong.sum()),
        **judged.facts,
        "decisions": {word: int(counted.get(word, 0)) for word in ("keep", "relabel", "drop")},
        "near_duplicates": len(duplicates),
        "near_duplicates_across_labels": int(duplicates["labels_differ"].sum()),
        "near_duplicates_across_splits": int(duplicates["splits_differ"].sum()),
        "unlike_any_class": int(far.sum()),
        "odd_images": odd,
        "broken_images": [f"{split}: {key}" for split, key in rows.broken],
        "mixed_classes": [] if judged.mixed is None else judged.mixed.to_dict("records"),
        "planted_check": None if check is None else check.sentence,
        "trustworthy": None if check is None else not check.near_chance,
        "settings": asdict(settings),
    }


def write_audit(
    found: Audit,
    folder: Path,
    settings: AuditSettings,
    reviews: tuple[pd.DataFrame, str] | None = None,
    against: Path | None = None,
) -> None:
    """Write the files of an audit: ``issues.csv`` and ``.parquet``, ``cleaned.csv``, ...

    Args:
        found: the audit.
        folder: where they go.
        settings: of the audit.
        reviews: decisions of a reviewer, which overrule thresholds.
        against: another table of the same paths; differences go to ``against.csv``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_table(found.issues.drop(columns="row"), folder / ISSUES)
    whole = pa.Table.from_pandas(found.issues, preserve_index=False)
    for name, values in found.judged.wide.items():
        whole = whole.append_column(name, to_column(values[found.issues["row"].to_numpy()]))
    with atomic(folder / "issues.parquet", sole_writer=True) as temporary:
        pq.write_table(whole, temporary)
    decide_by = found.judged.decide
    several = KINDS[found.rows.target.name].several
    decisions = decide(found.issues, settings.relabel_above, settings.drop_above, decide_by)
    if reviews is not None:
        decisions = with_reviews(decisions, *reviews, none=several)
    write_table(decisions, folder / PLAN)
    write_table(cleaned(decisions, found.summary["column"]), folder / CLEANED)
    pairs = found.duplicates.copy()
    keys = np.asarray(found.rows.keys, dtype=object)
    pairs["first"], pairs["second"] = keys[pairs["first"]], keys[pairs["second"]]
    write_table(pairs, folder / "duplicates.csv")
    for file, table in found.judged.tables.items():
        write_table(table, folder / file)
    write_doors(settings.export or [], folder, found.issues, found.rows, found.judged)
    if against is not None:
        differing = compared(found.issues, read_table(against), str(against))
        write_table(differing, folder / "against.csv")
        found.summary["against"] = {
            "file": str(against),
            "rows_that_differ": len(differing),
            "of_which_suggested_here": int(differing["agrees"].sum()),
        }
    write_atomically(folder / SUMMARY, json.dumps(found.summary, indent=2, allow_nan=True) + "\n")


def apply_reviews(folder: Path, reviews: Path, out: Path | None = None) -> tuple[Path, int, int]:
    """Labels of an audit after a review, in ``cleaned.csv``.

    Args:
        folder: of the audit.
        reviews: table with the columns path, decision and label.
        out: file to write; None: ``cleaned.csv`` of the folder.

    Returns:
        The file, and how many rows were relabelled and dropped.

    Raises:
        UserError: no audit there, or decisions that do not fit it.
    """
    plan = folder / PLAN
    if not plan.is_file():
        raise UserError(f"{folder} holds no audit (no {PLAN}): give the folder of `noisyml clean`.")
    with reading(folder / SUMMARY, "judge the labels again"):
        column = json.loads((folder / SUMMARY).read_text(encoding="utf-8")).get("column", "label")
    none = column == SeveralLabels.column
    decisions = with_reviews(read_table(plan), reviews_in(reviews), str(reviews), none)
    file = out or folder / CLEANED
    write_table(decisions, folder / PLAN)
    write_table(cleaned(decisions, column), file)
    counted = decisions["decision"].value_counts()
    return file, int(counted.get("relabel", 0)), int(counted.get("drop", 0))


def write_table(table: pd.DataFrame, file: Path) -> None:
    """Write a CSV whose texts no spreadsheet takes for formulas."""
    with atomic(file, sole_writer=True) as temporary:
        table_for_spreadsheet(table).to_csv(temporary, index=False, float_format="%.6g")


def read_table(file: Path) -> pd.DataFrame:
    """A CSV, TSV or Parquet table; columns of CSV that name things are texts.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if not file.is_file():
        raise UserError(f"There is no {file}.")
    with reading(file, "give a .csv, .tsv or .parquet table"):
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        separator = "\t" if file.suffix == ".tsv" else ","
        texts = dict.fromkeys(
            ("path", "label", "labels", "caption", "given", "suggested", "decision", "split"), str
        )
        table = pd.read_csv(file, sep=separator, dtype=texts, keep_default_na=False, na_values=[])
    return table_from_spreadsheet(table)


def reviews_in(file: Path) -> pd.DataFrame:
    """Decisions as the gallery saved them, as Label Studio exports them (.json), or as cleanlab's.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if file.suffix == ".json" and file.is_file():
        return read_export(file)
    table = read_table(file)
    return from_cleanlab(table) if "is_label_issue" in table else table


def read_reviews(file: Path) -> tuple[pd.DataFrame, str]:
    """Decisions of a reviewer, and where they come from.

    Raises:
        UserError: the file is not one of decisions.
    """
    table = reviews_in(file)
    checked_reviews(table, str(file), none=True)
    return table, str(file)
