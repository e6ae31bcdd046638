"""An audit of labels from the rows to its files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from noisyml.audit.doors import Door, from_cleanlab, read_export, write_doors
from noisyml.audit.flags import mixed_classes, near_duplicates, odd_images, unlike_any_class
from noisyml.audit.issues import (
    checked_reviews,
    cleaned,
    compared,
    decide,
    issues_table,
    known_classes,
    with_reviews,
)
from noisyml.audit.judging import Judgements, Progress, judge_labels
from noisyml.audit.planted import PlantedCheck, check_planted
from noisyml.audit.rows import Rows
from noisyml.audit.steps import StoredSteps
from noisyml.checks import Count, Ge, OpenShare, Positive, Seed, Share, WholeNonNegative, checked
from noisyml.errors import UserError
from noisyml.noise import NoNoise
from noisyml.noise.planted import plant_errors, planted
from noisyml.storage.files import atomic, write_atomically
from noisyml.storage.reading import reading
from noisyml.storage.tables import table_for_spreadsheet, table_from_spreadsheet

log = logging.getLogger(__name__)

#: Files of an audit.
ISSUES, CLEANED, SUMMARY = "issues.csv", "cleaned.csv", "summary.json"
DECISIONS, PLAN = "decisions.csv", "plan.csv"


@checked
@dataclass(frozen=True)
class AuditSettings:
    """Settings of an audit, see ``conf/clean.yaml``."""

    neighbours: Count = 30
    folds: Annotated[int, Ge(2)] = 10
    rounds: Count = 2
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
        mixed: see `noisyml.audit.flags.mixed_classes`.
        check: of the ranking by planted errors; None: none were planted.
        summary: what ``summary.json`` says.
    """

    rows: Rows
    judged: Judgements
    issues: pd.DataFrame
    duplicates: pd.DataFrame
    mixed: pd.DataFrame
    check: PlantedCheck | None
    summary: dict[str, Any]


def audit(
    rows: Rows,
    settings: AuditSettings,
    folder: Path,
    reviews: tuple[pd.DataFrame, str] | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Judge all rows and look for what else is wrong with them; finished steps lie in `folder`.

    Args:
        rows: with features.
        settings: of the audit.
        folder: of the audit.
        reviews: decisions of a reviewer and where they come from.
        progress: called as the work goes on.
    """
    classes = len(rows.class_names)
    known = None if reviews is None else known_classes(rows, *reviews)
    told = (rows.digest(), settings.neighbours, settings.folds, settings.rounds, settings.seed)
    reviewed = "" if known is None else known.tobytes().hex()
    steps = StoredSteps(folder / "steps", repr((*told, reviewed)))
    judged = judge_labels(
        rows.features,
        rows.labels,
        classes,
        neighbours=settings.neighbours,
        folds=settings.folds,
        rounds=settings.rounds,
        known=known,
        seed=settings.seed,
        progress=progress,
        steps=steps,
    )
    check = (
        _planted_check(rows, settings, steps, judged, progress) if settings.planted_errors else None
    )
    duplicates = near_duplicates(
        judged.index, judged.similarity, rows.labels, rows.split, settings.duplicates_above
    )
    distance, far = unlike_any_class(judged.similarity, deviations=settings.unlike_deviations)
    odd = []
    if settings.look_at_images and rows.kind == "images":
        report: Callable[[int, int], None] | None = None
        if progress is not None:
            report = lambda done, total: progress("looking at images", done / total)  # noqa: E731
        odd = odd_images(rows, report)
    issues = issues_table(rows, judged, duplicates, distance, far, odd)
    mixed = mixed_classes(judged.confusion[0], judged.confusion[1][0], rows.class_names)
    summary = _summary(rows, judged, issues, duplicates, mixed, far, len(odd), check, settings)
    return Audit(rows, judged, issues, duplicates, mixed, check, summary)


def _planted_check(
    rows: Rows,
    settings: AuditSettings,
    steps: StoredSteps,
    judged: Judgements,
    progress: Progress | None,
) -> PlantedCheck:
    """Figures of the same judging on labels of which some were flipped on purpose."""
    classes = len(rows.class_names)
    manifest = NoNoise().inject(rows.labels, classes, keys=[*rows.keys])
    manifest = plant_errors(manifest, settings.planted_errors, settings.seed)

    def keep(name: str, compute: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        if name == "neighbours":
            return {"index": judged.index, "similarity": judged.similarity}
        return steps(f"planted_{name}", compute)

    again = judge_labels(
        rows.features,
        manifest.observed,
        classes,
        neighbours=settings.neighbours,
        folds=min(settings.folds, 5),
        rounds=1,
        seed=settings.seed,
        replicates=1,
        progress=None if progress is None else lambda _, share: progress("planted errors", share),
        steps=keep,
    )
    return check_planted(np.argsort(-again.p_wrong, kind="stable"), planted(manifest))


def _summary(
    rows: Rows,
    judged: Judgements,
    issues: pd.DataFrame,
    duplicates: pd.DataFrame,
    mixed: pd.DataFrame,
    far: NDArray[np.bool_],
    odd: int,
    check: PlantedCheck | None,
    settings: AuditSettings,
) -> dict[str, Any]:
    rate = judged.noise_rate
    decisions = decide(issues, settings.relabel_above, settings.drop_above)
    counted = decisions["decision"].value_counts()
    return {
        "rows": len(rows),
        "classes": len(rows.class_names),
        "splits": {str(k): int(v) for k, v in pd.Series(rows.split).value_counts().items()},
        "noise_rate": rate.value,
        "noise_rate_interval": [rate.low, rate.high],
        "wrong_rows_expected": float(judged.p_wrong.sum()),
        "decisions": {word: int(counted.get(word, 0)) for word in ("keep", "relabel", "drop")},
        "near_duplicates": len(duplicates),
        "near_duplicates_across_labels": int(duplicates["labels_differ"].sum()),
        "near_duplicates_across_splits": int(duplicates["splits_differ"].sum()),
        "unlike_any_class": int(far.sum()),
        "odd_images": odd,
        "broken_images": [f"{split}: {key}" for split, key in rows.broken],
        "mixed_classes": mixed.to_dict("records"),
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
    with atomic(folder / "issues.parquet", sole_writer=True) as temporary:
        pq.write_table(pa.Table.from_pandas(found.issues, preserve_index=False), temporary)
    decisions = decide(found.issues, settings.relabel_above, settings.drop_above)
    if reviews is not None:
        decisions = with_reviews(decisions, *reviews)
    write_table(decisions, folder / PLAN)
    write_table(cleaned(decisions), folder / CLEANED)
    pairs = found.duplicates.copy()
    keys = np.asarray(found.rows.keys, dtype=object)
    pairs["first"], pairs["second"] = keys[pairs["first"]], keys[pairs["second"]]
    write_table(pairs, folder / "duplicates.csv")
    write_table(_confusion(found), folder / "confusion.csv")
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


def _confusion(found: Audit) -> pd.DataFrame:
    """Pairs of true class and label with rows and interval; those below half a row left out."""
    table, (low, high) = found.judged.confusion
    true, label = np.nonzero(table >= 0.5)
    names = np.asarray(found.rows.class_names, dtype=object)
    return pd.DataFrame(
        {
            "true": names[true],
            "label": names[label],
            "rows": table[true, label],
            "low": low[true, label],
            "high": high[true, label],
        }
    )


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
    decisions = with_reviews(read_table(plan), reviews_in(reviews), str(reviews))
    file = out or folder / CLEANED
    write_table(decisions, folder / PLAN)
    write_table(cleaned(decisions), file)
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
        texts = dict.fromkeys(("path", "label", "given", "suggested", "decision", "split"), str)
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
    checked_reviews(table, str(file))
    return table, str(file)
