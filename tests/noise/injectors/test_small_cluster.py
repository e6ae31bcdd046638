"""Small-cluster noise: the reference trace and the rules of the process."""

from __future__ import annotations

import numpy as np
import pytest
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.noise import SampleState, SmallCluster
from noisyml.noise.base import Samples
from noisyml.noise.injectors.small_cluster import Removal, compact_labels, num_clusters, replay

GOLDEN = paths.GOLDEN / "prism"


def trace() -> tuple[dict[str, np.ndarray], list[Removal]]:
    golden = vectors.arrays(GOLDEN, "small_cluster_trace")
    members, destinations = golden["member_offset"], golden["destination_offset"]
    removals = [
        Removal(
            removed_class=int(removed),
            members=golden["member_index"][members[s] : members[s + 1]],
            cluster=golden["member_cluster"][members[s] : members[s + 1]],
            destination=golden["cluster_destination"][destinations[s] : destinations[s + 1]],
        )
        for s, removed in enumerate(golden["removed_class"])
    ]
    return golden, removals


def groups(seed: int = 0, classes: int = 8, per_class: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), per_class))
    return labels, rng.normal(size=(len(labels), 5)) + 3 * rng.normal(size=(classes, 5))[labels]


def test_reference_trace() -> None:
    golden, removals = trace()
    after, rates = replay(golden["labels"], removals, float(golden["hp_rate"]))
    np.testing.assert_array_equal(after, golden["labels_after"])
    np.testing.assert_array_equal(rates, golden["rate_after"])
    np.testing.assert_array_equal(compact_labels(after)[0], golden["labels_after_compact"])
    np.testing.assert_array_equal(after != golden["labels"], golden["is_noise"])


def test_replay_refuses_a_broken_trace() -> None:
    golden, removals = trace()
    labels, rate = golden["labels"], float(golden["hp_rate"])
    with pytest.raises(ValueError, match="stops at"):
        replay(labels, removals[:-1], rate)
    with pytest.raises(ValueError, match="after the rate was reached"):
        replay(labels, removals, 0.2)
    with pytest.raises(ValueError, match="do not carry"):
        replay(labels, removals[1:], rate)
    first = removals[0]
    fewer = Removal(first.removed_class, first.members, first.cluster * 0, first.destination[:1])
    with pytest.raises(ValueError, match="1 clusters"):
        replay(labels, [fewer], 0.05)
    home = first.destination * 0 + first.removed_class
    with pytest.raises(ValueError, match="not a remaining class"):
        replay(labels, [Removal(first.removed_class, first.members, first.cluster, home)], 0.05)


def test_features_of_the_trace_give_a_process_of_the_same_kind() -> None:
    golden, removals = trace()
    manifest = SmallCluster(rate=0.5, seed=3).inject(golden["labels"], 12, features=golden["feats"])
    rates = manifest.details["rate_after_each"]
    assert rates == sorted(rates)
    assert rates[-2] < 0.5 <= rates[-1] == manifest.actual_rate
    assert abs(len(rates) - len(removals)) <= 2


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.7])
def test_rules(rate: float) -> None:
    labels, features = groups()
    injector = SmallCluster(rate=rate, seed=1)
    ids = np.arange(len(labels), dtype=np.uint64)
    steps = injector.removals(Samples(labels, 8, ids, features=features))
    after, _ = replay(labels, steps, rate)  # checks members, counts, destinations, stop
    manifest = injector.inject(labels, 8, features=features)
    np.testing.assert_array_equal(manifest.changed, after != labels)
    np.testing.assert_array_equal(manifest.clean, labels)
    removed = set(manifest.details["removed_classes"])
    # Removed classes vanish whole, the others stay whole.
    assert set(np.unique(labels[manifest.changed])) == removed
    assert manifest.changed[np.isin(labels, list(removed))].all()
    assert manifest.num_classes == 8 - len(removed)
    np.testing.assert_array_equal(manifest.class_source[manifest.observed], after)
    # Renumbered by first appearance.
    assert manifest.observed[np.unique(manifest.observed, return_index=True)[1]].tolist() == list(
        range(manifest.num_classes)
    )
    assert np.all(np.diff(np.unique(manifest.observed, return_index=True)[1]) > 0)
    assert (manifest.state[manifest.changed] == SampleState.OPEN).all()
    assert manifest.count_matrix().shape == (8, manifest.num_classes)
    assert manifest.nominal_rate == rate
    for step in steps:
        assert step.cluster.max() + 1 <= num_clusters(len(step.members))


def test_clusters_are_visual_groups() -> None:
    """Two well separated pairs inside a class of four: each pair moves as one."""
    labels = np.repeat([0, 1, 2], 4)
    features = np.zeros((12, 2))
    features[:, 0] = np.tile([0.0, 0.1, 9.0, 9.1], 3)
    for seed in range(5):
        step = SmallCluster(rate=0.3, seed=seed).removals(
            Samples(labels, 3, np.arange(12, dtype=np.uint64), features=features)
        )[0]
        near = step.members % 4 < 2
        assert len(set(step.cluster[near])) == len(set(step.cluster[~near])) == 1
        assert step.cluster[near][0] != step.cluster[~near][0]


def test_order_of_rows_and_names_of_classes_do_not_matter() -> None:
    labels, features = groups()
    keys = [f"{i}.png" for i in range(len(labels))]
    rng = np.random.default_rng(5)
    shuffle, rename = rng.permutation(len(labels)), rng.permutation(8)
    plain = SmallCluster(rate=0.5).inject(labels, 8, keys=keys, features=features)
    moved = SmallCluster(rate=0.5).inject(
        rename[labels[shuffle]],
        8,
        keys=[keys[i] for i in shuffle],
        features=features[shuffle],
    )
    np.testing.assert_array_equal(plain.changed[shuffle], moved.changed)
    hosts = plain.class_source[plain.observed]
    np.testing.assert_array_equal(rename[hosts[shuffle]], moved.class_source[moved.observed])


def test_repeated_images_and_single_image_classes() -> None:
    labels = np.array([0, 0, 0, 0, 1, 2, 3])
    for seed in range(5):
        manifest = SmallCluster(rate=0.4, seed=seed).inject(labels, 4, features=np.ones((7, 3)))
        assert manifest.actual_rate >= 0.4


def test_zero_rate_keeps_the_numbering() -> None:
    labels, features = groups()
    manifest = SmallCluster(rate=0.0).inject(labels, 8, features=features)
    np.testing.assert_array_equal(manifest.observed, labels)
    assert manifest.class_source is None


def test_mistakes_end_in_a_sentence() -> None:
    labels, features = groups()
    with pytest.raises(UserError, match=r"cannot reach noise.rate=1.0"):
        SmallCluster(rate=1.0).inject(labels, 8, features=features)
    with pytest.raises(UserError, match="needs embeddings"):
        SmallCluster(rate=0.5).inject(labels, 8)
    with pytest.raises(UserError, match="NaN"):
        SmallCluster(rate=0.5).inject(labels, 8, features=features * np.nan)
    with pytest.raises(UserError, match="n_init"):
        SmallCluster(rate=0.5, n_init=0)
    with pytest.raises(ValueError, match="do not fit"):
        SmallCluster(rate=0.5).inject(labels, 8, features=features[:5])
