"""Properties of symmetric, pair, asymmetric and matrix noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisyml.data.datasets.small_images import fashion_mnist
from noisyml.errors import UserError
from noisyml.noise import Asymmetric, FromManifest, Matrix, NoNoise, Pair, Symmetric
from noisyml.noise.base import Injector
from noisyml.noise.transition import (
    CIFAR100_FINE_TO_COARSE,
    CLASS_MAPS,
    PRESET_CLASS_NAMES,
    class_map,
    exact_counts,
    first_above,
    map_matrix,
    pair_map,
    symmetric_matrix,
)

SYMMETRIC_COUNTS = ("bernoulli", "exact", "exact_per_class", "exact_global")
ROWS = [
    [0.6, 0.1, 0.1, 0.1, 0.1],
    [0.0, 1.0, 0.0, 0.0, 0.0],
    [0.2, 0.2, 0.2, 0.2, 0.2],
    [0.5, 0.0, 0.0, 0.5, 0.0],
    [0.0, 0.0, 0.3, 0.0, 0.7],
]


def split(n: int = 20_000, classes: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, n)


def keys_of(n: int) -> list[str]:
    return [f"images/{i}.png" for i in range(n)]


def assert_within_four_deviations(counts: np.ndarray, matrix: np.ndarray) -> None:
    members = counts.sum(axis=1, keepdims=True)
    deviation = np.sqrt(members * matrix * (1 - matrix))
    assert (np.abs(counts - members * matrix) <= 4 * deviation + 1e-9).all()


@pytest.mark.parametrize(
    ("injector", "matrix"),
    [
        (Symmetric(rate=0.4), symmetric_matrix(5, 0.4)),
        (Symmetric(rate=1.0), symmetric_matrix(5, 1.0)),
        (Symmetric(rate=0.4, include_true=True), symmetric_matrix(5, 0.4 * 4 / 5)),
        (Pair(rate=0.45), map_matrix(5, pair_map(5), 0.45)),
        (Asymmetric(rate=0.3, map={0: 1, 3: 2}), map_matrix(5, {0: 1, 3: 2}, 0.3)),
        (Matrix(matrix=ROWS), np.array(ROWS)),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bernoulli_counts_are_binomial(injector: Injector, matrix: np.ndarray, seed: int) -> None:
    arguments = {**vars(injector), "seed": seed}
    manifest = type(injector)(**arguments).inject(split(seed=seed), 5)
    assert_within_four_deviations(manifest.count_matrix(), matrix)
    assert manifest.actual_rate == (manifest.observed != split(seed=seed)).mean()
    np.testing.assert_array_equal(manifest.clean, split(seed=seed))


def test_both_rates_are_reported() -> None:
    labels = split()
    symmetric = Symmetric(rate=0.5, include_true=True, count="exact_global").inject(labels, 5)
    assert symmetric.nominal_rate == 0.5
    assert symmetric.actual_rate == pytest.approx(0.4, abs=0.01)
    matrix = Matrix(matrix=ROWS).inject(labels, 5)
    prior = np.bincount(labels) / len(labels)
    assert matrix.nominal_rate == pytest.approx(1 - prior @ np.diag(ROWS))
    assert {"nominal_rate", "actual_rate"} <= set(matrix.summary())


def every_injector(rate: float, classes: int) -> list[Injector]:
    """Every class-conditional injector in every mode, for `classes` classes."""
    row = symmetric_matrix(classes, rate)
    known: list[Injector] = [Symmetric(rate=rate, count=count) for count in SYMMETRIC_COUNTS]
    known += [
        Symmetric(rate=rate, include_true=True, count=count)
        for count in ("bernoulli", "exact_per_class", "exact_global")
    ]
    known += [Symmetric(rate=rate, count="legacy", legacy=x) for x in ("multinomial", "fer")]
    known += [
        Symmetric(rate=rate, count="legacy", legacy=x, include_true=True)
        for x in ("dividemix", "elr", "selcl")
    ]
    for count in ("bernoulli", "exact", "legacy"):
        known += [
            Pair(rate=rate, count=count),
            Asymmetric(rate=rate, map={0: 1}, count=count),
            Matrix(matrix=row, count=count),
        ]
    known += [
        Asymmetric(rate=rate, map={0: 1}, count="legacy", legacy=x)
        for x in ("dividemix", "elr", "selcl")
    ]
    return [*known, Matrix(matrix=row, count="legacy", legacy="cleanlab")]


@pytest.mark.parametrize("injector", every_injector(0.0, 4), ids=str)
def test_rate_zero_changes_nothing(injector: Injector) -> None:
    labels = split(200, 4)
    manifest = injector.inject(labels, 4)
    np.testing.assert_array_equal(manifest.observed, labels)
    assert not manifest.changed.any()
    assert manifest.actual_rate == 0


@pytest.mark.parametrize("injector", every_injector(0.3, 4), ids=str)
def test_list_array_and_tensor_agree(injector: Injector) -> None:
    labels = split(300, 4)
    results = [
        injector.inject(given, 4)
        for given in (labels, labels.tolist(), torch.from_numpy(labels), labels.astype(np.uint8))
    ]
    assert len({result.sha256 for result in results}) == 1
    assert results[0].changed.any()
    assert labels.tolist() == split(300, 4).tolist(), "the input must not be written to"


@pytest.mark.parametrize("injector", every_injector(0.6, 2), ids=str)
def test_two_classes_and_an_empty_one(injector: Injector) -> None:
    labels = split(200, 2)
    two = injector.inject(labels, 2)
    assert set(np.unique(two.observed)) <= {0, 1}
    assert len(injector.inject([], 2)) == 0
    only = injector.inject(np.zeros(50, dtype=int), 2)
    assert (only.clean == 0).all()
    assert only.changed.any()


@pytest.mark.parametrize("count", SYMMETRIC_COUNTS)
def test_rate_one_changes_everything(count: str) -> None:
    labels = split(500, 7)
    manifest = Symmetric(rate=1.0, count=count).inject(labels, 7)
    assert manifest.changed.all()
    assert (manifest.observed != labels).all()
    two = Symmetric(rate=1.0, count=count).inject(split(50, 2), 2)
    np.testing.assert_array_equal(two.observed, 1 - split(50, 2))


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0, 1),
    n=st.integers(1, 120),
    classes=st.integers(2, 9),
    seed=st.integers(0, 2**40),
)
@pytest.mark.long
def test_exact_counts_are_exact(rate: float, n: int, classes: int, seed: int) -> None:
    labels = split(n, classes, seed % 1000)
    members = np.bincount(labels, minlength=classes)
    overall = Symmetric(rate=rate, count="exact_global", seed=seed).inject(labels, classes)
    assert overall.changed.sum() == round(rate * n)
    each = Symmetric(rate=rate, count="exact_per_class", seed=seed).inject(labels, classes)
    wrong = np.bincount(labels[each.changed], minlength=classes)
    np.testing.assert_array_equal(wrong, np.rint(rate * members))
    if rate == 0:
        return
    pairs = {0: 1}
    for injector, matrix in [
        (Pair(rate=rate, count="exact", seed=seed), map_matrix(classes, pair_map(classes), rate)),
        (
            Asymmetric(rate=rate, map=pairs, count="exact", seed=seed),
            map_matrix(classes, pairs, rate),
        ),
    ]:
        counts = injector.inject(labels, classes).count_matrix()
        np.testing.assert_array_equal(counts, exact_counts(members, matrix))
    # Symmetric ties follow the canonical order of classes: number the classes by first appearance.
    _, first = np.unique(labels, return_index=True)
    order = np.argsort(np.concatenate([first, n + np.flatnonzero(members == 0)]))
    names = np.concatenate([np.unique(labels), np.flatnonzero(members == 0)])[order]
    rank = np.argsort(names)
    counts = Symmetric(rate=rate, count="exact", seed=seed).inject(rank[labels], classes)
    wanted = exact_counts(members[names], symmetric_matrix(classes, rate))
    np.testing.assert_array_equal(counts.count_matrix(), wanted)


@settings(max_examples=40, deadline=None)
@given(
    rate=st.floats(0.05, 1),
    n=st.integers(2, 80),
    classes=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
@pytest.mark.long
def test_order_of_the_data_is_irrelevant(rate: float, n: int, classes: int, seed: int) -> None:
    labels, keys = split(n, classes, seed), keys_of(n)
    shuffle = np.random.default_rng(seed + 1).permutation(n)
    moved = [keys[i] for i in shuffle]
    row = symmetric_matrix(classes, rate)
    known: list[Injector] = [
        *(Symmetric(rate=rate, count=c, seed=seed) for c in SYMMETRIC_COUNTS),
        Symmetric(rate=rate, include_true=True, seed=seed),
        *(Pair(rate=rate, count=c, seed=seed) for c in ("bernoulli", "exact")),
        *(Asymmetric(rate=rate, map={0: 1}, count=c) for c in ("bernoulli", "exact")),
        *(Matrix(matrix=row, count=c, seed=seed) for c in ("bernoulli", "exact")),
    ]
    for injector in known:
        straight = injector.inject(labels, classes, keys=keys).observed
        shuffled = injector.inject(labels[shuffle], classes, keys=moved).observed
        np.testing.assert_array_equal(straight[shuffle], shuffled, err_msg=str(injector))


@settings(max_examples=40, deadline=None)
@given(
    rate=st.floats(0.05, 1),
    n=st.integers(2, 80),
    classes=st.integers(2, 6),
    seed=st.integers(0, 1000),
    with_keys=st.booleans(),
)
@pytest.mark.long
def test_renaming_classes_renames_symmetric_noise(
    rate: float, n: int, classes: int, seed: int, with_keys: bool
) -> None:
    # Every class has a member: nothing but its members can tell a class from another.
    labels = np.concatenate([np.arange(classes), split(n, classes, seed)])
    keys = keys_of(len(labels)) if with_keys else None
    rename = np.random.default_rng(seed).permutation(classes)
    known: list[Injector] = [
        *(Symmetric(rate=rate, count=c, seed=seed) for c in SYMMETRIC_COUNTS),
        *(
            Symmetric(rate=rate, include_true=True, count=c, seed=seed)
            for c in ("bernoulli", "exact_per_class", "exact_global")
        ),
    ]
    for injector in known:
        plain = injector.inject(labels, classes, keys=keys).observed
        renamed = injector.inject(rename[labels], classes, keys=keys).observed
        np.testing.assert_array_equal(rename[plain], renamed, err_msg=str(injector))


def test_renaming_a_bernoulli_matrix_along_with_the_classes() -> None:
    labels, rename = split(2000), np.array([3, 0, 4, 1, 2])
    moved = np.empty((5, 5))
    moved[np.ix_(rename, rename)] = ROWS
    plain = Matrix(matrix=ROWS).inject(labels, 5).observed
    renamed = Matrix(matrix=moved).inject(rename[labels], 5).observed
    np.testing.assert_array_equal(rename[plain], renamed)


def test_a_sample_does_not_depend_on_the_others_present() -> None:
    labels, keys = split(1000), keys_of(1000)
    whole = Symmetric(rate=0.5).inject(labels, 5, keys=keys)
    part = Symmetric(rate=0.5).inject(labels[:600], 5, keys=keys[:600])
    np.testing.assert_array_equal(whole.changed[:600], part.changed)


@pytest.mark.parametrize("count", ["bernoulli", "exact_per_class", "exact_global"])
def test_smaller_rates_are_nested(count: str) -> None:
    labels = split(2000)
    low = Symmetric(rate=0.2, count=count).inject(labels, 5)
    high = Symmetric(rate=0.5, count=count).inject(labels, 5)
    assert (low.changed <= high.changed).all()
    np.testing.assert_array_equal(low.observed[low.changed], high.observed[low.changed])


def test_global_generators_are_neither_read_nor_moved() -> None:
    import random

    labels = split(300, 4)
    for injector in every_injector(0.3, 4):
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        before = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        first = injector.inject(labels, 4).sha256
        assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
        assert random.getstate() == before[1]
        np.random.seed(99)  # noqa: NPY002
        random.seed(99)
        assert injector.inject(labels, 4).sha256 == first


def test_seeds_differ_and_repeat() -> None:
    labels = split(500)
    a, b = (Symmetric(rate=0.4, seed=s).inject(labels, 5) for s in (1, 2))
    assert a.sha256 != b.sha256
    assert a.sha256 == Symmetric(rate=0.4, seed=1).inject(labels, 5).sha256


def test_large_splits_do_not_need_n_times_c_memory() -> None:
    """A million labels of 1000 classes: an [N, C] array of even one byte would be 1 GB."""
    import tracemalloc

    labels = split(1_000_000, 1000)
    for injector in (
        Symmetric(rate=0.4),
        Symmetric(rate=0.4, count="exact_global"),
        Pair(rate=0.4),
        Matrix(matrix=symmetric_matrix(1000, 0.4)),
    ):
        tracemalloc.start()
        manifest = injector.inject(labels, 1000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 250e6
        assert manifest.actual_rate == pytest.approx(0.4, abs=0.002)


def test_maps_by_name_and_by_class_name() -> None:
    names = ["plane", "cat", "dog"]
    by_name = Asymmetric(rate=0.5, map={"cat": "dog"}).inject(split(900, 3), 3, class_names=names)
    by_number = Asymmetric(rate=0.5, map={1: 2}).inject(split(900, 3), 3)
    np.testing.assert_array_equal(by_name.observed, by_number.observed)
    assert by_name.params["map"] == {"cat": "dog"}
    assert by_name.count_matrix()[0].tolist() == [(split(900, 3) == 0).sum(), 0, 0]
    assert class_map({"0": 2}, 3) == {0: 2}
    fashion = class_map("fashion_mnist", 10)
    assert fashion == {5: 7, 9: 7, 2: 6, 4: 6, 6: 4, 3: 0}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Symmetric(rate=1.5), "rate=1.5 must be a number from 0 to 1"),
        (lambda: Symmetric(rate=float("nan")), "rate=nan must be a number from 0 to 1"),
        (lambda: Symmetric(rate=0.1, count="some"), "count=some must be bernoulli, exact"),
        (lambda: Symmetric(rate=0.1, legacy="elr"), "noise.count=legacy"),
        (lambda: Symmetric(rate=0.1, count="legacy", legacy="elr"), "noise.include_true=true"),
        (
            lambda: Symmetric(rate=0.1, count="legacy", legacy="fer", include_true=True),
            "noise.include_true=false",
        ),
        (lambda: Symmetric(rate=0.1, count="exact", include_true=True), "exact_per_class"),
        (lambda: Symmetric(rate=0.1).inject([0, 0], 1), "two classes"),
        (lambda: Pair(rate=0.1).inject([0, 0], 1), "two classes"),
        (lambda: Symmetric(rate=0.1).inject([0, 5], 5), "sample 1 has label 5"),
        (lambda: Symmetric(rate=0.1).inject([0, -1], 5), "sample 1 has label -1"),
        (lambda: NoNoise().inject([0, -2], 5), "sample 1 has label -2"),
        (lambda: Asymmetric(rate=0.1, map="cifar").inject([0], 10), "noise.map=cifar is unknown"),
        (lambda: Asymmetric(rate=0.1, map="cifar10").inject([0], 4), "made for 10 classes"),
        (lambda: Asymmetric(rate=0.1, map={"owl": 1}).inject([0], 4), "'owl'"),
        (lambda: Asymmetric(rate=0.1, map={1: 1}).inject([0], 4), "class 1 to itself"),
        (lambda: Asymmetric(rate=0.1, map={}).inject([0], 4), "is empty"),
        (lambda: Matrix(), "exactly one of"),
        (lambda: Matrix(preset="x"), "preset=x must be arbitrary_mnist or arbitrary_cifar10"),
        (lambda: Matrix(preset="arbitrary_mnist").inject([0], 4), "shape"),
        (lambda: Matrix(matrix=[[0.5, 0.4], [0, 1]]).inject([0], 2), "Row 0 .* sums to 0.9"),
        (lambda: Matrix(matrix=[[0.5, 0], [0.5, 1]]).inject([0], 2), "transpose"),
        (lambda: Matrix(matrix=[[1.5, -0.5], [0, 1]]).inject([0], 2), "negative"),
        (lambda: Matrix(matrix=[[0, 0], [0, 1]], normalize=True).inject([0], 2), "Row 0 .* empty"),
        (
            lambda: Matrix(matrix=[[0.4, 0.6], [0, 1]], diagonally_dominant=True).inject([0], 2),
            "Class 0 is mislabelled",
        ),
        (lambda: Matrix(path="nowhere.npy").inject([0], 2), "no noise matrix nowhere.npy"),
        (lambda: FromManifest(path="x.txt"), "neither a .parquet"),
    ],
)
def test_mistakes_end_in_a_sentence(make: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_programming_errors_are_not_user_errors() -> None:
    with pytest.raises(TypeError, match="integers"):
        NoNoise().inject([0.5, 1.0], 2)
    with pytest.raises(TypeError, match="integers"):
        NoNoise().inject(np.zeros((2, 2, 2), dtype=int), 2)


def test_matrix_files(tmp_path: Path) -> None:
    inline = Matrix(matrix=ROWS).inject(split(), 5).observed
    np.save(tmp_path / "rows.npy", np.array(ROWS))
    np.savetxt(tmp_path / "rows.csv", np.array(ROWS), delimiter=",")
    for name in ("rows.npy", "rows.csv"):
        manifest = Matrix(path=str(tmp_path / name)).inject(split(), 5)
        np.testing.assert_array_equal(manifest.observed, inline)
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "words.csv").write_text("a,b\n")
    (tmp_path / "rows.txt").write_text("1")
    for name in ("pickle.npy", "words.csv", "rows.txt"):
        with pytest.raises(UserError, match=name):
            Matrix(path=str(tmp_path / name)).inject(split(), 5)


def test_large_matrices_are_recorded_by_hash() -> None:
    manifest = Matrix(matrix=symmetric_matrix(101, 0.2)).inject(split(50, 101), 101)
    assert manifest.params["matrix"]["shape"] == [101, 101]
    assert Matrix(matrix=ROWS).inject(split(50), 5).params["matrix"] == ROWS


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 10**6))
def test_first_above_is_a_search_in_each_row(columns: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = np.cumsum(rng.integers(0, 3, (4, columns)), axis=1)
    table[:, -1] += 1
    rows = rng.integers(0, 4, n)
    values = rng.integers(0, table[rows, -1])
    wanted = [np.searchsorted(table[r], v, side="right") for r, v in zip(rows, values, strict=True)]
    np.testing.assert_array_equal(first_above(table, rows, values), wanted)


@pytest.mark.parametrize("legacy", ["multinomial", "cleanlab"])
def test_a_matrix_stored_in_single_precision_serves_every_recipe(legacy: str) -> None:
    """Rows may be off by 1e-6; NumPy's multinomial refuses what exceeds 1e-12."""
    rows = np.eye(4)
    rows[0, :2] = 0.5 + 4e-7
    assert rows[0, :-1].sum() > 1 + 1e-12
    labels = split(400, 4)
    observed = Matrix(matrix=rows, count="legacy", legacy=legacy).inject(labels, 4).observed
    assert set(observed[labels == 0]) == {0, 1}
    np.testing.assert_array_equal(observed[labels > 0], labels[labels > 0])


DIGITS = [str(digit) for digit in range(10)]
CIFAR10 = ["Airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.parametrize(
    ("noise", "fitting", "other", "said"),
    [
        (
            Asymmetric(rate=0.4, map="cifar10"),
            CIFAR10,
            DIGITS,
            r"noise\.map=cifar10 .* class 0 is 'airplane', that of the data set is '0'; "
            r"set noise\.map=mnist, or write a map",
        ),
        (Asymmetric(rate=0.4, map="mnist"), DIGITS, CIFAR10, r"noise\.map=mnist .* class 0 is '0'"),
        (Matrix(preset="arbitrary_mnist"), ["7 - seven" if d == "7" else d for d in DIGITS],
         CIFAR10, r"noise\.preset=arbitrary_mnist .*; give noise\.matrix"),
    ],
)  # fmt: skip
def test_a_named_map_wants_the_classes_it_is_made_for(noise, fitting, other, said):
    labels = split(200, 10)
    without_names = noise.inject(labels, 10)
    np.testing.assert_array_equal(
        noise.inject(labels, 10, class_names=fitting).observed, without_names.observed
    )
    with pytest.raises(UserError, match=said):
        noise.inject(labels, 10, class_names=other)


def test_the_names_of_every_map_are_as_many_as_its_classes():
    for name, classes in PRESET_CLASS_NAMES.items():
        expected = CLASS_MAPS[name][0] if name in CLASS_MAPS else 10
        assert len(classes) == expected, name
    names = np.array(PRESET_CLASS_NAMES["cifar100_superclass"])
    assert sorted(names) == names.tolist()
    assert names[CIFAR100_FINE_TO_COARSE == 1].tolist() == [
        "aquariumfish", "flatfish", "ray", "shark", "trout",
    ]  # fmt: skip
    assert class_map("fashion_mnist", 10, fashion_mnist.CLASS_NAMES)[9] == 7
