"""Several labels per row: each entry, a row and a class, is judged.

As with one label, two views see a row without its labels: the votes of its nearest rows, and a
logistic regression for each class on the other folds. A channel for each class weighs them (see
`noisyml.audit.scores.entries`); then both views are fitted once more with its probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit

from noisyml.audit.judging import (
    Interval,
    Progress,
    Search,
    combined,
    mean_of_neighbours,
    nearest_rows,
)
from noisyml.audit.kinds.base import Kind, Verdict, class_number, with_planted
from noisyml.audit.rows import JOINT
from noisyml.audit.scores.entries import (
    choose_entry_exponents,
    fit_entry_channels,
    product_of_log_odds,
)
from noisyml.audit.scores.folds import chosen_strength, out_of_fold_probabilities, projected_rows
from noisyml.audit.steps import Arrays, Steps

if TYPE_CHECKING:
    from noisyml.audit.report import AuditSettings
    from noisyml.audit.rows import Rows

#: Entries that the table of entries lists: from this probability on, and so many at most.
LISTED_FROM, LISTED = 0.1, 500_000
#: Votes of either answer that the neighbours are given beforehand.
PRIOR_VOTES = 0.5


def judge_entries(
    features: Any,
    labels: NDArray[Any],
    *,
    neighbours: int = 30,
    folds: int = 10,
    rounds: int = 2,
    known: NDArray[Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    steps: Steps | None = None,
    probabilities: NDArray[Any] | None = None,
    search: Search = "auto",
) -> dict[str, NDArray[Any]]:
    """Judge every entry of a data set with several labels per row.

    Args:
        features: [N, D], read in blocks.
        labels: [N, C] zeros and ones, observed.
        neighbours, folds, rounds, seed, progress, steps, search: see `judge_labels`.
        known: true entries [N, C], -1 where nobody looked; None: nobody looked at any.
        probabilities: out of fold [N, C] in place of those of the first round; None: computed.

    Returns:
        ``p_wrong`` [N, C] of each entry; ``index`` and ``similarity`` [N, k]; ``votes`` and
        ``probabilities`` [N, C] of the first round.
    """
    keep = steps or Steps()
    tell = progress or (lambda what, share: None)
    found = nearest_rows(features, min(neighbours, len(labels) - 1), keep, tell, search, seed)
    index, k = found["index"], found["index"].shape[1]
    given = np.asarray(labels, dtype=np.float32)
    if known is not None:
        given = np.where(known >= 0, known, given).astype(np.float32)
    rows_in_short = projected_rows(features, seed=seed)
    strength = chosen_strength(rows_in_short, given, exclusive=False, seed=seed)
    targets, first, wrong = given, None, []
    for number in range(rounds):
        what = f"round {number + 1} of {rounds}"

        def fit(targets: NDArray[Any] = targets, what: str = what) -> Arrays:
            shown = out_of_fold_probabilities(
                rows_in_short,
                None,
                labels.shape[1],
                folds=min(folds, len(labels)),
                strength=strength,
                targets=targets,
                exclusive=False,
                seed=seed,
                progress=lambda done, total: tell(what, done / total),
            )
            return {"probabilities": shown}

        votes = mean_of_neighbours(index, targets)
        if number == 0 and probabilities is not None:
            shown = np.asarray(probabilities, dtype=np.float32)
        else:
            shown = keep(f"round_{number + 1}", fit)["probabilities"]
        first = first or {"votes": votes, "probabilities": shown}
        share = (votes * k + PRIOR_VOTES * given.mean(axis=0) * 2) / (k + 2 * PRIOR_VOTES)
        sources = [logit(np.clip(part, 1e-5, 1 - 1e-5)) for part in (shown, share)]
        exponents = choose_entry_exponents(sources, labels, known, seed)
        channels = fit_entry_channels(product_of_log_odds(sources, exponents), labels, known=known)
        targets = channels.posterior
        wrong.append(np.abs(targets.astype(np.float64) - labels).ravel())
    assert first is not None
    p_wrong = combined(wrong).reshape(labels.shape)
    if known is not None:
        p_wrong = np.where(known >= 0, known != labels, p_wrong)
    return {"p_wrong": p_wrong, **found, **first}


class SeveralLabels(Kind):
    """Rows with any number of classes each."""

    column: ClassVar[str] = "labels"
    several: ClassVar[bool] = True
    scores: ClassVar[tuple[str, ...]] = ("worst_entry",)

    def judge(
        self,
        rows: Rows,
        settings: AuditSettings,
        known: NDArray[Any] | None = None,
        progress: Progress | None = None,
        steps: Steps | None = None,
        rounds: int | None = None,
        probabilities: NDArray[Any] | None = None,
    ) -> Verdict:
        """See `Kind.judge`; the judging is `judge_entries`."""
        found = judge_entries(
            rows.features,
            rows.labels,
            neighbours=settings.neighbours,
            folds=settings.folds if rounds is None else min(settings.folds, 5),
            rounds=rounds or settings.rounds,
            known=known,
            seed=settings.seed,
            progress=progress,
            steps=steps,
            probabilities=probabilities,
            search=settings.search,
        )
        return verdict(rows, found, seed=settings.seed)

    def nobody_looked(self, rows: Rows) -> NDArray[Any]:
        """-1 [N, C]."""
        return np.full(rows.labels.shape, -1, dtype=np.int64)

    def read(self, rows: Rows, text: str, where: str) -> NDArray[Any]:
        """Marks [C] of the classes between the semicolons."""
        marks = np.zeros(len(rows.class_names), dtype=np.int64)
        for part in filter(None, (part.strip() for part in text.split(JOINT.strip()))):
            marks[class_number(rows, part, where)] = 1
        return marks

    def plant(self, rows: Rows, share: float, seed: int) -> tuple[Rows, NDArray[np.int64]]:
        """That share of each class's labels is removed, and as many are added elsewhere."""
        return with_planted(rows, share, seed)


def joined(marks: NDArray[Any], class_names: Sequence[str]) -> NDArray[Any]:
    """The labels of each row [N] as one text, from marks [N, C].

    Example:
        >>> joined(np.array([[1, 1], [0, 0]]), ["ant", "bee"]).tolist()
        ['ant; bee', '']
    """
    names = [str(name) for name in class_names]
    texts = [JOINT.join(names[c] for c in np.flatnonzero(row)) for row in marks]
    return np.asarray(texts, dtype=object)


def verdict(rows: Rows, found: dict[str, NDArray[Any]], seed: int = 0) -> Verdict:
    """Judgements of entries in the form that tables read."""
    entries = found["p_wrong"]
    labels = np.asarray(rows.labels, dtype=np.int64)
    flips = entries > 0.5
    right = np.log1p(-np.clip(entries, 0, 1 - 1e-12))
    p_wrong = -np.expm1(right.sum(axis=1))
    sure = np.where(flips, np.log(np.maximum(entries, 1e-12)), right).sum(axis=1)
    # Where no entry is likely wrong, the least trusted one is suggested to be changed.
    worst = entries.argmax(axis=1)
    none = ~flips.any(axis=1)
    at = np.arange(len(labels))
    changed = np.where(flips, 1 - labels, labels)
    changed[at[none], worst[none]] = 1 - labels[at[none], worst[none]]
    odds = np.log(np.maximum(entries[at, worst], 1e-12)) - right[at, worst]
    sure = np.where(none, right.sum(axis=1) + odds, sure)
    rng = np.random.default_rng(seed)
    mean = entries.mean(axis=1)
    means = [mean[rng.integers(0, len(mean), len(mean))].mean() for _ in range(100)]
    low, high = np.quantile(means, [0.025, 0.975])
    names = [str(name) for name in rows.class_names]

    def decide(
        relabel_above: float | None, drop_above: float | None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        taken = np.zeros_like(flips) if relabel_above is None else entries >= relabel_above
        text = joined(np.where(taken, 1 - labels, labels), names)
        left = np.where(taken, 0, entries).max(axis=1)
        drop = np.zeros(len(left), bool) if drop_above is None else left >= drop_above
        decision = np.where(drop, "drop", np.where(taken.any(axis=1), "relabel", "keep"))
        return text, decision

    return Verdict(
        p_wrong=p_wrong,
        suggested=joined(changed, names),
        p_suggested=np.exp(sure),
        noise_rate=Interval(float(entries.mean()), float(low), float(high)),
        index=found["index"],
        similarity=found["similarity"],
        columns={
            "missing": joined(flips & (labels == 0), names),
            "superfluous": joined(flips & (labels == 1), names),
            "worst_entry": 1 - entries.max(axis=1),
        },
        reasons=_reasons(entries, labels, found, names),
        ranking=np.argsort(-entries.ravel(), kind="stable"),
        told=f"{p_wrong.mean():.1%} of the rows have a wrong entry by estimate.",
        classes=names,
        tables={"entries.csv": entries_table(rows, entries, found)},
        wide={"p_wrong_by_class": entries.astype(np.float32)},
        decide=decide,
        facts={
            "neighbours_found": float(found["recall"]),
            "entries": int(entries.size),
            "rows_with_a_wrong_entry": float(p_wrong.mean()),
            "missing_expected": float(entries[labels == 0].sum()),
            "superfluous_expected": float(entries[labels == 1].sum()),
        },
    )


def entries_table(
    rows: Rows, entries: NDArray[Any], found: dict[str, NDArray[Any]]
) -> pd.DataFrame:
    """Entries that may be wrong, the most suspicious first.

    Returns:
        Columns ``path``, ``split``, ``label``, ``given`` (1 or 0), ``issue`` (missing or
        superfluous), ``p_wrong``, ``votes`` and ``out_of_fold``; entries from `LISTED_FROM` on.
    """
    flat = np.flatnonzero(entries.ravel() >= LISTED_FROM)
    flat = flat[np.argsort(-entries.ravel()[flat], kind="stable")][:LISTED]
    row, label = flat // entries.shape[1], flat % entries.shape[1]
    names = np.asarray(rows.class_names, dtype=object)
    given = np.asarray(rows.labels)[row, label]
    return pd.DataFrame(
        {
            "path": np.asarray(rows.paths, dtype=object)[row],
            "split": rows.split[row],
            "label": names[label],
            "given": given,
            "issue": np.where(given == 1, "superfluous", "missing"),
            "p_wrong": entries[row, label],
            "votes": found["votes"][row, label],
            "out_of_fold": found["probabilities"][row, label],
        }
    )


def _reasons(
    entries: NDArray[Any], labels: NDArray[Any], found: dict[str, NDArray[Any]], names: list[str]
) -> list[list[str]]:
    """Reasons for doubt about each row, of its three most suspicious entries."""
    k = found["index"].shape[1]
    told: list[list[str]] = [[] for _ in range(len(entries))]
    for row in np.flatnonzero(entries.max(axis=1) >= 0.2).tolist():
        for label in np.argsort(-entries[row], kind="stable")[:3].tolist():
            if entries[row, label] < 0.2:
                break
            word = "superfluous" if labels[row, label] else "missing"
            votes = round(float(found["votes"][row, label]) * k)
            told[row].append(
                f"{names[label]} may be {word} ({entries[row, label]:.0%}): {votes} of {k} nearest "
                f"rows have it, a classifier that has not seen the row says "
                f"{float(found['probabilities'][row, label]):.0%}"
            )
    return told
