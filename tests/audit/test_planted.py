"""Errors planted on purpose, and what a ranking finds of them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from noisyml.audit.planted import check_planted
from noisyml.audit.ranking import rank_by_trust
from noisyml.audit.trust import planted_check, trust_artefacts, trust_metrics
from noisyml.noise import MultiLabelMixed, NoNoise, Symmetric, plant_errors, planted

LABELS = np.arange(400) % 8
KEYS = [f"{i}.png" for i in range(400)]


def test_planting_flips_the_share_and_says_which():
    noisy = Symmetric(rate=0.3, seed=0).inject(LABELS, 8, keys=KEYS)
    manifest = plant_errors(noisy, share=0.05, seed=0)
    errors = planted(manifest)
    assert len(errors) == 20
    assert np.array_equal(np.flatnonzero(manifest.observed != noisy.observed), errors)
    assert np.array_equal(manifest.clean, LABELS)
    assert np.array_equal(manifest.changed, manifest.observed != LABELS)
    # The same draws would have met noisy labels alone.
    assert 0 < noisy.changed[errors].mean() < 0.8
    assert manifest.params == noisy.params
    again = plant_errors(noisy.take(np.arange(400)[::-1]), share=0.05, seed=0)
    assert np.array_equal(again.observed[::-1], manifest.observed)


def test_planting_leaves_unknown_truth_unknown(tmp_path):
    real = NoNoise().inject(LABELS, 8, keys=KEYS).with_unknown_truth()
    manifest = plant_errors(real, share=0.05)
    assert manifest.unknown.all()
    assert not manifest.changed.any()
    assert (manifest.observed != LABELS).sum() == 20
    manifest.save(tmp_path / "noise.parquet")
    assert np.array_equal(
        planted(type(manifest).load(tmp_path / "noise.parquet")), planted(manifest)
    )


def test_planting_in_entries():
    labels = (np.random.default_rng(0).random((200, 6)) < 0.4).astype(np.uint8)
    before = MultiLabelMixed(rate=0.1).inject(labels, 6)
    manifest = plant_errors(before, share=0.1)
    differs = manifest.observed != before.observed
    assert np.array_equal(np.flatnonzero(differs.ravel()), planted(manifest))
    assert differs.any()


def test_a_ranking_that_finds_and_one_that_does_not():
    errors = np.arange(20)
    found = check_planted(np.arange(400), errors)
    assert found.auroc == 1.0
    assert found.found == {0.1: 1.0, 0.2: 1.0}
    assert not found.near_chance
    assert "100% in its first 10%" in found.sentence
    chance = check_planted(np.random.default_rng(0).permutation(400), errors)
    assert chance.near_chance
    assert chance.sentence.endswith("that is near chance: do not trust this list.")
    assert chance.metrics["selection/planted_auroc"] == chance.auroc
    # Errors that were never judged are not found.
    half = check_planted(np.arange(10, 400), errors)
    assert (half.ranked, half.found[0.1]) == (10, 0.5)
    assert check_planted([], errors).near_chance


def test_the_standard_error_is_that_of_the_source():
    # Hanley and McNeil, table 3: 51 abnormal and 58 normal images, an area of .893.
    order = np.argsort(np.random.default_rng(1).random(109))
    check = check_planted(order, order[:51])
    assert check.error == 0.0  # an area of 1
    from noisyml.audit.planted import _standard_error

    assert _standard_error(0.893, 51, 58) == pytest.approx(0.0325, abs=2e-4)


def test_planted_errors_are_no_suspects_and_are_reported(tmp_path):
    manifest = plant_errors(NoNoise().inject(LABELS, 8, keys=KEYS), share=0.05)
    file = tmp_path / "selection.parquet"
    trust = np.where(np.isin(np.arange(400), planted(manifest)), 0.1, 0.9)
    columns = {"index": np.arange(400), "p_clean": trust, "kept": trust > 0.5, "epoch": 0}
    pd.DataFrame(columns).to_parquet(file)
    names = [str(i) for i in range(8)]
    inputs = SimpleNamespace(kind="vectors")
    train = SimpleNamespace(inputs=inputs, class_names=names, keys=KEYS)
    data = SimpleNamespace(
        splits={"train": train}, manifest=manifest, class_names=names, num_classes=8
    )
    check = planted_check(data, rank_by_trust(file))
    assert (check.planted, check.auroc) == (20, 1.0)
    found = trust_metrics(data, file)
    assert found["selection/planted_auroc"] == found["selection/ranking_auroc"] == 1.0
    assert found["selection/planted_found_in_10_percent"] == 1.0
    # Without images there are suspects and no pictures of them.
    offered = {artefact.file: artefact for artefact in trust_artefacts(data, file)}
    assert list(offered) == ["suspects.csv", "selection_by_class.csv"]
    assert len(offered["suspects.csv"].content) == 380
    assert "Of 20 errors planted on purpose" in offered["suspects.csv"].caption
