"""Kinds of labels answer every question about labels of their kind."""

import numpy as np
import pytest
import torch

from noisyml.errors import UserError
from noisyml.storage.parquet import from_column
from noisyml.targets import MULTI, SINGLE, TARGETS, LabelChanges, label_fields, labels_of, target_of

NAMES = ["ant", "bee", "cat"]
ONE = np.array([2, 0, 2, 2], dtype=np.int64)
SEVERAL = np.array([[1, 0, 1], [0, 0, 0], [0, 0, 1], [1, 0, 1]], dtype=np.uint8)
BOTH = [(SINGLE, ONE), (MULTI, SEVERAL)]


@pytest.mark.parametrize(("target", "labels"), BOTH)
def test_a_kind_is_found_from_its_labels(target, labels):
    assert target_of(labels) is target
    assert target_of(labels.tolist()) is target
    assert target_of(torch.from_numpy(labels)) is target
    assert TARGETS[target.name] is target


def test_checked_labels_are_fresh_and_typed():
    assert SINGLE.checked([0, 2], 3).dtype == np.int64
    assert MULTI.checked(SEVERAL.tolist(), 3).dtype == np.uint8
    assert MULTI.checked(SEVERAL, 3) is not SEVERAL
    with pytest.raises(UserError, match="Training sample 1 has label 3"):
        SINGLE.checked([0, 3], 3)
    with pytest.raises(TypeError, match="integers"):
        SINGLE.checked([0.5], 3)
    with pytest.raises(TypeError, match=r"\[N, 4\]"):
        MULTI.checked(SEVERAL, 4)
    with pytest.raises(TypeError, match="zeros and ones"):
        MULTI.checked(SEVERAL * 2, 3)


@pytest.mark.parametrize(("target", "labels"), BOTH)
def test_a_batch_names_its_labels_by_their_kind(target, labels):
    index = np.array([3, 1])
    batch = label_fields(labels, index)
    assert list(batch) == [target.field]
    assert labels_of(batch) is batch[target.field]
    np.testing.assert_array_equal(labels_of(batch).numpy(), labels[index])
    with pytest.raises(KeyError):
        labels_of({"index": torch.zeros(2)})


def test_words():
    rows = np.array([[1, 0, 1], [0, 0, 0], [-1, -1, -1]])
    assert MULTI.texts(rows, NAMES) == ["ant + cat", "no label", ""]
    assert MULTI.texts(rows, NAMES, nothing="") == ["ant + cat", "", ""]
    assert SINGLE.texts(np.array([1, -1]), NAMES) == ["bee", ""]
    assert (SINGLE.shown(ONE[0]), MULTI.shown(SEVERAL[0])) == ("2", "0 + 2")
    assert MULTI.shown(SEVERAL[1]) == "none"
    assert (SINGLE.facts(ONE), MULTI.facts(SEVERAL)) == ({}, {"labels per image": "1.25"})


@pytest.mark.parametrize(("target", "labels"), BOTH)
def test_columns_give_back_what_they_hold(target, labels):
    import pyarrow as pa

    table = pa.table({"label": target.to_column(labels)})
    np.testing.assert_array_equal(from_column(table["label"]), labels)


def test_columns_of_words():
    elsewhere = np.array([0, -1, 7])
    assert SINGLE.text_column(elsewhere, NAMES).to_pylist() == ["ant", None, None]
    assert MULTI.text_column(SEVERAL[:2], NAMES).to_pylist() == ["ant + cat", ""]


@pytest.mark.parametrize(("target", "labels"), BOTH)
def test_digests_tell_observed_from_true_labels(target, labels):
    other = labels[::-1].copy()
    clean = target.clean_dtype
    digests = {
        target.digest(a.astype(target.dtype), b.astype(clean))
        for a, b in ((labels, labels), (labels, other), (other, labels))
    }
    assert len(digests) == 3


def test_observed_labels_against_true_ones():
    clean = np.array([[1, 0, 1], [0, 0, 1], [0, -1, 1], [1, 0, 1]], dtype=np.int8)
    changed = MULTI.changed(SEVERAL, clean) & (clean >= 0)
    assert MULTI.per_sample(changed).tolist() == [False, True, False, False]
    assert MULTI.per_sample(MULTI.unknown(clean, changed)).tolist() == [False, False, True, False]
    assert MULTI.differing(clean, SEVERAL).tolist() == [1]
    changes = LabelChanges.of(SEVERAL, clean)
    assert changes.positives.tolist() == [2, 0, 4]
    assert (changes.added.sum(), changes.removed.tolist()) == (0, [0, 0, 1])
    assert MULTI.rates(SEVERAL, clean, changed) == {
        "added_rate": 0.0,
        "removed_rate": 1 / 6,
        "wrong_samples": 0.25,
    }
    assert SINGLE.differing(np.array([2, -1, 1, 2]), ONE).tolist() == [2]
    assert SINGLE.rates(ONE, ONE, ONE != ONE) == {}


def test_classes():
    assert SINGLE.class_counts(ONE, 3).tolist() == [1, 0, 3]
    assert MULTI.class_counts(SEVERAL, 3).tolist() == [2, 0, 3]
    assert SINGLE.members(ONE, 2).tolist() == [0, 2, 3]
    assert MULTI.members(SEVERAL, 0).tolist() == [0, 3]
    assert SINGLE.present(ONE).tolist() == MULTI.present(SEVERAL).tolist() == [0, 2]
    inner, names = SINGLE.among_present(ONE, NAMES)
    assert (inner.tolist(), names) == ([1, 0, 1, 1], ["ant", "cat"])
    rows, names = MULTI.among_present(SEVERAL, NAMES)
    assert (rows is SEVERAL, names) == (True, NAMES)
    assert SINGLE.labelled(ONE).all()
    assert MULTI.labelled(SEVERAL).tolist() == [True, False, True, True]


def test_groups_of_a_map():
    numbers, names, shown = SINGLE.groups(ONE, NAMES, 20)
    assert (numbers.tolist(), names, shown.tolist()) == (ONE.tolist(), NAMES, [0, 2])
    numbers, names, shown = MULTI.groups(SEVERAL, NAMES, 1)
    assert [names[i] for i in numbers] == ["ant + cat", "no label", "cat", "ant + cat"]
    assert [names[i] for i in shown] == ["ant + cat"]
