"""Batches balanced over classes: the released draws, and what batches contain."""

import io

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support import paths, vectors

from noisyml.data.samplers.balanced import ClassBalanced, RandomClasses
from noisyml.data.samplers.plans import EMPTY, OnSubset, PlannedBatches
from noisyml.errors import UserError

ROOT = paths.ROOT
LABELS = np.random.default_rng(0).integers(0, 12, 203)


@pytest.fixture(scope="module")
def golden():
    return vectors.arrays(paths.GOLDEN / "proxynca_pp", "sampler")


def of(golden):
    k = int(golden["n_samples"])
    return ClassBalanced(golden["labels"], int(golden["numpy_seed"]), k * golden["n_classes"], k)


def test_released_draws(golden):
    plan = of(golden)
    assert len(plan) == int(golden["reported_len"])
    for epoch, expected in enumerate(golden["batches"]):
        found = plan.epoch(epoch)
        assert len(found) == golden["batches_per_epoch"][epoch]
        assert np.array_equal((found != EMPTY).sum(axis=1), golden["batch_sizes"][epoch])
        assert np.array_equal(found, expected)


def test_an_epoch_does_not_depend_on_what_was_asked_before(golden):
    for epoch in (2, 0, 1, 1):
        assert np.array_equal(of(golden).epoch(epoch), golden["batches"][epoch])
    plan = of(golden)
    assert np.array_equal(plan.epoch(2), golden["batches"][2])
    assert np.array_equal(plan.epoch(0), golden["batches"][0])


def test_a_state_goes_on_without_a_replay(golden, monkeypatch):
    plan = of(golden)
    for epoch in range(3):
        plan.epoch(epoch)
    state = torch.load(saved(plan.state_dict()), weights_only=True)
    drawn = []
    draw = ClassBalanced._draw
    monkeypatch.setattr(ClassBalanced, "_draw", lambda self: drawn.append(1) or draw(self))
    again = of(golden)
    assert again.load_state_dict(state)
    # A run stopped inside an epoch asks for it again, one stopped after it for the next.
    assert np.array_equal(again.epoch(2), golden["batches"][2])
    assert np.array_equal(again.epoch(2), golden["batches"][2])
    assert len(drawn) == 2
    other = ClassBalanced(LABELS, 0, 24, 4)
    assert not other.load_state_dict(state)
    assert not of(golden).load_state_dict({})


def test_other_labels_begin_where_the_run_stands(monkeypatch):
    plan = ClassBalanced(LABELS, 0, 24, 4)
    plan.begin(30)
    first = [plan.epoch(epoch) for epoch in (30, 31)]
    again = ClassBalanced(LABELS, 0, 24, 4)
    assert again.load_state_dict(plan.state_dict())
    assert np.array_equal(again.epoch(31), first[1])
    assert not np.array_equal(first[0], first[1])


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_short_batches_reach_the_ranks_without_their_empty_places(golden):
    plan = of(golden)
    whole = list(PlannedBatches(plan, seed=1, epoch=0))
    thirds = [list(PlannedBatches(plan, 1, rank, 3, epoch=0)) for rank in range(3)]
    for number, batch in enumerate(whole):
        row = golden["batches"][0, number]
        assert np.array_equal(batch.index, row[row >= 0])
        assert len(batch.seed) == len(batch.index)
        parts = [third[number] for third in thirds]
        assert np.array_equal(batch.index, np.concatenate([part.index for part in parts]))
        assert np.array_equal(batch.seed, np.concatenate([part.seed for part in parts]))
        assert max(len(p.index) for p in parts) - min(len(p.index) for p in parts) <= 1


def test_empty_places_stay_empty_where_images_are_left_out(golden):
    usable = np.setdiff1d(np.arange(43), [0, 7, 42])
    found = OnSubset(of(golden), usable).epoch(0)
    expected = golden["batches"][0]
    assert np.array_equal(found == EMPTY, expected < 0)
    assert np.array_equal(found[expected >= 0], usable[expected[expected >= 0]])


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=3, max_size=9),
    k=st.integers(1, 5),
    epoch=st.integers(0, 4),
)
def test_balanced_batches_hold_distinct_classes_and_samples(counts, k, epoch):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)) * 7, counts))
    assume(3 * k < len(labels))
    plan = ClassBalanced(labels, 2, batch_size=3 * k, samples_per_class=k)
    batches = plan.epoch(epoch)
    assert len(batches) == len(plan) == (len(labels) - 1) // (3 * k)
    for row in batches:
        drawn = row[row != EMPTY]
        assert (row[: len(drawn)] != EMPTY).all(), "empty places come last"
        assert len(np.unique(drawn)) == len(drawn)
        classes, found = np.unique(labels[drawn], return_counts=True)
        assert len(classes) == 3
        assert np.array_equal(found, [min(k, counts[c // 7]) for c in classes])


def test_a_class_is_gone_through_before_it_is_shuffled_again():
    labels = np.zeros(12, dtype=np.int64)
    plan = ClassBalanced(labels, 0, batch_size=3, samples_per_class=3)
    assert len(plan) == 3, "three batches of three keep below the twelve samples"
    drawn = np.concatenate([plan.epoch(e) for e in range(4)]).reshape(3, 12)
    for once in drawn:
        assert np.array_equal(np.sort(once), np.arange(12))


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    k=st.integers(1, 5),
    batch_size=st.integers(1, 30),
)
def test_random_classes_fill_a_batch_class_by_class(counts, k, batch_size):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)) * 7, counts))
    shares = np.minimum(counts, k)
    assume(batch_size <= shares.sum())
    plan = RandomClasses(labels, 3, batch_size, samples_per_class=k, batches_per_epoch=4)
    for row in plan.epoch(1):
        assert len(np.unique(row)) == len(row) == batch_size
        runs = np.flatnonzero(np.diff(labels[row])) + 1
        parts = np.split(labels[row], runs)
        assert len({part[0] for part in parts}) == len(parts), "a class comes once"
        for part in parts[:-1]:
            assert len(part) == min(k, counts[part[0] // 7])
        assert len(parts[-1]) <= min(k, counts[parts[-1][0] // 7])


def test_the_batches_of_the_paper():
    labels = np.repeat(np.arange(100), 59)
    plan = RandomClasses(labels, 0, batch_size=128, samples_per_class=5, batches_per_epoch=100)
    for row in plan.epoch(0):
        sizes = np.unique(labels[row], return_counts=True)[1]
        assert sorted(sizes) == [3] + [5] * 25


def test_random_classes_are_drawn_evenly():
    labels = np.repeat([0, 1, 2], [100, 10, 10])
    plan = RandomClasses(labels, 0, batch_size=5, samples_per_class=5, batches_per_epoch=3000)
    batches = plan.epoch(0)
    first = np.bincount(labels[batches[:, 0]]) / 3000
    assert abs(first - 1 / 3).max() < 4 * np.sqrt(2 / 9 / 3000)
    small = batches[labels[batches[:, 0]] == 1] - 100
    assert abs(np.bincount(small.ravel(), minlength=10) / small.size - 0.1).max() < 0.02


@pytest.mark.parametrize("make", [ClassBalanced, RandomClasses])
def test_plans_depend_on_seed_and_epoch_only(make):
    plan, again = (make(LABELS, 5, 24, 4) for _ in range(2))
    assert np.array_equal(plan.epoch(2), again.epoch(2))
    assert not np.array_equal(plan.epoch(2), plan.epoch(3))
    assert not np.array_equal(plan.epoch(2), make(LABELS, 6, 24, 4).epoch(2))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ClassBalanced(LABELS, 0, 10, 4), "not a multiple"),
        (lambda: ClassBalanced(LABELS, 0, 64, 4), "needs 16 classes"),
        (lambda: ClassBalanced(LABELS[:48], 0, 48, 4), "stops before the last"),
        (lambda: ClassBalanced(LABELS, 0, 300, 4), "exceeds the 203"),
        (lambda: RandomClasses(LABELS, 0, 61, 5), "12 classes make 60, fewer than"),
        (lambda: RandomClasses(LABELS, 0, 61, 0), "samples_per_class=0 must be a whole"),
        (lambda: RandomClasses(LABELS, 0, 8, 5, 0), "batches_per_epoch=0 must be"),
    ],
)
def test_impossible_batches_are_refused_in_a_sentence(make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize(
    ("name", "kind"), [("balanced", ClassBalanced), ("random_classes", RandomClasses)]
)
def test_configs_build(name, kind):
    labels = np.repeat(np.arange(40), 10)
    plan = instantiate(OmegaConf.load(ROOT / "conf" / "sampler" / f"{name}.yaml"))(labels, 0)
    assert type(plan) is kind
    assert plan.epoch(0).shape == (len(plan), plan.batch_size)
