"""Tables of an audit: every row with what was found of it, and the labels that follow from it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from noisyml.audit.flags import Odd
from noisyml.audit.judging import Judgements
from noisyml.audit.rows import Rows
from noisyml.checks import Share, checked
from noisyml.data.inputs import ChosenInputs, ReplacedInputs
from noisyml.errors import UserError, did_you_mean

#: Things that can be decided about a row.
Decision = Literal["keep", "relabel", "drop"]
#: Neighbours that are shown beside a row.
SHOWN_NEIGHBOURS = 6


def lines_of(table: pd.DataFrame) -> Iterator[Any]:
    """The lines of a table, with a field for each column."""
    return table.itertuples(index=False)


def path_of(inputs: Any, place: int) -> str | None:
    """Absolute path of the file behind an input; None where there is no file."""
    if isinstance(inputs, ChosenInputs):
        return path_of(inputs.inputs, int(inputs.rows[place]))
    if isinstance(inputs, ReplacedInputs):
        other = int(inputs.source_index[place])
        return path_of(inputs.inputs if other < 0 else inputs.source, max(other, place))
    find = getattr(inputs, "path", None)
    return os.path.abspath(find(place)) if callable(find) else None


def paths_of(rows: Rows) -> list[str]:
    """Path, or where there is none the key, of each row, N."""
    return [
        path_of(rows.inputs[split], place) or key
        for split, place, key in zip(rows.split, rows.place.tolist(), rows.keys, strict=True)
    ]


def reasons(
    rows: Rows,
    judged: Judgements,
    duplicates: pd.DataFrame,
    far: NDArray[np.bool_],
    odd: Sequence[Odd],
) -> list[str]:
    """Reasons for doubt about each row in words, N; empty where there are none."""
    k = judged.index.shape[1]
    names = rows.class_names
    other = judged.suggested
    at = np.arange(len(rows))
    count = np.rint(judged.votes * k).astype(np.int64)
    for_own = count[at, rows.labels].tolist()
    for_other = count[at, other].tolist()
    own_p = judged.probabilities[at, rows.labels].tolist()
    other_p = judged.probabilities[at, other].tolist()
    found: list[list[str]] = [[] for _ in range(len(rows))]
    for row in np.flatnonzero(judged.p_wrong >= 0.2).tolist():
        given, better = names[rows.labels[row]], names[other[row]]
        found[row].append(
            f"{for_other[row]} of {k} nearest rows say {better}, {for_own[row]} {given}"
        )
        found[row].append(
            f"a classifier that has not seen it says {better} ({other_p[row]:.0%}), {given} "
            f"({own_p[row]:.0%})"
        )
    for row in np.flatnonzero(far).tolist():
        found[row].append("unlike any class")
    for remark in odd:
        found[remark.row].append(remark.remark)
    for pair in lines_of(duplicates):
        for row, twin in ((int(pair.first), int(pair.second)), (int(pair.second), int(pair.first))):
            text = f"nearly the same as {rows.keys[twin]}"
            if pair.labels_differ:
                text += f", which is labelled {names[rows.labels[twin]]}"
            if pair.splits_differ:
                text += f", in {rows.split[twin]}"
            if len(found[row]) < 6:
                found[row].append(text)
    return ["; ".join(parts) for parts in found]


def issues_table(
    rows: Rows,
    judged: Judgements,
    duplicates: pd.DataFrame,
    distance: NDArray[np.float64],
    far: NDArray[np.bool_],
    odd: Sequence[Odd],
) -> pd.DataFrame:
    """Every row, the most suspicious first.

    Returns:
        Columns ``path``, ``split``, ``given``, ``suggested``, ``p_wrong``, ``p_suggested``, the
        scores of `Judgements`, ``distance``, ``unlike_any_class``, ``duplicate_of`` (path, or
        empty), ``reasons``; ``row`` numbers rows as they were read.
    """
    names = np.asarray(rows.class_names, dtype=object)
    paths = np.asarray(paths_of(rows), dtype=object)
    twin = np.full(len(rows), "", dtype=object)
    for pair in lines_of(duplicates.iloc[::-1]):
        twin[int(pair.second)] = paths[int(pair.first)]
    table = pd.DataFrame(
        {
            "path": paths,
            "split": rows.split,
            "given": names[rows.labels],
            "suggested": names[judged.suggested],
            "p_wrong": judged.p_wrong,
            "p_suggested": judged.p_suggested,
            **judged.columns,
            "distance": distance,
            "unlike_any_class": far,
            "duplicate_of": twin,
            "reasons": reasons(rows, judged, duplicates, far, odd),
            "row": np.arange(len(rows)),
        }
    )
    return table.sort_values("p_wrong", ascending=False, kind="stable").reset_index(drop=True)


@checked
def decide(
    issues: pd.DataFrame, relabel_above: Share | None = 0.9, drop_above: Share | None = 0.5
) -> pd.DataFrame:
    """Decisions by thresholds.

    Args:
        issues: see `issues_table`.
        relabel_above: a row whose suggestion is at least so probable gets it; None: no row does.
        drop_above: another row whose label is wrong with at least this probability is dropped;
            None: no row is.

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
    return pd.DataFrame(
        {
            "path": table["path"].to_numpy(),
            "split": table["split"].to_numpy(),
            "given": table["given"].to_numpy(),
            "decision": decision,
            "label": np.where(relabel, table["suggested"], table["given"]),
        }
    ).reset_index(drop=True)


def cleaned(decisions: pd.DataFrame) -> pd.DataFrame:
    """The labels that decisions leave: columns ``path``, ``label``, ``split``.

    ``dataset=csv dataset.path=cleaned.csv`` trains on them.
    """
    kept = decisions[decisions["decision"] != "drop"]
    return kept[["path", "label", "split"]].reset_index(drop=True)


def with_reviews(decisions: pd.DataFrame, reviews: pd.DataFrame, source: str) -> pd.DataFrame:
    """Decisions by thresholds, overruled by what a reviewer decided.

    Args:
        decisions: see `decide`.
        reviews: columns ``path``, ``decision`` and, for relabelled rows, ``label``; of several
            lines for a path the last one counts.
        source: where the reviews come from, for messages.

    Raises:
        UserError: columns or decisions that there are not, or paths that are not in the data.
    """
    table = checked_reviews(reviews, source)
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


def checked_reviews(reviews: pd.DataFrame, source: str) -> pd.DataFrame:
    """Reviews by path: columns ``decision`` and ``label`` (empty where there is none).

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
    if len(empty):
        raise UserError(f"{source} relabels {empty.index[0]} without saying as what.")
    return table


def known_classes(rows: Rows, reviews: pd.DataFrame, source: str) -> NDArray[np.int64]:
    """True classes [N] int64 of the rows that a reviewer kept or relabelled, -1 for others.

    Raises:
        UserError: see `checked_reviews`; or a label that no row has.
    """
    table = checked_reviews(reviews, source)
    number = {name: i for i, name in enumerate(rows.class_names)}
    place = {path: row for row, path in enumerate(paths_of(rows))}
    known = np.full(len(rows), -1, dtype=np.int64)
    for path, decision, label in table.itertuples():
        row = place.get(str(path))
        if row is None:
            raise UserError(f"{source} decides on {path}, which is not among the rows.")
        if decision == "keep":
            known[row] = rows.labels[row]
        elif decision == "relabel":
            if label not in number:
                raise UserError(
                    f"{source} relabels {path} as '{label}', a class that no row has."
                    f"{did_you_mean(label, number)}"
                )
            known[row] = number[label]
    return known


def compared(issues: pd.DataFrame, other: pd.DataFrame, source: str) -> pd.DataFrame:
    """Rows whose labels differ between the data and another table of the same paths.

    Args:
        issues: see `issues_table`.
        other: columns ``path`` and ``label``; paths as in `issues`, or their last parts.
        source: where it comes from, for messages.

    Returns:
        Columns ``path``, ``given``, ``other``, ``suggested``, ``p_wrong``, ``agrees`` (the other
        label is the suggested one); the most suspicious first.

    Raises:
        UserError: columns missing, or no path in common.
    """
    for column in ("path", "label"):
        if column not in other.columns:
            raise UserError(
                f"{source} has no column '{column}'; it has: {', '.join(map(str, other))}."
            )
    labels = other.drop_duplicates("path").set_index("path")["label"].astype(str)
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
