"""Noise on several labels per image: released draws, exact counts, independence of order."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.noise import (
    FromManifest,
    MultiLabelMixed,
    MultiLabelPerSample,
    MultiLabelUniform,
    NoiseManifest,
    NoNoise,
    SampleState,
    Symmetric,
)
from noisyml.targets import MULTI, LabelChanges

GOLDEN = paths.GOLDEN
N, C = 200, 6
NAMES = [f"class {i}" for i in range(C)]
KEYS = [f"images/{i}.png" for i in range(N)]


def multi_hot(seed=0, n=N, density=(0.02, 0.1, 0.2, 0.3, 0.5, 0.97)):
    rng = np.random.default_rng(seed)
    return (rng.random((n, len(density))) < density).astype(np.uint8)


def _changes(manifest):
    return LabelChanges.of(manifest.observed, manifest.clean)


def inject(noise, labels, **arguments):
    arguments = {"class_names": NAMES, "keys": KEYS[: len(labels)]} | arguments
    return noise.inject(labels, labels.shape[1], **arguments)


INJECTORS = [
    MultiLabelMixed(rate=0.3),
    MultiLabelMixed(rate=0.4, rate_sub=0),
    MultiLabelMixed(rate=0.4, rate_add=0),
    MultiLabelMixed(rate_add=[0.1] * C, rate_sub={"class 2": 0.5}),
    MultiLabelUniform(rate=0.1),
    MultiLabelUniform(rate=0.1, entries="absent", count="exact_per_class"),
    MultiLabelUniform(rate=0.2, entries="each", count="bernoulli"),
    MultiLabelPerSample(sample_rate=0.4, class_rate=0.4),
]


# -- released draws ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        "additive",
        "subtractive",
        "mixed",
        "asymmetric_20_40",
        "cap_dense_class",
        "absent_class",
        "zero",
    ],
)
def test_released_draws_of_mixed_noise(case):
    vector = vectors.arrays(GOLDEN / "mlnoise", f"noise_{case}")
    clean = vector["y_clean"].astype(np.uint8)
    rates = {"rate_add": float(vector["add_rate"]), "rate_sub": float(vector["sub_rate"])}
    noise = MultiLabelMixed(**rates, count="legacy", seed=int(vector["seed"]))
    manifest = noise.inject(clean, clean.shape[1])
    np.testing.assert_array_equal(manifest.observed, vector["y_noisy"])
    # The house's own draws change as many entries.
    for other in (manifest, MultiLabelMixed(**rates, seed=5).inject(clean, clean.shape[1])):
        changes = _changes(other)
        np.testing.assert_array_equal(changes.added, vector["added_per_class"])
        np.testing.assert_array_equal(changes.removed, vector["removed_per_class"])
        np.testing.assert_array_equal(changes.positives, vector["positives_clean"])
        np.testing.assert_array_equal(other.observed.sum(axis=0), vector["positives_noisy"])


@pytest.mark.parametrize("case", ["uc_like", "ben12_like"])
def test_released_draws_of_per_sample_noise(case):
    vector = vectors.arrays(GOLDEN / "rcml", f"noise_{case}")
    rates = {name: float(vector[name]) for name in ("sample_rate", "class_rate")}
    noise = MultiLabelPerSample(**rates, count="legacy", seed=int(vector["seed"]))
    clean = vector["y_clean"]
    manifest = noise.inject(clean, clean.shape[1])
    np.testing.assert_array_equal(manifest.observed, vector["y_noisy"])
    noisy = np.sort(vector["noisy_sample_indices"])
    np.testing.assert_array_equal(np.flatnonzero(manifest.wrong), noisy)
    flips = vector["flipped_classes"]
    np.testing.assert_array_equal(
        np.flatnonzero(manifest.changed[noisy[0]]), np.sort(flips[noisy[0]])
    )
    own = MultiLabelPerSample(**rates).inject(clean, clean.shape[1])
    assert own.wrong.sum() == len(noisy)
    assert set(own.changed.sum(axis=1)) == {0, flips.shape[1]}


def test_released_draws_of_noisifier():
    vector = vectors.arrays(GOLDEN / "rcml", "noisifier_variants")
    clean, rate = vector["y"], float(vector["rate"])
    per_sample = MultiLabelPerSample(
        sample_rate=float(vector["sample_rate"]),
        class_rate=float(vector["class_rate"]),
        count="legacy",
        legacy="ccml",
    )
    made = {
        "per_sample": per_sample,
        "mix_label_noise": MultiLabelUniform(rate=rate, entries="each", count="legacy"),
        "add_missing_noise": MultiLabelUniform(rate=rate, entries="absent", count="legacy"),
        "add_mix_noise": MultiLabelUniform(rate=rate, count="legacy"),
        "add_classwise_noise": MultiLabelUniform(rate=rate, count="legacy", legacy="classwise"),
    }
    for name, noise in made.items():
        manifest = noise.inject(clean, clean.shape[1])
        np.testing.assert_array_equal(manifest.observed, vector[name], err_msg=name)


# -- counts ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.floats(0, 1), st.floats(0, 1), st.integers(1, 60))
def test_counts_are_exact_and_no_class_exceeds_its_cap(seed, rate_add, rate_sub, n):
    clean = multi_hot(seed, n)
    manifest = inject(MultiLabelMixed(rate_add=rate_add, rate_sub=rate_sub, seed=seed), clean)
    positives = clean.sum(axis=0, dtype=np.int64)
    room = np.maximum(np.floor(0.95 * n + 1e-9) - positives, 0)
    changes = _changes(manifest)
    asked = np.floor(positives * rate_add + 1e-9)
    np.testing.assert_array_equal(changes.added, np.minimum(asked, room))
    np.testing.assert_array_equal(changes.removed, np.floor(positives * rate_sub + 1e-9))
    np.testing.assert_array_equal(manifest.changed, manifest.observed != clean)
    np.testing.assert_array_equal(manifest.clean, clean)
    capped = [NAMES[i] for i in np.flatnonzero(asked > room)]
    assert manifest.details["capped_classes"] == capped


def test_a_whole_product_is_not_cut_by_its_last_bit():
    clean = np.zeros((400, 2), dtype=np.uint8)
    clean[:100] = 1
    changes = _changes(MultiLabelMixed(rate=0.29).inject(clean, 2))
    assert changes.added.tolist() == changes.removed.tolist() == [29, 29]
    legacy = _changes(MultiLabelMixed(rate=0.29, count="legacy").inject(clean, 2))
    assert legacy.removed.tolist() == [28, 28]


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 99),
    st.floats(0, 1),
    st.sampled_from(["all", "absent", "present", "each"]),
    st.sampled_from(["exact", "exact_per_class", "legacy"]),
)
def test_uniform_flips_are_as_many_as_asked(seed, rate, entries, count):
    clean = multi_hot(seed)
    manifest = inject(MultiLabelUniform(rate=rate, entries=entries, count=count, seed=seed), clean)
    zeros, ones = (clean == 0), (clean == 1)
    pools = {"all": [zeros | ones], "absent": [zeros], "present": [ones], "each": [zeros, ones]}
    eps = 0 if count == "legacy" else 1e-9
    expected = np.zeros(C) if count == "exact_per_class" else 0
    for pool in pools[entries]:
        size = pool.sum(axis=0) if count == "exact_per_class" else pool.sum()
        expected = expected + np.floor(size * rate + eps)
    found = manifest.changed.sum(axis=0 if count == "exact_per_class" else None)
    np.testing.assert_array_equal(found, expected)
    inside = np.logical_or.reduce(pools[entries])
    assert not (manifest.changed & ~inside).any()


def test_bernoulli_flips_each_entry_on_its_own():
    clean = multi_hot(n=4000)
    flips = inject(MultiLabelUniform(rate=0.2, count="bernoulli"), clean, keys=None).changed
    assert np.abs(flips.mean(axis=0) - 0.2).max() < 0.03
    assert abs(np.corrcoef(flips.T)[0, 1]) < 0.06
    for rate, expected in ((0.0, 0), (1.0, clean.size)):
        noise = MultiLabelUniform(rate=rate, count="bernoulli")
        assert inject(noise, clean, keys=None).changed.sum() == expected


def test_rates_per_class_by_place_and_by_name():
    clean = multi_hot()
    rates = [0.0, 0.5, 0.0, 0.0, 0.2, 0.0]
    by_place = inject(MultiLabelMixed(rate=rates, rate_add=0), clean)
    by_name = inject(MultiLabelMixed(rate={"class 1": 0.5, "class 4": 0.2}, rate_add=0), clean)
    np.testing.assert_array_equal(by_place.observed, by_name.observed)
    changes = _changes(by_place)
    assert changes.added.sum() == 0
    assert set(np.flatnonzero(changes.removed)) == {1, 4}
    assert by_name.params["rate"] == {"class 1": 0.5, "class 4": 0.2}


# -- what a draw may depend on -------------------------------------------------------------------


@pytest.mark.parametrize("noise", INJECTORS, ids=lambda n: f"{n.name}-{n.count}")
def test_noise_follows_names_of_samples_and_classes(noise):
    clean = multi_hot()
    noise = dataclasses.replace(noise, seed=3)
    expected = inject(noise, clean).observed
    assert (expected != clean).any()
    assert (inject(noise, clean).observed == expected).all()
    assert (inject(dataclasses.replace(noise, seed=4), clean).observed != expected).any()
    rows = np.random.default_rng(1).permutation(N)
    moved = inject(noise, clean[rows], keys=[KEYS[i] for i in rows])
    np.testing.assert_array_equal(moved.observed, expected[rows])
    if not isinstance(getattr(noise, "rate_add", None), list):
        columns = np.random.default_rng(2).permutation(C)
        renamed = inject(noise, clean[:, columns], class_names=[NAMES[i] for i in columns])
        np.testing.assert_array_equal(renamed.observed, expected[:, columns])


def test_rates_are_nominal_and_realised():
    clean = multi_hot(density=(0.1, 0.2, 0.3))
    names = {"class_names": NAMES[:3]}
    manifest = inject(MultiLabelMixed(rate=0.4, rate_sub=0.2), clean, **names)
    positives = clean.sum()
    rates = manifest.rates()
    assert rates["nominal_rate"] == pytest.approx(0.6 * positives / clean.size)
    assert rates["actual_rate"] == manifest.changed.mean() == manifest.actual_rate
    assert rates["added_rate"] == pytest.approx(0.4, abs=3 / positives)
    assert rates["removed_rate"] == pytest.approx(0.2, abs=3 / positives)
    assert rates["wrong_samples"] == manifest.changed.any(axis=1).mean()
    none = inject(NoNoise(), clean, **names)
    assert none.rates()["actual_rate"] == none.rates()["wrong_samples"] == 0
    assert none.with_unknown_truth().rates() == {}


# -- the record ----------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [*INJECTORS, NoNoise()], ids=lambda n: n.name)
def test_a_manifest_survives_its_file_and_is_replayed(noise, tmp_path):
    clean = multi_hot()
    manifest = inject(noise, clean)
    path = tmp_path / "noise.parquet"
    manifest.save(path)
    loaded = NoiseManifest.load(path)
    for name in ("observed", "clean", "changed", "wrong", "state", "index"):
        before, after = getattr(manifest, name), getattr(loaded, name)
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype, name
    assert loaded.target is MULTI
    assert loaded.keys == manifest.keys
    assert loaded.summary() == manifest.summary()
    changes = _changes(manifest)
    assert loaded.summary()["classes"]["removed"] == changes.removed.tolist()
    np.testing.assert_array_equal(loaded.count_matrix(), manifest.count_matrix())
    assert manifest.count_matrix().sum() == clean.size
    replayed = inject(FromManifest(path=str(path)), clean)
    assert replayed.sha256 == manifest.sha256
    part = manifest.take(np.array([5, 3]))
    np.testing.assert_array_equal(part.observed, manifest.observed[[5, 3]])
    # Entries, not lists of numbers: about a bit each.
    assert path.stat().st_size < 40_000


def test_an_empty_split_and_an_unknown_truth_survive_too(tmp_path):
    unknown = inject(NoNoise(), multi_hot()).with_unknown_truth()
    assert set(unknown.state) == {SampleState.UNKNOWN}
    assert np.isnan(unknown.actual_rate)
    assert unknown.count_matrix().sum() == 0
    for manifest in (unknown, NoNoise().inject(np.zeros((0, 3), dtype=int), 3)):
        manifest.save(tmp_path / "noise.parquet")
        loaded = NoiseManifest.load(tmp_path / "noise.parquet")
        assert loaded.sha256 == manifest.sha256
        assert loaded.observed.shape == manifest.observed.shape


@pytest.mark.parametrize("column", ["observed", "clean", "changed"])
def test_altered_entries_are_detected(column, tmp_path):
    path = tmp_path / "noise.parquet"
    inject(MultiLabelMixed(rate=0.3), multi_hot()).save(path)
    table = pq.read_table(path)
    rows = table[column].to_pylist()
    rows[3][1] = 1 - int(rows[3][1]) if column != "changed" else not rows[3][1]
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(rows)), path)
    with pytest.raises(UserError, match="altered after it was written"):
        NoiseManifest.load(path)
    rows[3] = rows[3][:-1]
    pq.write_table(table.set_column(place, column, pa.array(rows)), path)
    with pytest.raises(UserError, match="cannot be read"):
        NoiseManifest.load(path)


def test_arrays_that_do_not_fit_are_refused():
    clean = multi_hot()
    fits = {"clean": clean, "changed": clean != clean, "num_classes": C, "injector": "none"}
    for wrong in (
        {"observed": clean[:, 1:]},
        {"observed": clean * 2},
        {"observed": clean, "clean": clean.astype(int) * 3},
        {"observed": clean, "num_clean_classes": 2},
    ):
        with pytest.raises(ValueError):
            NoiseManifest(**(fits | wrong))


# -- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: inject(Symmetric(rate=0.3), multi_hot()), "choose e.g. noise=multilabel_mixed"),
        (lambda: MultiLabelMixed(rate=0.3).inject([0, 1], 2), "choose e.g. noise=symmetric"),
        (lambda: MultiLabelMixed(rate=1.3), r"^rate=1\.3 must be a number from 0 to 1"),
        (lambda: MultiLabelMixed(rate={"dog": 2}), r"^rate\.dog=2 must be a number from 0 to 1"),
        (lambda: MultiLabelMixed(rate_add=[0.1, -1]), r"rate_add\[1\]=-1 must be"),
        (lambda: inject(MultiLabelMixed(rate=[0.1]), multi_hot()), "has 6 classes: give one per"),
        (
            lambda: inject(MultiLabelMixed(rate={"clas 1": 0.1}), multi_hot()),
            "Did you mean 'class 1'",
        ),
        (
            lambda: MultiLabelMixed(rate=0.1, count="bernoulli"),
            "count=bernoulli must be exact or legacy",
        ),
        (lambda: MultiLabelUniform(rate=0.1, entries="some"), "entries=some must be all, absent"),
        (lambda: MultiLabelUniform(rate=0.1, legacy="classwise"), r"set noise\.count=legacy"),
        (lambda: MultiLabelPerSample(sample_rate=2, class_rate=0), r"sample_rate=2 must be"),
        (
            lambda: MultiLabelPerSample(sample_rate=0.1, class_rate=0.1, legacy="ccml"),
            r"no effect without noise\.count=legacy",
        ),
    ],
)
def test_mistakes_end_in_a_sentence(make, words):
    with pytest.raises(UserError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_manifest_of_other_labels_is_refused(tmp_path):
    clean = multi_hot()
    path = tmp_path / "noise.parquet"
    inject(MultiLabelMixed(rate=0.2), clean).save(path)
    other = clean.copy()
    other[7] ^= 1
    replay = FromManifest(path=str(path))
    with pytest.raises(UserError, match=r"1 of \d+ differ, the first at sample 7"):
        inject(replay, other)
    with pytest.raises(UserError, match=r"made for several labels per image, but .* one label"):
        replay.inject(np.zeros(N, dtype=int), C)
    listed = tmp_path / "list.csv"
    listed.write_text("a")
    with pytest.raises(UserError, match="gives one label per image"):
        inject(FromManifest(path=str(listed)), clean)
    Symmetric(rate=0.2).inject(clean.argmax(axis=1), C, keys=KEYS).save(path)
    with pytest.raises(UserError, match=r"made for one label per image, but .* several"):
        inject(FromManifest(path=str(path)), clean)


def test_labels_that_are_no_zeros_and_ones_are_programming_errors():
    with pytest.raises(TypeError, match="zeros and ones"):
        NoNoise().inject([[0, 2]], 2)
    with pytest.raises(TypeError, match=r"must be \[N, 3\]"):
        NoNoise().inject([[0, 1]], 3)
