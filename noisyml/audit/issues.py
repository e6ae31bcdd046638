"""Tables of an audit: every row with what was found of it, and the labels that follow from it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from noisyml.audit.flags import Odd
from noisyml.audit.kinds.base import Deciding, Verdict
from noisyml.audit.rows import Rows
from noisyml.checks import Share, checked
from noisyml.errors import UserError, did_you_mean

#: Things that can be decided about a row.
Decision = Literal["keep", "relabel", "drop"]


def lines_of(table: pd.DataFrame) -> Iterator[Any]:
    """The lines of a table, with a field for each column."""
    return table.itertuples(index=False)


def reasons(
    rows: Rows,
    verdict: Verdict,
    duplicates: pd.DataFrame,
    far: NDArray[np.bool_],
    odd: Sequence[Odd],
) -> list[str]:
    """Reasons for doubt about each row in words, N; empty where there are none."""
    found = [list(told) for told in verdict.reasons]
    for row in np.flatnonzero(far).tolist():
        found[row].append("unlike any class" if rows.class_names else "unlike all others")
    for remark in odd:
        found[remark.row].append(remark.remark)
    for pair in lines_of(duplicates):
        for row, twin in ((int(pair.first), int(pair.second)), (int(pair.second), int(pair.first))):
            text = f"nearly the same as {rows.keys[twin]}"
            if pair.labels_differ:
                text += f", which is labelled {rows.given[twin] or 'nothing'}"
            if pair.splits_differ:
                text += f", in {rows.split[twin]}"
            if len(found[row]) < 6:
                found[row].append(text)
    return ["; ".join(parts) for parts in found]


def issues_table(
    rows: Rows,
    verdict: Verdict,
    duplicates: pd.DataFrame,
    distance: NDArray[np.float64],
    far: NDArray[np.bool_],
    odd: Sequence[Odd],
    rank_by: str = "p_wrong",
) -> pd.DataFrame:
    """Every row, the most suspicious first.

    Args:
        rows: that were judged.
        verdict: on them.
        duplicates: see `near_duplicates`.
        distance, far: see `unlike_any_class`.
        odd: see `odd_images`.
        rank_by: score by which rows are ordered: the probability, or a column, of which the lowest
            come first.

    Returns:
        Columns ``path``, ``split``, ``given``, ``suggested``, ``p_wrong``, ``p_suggested``, the
        scores of the verdict, ``distance``, ``unlike_any_class``, ``duplicate_of`` (path, or
        empty), ``reasons``; ``row`` numbers rows as they were read.
    """
    paths = np.asarray(rows.paths, dtype=object)
    twin = np.full(len(rows), "", dtype=object)
    for pair in lines_of(duplicates.iloc[::-1]):
        twin[int(pair.second)] = paths[int(pair.first)]
    table = pd.DataFrame(
        {
            "path": paths,
            "split": rows.split,
            "given": rows.given,
            "suggested": verdict.suggested,
            "p_wrong": verdict.p_wrong,
            "p_suggested": verdict.p_suggested,
            **verdict.columns,
            "distance": distance,
            "unlike_any_class": far,
            "duplicate_of": twin,
            "reasons": reasons(rows, verdict, duplicates, far, odd),
            "row": np.arange(len(rows)),
        }
    )
    order = table["p_wrong"]
    if rank_by != "p_wrong":
        # What a score says nothing about comes last.
        order = -table[rank_by].astype(float).fillna(np.inf)
    place = np.argsort(-order.to_numpy(dtype=float), kind="stable")
    return table.iloc[place].reset_index(drop=True)


@checked
def decide(
    issues: pd.DataFrame,
    relabel_above: Share | None = 0.9,
    drop_above: Share | None = 0.5,
    by: Deciding | None = None,
) -> pd.DataFrame:
    """Decisions by thresholds.

    Args:
        issues: see `issues_table`.
        relabel_above: a row whose suggestion is at least so probable gets it; None: no row does.
        drop_above: another row whose label is wrong with at least this probability is dropped;
            None: no row is.
        by: decides otherwise, of rows in the order in which they were read; see `Verdict.decide`.

    Returns:
        Columns ``path``, ``split``, ``given``, ``decision`` (keep, relabel, drop), ``label``, in
        the order in which rows were read.

    Example:
        >>> issues = pd.DataFrame({"path": ["a", "b", "c"], "split": "train", "given": "cat",
        ...     "suggested": "dog", "p_wrong": [0.99, 0.6, 0.1], "p_suggested": [0.98, 0.4, 0.1],
        ...     "row": [2, 0, 1]})
        >>> decide(issues)["decision"].tolist()
        ['drop', 'keep', 'relabel']
    """
    table = issues.sort_values("row", kind="stable")
    relabel = (
        np.zeros(len(table), dtype=bool)
        if relabel_above is None
        else (table["p_suggested"] >= relabel_above).to_numpy()
    )
    drop = (
        np.zeros(len(table), dtype=bool)
        if drop_above is None
        else (table["p_wrong"] >= drop_above).to_numpy() & ~relabel
    )
    decision = np.where(relabel, "relabel", np.where(drop, "drop", "keep"))
    label = np.where(relabel, table["suggested"], table["given"])
    if by is not None:
        label, decision = by(relabel_above, drop_above)
    return pd.DataFrame(
        {
            "path": table["path"].to_numpy(),
            "split": table["split"].to_numpy(),
            "given": table["given"].to_numpy(),
            "decision": decision,
            "label": label,
        }
    ).reset_index(drop=True)


def cleaned(decisions: pd.DataFrame, column: str = "label") -> pd.DataFrame:
    """The labels that decisions leave: columns ``path``, `column`, ``split``.

    ``dataset=csv dataset.path=cleaned.csv`` trains on them (captions: ``dataset=csv_captions``).
    """
    kept = decisions[decisions["decision"] != "drop"]
    kept = kept[["path", "label", "split"]].reset_index(drop=True)
    return kept.rename(columns={"label": column})


def with_reviews(
    decisions: pd.DataFrame, reviews: pd.DataFrame, source: str, none: bool = False
) -> pd.DataFrame:
    """Decisions by thresholds, overruled by what a reviewer decided.

    Args:
        decisions: see `decide`.
        reviews: columns ``path``, ``decision`` and, for relabelled rows, ``label``; of several
            lines for a path the last one counts.
        source: where the reviews come from, for messages.
        none: an empty label is one: of rows that may have no class at all.

    Raises:
        UserError: columns or decisions that there are not, or paths that are not in the data.
    """
    table = checked_reviews(reviews, source, none)
    place = pd.Series(np.arange(len(decisions)), index=decisions["path"])
    strange = table.index.difference(place.index)
    if len(strange):
        raise UserError(f"{source} decides on {strange[0]}, which is not among the rows judged.")
    found = decisions.copy()
    at = place[table.index].to_numpy()
    found.loc[at, "decision"] = table["decision"].to_numpy()
    given = found["given"].to_numpy()[at]
    relabelled = table["decision"].to_numpy() == "relabel"
    found.loc[at, "label"] = np.where(relabelled, table["label"].to_numpy(), given)
    return found


def checked_reviews(reviews: pd.DataFrame, source: str, none: bool = False) -> pd.DataFrame:
    """Reviews by path: columns ``decision`` and ``label`` (empty where there is none).

    Args:
        reviews: as a reviewer made them.
        source: where they come from, for messages.
        none: see `with_reviews`.

    Raises:
        UserError: columns or decisions that there are not.
    """
    for column in ("path", "decision"):
        if column not in reviews.columns:
            raise UserError(
                f"{source} has no column '{column}'; it has: {', '.join(map(str, reviews))}. "
                f"Decisions have the columns path, decision and label."
            )
    known = get_args(Decision)
    table = reviews.drop_duplicates("path", keep="last").set_index("path")
    for word in table["decision"].unique():
        if word not in known:
            raise UserError(
                f"{source} has the decision '{word}'.{did_you_mean(str(word), known)} Decisions "
                f"are {', '.join(known)}."
            )
    label = table["label"] if "label" in table else pd.Series("", index=table.index)
    table = pd.DataFrame({"decision": table["decision"], "label": label.fillna("").astype(str)})
    empty = table[(table["decision"] == "relabel") & (table["label"] == "")]
    if len(empty) and not none:
        raise UserError(f"{source} relabels {empty.index[0]} without saying as what.")
    return table


def compared(issues: pd.DataFrame, other: pd.DataFrame, source: str) -> pd.DataFrame:
    """Rows whose labels differ between the data and another table of the same paths.

    Args:
        issues: see `issues_table`.
        other: columns ``path`` and ``label`` (or ``labels``, or ``caption``); paths as
            in `issues`, or their last parts.
        source: where it comes from, for messages.

    Returns:
        Columns ``path``, ``given``, ``other``, ``suggested``, ``p_wrong``, ``agrees`` (the other
        label is the suggested one); the most suspicious first.

    Raises:
        UserError: columns missing, or no path in common.
    """
    column = next((name for name in ("labels", "caption") if name in other.columns), "label")
    for name in ("path", column):
        if name not in other.columns:
            raise UserError(
                f"{source} has no column '{name}'; it has: {', '.join(map(str, other))}."
            )
    labels = other.drop_duplicates("path").set_index("path")[column].astype(str)
    found = issues["path"].map(labels)
    if found.isna().all():
        ends = [next((p for p in _ends(path) if p in labels.index), "") for path in issues["path"]]
        found = pd.Series(ends, index=issues.index).map(labels)
    if found.isna().all():
        raise UserError(f"{source} and the data have no path in common.")
    table = issues.assign(other=found)[found.notna() & (found != issues["given"].astype(str))]
    table = table[["path", "given", "other", "suggested", "p_wrong"]]
    return table.assign(agrees=table["other"] == table["suggested"]).reset_index(drop=True)


def _ends(path: str) -> list[str]:
    """The last parts of a path, the longest first."""
    parts = path.replace(os.sep, "/").split("/")
    return ["/".join(parts[start:]) for start in range(1, len(parts))]
