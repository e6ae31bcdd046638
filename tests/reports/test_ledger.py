"""The ledger in sum, of methods that classify, embed, and judge several labels or pairs."""

import numpy as np
import pandas as pd
import pytest

from noisyml.reports.sections.artefacts import losses
from noisyml.reports.sections.ledger import read_ledger
from noisyml.runs.folder import RunFolder

#: Six samples of three classes; the last two labels are wrong.
OBSERVED, CLEAN = [0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 0, 0]


def run(folder, observed=OBSERVED, clean=CLEAN, **columns):
    """A run with two epochs in its ledger; columns are [2, 6]."""
    changed = [one != other for one, other in zip(observed, clean, strict=True)]
    frame = {"index": range(6), "observed": observed, "clean": clean, "changed": changed}
    pd.DataFrame(frame).to_parquet(folder / "noise.parquet")
    noted = {name: np.ravel(values) for name, values in columns.items()}
    kept = {"p_clean": 0.5, "kept": True, "epoch": np.repeat([0, 1], 6)}
    pd.DataFrame({"index": [*range(6)] * 2, **kept, **noted}).to_parquet(
        folder / "selection.parquet"
    )
    return RunFolder(folder)


MARGIN = [[1, 1, -1, -1, -1, -2], [3, 2, 1, -1, 1, -1]]
LOSS = np.arange(12.0).reshape(2, 6)


def test_labels_are_learnt_where_they_are_predicted(tmp_path):
    prediction = [[0, 1, 0, 1, 0, 0], [0, 1, 2, 1, 1, 1]]
    ledger = read_ledger(run(tmp_path, loss=LOSS, margin=MARGIN, prediction=prediction))
    assert ledger.by_epoch["right_learnt"].tolist() == [2 / 4, 3 / 4]
    assert ledger.by_epoch["wrong_learnt"].tolist() == [0, 1 / 2]
    assert ledger.by_epoch["wrong_corrected"].tolist() == [1, 0]
    assert ledger.loss.tolist() == [6, 7, 8, 9, 10, 11]
    assert ledger.margin.tolist() == [2, 1.5, 0, -1, 0, -1.5]
    assert ledger.wrong.tolist() == [False] * 4 + [True] * 2
    assert ledger.measured_on == "scores"


def test_labels_of_embeddings_are_learnt_where_their_margin_is_positive(tmp_path):
    margin = np.array(MARGIN, dtype=float)
    # The only sample of its class in a batch says nothing.
    margin[1, 3] = np.nan
    ledger = read_ledger(run(tmp_path, margin=margin))
    assert ledger.by_epoch["right_learnt"].tolist() == [2 / 4, 3 / 3]
    assert ledger.by_epoch["wrong_learnt"].tolist() == [0, 1 / 2]
    assert "wrong_corrected" not in ledger.by_epoch
    assert ledger.margin.tolist() == [2, 1.5, 0, -1, 0, -1.5]
    (picture,) = losses.show(RunFolder(tmp_path), True)
    assert "Loss" not in picture.caption
    assert "nearest other class" in picture.caption
    assert len(picture.figure.axes) == 1


def test_several_labels_are_learnt_where_the_worst_is_right(tmp_path):
    labels = [np.eye(3, dtype=np.uint8)[list(rows)] for rows in (OBSERVED, CLEAN)]
    observed, clean = ([row.tolist() for row in rows] for rows in labels)
    folder = run(tmp_path, observed, clean, loss=LOSS, margin=MARGIN)
    frame = pd.read_parquet(folder.noise_file)
    frame["changed"] = list((labels[0] != labels[1]).tolist())
    frame.to_parquet(folder.noise_file)
    ledger = read_ledger(folder)
    assert ledger.by_epoch["wrong_learnt"].tolist() == [0, 1 / 2]
    assert ledger.measured_on == "entries"


def test_pairs_have_losses_alone(tmp_path):
    captions = [list(map(str, labels)) for labels in (OBSERVED, CLEAN)]
    ledger = read_ledger(run(tmp_path, *captions, loss=LOSS))
    assert list(ledger.by_epoch) == ["epoch"]
    assert np.isnan(ledger.margin).all()
    (picture,) = losses.show(RunFolder(tmp_path), True)
    assert picture.caption == "Loss of every training sample at its last visit."
    assert len(picture.narrow.axes) == 1


@pytest.mark.parametrize("clean", [OBSERVED, CLEAN])
def test_without_a_note_there_is_no_ledger(tmp_path, clean):
    assert read_ledger(run(tmp_path, clean=clean)) is None
    assert not list(losses.show(RunFolder(tmp_path), True))
