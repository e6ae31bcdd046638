"""Judgement of one kind of labels, in the form that tables, gallery and doors read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from noisyml.audit.judging import Interval, Progress
from noisyml.audit.steps import Steps
from noisyml.errors import UserError, did_you_mean
from noisyml.noise.manifest import NoiseManifest

if TYPE_CHECKING:
    from noisyml.audit.report import AuditSettings
    from noisyml.audit.rows import Rows

#: Called with the thresholds of relabelling and dropping; gives new labels and what is decided.
Deciding = Callable[[float | None, float | None], tuple[NDArray[Any], NDArray[Any]]]


@dataclass(frozen=True)
class Verdict:
    """Judgement of N rows.

    Attributes:
        p_wrong: probability that something is wrong with the label of each row [N] float64.
        suggested: what the label should be if it is wrong, as text [N].
        p_suggested: probability of that [N] float64.
        noise_rate: share of wrong labels (of several per row, of wrong entries).
        index: neighbours [N, k].
        similarity: theirs [N, k], cosine.
        columns: further scores [N] by name.
        reasons: for doubt about each row, N lists of texts.
        told: a sentence on the whole beside the noise rate; empty: none.
        classes: names that a reviewer may choose from.
        mixed: pairs of classes that are given for each other, see `mixed_classes`.
        tables: further tables by file name.
        wide: columns of the Parquet table alone, by name.
        decide: labels and decisions by thresholds; None: a row whose suggestion reaches the first
            threshold gets it, another one that reaches the second is dropped.
        ranking: numbers of what is ranked, the most suspicious first, to find planted errors in.
        facts: what the summary says beside the rest.
    """

    p_wrong: NDArray[np.float64]
    suggested: NDArray[Any]
    p_suggested: NDArray[np.float64]
    noise_rate: Interval
    index: NDArray[np.int64]
    similarity: NDArray[np.float32]
    columns: Mapping[str, NDArray[Any]]
    reasons: list[list[str]]
    ranking: NDArray[np.int64]
    told: str = ""
    classes: list[str] = field(default_factory=list)
    mixed: pd.DataFrame | None = None
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    wide: Mapping[str, Any] = field(default_factory=dict)
    decide: Deciding | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class Kind(ABC):
    """Judging of labels of one kind."""

    #: Column of the labels in ``cleaned.csv``, as ``dataset=csv`` reads it.
    column: ClassVar[str]
    #: True if a row may have any number of the classes.
    several: ClassVar[bool] = False
    #: Names of the scores in its tables, larger for labels believed right.
    scores: ClassVar[tuple[str, ...]]

    @abstractmethod
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
        """Judge all rows.

        Args:
            rows: with features.
            settings: of the audit.
            known: of `known`; None: nobody looked at any.
            progress: called as the work goes on.
            steps: keeps what each step computes.
            rounds: other than the settings' number; None: theirs.
            probabilities: out of fold [N, C], of another classifier, in place of those of the first
                round; None: they are computed.
        """

    def known(self, rows: Rows, reviews: pd.DataFrame, source: str, paths: list[str]) -> Any:
        """True labels of the rows that a reviewer kept or relabelled.

        Args:
            rows: that were judged.
            reviews: see `checked_reviews`, by path.
            source: where they come from, for messages.
            paths: of the rows.

        Raises:
            UserError: paths or labels that there are not.
        """
        known = self.nobody_looked(rows)
        place = {path: row for row, path in enumerate(paths)}
        for path, decision, label in reviews.itertuples():
            row = place.get(str(path))
            if row is None:
                raise UserError(f"{source} decides on {path}, which is not among the rows.")
            if decision == "keep":
                known[row] = rows.labels[row]
            elif decision == "relabel":
                known[row] = self.read(rows, str(label), f"{source} relabels {path}")
        return known

    @abstractmethod
    def nobody_looked(self, rows: Rows) -> NDArray[Any]:
        """`known` of N rows that nobody looked at."""

    @abstractmethod
    def read(self, rows: Rows, text: str, where: str) -> Any:
        """A label from its text.

        Args:
            rows: that were judged.
            text: as in a table.
            where: it stands, for messages.

        Raises:
            UserError: a class that no row has.
        """

    @abstractmethod
    def plant(self, rows: Rows, share: float, seed: int) -> tuple[Rows, NDArray[np.int64]]:
        """The rows with errors planted in their labels, and their numbers as in `ranking`."""


def class_number(rows: Rows, text: str, where: str) -> int:
    """The number of a class.

    Raises:
        UserError: a class that no row has.
    """
    names = [str(name) for name in rows.class_names]
    if text not in names:
        raise UserError(f"{where} as '{text}', a class that no row has.{did_you_mean(text, names)}")
    return names.index(text)


def with_planted(rows: Rows, share: float, seed: int) -> tuple[Rows, NDArray[np.int64]]:
    """Errors planted in labels of classes, see `noisyml.noise.planted.plant_errors`."""
    from dataclasses import replace

    from noisyml.noise import NoNoise
    from noisyml.noise.planted import plant_errors, planted

    manifest: NoiseManifest = NoNoise().inject(
        rows.labels, len(rows.class_names), keys=[*map(str, rows.keys)]
    )
    manifest = plant_errors(manifest, share, seed)
    return replace(rows, labels=manifest.observed), planted(manifest)
