"""Mutual information beside scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from noisyml.checks import ArgumentError
from noisyml.metrics.clustering import ami, nmi


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 200),
    classes=st.integers(1, 30),
    clusters=st.integers(1, 30),
)
@pytest.mark.long
def test_equals_scikit_learn(seed: int, n: int, classes: int, clusters: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator) * 1000 - 7
    c = torch.randint(clusters, (n,), generator=generator)
    for ours in ("arithmetic", "geometric", "max"):
        value = nmi(y, c, ours)
        if not math.isnan(value):
            expected = normalized_mutual_info_score(y, c, average_method=ours)
            assert value == pytest.approx(expected, abs=1e-12)
    assert nmi(y, c) == pytest.approx(nmi(c, y), abs=1e-12)
    if len(y.unique()) < n or len(c.unique()) < n:
        assert ami(y, c) == pytest.approx(adjusted_mutual_info_score(y, c), abs=1e-9)


def test_singletons_on_both_sides_match_perfectly() -> None:
    assert ami(torch.arange(9), torch.arange(9).flip(0)) == 1.0
    assert nmi(torch.arange(9), torch.arange(9).flip(0)) == pytest.approx(1.0, abs=1e-12)


def test_chance_gives_no_adjusted_information() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(200, (2000,), generator=generator)
    c = torch.randint(200, (2000,), generator=generator)
    assert nmi(y, c) > 0.4
    assert abs(ami(y, c)) < 0.01


def test_thousands_of_small_classes_are_no_obstacle() -> None:
    y = torch.arange(20_000) // 5
    c = torch.arange(20_000) // 4
    assert 0.5 < ami(y, c) < nmi(y, c) < 1


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        nmi(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"must both be \[N\]"):
        ami(torch.arange(3), torch.arange(4))
    with pytest.raises(ArgumentError, match="normaliser=min must be arithmetic, geometric or max"):
        nmi(torch.arange(3), torch.arange(3), "min")  # type: ignore[arg-type]
