"""Precision, recall and AUROC of a selection of samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from noisyml.metrics.label_trust import (
    auroc,
    average_precision,
    class_selection,
    fnr_at_budget,
    network_exclusions,
    precision_at_k,
    selection_metrics,
    suspicion_precision,
)


def test_a_small_case_by_hand() -> None:
    found = selection_metrics(
        keep=torch.tensor([True, True, True, False, False]),
        p_clean=torch.tensor([0.9, 0.8, 0.7, 0.7, 0.1]),
        wrong=torch.tensor([False, False, True, False, True]),
    )
    assert found["kept"] == 3 / 5
    assert found["precision"] == 2 / 3
    assert found["recall"] == 2 / 3
    assert found["excluded_precision"] == 1 / 2
    assert found["excluded_recall"] == 1 / 2
    # Six (clean, wrong) pairs, one of them tied.
    assert found["auroc"] == pytest.approx(5.5 / 6)


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 100), levels=st.integers(1, 20))
def test_auroc_with_ties_equals_scikit_learn(seed: int, n: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (n,), generator=generator) / levels
    clean = torch.rand(n, generator=generator) < 0.5
    if bool(clean.all()) or not bool(clean.any()):
        assert math.isnan(auroc(scores, clean))
    else:
        assert auroc(scores, clean) == pytest.approx(roc_auc_score(clean, scores), abs=1e-12)


def test_unscored_samples_do_not_enter_the_auroc() -> None:
    scores = torch.tensor([0.9, torch.nan, 0.2, torch.nan])
    clean = torch.tensor([True, False, False, True])
    assert auroc(scores, clean) == 1.0
    assert math.isnan(auroc(torch.full((4,), torch.nan), clean))


def test_undefined_shares_are_nan() -> None:
    nothing_kept = selection_metrics(
        torch.zeros(3, dtype=torch.bool), torch.rand(3), torch.tensor([True, False, True])
    )
    assert nothing_kept["kept"] == nothing_kept["recall"] == 0
    assert math.isnan(nothing_kept["precision"])
    all_wrong = selection_metrics(
        torch.ones(3, dtype=torch.bool), torch.rand(3), torch.ones(3, dtype=torch.bool)
    )
    assert all_wrong["precision"] == 0
    assert math.isnan(all_wrong["recall"])
    assert math.isnan(all_wrong["excluded_precision"])
    assert math.isnan(all_wrong["auroc"])


def test_exclusions_of_two_networks_by_hand() -> None:
    found = network_exclusions(
        {
            "first": torch.tensor([True, False, False, True, True]),
            "second": torch.tensor([True, True, False, False, True]),
        },
        torch.tensor([False, True, True, False, True]),
    )
    expected = {"first": (1, 2 / 3), "second": (1 / 2, 1 / 3)}
    expected |= {"intersection": (1, 1 / 3), "union": (2 / 3, 2 / 3)}
    assert found == {
        f"excluded_{metric}_{name}": pytest.approx(value)
        for name, values in expected.items()
        for metric, value in zip(("precision", "recall"), values, strict=True)
    }
    nothing = network_exclusions({"a": torch.ones(2)}, torch.zeros(2))
    assert all(math.isnan(value) for value in nothing.values())


def test_classes_by_hand() -> None:
    found = class_selection(
        keep=torch.tensor([True, True, False, False, True]),
        wrong=torch.tensor([False, True, False, False, True]),
        labels=torch.tensor([0, 0, 0, 1, 2]),
        num_classes=4,
    )
    assert found["samples"].tolist() == [3, 1, 1, 0]
    nan = math.nan
    expected = {
        "kept": [2 / 3, 0.0, 1.0, nan],
        "precision": [0.5, nan, 0.0, nan],
        "recall": [0.5, 0.0, nan, nan],
    }
    for name, values in expected.items():
        torch.testing.assert_close(
            found[name], torch.tensor(values, dtype=torch.float64), equal_nan=True
        )


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match=r"must all be \[N\]"):
        selection_metrics(torch.ones(3), torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"must both be \[N\]"):
        auroc(torch.ones(3), torch.ones(2))


def test_a_suspect_is_right_if_its_entry_is_wrong() -> None:
    keep = torch.tensor([True, False, False, False])
    suspected = torch.tensor([0, 1, 0, 1])
    wrong = torch.tensor([[True, False], [False, True], [False, True], [True, True]])
    assert suspicion_precision(keep, suspected, wrong) == pytest.approx(2 / 3)
    assert math.isnan(suspicion_precision(torch.ones_like(keep), suspected, wrong))


def test_search_figures_are_those_of_scikit_learn():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    trust = torch.from_numpy(rng.normal(size=400).round(1))
    wrong = torch.from_numpy(rng.random(400) < torch.sigmoid(-trust).numpy())
    expected = average_precision_score(wrong.numpy(), -trust.numpy())
    assert average_precision(trust, wrong) == pytest.approx(expected)
    # Of equals at the border each is as likely to be looked at.
    budget = int(wrong.sum())
    drawn = []
    for _ in range(400):
        order = np.lexsort((rng.random(400), trust.numpy()))
        drawn.append(1 - wrong.numpy()[order[:budget]].mean())
    assert fnr_at_budget(trust, wrong) == pytest.approx(np.mean(drawn), abs=0.01)
    assert precision_at_k(trust, wrong, budget) == 1 - fnr_at_budget(trust, wrong)


def test_rows_without_a_score_are_looked_at_last():
    trust = torch.tensor([torch.nan, 0.1, 0.9])
    assert fnr_at_budget(trust, torch.tensor([True, False, False])) == 1
    assert fnr_at_budget(trust, torch.tensor([False, True, False])) == 0
    assert math.isnan(fnr_at_budget(trust, torch.zeros(3, dtype=torch.bool)))
    assert math.isnan(average_precision(trust, torch.zeros(3, dtype=torch.bool)))
    unscored = selection_metrics(torch.ones(3).bool(), torch.full((3,), torch.nan), trust > 0.5)
    assert math.isnan(unscored["fnr_at_budget"])
    assert math.isnan(unscored["average_precision"])
