"""Ranking, discrepancy, schedule and corrections of RCML and CCML against the released code."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import paths, vectors

from noisyml.losses.multilabel.rcml import (
    flip_agreed,
    kept_count,
    ranking_errors,
    squared_mmd,
    swap_rate,
)
from noisyml.similarity.exact import kernels

GOLDEN = paths.GOLDEN / "rcml"
load = functools.partial(vectors.tensors, GOLDEN)
close = functools.partial(vectors.close, check_dtype=False)
compiled = pytest.mark.skipif(not kernels.available(), reason="no compiled loops here")


# -- the ranking -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "edges", "hard"])
def test_errors_groups_suspects_and_gradients_are_the_released(name):
    case = load(f"group_lasso_{name}")
    p = case["p"].clone().requires_grad_()
    ranking = ranking_errors(p, case["y"], float(case["alpha"]), float(case["beta"]))
    close(ranking.errors, case["errors"])
    close(ranking.missing, case["groups_missing"])
    close(ranking.extra, case["groups_extra"])
    assert torch.equal(ranking.suspected, case["noisy_class"])
    ranking.errors.sum().backward()
    close(p.grad, case["grad_p_of_sum"])
    single = ranking_errors(
        case["p"].float(), case["y"].float(), float(case["alpha"]), float(case["beta"])
    )
    close(single.errors, case["errors_float32"], rtol=2e-4, atol=1e-5)
    assert torch.equal(single.suspected, case["noisy_class_float32"])


def test_a_sample_without_a_pair_has_the_smallest_error():
    p = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    y = (p > 0.5).float()
    y[0], y[1] = 0, 1
    errors = ranking_errors(p, y, 0.2, 0.8).errors
    assert errors.argsort(stable=True)[:2].tolist() == [0, 1]
    torch.testing.assert_close(errors[:2], torch.full((2,), 5 * 1e-5))


@compiled
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("hard", [False, True])
def test_the_compiled_loop_ranks_as_pytorch_does(share, hard, monkeypatch):
    """Of groups that are equal, which hard decisions make many, both take the first."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(300, 61, generator=generator)
    p = p.round() if hard else p
    labels = (torch.rand(300, 61, generator=generator) < share).float()
    found = ranking_errors(p, labels, 0.3, 0.7)
    monkeypatch.setattr(kernels, "available", lambda: False)
    expected = ranking_errors(p, labels, 0.3, 0.7)
    assert torch.equal(found.suspected, expected.suspected)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-5, atol=1e-6)


@compiled
def test_labels_that_do_not_fit_are_refused():
    """The loop reads memory as it is told."""
    for labels in (torch.ones(4, 2), torch.ones(3, 3), torch.ones(4)):
        with pytest.raises(ValueError, match="must be"):
            ranking_errors(torch.rand(4, 3), labels)


@pytest.mark.parametrize("at", [0, 7])
def test_a_diverged_network_shows_in_the_ranking(at, monkeypatch):
    p = torch.rand(3, 9, generator=torch.Generator().manual_seed(0))
    p[1, at] = torch.nan
    y = torch.zeros(3, 9)
    y[:, :4] = 1
    for looped in (True, False):
        if not looped:
            monkeypatch.setattr(kernels, "available", lambda: False)
        assert ranking_errors(p, y).errors.isnan().tolist() == [False, True, False]


def test_a_ranking_can_be_differentiated():
    p = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    y = (torch.arange(20).view(5, 4) % 3 == 0).float()
    p.requires_grad_()
    with torch.no_grad():
        plain = ranking_errors(p, y)
    recorded = ranking_errors(p, y)
    torch.testing.assert_close(recorded.errors, plain.errors)
    gradient = torch.autograd.grad(recorded.errors.sum(), p)[0]
    step = torch.zeros_like(p)
    step[1, 2] = 1e-3
    with torch.no_grad():
        up, down = (ranking_errors(p + way * step, y).errors.sum() for way in (1, -1))
    torch.testing.assert_close((up - down) / 2e-3, gradient[1, 2], rtol=1e-2, atol=1e-3)


def test_missing_and_extra_groups_name_the_wrong_class():
    """Of three classes the first is shown; the network sees the second, or only the third."""
    forgotten = ranking_errors(torch.tensor([[0.9, 0.95, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    assert forgotten.suspected.item() == 0  # one pair: both groups are equal, the extra one wins
    two = ranking_errors(torch.tensor([[0.9, 0.9, 0.95]]), torch.tensor([[1.0, 1.0, 0.0]]))
    assert two.suspected.item() == 2
    assert two.missing[0, 2] > two.extra[0].max()


def test_ranking_is_single_precision_under_autocast():
    p, y = torch.rand(4, 3), torch.eye(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = ranking_errors(p, y).errors
    assert torch.equal(found, ranking_errors(p, y).errors)


# -- the discrepancy ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["feature_map", "logits", "identical"])
def test_discrepancy_and_gradients_are_the_released(name):
    case = load(f"mmd_{name}")
    x, y = (case[side].clone().requires_grad_() for side in "XY")
    value = squared_mmd(x, y, float(case["sigma"]))
    value.backward()
    close(value, case["value"])
    close(value, case["value_sklearn_variant"])
    close(x.grad, case["grad_X"])
    close(y.grad, case["grad_Y"])
    single = squared_mmd(case["X"].float(), case["Y"].float(), float(case["sigma"]))
    close(single, case["value"], rtol=2e-4, atol=1e-6)


def test_one_sided_gradients_of_unequal_sets_are_right():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.randn(6, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: squared_mmd(x, y, 2.0), (x, y))
    alone = torch.autograd.grad(squared_mmd(x, y.detach(), 2.0), x)[0]
    assert torch.equal(alone, torch.autograd.grad(squared_mmd(x, y, 2.0), x)[0])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5))
def test_the_median_is_that_of_different_rows(seed, n, m):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, dtype=torch.float64, generator=generator)
    y = torch.randn(m, 3, dtype=torch.float64, generator=generator)
    median = torch.pdist(torch.cat([x, y])).square().median().item()
    close(squared_mmd(x, y, "median"), squared_mmd(x, y, median), rtol=1e-6)


def test_equal_rows_have_no_median_and_no_discrepancy():
    x = torch.ones(3, 4, requires_grad=True)
    value = squared_mmd(x, torch.ones(3, 4), "median")
    value.backward()
    assert value.item() == 0.0
    assert (x.grad == 0).all()


def test_wide_features_far_from_the_origin_lose_no_digits_and_half_precision_none():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4096, generator=generator) + 100
    y = torch.randn(8, 4096, generator=generator) + 100.1
    exact = squared_mmd(x.double(), y.double(), 1e4)
    close(squared_mmd(x, y, 1e4).double(), exact, rtol=2e-4, atol=0)
    single = squared_mmd(x, y, 1e4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(squared_mmd(x, y, 1e4), single)
        assert squared_mmd(x.bfloat16(), y.bfloat16(), 1e4).dtype == torch.float32


# -- what is kept ------------------------------------------------------------------------------


def test_the_share_kept_follows_the_released_schedule():
    case = load("swap_rate_schedule")
    for (start, end, epochs), rates in zip(
        case["start_end_epochs"].tolist(), case["rates"], strict=True
    ):
        found = [swap_rate(e, epochs, start / 100, end / 100) for e in range(1, epochs + 1)]
        close(torch.tensor(found, dtype=torch.float64), rates[:epochs], rtol=0, atol=1e-15)


def test_the_last_tenth_may_keep_everything():
    rates = [swap_rate(epoch, 20, 0.9, 0.5, final_full=True) for epoch in range(1, 21)]
    assert rates[17:] == [0.56, 1.0, 1.0]
    assert rates[0] == 0.9


def test_counts_come_from_the_nominal_batch_and_keep_at_least_one():
    assert [kept_count(0.6, 10), kept_count(0.5, 7), kept_count(0.1, 5)] == [6, 3, 1]


# -- corrections -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ccml_before_flip", "ccml_flip_step"])
def test_corrections_are_the_released(name):
    case = load(name)
    rankings = []
    for network in (1, 2):
        hard = (case[f"logits_{network}"].sigmoid() >= case["threshold"]).double()
        ranking = ranking_errors(hard, case["y"], float(case["alpha"]), float(case["beta"]))
        assert torch.equal(ranking.suspected, case[f"class_{network}"])
        close(ranking.errors, case[f"error_{network}"])
        rankings.append(ranking)
    flipped = flip_agreed(case["y"], *rankings, float(case["flip_per"]))
    assert torch.equal(flipped, case["y_flipped"])
    changed = (flipped != case["y"]).nonzero()
    assert changed[:, 0].tolist() == sorted(case["flip_sample"].tolist())


def test_a_share_of_nothing_corrects_nothing():
    p, y = torch.rand(6, 4), torch.eye(6, 4)
    ranking = ranking_errors(p, y)
    assert torch.equal(flip_agreed(y, ranking, ranking, 0.0), y)
    assert (flip_agreed(y, ranking, ranking, 1.0) != y).sum() == 6
    disagreeing = ranking._replace(suspected=(ranking.suspected + 1) % 4)
    assert torch.equal(flip_agreed(y, ranking, disagreeing, 1.0), y)
