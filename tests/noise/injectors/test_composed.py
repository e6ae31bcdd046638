"""Several noises one after the other: the labels, and a record that keeps the first truth."""

import numpy as np
import pytest

from noisyml.errors import UserError
from noisyml.noise import (
    Composed,
    FromManifest,
    MultiLabelMixed,
    NoNoise,
    OpenSet,
    Pair,
    PolynomialMarginDiminishing,
    SmallCluster,
    Symmetric,
)
from noisyml.noise.injectors.composed import followed_by

LABELS = np.arange(1000) % 10
KEYS = [f"{i}.png" for i in range(1000)]


def test_the_record_compares_with_the_first_truth():
    # A chain by hand compares with what the first step left: .3 of the labels.
    first = Pair(rate=0.8).inject(LABELS, 10, keys=KEYS)
    second = Symmetric(rate=0.3, seed=1).inject(first.observed, 10, keys=KEYS)
    assert second.actual_rate == pytest.approx(0.3, abs=0.04)
    steps = {"pair": Pair(rate=0.8), "symmetric": Symmetric(rate=0.3, seed=1)}
    manifest = Composed(steps=steps).inject(LABELS, 10, keys=KEYS)
    assert np.array_equal(manifest.observed, second.observed)
    assert np.array_equal(manifest.clean, LABELS)
    assert np.array_equal(manifest.changed, manifest.observed != LABELS)
    # Right are those of neither and those put right by chance: .2 x .7 + .8 x .3 / 9.
    assert manifest.actual_rate == pytest.approx(1 - 0.2 * 0.7 - 0.8 * 0.3 / 9, abs=0.04)
    assert manifest.nominal_rate is None
    told = manifest.details["steps"]
    assert told["symmetric"]["changed"] == second.actual_rate
    assert told["pair"]["params"]["rate"] == 0.8


def test_the_record_travels(tmp_path):
    steps = {"pair": Pair(rate=0.5), "symmetric": Symmetric(rate=0.3)}
    manifest = Composed(steps=steps).inject(LABELS, 10, keys=KEYS)
    manifest.save(tmp_path / "noise.parquet")
    again = FromManifest(path=str(tmp_path / "noise.parquet")).inject(LABELS, 10, keys=KEYS)
    assert again.sha256 == manifest.sha256
    assert again.details == manifest.details
    shuffled = np.random.default_rng(0).permutation(1000)
    other = Composed(steps=steps).inject(LABELS[shuffled], 10, keys=[KEYS[i] for i in shuffled])
    assert np.array_equal(other.observed, manifest.observed[shuffled])


def test_features_reach_the_steps_that_want_them():
    noise = Composed(
        steps={"pmd": PolynomialMarginDiminishing(type=1), "symmetric": Symmetric(rate=0.2)}
    )
    assert noise.wants == {"probabilities"}
    rows = np.random.default_rng(0).dirichlet(np.ones(10), 1000)
    by_kind = noise.inject(LABELS, 10, keys=KEYS, features={"probabilities": rows})
    alone = PolynomialMarginDiminishing(type=1).inject(LABELS, 10, keys=KEYS, features=rows)
    expected = followed_by(alone, Symmetric(rate=0.2).inject(alone.observed, 10, keys=KEYS))
    assert np.array_equal(by_kind.observed, expected.observed)
    assert by_kind.sha256 == expected.sha256
    with pytest.raises(UserError, match="needs probabilities"):
        noise.inject(LABELS, 10, keys=KEYS)


def test_dissolved_classes_and_foreign_images_stay_what_they_are():
    rows = np.random.default_rng(0).normal(size=(1000, 3)) + LABELS[:, None]
    cluster = SmallCluster(rate=0.2)
    noise = Composed(steps={"cluster": cluster, "symmetric": Symmetric(rate=0.3)})
    assert noise.training_only
    manifest = noise.inject(LABELS, 10, features=rows)
    assert manifest.num_classes < 10
    named = manifest.class_source[manifest.observed]
    assert np.array_equal(manifest.changed, named != LABELS)

    noise = Composed(
        steps={"symmetric": Symmetric(rate=0.3), "open": OpenSet(rate=0.2, open_share=1.0)}
    )
    manifest = noise.sized(lambda: 500).inject(LABELS, 10)
    foreign = manifest.source_index >= 0
    assert foreign.sum() == 200
    assert manifest.changed[foreign].all()
    assert (manifest.clean[foreign] == -1).all()
    assert np.array_equal(manifest.changed[~foreign], (manifest.observed != LABELS)[~foreign])
    first = Composed(
        steps={"open": OpenSet(rate=0.2, open_share=1.0, source_size=500), "pair": Pair(rate=0.5)}
    ).inject(LABELS, 10)
    assert first.changed[first.source_index >= 0].all()


def test_what_nobody_knows_stays_unknown():
    real = NoNoise().inject(LABELS, 10).with_unknown_truth()
    after = followed_by(real, Symmetric(rate=0.5).inject(LABELS, 10))
    assert after.unknown.all()
    assert not after.changed.any()


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ({"pair": Pair(rate=0.1)}, "has 1 steps and wants two"),
        (
            {"a": Symmetric(rate=0.1), "b": Symmetric(rate=0.2)},
            r"noise.steps.a and noise.steps.b draw the same numbers \(symmetric with seed 0\)",
        ),
        (
            {"a": Symmetric(rate=0.1), "b": FromManifest(path="x.parquet")},
            "noise.steps.b gives every sample the label of a file",
        ),
        (
            {"a": Symmetric(rate=0.1), "b": SmallCluster(rate=0.2)},
            "noise.steps.b dissolves classes",
        ),
        (
            {"a": Symmetric(rate=0.1), "b": MultiLabelMixed(rate=0.2)},
            "are for different kinds of labels",
        ),
    ],
)
def test_steps_that_cannot_follow_are_refused(steps, said):
    with pytest.raises(UserError, match=said):
        Composed(steps=steps)
