"""The ledger of training: what a network learnt of right and of wrong labels, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisyml.reports.artefacts import read_manifest, reading
from noisyml.runs.folder import RunFolder
from noisyml.storage.parquet import row_groups

_COLUMNS = ("index", "epoch", "loss", "margin", "prediction")


@dataclass(frozen=True)
class Ledger:
    """A run's ledger in sum.

    Attributes:
        by_epoch: per ``epoch`` the shares ``right_learnt`` and ``wrong_learnt`` of the right and of
            the wrong labels that the network predicts, and ``wrong_corrected``, of the wrong ones
            for which it predicts the true class. Without a known truth ``right_learnt`` counts all
            labels and the others are missing.
        loss: of every sample at its last visit [n].
        margin: mean of its margins over all visits [n], the area under the margin.
        wrong: [n] True where the label is wrong; None if that is not known.
    """

    by_epoch: pd.DataFrame
    loss: NDArray[np.float64]
    margin: NDArray[np.float64]
    wrong: NDArray[np.bool_] | None


def read_ledger(run: RunFolder) -> Ledger | None:
    """The ledger of a run, read one row group at a time; None where it has none.

    Raises:
        Unreadable: a file is there and broken.
    """
    file = run.selection_file
    if not file.is_file():
        return None
    with reading(file):
        if not set(_COLUMNS) <= set(pq.read_schema(file).names):
            return None
    manifest = read_manifest(run)
    if manifest is None or manifest["observed"].dtype == object:
        return None
    size = int(manifest["index"].max()) + 1
    observed, clean = np.full(size, -1), np.full(size, -1)
    observed[manifest["index"]], clean[manifest["index"]] = manifest["observed"], manifest["clean"]
    changed = np.zeros(size, dtype=bool)
    changed[manifest["index"]] = manifest["changed"]
    known = bool(changed.any() and not manifest["unknown"].any())
    loss, margin = np.full(size, np.nan), np.zeros(size)
    visits = np.zeros(size, dtype=np.int64)
    counts: dict[int, NDArray[np.int64]] = {}
    with reading(file):
        for part in row_groups(file, list(_COLUMNS)):
            index = part["index"]
            loss[index] = part["loss"]
            np.add.at(margin, index, part["margin"])
            np.add.at(visits, index, 1)
            wrong = changed[index] & known
            learnt = part["prediction"] == observed[index]
            corrected = wrong & (part["prediction"] == clean[index])
            for epoch in np.unique(part["epoch"]):
                here = part["epoch"] == epoch
                found = [here & ~wrong, here & ~wrong & learnt]
                found += [here & wrong, here & wrong & learnt, here & corrected]
                sums = np.array([marks.sum() for marks in found])
                counts[int(epoch)] = counts.get(int(epoch), np.zeros(5, dtype=np.int64)) + sums
    if not counts:
        return None
    rows = []
    for epoch, (right, right_learnt, bad, bad_learnt, corrected) in sorted(counts.items()):
        row = {"epoch": epoch, "right_learnt": right_learnt / max(right, 1)}
        if bad:
            row |= {"wrong_learnt": bad_learnt / bad, "wrong_corrected": corrected / bad}
        rows.append(row)
    seen = visits > 0
    return Ledger(
        by_epoch=pd.DataFrame(rows),
        loss=loss[seen],
        margin=margin[seen] / visits[seen],
        wrong=changed[seen] if known else None,
    )
