"""Carving depends on names and seed, never on the order of the samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisyml.data.readers.partition import (
    arrange,
    carve_classes,
    carve_samples,
    check_fractions,
    hash_ranks,
    last_classes,
)
from noisyml.errors import UserError


def _samples(seed, sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    keys = [f"{label}/{i}.jpg" for label, size in enumerate(sizes) for i in range(size)]
    order = np.random.default_rng(seed).permutation(len(labels))
    return labels[order], [keys[i] for i in order]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    val=st.floats(0, 0.45),
    test=st.floats(0, 0.45),
    seed=st.integers(0, 5),
)
def test_carving_ignores_order_and_keeps_shares(sizes, val, test, seed):
    chosen = []
    for order_seed in (1, 2):
        labels, keys = _samples(order_seed, sizes)
        parts = carve_samples(labels, keys, val, test, seed)
        chosen.append(dict(zip(keys, parts.tolist(), strict=True)))
        for label, size in enumerate(sizes):
            own = parts[labels == label]
            assert (own == 0).sum() >= 1
            assert abs((own == 2).sum() - size * test) <= 1
            assert abs((own == 1).sum() - size * val) <= 1.5
    assert chosen[0] == chosen[1]


def test_seed_changes_the_carving():
    labels, keys = _samples(0, [50, 50])
    first, second = (carve_samples(labels, keys, 0.2, 0.2, seed) for seed in (0, 1))
    assert (first != second).any()


def test_adding_a_class_leaves_the_others_alone():
    labels, keys = _samples(0, [20, 20])
    before = carve_samples(labels, keys, 0.2, 0.3, 0)
    more = carve_samples(
        np.append(labels, [2, 2, 2]), [*keys, "2/a.jpg", "2/b.jpg", "2/c.jpg"], 0.2, 0.3, 0
    )
    np.testing.assert_array_equal(more[:40], before)


def test_classes_are_carved_by_name_not_by_position():
    names = [f"class {i}" for i in range(20)]
    parts = dict(zip(names, carve_classes(names, 0.1, 0.5, 3).tolist(), strict=True))
    backwards = carve_classes(names[::-1], 0.1, 0.5, 3).tolist()
    assert parts == dict(zip(names[::-1], backwards, strict=True))
    assert sorted(parts.values()) == [0] * 8 + [1] * 2 + [2] * 10


def test_too_few_classes_for_zero_shot():
    with pytest.raises(UserError, match="5 classes are too few for split=zero_shot"):
        carve_classes(list("abcde"), 0.1, 0.5, 0)


def test_hash_ranks_are_fixed_for_ever():
    # A change here would silently give every user other splits.
    assert hash_ranks(["a", "b"], 0).tolist() == [15270482384145340437, 1719134107190115933]


def test_last_classes_by_label_value():
    labels = np.array([5, 1, 9, 5, 1])
    np.testing.assert_array_equal(last_classes(labels, 1, "x"), [False, False, True, False, False])
    assert not last_classes(labels, 0, "x").any()
    for wrong in (2, -1):
        with pytest.raises(UserError, match=f"val_classes={wrong} does not fit x"):
            last_classes(labels, wrong, "x")


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.0, 1.0)])
def test_impossible_fractions(val, test):
    with pytest.raises(UserError, match="leave nothing to train on"):
        check_fractions(val, test)


def _arrange(given, split, labels=(0, 0, 1, 1)):
    keys = [str(i) for i in range(len(labels))]
    return arrange(np.array(labels), ["a", "b"], keys, given, split, 0.0, 0.5, 0, "table.csv")


@pytest.mark.parametrize(
    ("given", "split", "message"),
    [
        (["train", "train", "test", "test"], "closed_set", "the first is 'b'; add some"),
        (["train", "test", "train", "train"], "zero_shot", "the first is 'a'; move them"),
        (["test"] * 4, "closed_set", "'train' and 'test' are needed"),
        (["train", "train", "train", "query"], "closed_set", "'train' and 'test' are needed"),
    ],
)
def test_given_splits_that_contradict_the_kind(given, split, message):
    with pytest.raises(UserError, match=message):
        _arrange(given, split)


def test_given_splits_are_kept():
    rows = _arrange(["test", "train", "train", "test"], "closed_set")
    assert {name: part.tolist() for name, part in rows.items()} == {
        "train": [1, 2],
        "val": [],
        "test": [0, 3],
    }
