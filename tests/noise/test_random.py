"""Counter-based draws and the order of classes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from noisyml.errors import UserError
from noisyml.noise.random import ClassOrder, Draws, hash_keys, mix64, sample_ids

IDS = np.arange(200_000, dtype=np.uint64)


def test_draws_are_pinned() -> None:
    """A record names its generator; these values may only change along with that name."""
    draws = Draws(seed=7, injector="symmetric")
    assert draws.bits(IDS[:3], "flip").tolist() == [
        8384275286083542763,
        4287421348543592405,
        11878708034424982319,
    ]
    assert hash_keys(["", "a", "images/é/1.jpg"]).tolist() == [
        0,
        4346001975494851508,
        16865476681453933398,
    ]


def test_mix64_is_splitmix64() -> None:
    """First outputs of SplitMix64 seeded with 1234567, as published with the algorithm."""
    gamma, seed = 0x9E3779B97F4A7C15, 1234567
    state = np.array([(seed + k * gamma) % 2**64 for k in (1, 2, 3)], dtype=np.uint64)
    assert mix64(state).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_and_normal_look_it() -> None:
    draws = Draws(seed=0, injector="x")
    u, v = draws.uniform(IDS, "a"), draws.uniform(IDS, "b")
    assert 0 <= u.min() < u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u, v)[0, 1]) < 4 / np.sqrt(len(u))
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 4 / np.sqrt(len(u))
    assert stats.kstest(draws.normal(IDS, "a"), "norm").pvalue > 1e-3
    bins = np.bincount(draws.below(7, IDS, "a"), minlength=7)
    assert stats.chisquare(bins).pvalue > 1e-3
    q = draws.truncated_normal(0.4, 0.1, IDS, "q")
    assert stats.kstest(q, stats.truncnorm(-4, 6, 0.4, 0.1).cdf).pvalue > 1e-3


def test_seed_injector_and_stream_all_matter() -> None:
    base = Draws(seed=0, injector="x").bits(IDS[:100], "a")
    for other in (
        Draws(seed=1, injector="x").bits(IDS[:100], "a"),
        Draws(seed=0, injector="y").bits(IDS[:100], "a"),
        Draws(seed=0, injector="x").bits(IDS[:100], "b"),
    ):
        assert not (base == other).any()


@pytest.mark.long
def test_ids_of_keys_do_not_depend_on_company_or_process() -> None:
    keys = ["a/1.jpg", "a/2.jpg", "ü/3.jpg"]
    alone = [int(hash_keys([key])[0]) for key in keys]
    together = hash_keys([*keys, "x" * 300])[:3].tolist()
    assert alone == together
    code = f"from noisyml.noise.random import hash_keys; print(hash_keys({keys!r}).tolist())"
    fresh = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert fresh.strip() == str(alone)


def test_ids_are_distinct_across_blocks() -> None:
    keys = [f"images/class {i % 100}/picture_{i}.jpg" for i in range(150_000)]
    ids = hash_keys(keys)
    assert len(np.unique(ids)) == len(keys)
    np.testing.assert_array_equal(ids[::-1], hash_keys(keys[::-1]))


def test_repeated_keys_are_refused() -> None:
    with pytest.raises(UserError, match=r"Samples 0 and 2 .* share the key 'a'"):
        sample_ids(3, ["a", "b", "a"])
    with pytest.raises(ValueError, match="2 keys for 3 samples"):
        sample_ids(3, ["a", "b"])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 8), st.randoms(use_true_random=False))
def test_class_order_follows_a_renaming(n: int, classes: int, random: object) -> None:
    rng = np.random.default_rng(random.randint(0, 2**32))  # type: ignore[attr-defined]
    labels, ids = rng.integers(0, classes, n), rng.permutation(10 * n)[:n].astype(np.uint64)
    order = ClassOrder.of(labels, ids, classes)
    assert sorted(order.classes.tolist()) == list(range(classes))
    np.testing.assert_array_equal(order.classes[order.rank], np.arange(classes))
    rename = rng.permutation(classes)
    renamed = ClassOrder.of(rename[labels], ids, classes)
    present = len(np.unique(labels))
    np.testing.assert_array_equal(renamed.classes[:present], rename[order.classes[:present]])


def test_rank_within_class_and_smallest() -> None:
    draws, rng = Draws(seed=0, injector="x"), np.random.default_rng(0)
    labels = rng.integers(0, 5, 200)
    ranks = draws.rank_within_class(labels, IDS[:200], "flip")
    for label in range(5):
        assert sorted(ranks[labels == label]) == list(range((labels == label).sum()))
    chosen = draws.smallest(37, IDS[:200], "flip")
    assert chosen.sum() == 37
    assert (draws.smallest(20, IDS[:200], "flip") <= chosen).all()
    assert not draws.smallest(0, IDS[:200], "flip").any()
    assert draws.smallest(200, IDS[:200], "flip").all()
