"""Per-class moments over a stream equal those of the whole."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from noisyml.checks import ArgumentError
from noisyml.errors import UserError
from noisyml.similarity.class_moments import ClassMoments


def reference(x: Tensor, y: Tensor, classes: int, correction: int = 0) -> tuple[Tensor, ...]:
    """Two-pass moments, class by class."""
    means = torch.zeros(classes, x.shape[1], dtype=torch.float64)
    variances = torch.zeros_like(means)
    for label in range(classes):
        rows = x[y == label].double()
        if len(rows):
            means[label] = rows.mean(0)
        if len(rows) > correction:
            variances[label] = rows.var(0, correction=correction)
    return torch.bincount(y, minlength=classes), means, variances


def data(n: int = 400, classes: int = 9, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64) + offset
    # The last class never occurs and the one before has a single row.
    y = torch.randint(classes - 2, (n,), generator=generator)
    y[n // 2] = classes - 2
    return x, y


@pytest.mark.parametrize("correction", [0, 1])
@given(cuts=st.lists(st.integers(0, 400), max_size=6))
@settings(max_examples=25, deadline=None)
def test_blocks_of_any_size_equal_the_whole(cuts: list[int], correction: int) -> None:
    x, y = data()
    moments = ClassMoments(9, 5)
    bounds = [0, *sorted(cuts), len(x)]
    for start, stop in itertools.pairwise(bounds):
        moments.update(x[start:stop], y[start:stop])
    counts, means, variances = reference(x, y, 9, correction)
    assert torch.equal(moments.counts, counts)
    torch.testing.assert_close(moments.means, means, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(moments.variances(correction), variances, rtol=1e-12, atol=1e-13)
    assert moments.variances(correction)[-2:].eq(0).all()


def test_a_large_offset_does_not_drown_the_variance() -> None:
    x, y = data(offset=1e6)
    moments = ClassMoments(9, 5)
    for rows, labels in zip(x.split(7), y.split(7), strict=True):
        moments.update(rows, labels)
    _, _, variances = reference(x - 1e6, y, 9)
    # The rows themselves are rounded to 1e-10 at this offset; E[x^2] - E[x]^2 would be off by 1e-4.
    torch.testing.assert_close(moments.variances(), variances, rtol=1e-8, atol=1e-9)


def test_merging_streams_equals_one_stream() -> None:
    x, y = data()
    whole, left, right = ClassMoments(9, 5), ClassMoments(9, 5), ClassMoments(9, 5)
    whole.update(x, y)
    left.update(x[:130], y[:130])
    right.update(x[130:], y[130:])
    left.merge(right)
    left.merge(ClassMoments(9, 5))
    assert torch.equal(left.counts, whole.counts)
    torch.testing.assert_close(left.means, whole.means, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(left.squares, whole.squares, rtol=1e-12, atol=1e-13)


def test_half_precision_rows_are_summed_in_float64() -> None:
    x = torch.full((5000, 2), 0.1, dtype=torch.float16)
    moments = ClassMoments(1, 2)
    moments.update(x, torch.zeros(5000, dtype=torch.int64))
    assert torch.equal(moments.means, x[:1].double())
    assert moments.variances().eq(0).all()


def test_one_process_reduces_to_a_copy() -> None:
    x, y = data()
    moments = ClassMoments(9, 5)
    moments.update(x, y)
    reduced = moments.all_reduced()
    assert torch.equal(reduced.counts, moments.counts)
    torch.testing.assert_close(reduced.means, moments.means, rtol=1e-15, atol=0)
    torch.testing.assert_close(reduced.squares, moments.squares, rtol=1e-14, atol=0)
    moments.update(x, y)
    assert reduced.counts.sum() == len(x)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named(label: int) -> None:
    moments = ClassMoments(3, 2)
    with pytest.raises(UserError, match=f"label {label} is outside 0..2"):
        moments.update(torch.zeros(2, 2), torch.tensor([0, label]))


def test_broken_rows_and_shapes_are_refused() -> None:
    moments = ClassMoments(3, 2)
    rows = torch.zeros(4, 2)
    rows[2, 1] = torch.nan
    with pytest.raises(UserError, match=r"Row 2 .* NaN"):
        moments.update(rows, torch.zeros(4, dtype=torch.int64))
    assert moments.counts.sum() == 0
    with pytest.raises(ValueError, match="must be"):
        moments.update(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="cannot join"):
        moments.merge(ClassMoments(2, 2))
    with pytest.raises(ArgumentError, match="num_classes=0 must be a whole number of at least 1"):
        ClassMoments(0, 2)
