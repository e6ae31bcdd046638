"""The compiled loops against plain tensor operations, and the search without them."""

import ctypes
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisyml.metrics.retrieval import retrieval_metrics
from noisyml.similarity import coarse, kernels
from noisyml.similarity.search import self_topk, topk

ROOT = Path(__file__).resolve().parents[2]

compiled = pytest.mark.skipif(not kernels.available(), reason="no compiled loops here")


def found(pairs):
    return sorted(zip(pairs.query.tolist(), pairs.place.tolist(), strict=True))


def true_places(mask):
    return sorted(map(tuple, mask.nonzero().tolist()))


def integer_side(rows, bias, bar, short, finer, key, right):
    sums = rows.sum(1, dtype=torch.int32)
    stored = kernels.packed(rows) if right else rows
    return kernels.IntegerSide(stored, sums, bias, bar, short, finer, key)


@compiled
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 90),
    st.integers(1, 9),
    st.integers(1, 70),
    st.sampled_from([1, 3]),
    st.integers(0, 2**31),
)
def test_integer_scans_find_what_both_bars_let_through(m, n, steps, width, threads, seed):
    generator = torch.Generator().manual_seed(seed)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)

    def numbers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    depth = steps * kernels.DEPTH_STEP
    limit = kernels.LIMIT
    rows = [numbers(-limit, limit + 1, size, depth).to(torch.int8) for size in (m, n)]
    if seed % 3 == 0:  # the largest sums there can be
        rows = [torch.full_like(part, limit) * (-1) ** (seed % 2) for part in rows]
    short = [
        kernels.shortened(torch.randn(size, width, generator=generator), 900.0) for size in (m, n)
    ]
    bias = [numbers(-1000, 1000, size) for size in (m, n)]
    key = [numbers(0, 40, size).to(torch.int64) for size in (m, n)]
    scores = rows[0].double() @ rows[1].double().T + bias[0][:, None] + bias[1]
    finer_scores = short[0].double() @ short[1].double().T
    middle = int(scores.median())
    bar = [middle + numbers(-2000, 2000, size) for size in (m, n)]
    finer = [numbers(-(10**6), 10**6, size) for size in (m, n)]
    bar[0][0], bar[1][-1] = 2**31 - 1, -(2**31)
    left, right = (
        integer_side(*column, is_right)
        for column, is_right in zip(
            zip(rows, bias, bar, short, finer, key, strict=True), (False, True), strict=True
        )
    )
    try:
        by_left, by_right = kernels.scan_integers(left, right, m * n)
    finally:
        torch.set_num_threads(before)
    met = (scores > bar[0][:, None]) | (scores > bar[1])
    met &= key[0][:, None] != key[1]
    assert found(by_left) == true_places(met & (finer_scores > finer[0][:, None]))
    assert found(by_right) == true_places((met & (finer_scores > finer[1])).T)


@compiled
@pytest.mark.parametrize("threads", [1, 2])
def test_tiles_are_read_like_masks(threads):
    generator = torch.Generator().manual_seed(threads)
    tile = torch.randn(150, 333, generator=generator)[:, :330]  # rows apart
    tile[3, 5] = -torch.inf
    left = torch.randn(140, generator=generator) + 2
    right = torch.randn(321, generator=generator) + 2
    left[0], right[7] = torch.finfo(torch.float32).min, torch.inf
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        by_left, by_right = kernels.scan_tile(tile, left, right, tile.numel())
        assert kernels.scan_tile(tile, left - 100, right, 64) is None  # 45,000 do not fit
    finally:
        torch.set_num_threads(before)
    shown = tile[:140, :321]
    assert found(by_left) == true_places(shown >= left[:, None])
    assert found(by_right) == true_places((shown >= right).T)
    assert torch.equal(by_left.score, tile[by_left.query, by_left.place])
    assert torch.equal(by_right.score, tile[by_right.place, by_right.query])


@compiled
@pytest.mark.parametrize("width", [1, 7, 33, 130])
def test_products_of_pairs(width):
    generator = torch.Generator().manual_seed(width)
    left = torch.randn(50, width, generator=generator)
    right = torch.randn(60, width, generator=generator)
    rows = torch.randint(50, (9000,), generator=generator)
    columns = torch.randint(60, (9000,), generator=generator)
    truth = (left.double()[rows] * right.double()[columns]).sum(1)
    single = kernels.products(left, right, rows, columns)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), truth, rtol=0, atol=1e-4)
    summed = kernels.products(left, right, rows, columns, in_float64=True)
    torch.testing.assert_close(summed, truth, rtol=0, atol=1e-13)
    double = kernels.products(left.double(), right.double(), rows, columns)
    torch.testing.assert_close(double, truth, rtol=0, atol=1e-13)
    assert kernels.products(left, right, rows[:0], columns[:0]).shape == (0,)


@compiled
def test_shortened_rows_are_rounded_to_the_nearest():
    rows = torch.randn(5, 37, generator=torch.Generator().manual_seed(0))
    short = kernels.shortened(rows, 1000.0)
    assert short.shape == (5, 64)
    assert torch.equal(short[:, :37], (rows * 1000).round().to(torch.int16))
    assert not short[:, 37:].any()


@compiled
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_without_the_loops_the_answers_are_the_same(monkeypatch, precision):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(900, 24, generator=generator)
    x[200:230] = x[200]
    labels = torch.randint(40, (900,), generator=generator)

    def answers():
        return [
            *self_topk(x, 7, precision=precision, query_block=128),
            *topk(x[:100], x, 7, metric="l2", precision=precision, exclude=torch.arange(100)),
            *retrieval_metrics(x, labels, return_per_query=True)[1].values(),
        ]

    monkeypatch.setattr(coarse, "LEAST_WORK", 0)
    with_loops = answers()
    monkeypatch.setattr(kernels, "available", lambda: False)
    for one, other in zip(with_loops, answers(), strict=True):
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


@pytest.fixture
def another_library(monkeypatch, tmp_path):
    """A path that the loops are looked for at instead."""
    path = tmp_path / "another.so"
    monkeypatch.setattr(kernels, "LIBRARY", path)
    kernels._library.cache_clear()
    yield path
    kernels._library.cache_clear()


def test_a_library_that_is_not_there_or_broken_is_not_used(another_library, caplog):
    with caplog.at_level(logging.INFO):
        assert not kernels.available()
        assert "The search loops are not compiled here" in caplog.text
        kernels._library.cache_clear()
        another_library.write_bytes(b"not a library")
        assert not kernels.available()
        assert "cannot be loaded" in caplog.text


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_a_library_of_another_version_is_not_used(another_library, caplog, tmp_path):
    source = tmp_path / "another.c"
    source.write_text(
        "int noisyml_interface(void) { return -1; }\nint noisyml_supported(void) { return 1; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", another_library], check=True)
    with caplog.at_level(logging.WARNING):
        assert not kernels.available()
    assert "belong to another version of noisyml" in caplog.text


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
def test_the_loops_compile_and_say_which_version_they_are(tmp_path):
    folder = tmp_path / "noisyml" / "similarity"
    folder.mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "build_kernels.py", tmp_path / "scripts")
    shutil.copy(ROOT / "noisyml" / "similarity" / "kernels.c", folder)
    script = [sys.executable, str(tmp_path / "scripts" / "build_kernels.py")]
    subprocess.run(script, check=True)
    library = ctypes.CDLL(str(folder / "_kernels.so"))
    assert library.noisyml_interface() == kernels._INTERFACE
    missing = subprocess.run(
        script, env={"CC": "no-such-compiler", "PATH": ""}, capture_output=True, text=True
    )
    assert missing.returncode == 1
    assert "The search loops are not compiled: no-such-compiler does not run" in missing.stderr
