"""Lists and pictures of the least trusted samples, by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from noisyml.audit.ranking import rank_by_trust
from noisyml.audit.trust import (
    THUMBNAIL_SIDE,
    coverage,
    least_trusted,
    suspects,
    trust_artefacts,
    trust_by_class,
    trust_metrics,
)
from noisyml.data.inputs import BrokenImage
from noisyml.noise.manifest import NoiseManifest


class Images:
    """Grey squares as bright as their position; the last one cannot be decoded."""

    def load(self, index):
        if index == 3:
            raise BrokenImage("3: no image")
        return Image.new("L", (8, 4), 50 * (index + 1))


@pytest.fixture
def data():
    """Four samples of three classes, of which the first and last are labelled wrongly."""
    manifest = NoiseManifest(
        observed=[0, 1, 2, 0],
        clean=[1, 1, 2, 2],
        changed=[True, False, False, True],
        num_classes=3,
        injector="x",
    )
    names = ["cat", "dog", "owl"]
    train = SimpleNamespace(
        images=Images(),
        inputs=SimpleNamespace(kind="images"),
        class_names=names,
        keys=["k0", "k1", "k2", "k3"],
    )
    return SimpleNamespace(
        splits={"train": train}, manifest=manifest, class_names=names, num_classes=3
    )


@pytest.fixture
def judged(tmp_path):
    """A first epoch that judges sample 0, and a last one that judges it twice."""
    rows = [
        (0, 0.9, True, 0),
        (0, 0.2, False, 1),
        (1, 0.7, True, 1),
        (2, float("nan"), True, 1),
        (3, 0.1, False, 1),
        (0, 0.4, True, 1),
    ]
    file = tmp_path / "selection.parquet"
    pd.DataFrame(rows, columns=["index", "p_clean", "kept", "epoch"]).to_parquet(file)
    return file


def test_the_last_epoch_or_all_of_them_lowest_first(judged):
    last, every = rank_by_trust(judged, "last_epoch"), rank_by_trust(judged)
    assert last.classes == 0
    assert last.samples == 3
    assert last.table.index.tolist() == [3, 0, 1]
    assert last.table["p_clean"].tolist() == pytest.approx([0.1, 0.3, 0.7])
    assert last.table["kept"].tolist() == [0, 0.5, 1]
    assert every.table["p_clean"].tolist() == pytest.approx([0.1, 0.5, 0.7])
    assert every.without([3]).table.index.tolist() == [0, 1]


def test_log_odds_rank_what_probabilities_no_longer_tell_apart(tmp_path):
    odds = np.array([900.0, -200.0, 40.0, -700.0, np.nan, np.inf], dtype=np.float32)
    p_clean = np.array([1, 0, 1, 0, 1, 1], dtype=np.float32)
    columns = {"index": range(6), "p_clean": p_clean, "log_odds": odds, "kept": True, "epoch": 0}
    file = tmp_path / "selection.parquet"
    pd.DataFrame(columns).to_parquet(file)
    ranking = rank_by_trust(file)
    assert ranking.table.index.tolist() == [3, 1, 2, 0, 5]
    assert ranking.table["log_odds"].tolist()[:4] == [-700, -200, 40, 900]
    assert ranking.samples == 5  # the one of an unknown class was not judged


def test_it_is_said_how_many_rows_were_judged(data, judged):
    assert coverage(rank_by_trust(judged), 4).startswith("3 of 4 training rows were judged; the")
    captions = {a.file: a.caption for a in trust_artefacts(data, judged)}
    assert captions["suspects.csv"] == coverage(rank_by_trust(judged), 4)
    found = trust_metrics(data, judged)
    # Wrong are 0 and 3, which come first.
    assert found["selection/judged"] == 3 / 4
    assert found["selection/ranking_auroc"] == found["selection/ranking_average_precision"] == 1.0
    assert found["selection/ranking_fnr_at_budget"] == 0.0


def test_suspects_are_listed_without_the_truth(data, judged):
    table = suspects(data, rank_by_trust(judged))
    assert table.columns.tolist() == ["key", "label", "p_clean", "kept"]
    assert table["key"].tolist() == ["k3", "k0", "k1"]
    assert table["label"].tolist() == ["cat", "cat", "dog"]


def test_least_trusted_come_with_pictures_and_names(data, judged):
    found = least_trusted(data, rank_by_trust(judged))
    assert found["images"].shape == (3, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
    assert found["images"][0].max() == 0  # broken: black
    assert found["images"][1].max() == 50
    assert (found["images"][1][: THUMBNAIL_SIDE // 4] == 0).all()  # wide: a bar above and below
    assert found["index"].tolist() == [3, 0, 1]
    assert found["observed_name"].tolist() == ["cat", "cat", "dog"]
    assert found["clean_name"].tolist() == ["owl", "dog", "dog"]


def test_trust_by_class_by_hand(data, judged):
    table = trust_by_class(data, judged).set_index("label")
    # Judged in the last epoch: cats 0 (twice, kept once) and 3, all wrong; dog 1; owl 2.
    assert table["kept"].tolist() == pytest.approx([1 / 3, 1, 1])
    assert table["precision"].tolist() == [0, 1, 1]
    assert table["samples"].tolist() == [3, 1, 1]


def test_entries_are_listed_one_by_one(data, tmp_path):
    observed = np.array([[1, 0, 0], [0, 1, 1]])
    clean = np.array([[1, 1, 0], [0, 1, 1]])
    data.manifest = NoiseManifest(
        observed=observed, clean=clean, changed=observed != clean, num_classes=3, injector="x"
    )
    file = tmp_path / "selection.parquet"
    trust = [[0.9, 0.1, 0.5], [0.8, 0.7, 0.2]]
    columns = {"index": [0, 1], "kept": [[True, False, True], [True, True, False]]}
    pd.DataFrame({**columns, "p_clean": trust, "epoch": 0}).to_parquet(file)
    assert rank_by_trust(file).samples == 2
    table = suspects(data, rank_by_trust(file))
    assert table["key"].tolist()[:2] == ["k0", "k1"]
    assert table["label"].tolist()[:2] == ["dog", "owl"]
    assert table["marked"].tolist()[:2] == [False, True]
    found = least_trusted(data, rank_by_trust(file))
    assert found["observed_name"].tolist()[:2] == ["no dog", "owl"]
    assert found["clean_name"].tolist()[:2] == ["dog", "owl"]


def test_artefacts_that_would_be_empty_are_not_offered(data, judged):
    files = [artefact.file for artefact in trust_artefacts(data, judged)]
    assert files == ["thumbnails.npz", "suspects.csv", "selection_by_class.csv"]
    table = pd.read_parquet(judged).assign(p_clean=float("nan"))
    table.to_parquet(judged)
    assert [a.file for a in trust_artefacts(data, judged)] == ["selection_by_class.csv"]
