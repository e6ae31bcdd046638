"""The ledger of training: what a network learnt of right and of wrong labels, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisyml.reports.artefacts import read_manifest, reading
from noisyml.reports.sections.base import Picture, ReportedRuns, curves
from noisyml.runs.folder import RunFolder
from noisyml.storage.parquet import row_groups

#: Columns of which a ledger has one at least, beside ``index`` and ``epoch``.
_NOTED = ("loss", "margin", "prediction")

#: The margin of a sample, by what it was measured on.
MARGINS = {
    "scores": "own logit less the largest other one",
    "entries": "the least margin among its classes, positive where all of them are right",
    "embeddings": "mean similarity to its class in the batch less that to the nearest other class",
}


#: Axes of the curves by column of `Ledger.by_epoch`.
_CURVES = {
    "right_learnt": "right labels learnt (fraction)",
    "wrong_learnt": "wrong labels learnt (fraction)",
    "wrong_corrected": "wrong labels, true class predicted (fraction)",
}


@dataclass(frozen=True)
class Ledger:
    """A run's ledger in sum.

    Attributes:
        by_epoch: per ``epoch`` the shares ``right_learnt`` and ``wrong_learnt`` of the right and of
            the wrong labels that the network predicts or, where it predicts no single class, whose
            margin is positive; missing without margins. ``wrong_corrected``: of the wrong ones,
            those for which it predicts the true class; missing without predictions. Without a known
            truth ``right_learnt`` counts all labels and the others are missing.
        loss: of every sample at its last visit [n]; NaN where the method has none.
        margin: mean of its margins over all visits [n], the area under the margin; NaN where there
            is none.
        wrong: [n] True where the label is wrong; None if that is not known.
        measured_on: key of `MARGINS`.
    """

    by_epoch: pd.DataFrame
    loss: NDArray[np.float64]
    margin: NDArray[np.float64]
    wrong: NDArray[np.bool_] | None
    measured_on: str


def read_ledger(run: RunFolder) -> Ledger | None:
    """The ledger of a run, read one row group at a time; None where it has none.

    Raises:
        Unreadable: a file is there and broken.
    """
    file = run.selection_file
    manifest = read_manifest(run) if file.is_file() else None
    if manifest is None or not len(manifest):
        return None
    with reading(file):
        noted = [name for name in _NOTED if name in pq.read_schema(file).names]
    if not noted:
        return None
    size = int(manifest["index"].max()) + 1
    changed = np.zeros(size, dtype=bool)
    changed[manifest["index"]] = manifest["changed"]
    known = bool(changed.any() and not manifest["unknown"].any())
    single = manifest["observed"].dtype != object
    labels = {name: np.full(size, -1) for name in ("observed", "clean")}
    if single:
        for name, values in labels.items():
            values[manifest["index"]] = manifest[name]
    loss = np.full(size, np.nan)
    margin, measured, visits = np.zeros(size), np.zeros(size), np.zeros(size, dtype=np.int64)
    counts: list[pd.DataFrame] = []
    with reading(file):
        for part in row_groups(file, ["index", "epoch", *noted]):
            index = part["index"]
            visits += np.bincount(index, minlength=size)
            if "loss" in part:
                loss[index] = part["loss"]
            if "margin" in part:
                there = np.isfinite(part["margin"])
                at = index[there]
                margin += np.bincount(at, part["margin"][there].astype(float), minlength=size)
                measured += np.bincount(at, minlength=size)
            counts.append(_learnt(part, changed & known, labels))
    seen = visits > 0
    if not seen.any():
        return None
    with np.errstate(invalid="ignore"):
        area = margin / measured
    return Ledger(
        by_epoch=_shares(pd.concat(counts).groupby("epoch").sum(), "prediction" in noted),
        loss=loss[seen],
        margin=area[seen],
        wrong=changed[seen] if known else None,
        measured_on="scores" if "prediction" in noted else "embeddings" if single else "entries",
    )


def _learnt(
    part: dict[str, NDArray[Any]], wrong: NDArray[np.bool_], labels: dict[str, NDArray[np.int64]]
) -> pd.DataFrame:
    """Numbers of right and wrong labels, and of those learnt, in each ``epoch`` of a row group."""
    index = part["index"]
    bad = wrong[index]
    told = np.ones(len(index), dtype=bool)
    learnt = corrected = np.zeros(len(index), dtype=bool)
    if "prediction" in part:
        learnt = part["prediction"] == labels["observed"][index]
        corrected = part["prediction"] == labels["clean"][index]
    elif "margin" in part:
        learnt, told = part["margin"] > 0, np.isfinite(part["margin"])
    else:
        told = ~told
    marks = {
        "right": told & ~bad,
        "right_learnt": told & ~bad & learnt,
        "wrong": told & bad,
        "wrong_learnt": told & bad & learnt,
        "wrong_corrected": told & bad & corrected,
    }
    return pd.DataFrame({"epoch": part["epoch"], **marks}).groupby("epoch").sum().reset_index()


def _shares(sums: pd.DataFrame, predicted: bool) -> pd.DataFrame:
    """See `Ledger.by_epoch`."""
    shares = {"right_learnt": sums["right_learnt"] / sums["right"].where(sums["right"] > 0)}
    bad = sums["wrong"].where(sums["wrong"] > 0)
    shares["wrong_learnt"] = sums["wrong_learnt"] / bad
    if predicted:
        shares["wrong_corrected"] = sums["wrong_corrected"] / bad
    frame = pd.DataFrame(shares).dropna(axis="columns", how="all")
    return frame.reset_index()


def memorisation(runs: ReportedRuns) -> list[Picture]:
    """Curves over epochs, where runs have a ledger and wrong labels that are known."""
    frames = {}
    for group in runs.groups:
        read = [runs.read(read_ledger, run) for run in runs.members(group)]
        frames[group] = [
            ledger.by_epoch.rename(columns={"epoch": "step"})
            for ledger in read
            if ledger is not None and ledger.wrong is not None
        ]
    if not any(frames.values()):
        return []
    caption = (
        "What training has learnt by heart: the network predicts the given label of so many "
        "samples (or, of embeddings and of several labels, their margin is positive), at the visit "
        "in which it learns from them."
    )
    return curves(runs, _CURVES, "epoch", frames, "memorisation", caption)
