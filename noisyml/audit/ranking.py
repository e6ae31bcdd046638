"""Rankings of training samples by the trust in their labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from noisyml.checks import checked
from noisyml.storage.parquet import row_groups
from noisyml.targets.entries import entry_classes, entry_numbers

#: Judgements that count: the mean over all epochs, or over the last one alone.
Over = Literal["all_epochs", "last_epoch"]
#: Stands for infinite log-odds, which have no mean.
_LARGEST = 1e30


@dataclass(frozen=True)
class Ranking:
    """Training samples, or their entries, by the trust in their labels.

    Attributes:
        table: the least trusted first; columns ``p_clean``, ``log_odds`` (where judgements have
            them; the order is theirs then) and ``kept``, means over the scored judgements. The
            index numbers samples by position, entries by ``position * C + class``.
        classes: C if entries were judged, 0 if samples were.
    """

    table: pd.DataFrame
    classes: int

    @property
    def samples(self) -> int:
        """Number of samples that were judged."""
        numbers = self.table.index.to_numpy()
        return len(np.unique(numbers // self.classes)) if self.classes else len(numbers)

    def without(self, numbers: ArrayLike) -> Ranking:
        """The ranking without some samples or entries."""
        return replace(self, table=self.table[~self.table.index.isin(np.asarray(numbers))])


@checked
def rank_by_trust(selection_file: Path, over: Over = "all_epochs") -> Ranking:
    """Rank what a selector, or the classifier itself, has judged (``selection.parquet``).

    Where judgements have log-odds, their mean decides: in single precision most values of
    ``p_clean`` of a density in many dimensions are 0 or 1. Else the mean of ``p_clean`` does.
    Judgements without a score (of a warm-up, of a class not met so far) do not count.

    Args:
        selection_file: the judgements of a run; read one epoch at a time.
        over: ``all_epochs``: an early network has learnt few wrong labels by heart, and a mean
            varies less; or ``last_epoch``.

    Returns:
        The ranking, of equals in the order of the training split; empty where nothing was scored.

    Raises:
        ArgumentError: another word for `over`.
    """
    import pyarrow.parquet as pq

    known = pq.read_schema(selection_file).names
    by = "log_odds" if "log_odds" in known else "p_clean"
    wanted = list(dict.fromkeys(["index", "kept", "epoch", "p_clean", by]))
    newest = max(
        (int(part["epoch"].max()) for part in row_groups(selection_file, ["epoch"])), default=-1
    )
    sums = {name: np.zeros(0) for name in ("times", "kept", "p_clean", "score")}
    classes = 0
    for part in row_groups(selection_file, wanted):
        classes = entry_classes(part["kept"])
        numbers = entry_numbers(part["index"], classes)
        counts = ~np.isnan(part[by])
        if over == "last_epoch":
            late = part["epoch"] == newest
            counts = counts & (late[:, None] if classes else late)
        score = np.clip(np.asarray(part[by], dtype=np.float64), -_LARGEST, _LARGEST)
        added: dict[str, NDArray[Any]] = {
            "times": counts,
            "kept": part["kept"],
            "p_clean": part["p_clean"],
            "score": score,
        }
        length = int(numbers.max(initial=-1)) + 1
        for name, values in added.items():
            weights = np.asarray(values[counts], dtype=np.float64)
            found = np.bincount(numbers[counts], weights=weights, minlength=length)
            old = np.pad(sums[name], (0, max(0, len(found) - len(sums[name]))))
            old[: len(found)] += found
            sums[name] = old
    judged = np.flatnonzero(sums["times"])
    means = {name: sums[name][judged] / sums["times"][judged] for name in sums if name != "times"}
    columns = {"p_clean": means["p_clean"], by: means["score"], "kept": means["kept"]}
    table = pd.DataFrame(columns, index=pd.Index(judged, name="index"))
    return Ranking(table.iloc[np.argsort(means["score"], kind="stable")], classes)
