"""Batch plans: what a batch contains, that an epoch covers the data, that ranks share one draw."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from noisyml.data.samplers.plans import MPerClass, PlannedBatches, Shuffle
from noisyml.errors import UserError

LABELS = np.random.default_rng(0).integers(0, 12, 203)


def test_every_batch_holds_p_classes_times_k_samples():
    plan = MPerClass(LABELS, seed=1, batch_size=24, samples_per_class=4)
    batches = LABELS[plan.epoch(0)].reshape(len(plan), 6, 4)
    assert (batches == batches[:, :, :1]).all(), "a chunk must be of one class"
    assert all(len(set(row)) == 6 for row in batches[:, :, 0].tolist()), "classes must be distinct"


def test_an_epoch_of_chunks_uses_nearly_every_sample():
    plan = MPerClass(LABELS, seed=1, batch_size=24, samples_per_class=4)
    drawn = plan.epoch(0).ravel()
    assert len(plan) == 203 // 24
    assert len(np.unique(drawn)) > 0.8 * 203


def test_small_classes_are_padded_with_their_own_members():
    labels = np.array([0, 1, 1, 2, 2, 2] + [3] * 20)
    plan = MPerClass(labels, seed=0, batch_size=12, samples_per_class=4, batches_per_epoch=30)
    batches = plan.epoch(3)
    assert (labels[batches].reshape(30, 3, 4).std(axis=2) == 0).all()
    assert set(range(6)) <= set(np.unique(batches))


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=3, max_size=9),
    k=st.integers(1, 5),
    epoch=st.integers(0, 5),
)
def test_plans_are_valid_for_any_class_sizes(counts, k, epoch):
    labels = np.repeat(np.arange(len(counts)) * 7, counts)
    assume(3 * k <= len(labels))
    plan = MPerClass(labels, seed=2, batch_size=3 * k, samples_per_class=k, batches_per_epoch=11)
    batches = labels[plan.epoch(epoch)].reshape(11, 3, k)
    assert (batches == batches[:, :, :1]).all()
    assert all(len(set(row)) == 3 for row in batches[:, :, 0].tolist())


@pytest.mark.long
def test_classes_are_drawn_in_proportion_to_the_chunks_they_have_left():
    labels = np.repeat([0, 1, 2], [400, 40, 40])
    plan = MPerClass(labels, seed=0, batch_size=4, samples_per_class=4, batches_per_epoch=60)
    first = np.concatenate([labels[plan.epoch(e)[:1, 0]] for e in range(400)])
    assert abs((first == 0).mean() - 400 / 480) < 4 * np.sqrt(0.83 * 0.17 / 400)


@pytest.mark.parametrize("make", [MPerClass, Shuffle])
def test_plans_depend_on_seed_and_epoch_only(make):
    extra = {"samples_per_class": 4} if make is MPerClass else {}
    plan = make(LABELS, seed=5, batch_size=24, **extra)
    again = make(LABELS, seed=5, batch_size=24, **extra)
    assert np.array_equal(plan.epoch(2), again.epoch(2))
    assert not np.array_equal(plan.epoch(2), plan.epoch(3))
    assert not np.array_equal(plan.epoch(2), make(LABELS, seed=6, batch_size=24, **extra).epoch(2))


def test_shuffle_shows_every_sample_at_most_once():
    drawn = Shuffle(LABELS, seed=0, batch_size=16).epoch(0).ravel()
    assert len(drawn) == 203 // 16 * 16
    assert len(np.unique(drawn)) == len(drawn)


def test_an_incomplete_batch_is_kept_if_asked_for():
    plan = Shuffle(LABELS, seed=0, batch_size=16, drop_last=False)
    batches = list(PlannedBatches(plan, seed=9))
    assert [len(batch.index) for batch in batches] == [16] * 12 + [203 % 16]
    drawn = np.concatenate([batch.index for batch in batches])
    assert sorted(drawn) == list(range(203))
    left_out = Shuffle(LABELS, seed=0, batch_size=16).epoch(0).ravel()
    assert np.array_equal(drawn[: len(left_out)], left_out)
    short = Shuffle(LABELS, 0, batch_size=16, batches_per_epoch=2, drop_last=False)
    assert short.epoch(0).shape == (2, 16)


def test_ranks_share_one_draw_and_one_set_of_augmentation_seeds():
    plan = MPerClass(LABELS, seed=5, batch_size=24, samples_per_class=4)
    whole = list(PlannedBatches(plan, seed=9, epoch=1))
    halves = [list(PlannedBatches(plan, 9, rank, 2, epoch=1)) for rank in range(2)]
    for batch, left, right in zip(whole, *halves, strict=True):
        assert np.array_equal(batch.index, np.concatenate([left.index, right.index]))
        assert np.array_equal(batch.seed, np.concatenate([left.seed, right.seed]))


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_short_batch_goes_to_the_first_ranks(ranks):
    plan = Shuffle(LABELS[:19], seed=0, batch_size=16, drop_last=False)
    whole = list(PlannedBatches(plan, seed=9))
    shares = [list(PlannedBatches(plan, 9, rank, ranks)) for rank in range(ranks)]
    assert len(whole) == 2
    for number, batch in enumerate(whole):
        for field in ("index", "seed"):
            own = [getattr(share[number], field) for share in shares]
            assert np.array_equal(np.concatenate(own), getattr(batch, field))
    sizes = [len(share[1].index) for share in shares]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] > 0


def test_a_restarted_epoch_continues_where_it_was_left_and_the_next_is_whole():
    plan = Shuffle(LABELS, seed=5, batch_size=16)
    whole = list(PlannedBatches(plan, seed=9, epoch=4))
    restarted = PlannedBatches(plan, seed=9, epoch=4, start=3)
    restarted.set_epoch(4)
    rest = list(restarted)
    assert len(restarted) == len(whole), "the trainer counts from the start of the epoch"
    assert all(
        np.array_equal(a.index, b.index) and np.array_equal(a.seed, b.seed)
        for a, b in zip(whole[3:], rest, strict=True)
    )
    restarted.set_epoch(5)
    assert len(list(restarted)) == len(whole)


def test_repeats_within_an_epoch_get_different_augmentation():
    labels = np.zeros(9, dtype=np.int64)
    plan = MPerClass(labels, seed=0, batch_size=8, samples_per_class=8, batches_per_epoch=2)
    batches = list(PlannedBatches(plan, seed=0))
    assert len(np.unique(np.concatenate([batch.index for batch in batches]))) == 9
    assert len(np.unique(np.concatenate([batch.seed for batch in batches]))) == 16


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MPerClass(LABELS, 0, batch_size=10, samples_per_class=4), "not a multiple"),
        (lambda: MPerClass(LABELS, 0, batch_size=64, samples_per_class=4), "needs 16 classes"),
        (lambda: Shuffle(LABELS, 0, batch_size=300), "exceeds the 203"),
        (lambda: MPerClass(LABELS, 0, batch_size=10**12), "exceeds the 203 training samples"),
        (lambda: MPerClass(LABELS, 0, batch_size=0), "batch_size=0 must be a whole"),
        (lambda: Shuffle(LABELS, 0, batch_size=0), "batch_size=0 must be a whole"),
        (lambda: Shuffle(LABELS, 0, 8, batches_per_epoch=0), "batches_per_epoch=0 must be"),
        (lambda: PlannedBatches(Shuffle(LABELS, 0, batch_size=15), 0, 0, 2), "cannot be divided"),
    ],
)
def test_impossible_batches_are_refused_in_a_sentence(make, said):
    with pytest.raises(UserError, match=said):
        make()
