"""The labelled part of a training split: nested by class, held out, drawn into batches."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisyml.data.labelled import LabelledPart, WithUnlabelled, cycled, pool_rows
from noisyml.data.readers.layout import array_split
from noisyml.data.samplers.plans import EMPTY, Cycle, Shuffle
from noisyml.errors import UserError


def splits(labels):
    labels = np.asarray(labels, dtype=np.int64)
    pixels = np.zeros((len(labels), 2, 2), dtype=np.uint8)
    keys = [f"key{i}" for i in range(len(labels))]
    names = [str(c) for c in range(int(labels.max()) + 1)]
    return {"train": array_split("train", pixels, labels, names, keys)}


def marked(part, labels):
    return part.apply(splits(labels))["train"].labelled


LABELS = np.repeat(np.arange(4), [10, 20, 40, 200])


def test_every_class_gives_its_share_and_at_least_one():
    marks = marked(LabelledPart(fraction=0.01), LABELS)
    assert np.bincount(LABELS[marks], minlength=4).tolist() == [1, 1, 1, 2]
    marks = marked(LabelledPart(fraction=0.25), LABELS)
    assert np.bincount(LABELS[marks], minlength=4).tolist() == [3, 5, 10, 50]


@given(st.integers(0, 5), st.lists(st.floats(0.001, 1.0), min_size=2, max_size=4))
def test_larger_fractions_hold_the_smaller_ones(seed, fractions):
    nested = [marked(LabelledPart(fraction=f, seed=seed), LABELS) for f in sorted(fractions)]
    for small, large in itertools.pairwise(nested):
        assert not (small & ~large).any()


def test_sizes_are_exact_nested_and_even_over_classes():
    labels = np.repeat(np.arange(10), 30)
    marks = {size: marked(LabelledPart(size=size, seed=1), labels) for size in (10, 30, 100)}
    for size, own in marks.items():
        assert own.sum() == size
        assert np.bincount(labels[own], minlength=10).tolist() == [size // 10] * 10
    assert not (marks[10] & ~marks[30]).any()
    assert not (marks[30] & ~marks[100]).any()
    other = marked(LabelledPart(size=30, seed=2), labels)
    assert (other != marks[30]).any()


def test_what_is_held_out_is_labelled_and_trains_nowhere():
    found = LabelledPart(size=40, holdout=0.25).apply(splits(np.repeat(np.arange(4), 50)))
    train, val = found["train"], found["val"]
    assert len(val) == 10
    assert train.labelled.sum() == 30
    assert not set(train.keys) & set(val.keys)
    assert val.labelled is None
    assert np.bincount(val.labels).min() >= 2
    everything = LabelledPart(size=40).apply(splits(np.repeat(np.arange(4), 50)))["train"]
    labelled = {k for k, m in zip(everything.keys, everything.labelled, strict=True) if m}
    assert set(val.keys) < labelled
    with pytest.raises(UserError, match="leaves none"):
        LabelledPart(size=1, holdout=0.9).apply(splits([0, 1]))


def test_pools():
    marks = np.array([True, False, False, True])
    assert pool_rows("labelled", marks, 4).tolist() == [0, 3]
    assert pool_rows("both", marks, 4).tolist() == [0, 3]
    assert pool_rows("unlabelled", marks, 4).tolist() == [1, 2]
    assert pool_rows("all", marks, 4).tolist() == [0, 1, 2, 3]
    assert pool_rows("labelled", None, 3).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="no unlabelled samples"):
        pool_rows("unlabelled", None, 3)


def test_batches_are_joined_by_as_many_unlabelled_samples():
    plan = Shuffle(np.zeros(5), seed=0, batch_size=2, drop_last=False)
    joined = WithUnlabelled(plan, np.arange(10, 17), seed=0)
    first = joined.epoch(0)
    assert joined.batch_size == 4
    assert np.array_equal(first[:, ::2], plan.epoch(0))
    others = first[:, 1::2]
    assert np.array_equal(others == EMPTY, plan.epoch(0) == EMPTY)
    drawn = others[others != EMPTY]
    assert len(set(drawn.tolist())) == 5
    assert np.array_equal(first, joined.epoch(0))
    assert not np.array_equal(first, joined.epoch(1))
    assert sorted(cycled(np.arange(3), 6, np.random.default_rng(0))) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("samples", "batch", "length"), [(7, 3, 5), (3, 8, 2), (10, 5, 2)])
def test_cycles_pass_over_all_samples_before_any_comes_again(samples, batch, length):
    plan = Cycle(np.zeros(samples), seed=0, batch_size=batch, batches_per_epoch=length)
    drawn = np.concatenate([plan.epoch(epoch).ravel() for epoch in range(7)])
    assert plan.epoch(3).shape == (length, batch)
    for start in range(0, len(drawn) - samples + 1, samples):
        assert sorted(drawn[start : start + samples].tolist()) == list(range(samples))
