"""One label per row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from noisyml.audit.flags import mixed_classes
from noisyml.audit.judging import Judgements, Progress, judge_labels
from noisyml.audit.kinds.base import Kind, Verdict, class_number, with_planted
from noisyml.audit.scores.columns import score_columns
from noisyml.audit.steps import Steps

if TYPE_CHECKING:
    from noisyml.audit.report import AuditSettings
    from noisyml.audit.rows import Rows

#: Probability from which reasons are given.
TOLD_FROM = 0.2


class OneLabel(Kind):
    """Rows with one class each."""

    column: ClassVar[str] = "label"
    scores: ClassVar[tuple[str, ...]] = (
        *("knn_margin", "knn_agreement", "self_confidence", "normalised_margin"),
    )

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
        """See `Kind.judge`; the judging is `judge_labels`."""
        judged = judge_labels(
            rows.features,
            rows.labels,
            len(rows.class_names),
            neighbours=settings.neighbours,
            folds=settings.folds if rounds is None else min(settings.folds, 5),
            rounds=rounds or settings.rounds,
            known=known,
            seed=settings.seed,
            replicates=100 if rounds is None else 1,
            progress=progress,
            steps=steps,
            probabilities=probabilities,
            search=settings.search,
        )
        ranking = np.argsort(-judged.p_wrong, kind="stable")
        names = np.asarray(rows.class_names, dtype=object)
        if rounds is not None:  # of planted errors: the order is all that is looked at
            return verdict(judged, names, ranking, {}, [[] for _ in ranking], [])
        further = score_columns(
            settings.scores or [],
            rows.features,
            rows.labels,
            judged,
            settings.head_epochs,
            settings.seed,
            progress,
            steps,
        )
        return verdict(
            judged, names, ranking, further, reasons(rows, judged), [*map(str, rows.class_names)]
        )

    def nobody_looked(self, rows: Rows) -> NDArray[Any]:
        """-1 [N]."""
        return np.full(len(rows), -1, dtype=np.int64)

    def read(self, rows: Rows, text: str, where: str) -> int:
        """The number of the class."""
        return class_number(rows, text, where)

    def plant(self, rows: Rows, share: float, seed: int) -> tuple[Rows, NDArray[np.int64]]:
        """That share of the rows gets another class, drawn evenly."""
        return with_planted(rows, share, seed)


def verdict(
    judged: Judgements,
    names: NDArray[Any],
    ranking: NDArray[np.int64],
    further: dict[str, NDArray[Any]],
    reasons: list[list[str]],
    classes: list[str],
) -> Verdict:
    """Judgements in the form that tables read."""
    count, (low, high) = judged.confusion
    true, label = np.nonzero(count >= 0.5)
    confusion = pd.DataFrame(
        {
            "true": names[true],
            "label": names[label],
            "rows": count[true, label],
            "low": low[true, label],
            "high": high[true, label],
        }
    )
    return Verdict(
        p_wrong=judged.p_wrong,
        suggested=names[judged.suggested],
        p_suggested=judged.p_suggested,
        noise_rate=judged.noise_rate,
        index=judged.index,
        similarity=judged.similarity,
        columns={**judged.columns, **further},
        reasons=reasons,
        ranking=ranking,
        classes=classes,
        mixed=mixed_classes(count, low, [*names]),
        tables={"confusion.csv": confusion},
        facts={"neighbours_found": judged.recall},
        wide={"out_of_fold": judged.probabilities},
    )


def reasons(rows: Rows, judged: Judgements) -> list[list[str]]:
    """Reasons for doubt about each label in words, N lists; empty where there is little."""
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
    for row in np.flatnonzero(judged.p_wrong >= TOLD_FROM).tolist():
        given, better = names[rows.labels[row]], names[other[row]]
        found[row] = [
            f"{for_other[row]} of {k} nearest rows say {better}, {for_own[row]} {given}",
            f"a classifier that has not seen it says {better} ({other_p[row]:.0%}), {given} "
            f"({own_p[row]:.0%})",
        ]
    return found
