"""Sinkhorn plans: released vectors, marginals, extremes of epsilon, infeasible problems."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import paths, vectors

from noisyml.checks import ArgumentError
from noisyml.errors import UserError
from noisyml.similarity import transport
from noisyml.similarity.transport import Transport, sinkhorn

GOLDEN = paths.GOLDEN / "otter"
load = functools.partial(vectors.tensors, GOLDEN)
close = functools.partial(vectors.close, atol=1e-15)


@pytest.mark.parametrize("domain", ["log", "scaling", "released"])
def test_square_plans_equal_the_released_ones(domain: str) -> None:
    case = load("sinkhorn_square.npz")
    seen = 0
    for key, expected in case.items():
        match = re.fullmatch(r"(plan|target)_n(\d+)_eps([\d.]+)_it(\d+)", key)
        if match is None:
            continue
        kind, n, epsilon, iterations = match.groups()
        result = sinkhorn(
            case[f"cost_n{n}"], float(epsilon), n_iterations=int(iterations), domain=domain
        )
        close(result.plan if kind == "plan" else result.row_conditional(), expected)
        assert result.n_iterations == int(iterations)
        seen += 1
    assert seen == 26


def test_rectangular_and_batched_plans_with_marginals_equal_the_released_ones() -> None:
    case = load("sinkhorn_rect_marginals.npz")
    epsilon, batched_epsilon = case["eps"].tolist()
    r, c = case["r_prob"], case["c_prob"]
    for name, row, column in (
        ("uniform_it5", None, None),
        ("r_it5", r, None),
        ("c_it5", None, c),
        ("rc_it5", r, c),
        ("rc_it100", r, c),
    ):
        result = sinkhorn(
            case["cost"],
            epsilon,
            n_iterations=int(name.rsplit("it", 1)[1]),
            row_marginal=row,
            column_marginal=column,
        )
        close(result.plan, case[f"plan_{name}"])
    cost = case["cost_batched"]
    close(sinkhorn(cost, batched_epsilon, n_iterations=4).plan, case["plan_batched_it4"])
    result = sinkhorn(
        cost,
        batched_epsilon,
        n_iterations=4,
        row_marginal=case["r_prob_batched"],
        column_marginal=case["c_prob_batched"],
    )
    close(result.plan, case["plan_batched_rc_it4"])


def test_small_epsilon_stays_finite_where_the_released_code_overflows() -> None:
    case = load("sinkhorn_extreme.npz")
    overflowed = 0
    for epsilon in ("0.15", "0.05", "0.04", "0.034", "0.033", "0.03", "0.01"):
        expected = case[f"derived_target_eps{epsilon}"]
        double = sinkhorn(case["cost"], float(epsilon), n_iterations=5).row_conditional()
        close(double, expected)
        if not case[f"nan64_eps{epsilon}"]:
            close(double, case[f"target64_eps{epsilon}"])
        single = sinkhorn(case["cost"].float(), float(epsilon), n_iterations=5).row_conditional()
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)
        overflowed += int(case[f"nan32_eps{epsilon}"])
    assert overflowed == 4
    alone = sinkhorn(case["b1_cost"].float(), 0.15, n_iterations=5)
    assert torch.equal(alone.row_conditional().double(), case["b1_derived"])


def test_half_precision_costs_are_computed_in_float32() -> None:
    cost = load("sinkhorn_extreme.npz")["cost"]
    for dtype in (torch.float16, torch.bfloat16):
        result = sinkhorn(cost.to(dtype), 0.15, n_iterations=5)
        rounded = sinkhorn(cost.to(dtype).double(), 0.15, n_iterations=5)
        assert result.log_plan.dtype == torch.float32
        torch.testing.assert_close(result.plan.double(), rounded.plan, rtol=1e-4, atol=1e-7)


@given(
    m=st.integers(1, 7),
    n=st.integers(1, 7),
    epsilon=st.sampled_from([0.05, 0.3, 2.0]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_converged_plans_meet_both_marginals_and_their_potentials(
    m: int, n: int, epsilon: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(m, n, generator=generator, dtype=torch.float64)
    r, c = (torch.rand(s, generator=generator, dtype=torch.float64) + 0.1 for s in (m, n))
    result = sinkhorn(
        cost, epsilon, n_iterations=5000, row_marginal=r, column_marginal=c, tolerance=1e-9
    )
    assert result.n_iterations < 5000
    torch.testing.assert_close(result.plan.sum(0), c / c.sum(), rtol=1e-9, atol=1e-12)
    assert float((result.plan.sum(1) - r / r.sum()).abs().sum()) <= 1e-9
    dual = result.row_potential[:, None] + result.column_potential - cost
    torch.testing.assert_close(dual / epsilon, result.log_plan, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.column_conditional().sum(0), torch.ones(n).double())


@pytest.mark.further
def test_the_plan_approaches_the_optimal_assignment() -> None:
    from scipy.optimize import linear_sum_assignment

    cost = torch.rand(9, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    plan = sinkhorn(cost, 2e-3, n_iterations=20000, tolerance=1e-9).plan
    assert torch.equal(plan.argmax(1), torch.from_numpy(linear_sum_assignment(cost)[1]))
    assert float(plan.amax(1).min()) > 0.99 / 9


def test_shifting_rows_and_columns_of_the_cost_changes_nothing() -> None:
    cost = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = cost + torch.arange(5.0)[:, None] - torch.arange(4.0)
    close(sinkhorn(shifted, 0.1).plan, sinkhorn(cost, 0.1).plan)


def test_a_batch_stops_when_its_slowest_problem_has_converged() -> None:
    cost = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cost[0] = 0
    both = sinkhorn(cost, 0.1, n_iterations=1000, tolerance=1e-6)
    slow = sinkhorn(cost[1], 0.1, n_iterations=1000, tolerance=1e-6)
    assert 1 < both.n_iterations == slow.n_iterations < 1000
    assert sinkhorn(cost[0], 0.1, n_iterations=1000, tolerance=1e-6).n_iterations == 1
    scaling = sinkhorn(cost, 0.1, n_iterations=1000, tolerance=1e-6, domain="scaling")
    assert scaling.n_iterations == both.n_iterations
    close(scaling.plan, both.plan)


def test_the_gradient_is_that_of_the_iterations() -> None:
    cost = torch.rand(3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    cost.requires_grad_()
    assert torch.autograd.gradcheck(lambda c: sinkhorn(c, 0.2, n_iterations=3).plan, (cost,))
    assert torch.autograd.gradcheck(
        lambda c: sinkhorn(c, 0.2, n_iterations=3, domain="scaling").plan, (cost,)
    )


def test_forbidden_pairs_and_empty_lines_carry_nothing() -> None:
    cost = torch.zeros(3, 3, dtype=torch.float64)
    cost[0, 1] = torch.inf
    cost[2] = torch.inf
    r = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    plan = sinkhorn(cost, 0.1, n_iterations=500, row_marginal=r).plan
    assert plan[2].eq(0).all()
    assert plan[0, 1] == 0
    torch.testing.assert_close(plan.sum(0), torch.full((3,), 1 / 3).double())
    with pytest.raises(UserError, match="only forbidden"):
        sinkhorn(cost, 0.1)


def test_mistakes_are_named() -> None:
    cost = torch.rand(3, 3)
    with pytest.raises(UserError, match="hold NaN"):
        sinkhorn(cost.clone().fill_(torch.nan), 0.1)
    with pytest.raises(UserError, match="marginal"):
        sinkhorn(cost, 0.1, row_marginal=torch.tensor([1.0, -1.0, 1.0]))
    far = torch.tensor([[0.0, 900.0], [0.0, 900.0]])
    with pytest.raises(UserError, match="domain=log"):
        sinkhorn(far, 1.0, domain="scaling")
    assert sinkhorn(far, 1.0).plan.isfinite().all()
    with pytest.raises(ArgumentError, match="must be a number above 0"):
        sinkhorn(cost, 0.0)
    with pytest.raises(ArgumentError, match="n_iterations=-1 must be a whole number"):
        sinkhorn(cost, 0.1, n_iterations=-1)
    with pytest.raises(ArgumentError, match="domain=linear must be log, scaling or released"):
        sinkhorn(cost, 0.1, domain="linear")
    with pytest.raises(ValueError, match="does not fit"):
        sinkhorn(cost, 0.1, row_marginal=torch.ones(4))


def test_the_released_domain_is_right_where_the_release_is_and_refused_where_it_overflows() -> None:
    case = load("sinkhorn_extreme.npz")
    for epsilon in ("0.15", "0.05", "0.04", "0.034", "0.033", "0.03", "0.01"):
        for digits, cost in (("32", case["cost"].float()), ("64", case["cost"])):
            if case[f"nan{digits}_eps{epsilon}"]:
                with pytest.raises(UserError, match="raise epsilon or use domain=log"):
                    sinkhorn(cost, float(epsilon), n_iterations=5, domain="released")
                continue
            found = sinkhorn(cost, float(epsilon), n_iterations=5, domain="released")
            expected = case[f"target{digits}_eps{epsilon}"]
            torch.testing.assert_close(found.row_conditional(), expected, rtol=1e-4, atol=1e-6)
    overflowing = sinkhorn(
        case["cost"].float(), 0.01, n_iterations=5, domain="released", validate=False
    )
    assert overflowing.plan.isnan().any()


def logarithms_only(cost: torch.Tensor, epsilon: float, **given) -> Transport:
    """The plan by steps on logarithms alone, which is what a gradient asks for."""
    return sinkhorn(cost.clone().requires_grad_(), epsilon, **given)


@pytest.mark.parametrize(
    ("spread", "least", "iterations", "kernels"),
    [(0.3, 1.0, 5, 1), (3e3, 1.0, 5, 1), (5e4, 1.0, 400, 2), (3.0, 1e-35, 5, None)],
)
def test_the_log_domain_is_the_same_with_and_without_products(
    spread: float,
    least: float,
    iterations: int,
    kernels: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[int] = []
    absorbed = transport._absorbed
    monkeypatch.setattr(
        transport, "_absorbed", lambda *given: [built.append(1), absorbed(*given)][1]
    )
    # A few rows are worked on at a time.
    monkeypatch.setattr(transport, "_BLOCK", 250)
    generator = torch.Generator().manual_seed(5)
    cost = spread * torch.rand(40, 30, generator=generator, dtype=torch.float64)
    cost[torch.arange(30), torch.arange(30)] += 1e4
    cost = cost if iterations > 5 else cost.float()
    mass = torch.ones(40)
    mass[3] = least
    given = {"n_iterations": iterations, "row_marginal": mass}
    quick = sinkhorn(cost, 0.5, **given)
    whole = logarithms_only(cost, 0.5, **given)
    # Costs of thousands of epsilons have few digits left behind the point.
    tight = {"rtol": 2e-3 if spread == 3e3 else 1e-4, "atol": 1e-9}
    torch.testing.assert_close(quick.log_plan, whole.log_plan, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(quick.plan, whole.plan, **tight)
    for name in ("row_potential", "column_potential"):
        torch.testing.assert_close(getattr(quick, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    for name in ("row_conditional", "column_conditional"):
        torch.testing.assert_close(getattr(quick, name)(), getattr(whole, name)(), **tight)
    # A mass that others exceed beyond what single precision holds is left to logarithms; scalings
    # that grow in many iterations are taken into the kernel.
    is_scaled = isinstance(quick.form, transport._Scaled)
    assert is_scaled == (least == 1)
    assert kernels is None or len(built) == kernels


@pytest.mark.long
def test_batches_absorb_as_their_problems_do_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    cost = 900 * torch.rand(3, 12, 9, generator=generator, dtype=torch.float64)
    mass = torch.rand(3, 9, generator=generator, dtype=torch.float64) + 0.1
    together = sinkhorn(cost, 0.3, n_iterations=700, column_marginal=mass)
    assert isinstance(together.form, transport._Scaled)
    for own, m, plan, potential in zip(
        cost, mass, together.plan, together.row_potential, strict=True
    ):
        alone = logarithms_only(own, 0.3, n_iterations=700, column_marginal=m)
        torch.testing.assert_close(plan, alone.plan, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(potential, alone.row_potential, rtol=1e-9, atol=1e-9)
    one = sinkhorn(cost[0], 0.3, n_iterations=5, column_marginal=mass)
    assert one.plan.shape == (3, 12, 9)
    close(one.plan[2], logarithms_only(cost[0], 0.3, n_iterations=5, column_marginal=mass[2]).plan)


def test_a_plan_outlives_its_costs_but_for_its_logarithm() -> None:
    cost = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    found = sinkhorn(cost, 0.1, n_iterations=5)
    plan, rows = found.plan, found.row_conditional()
    torch.testing.assert_close(found.log_plan.exp(), plan)
    cost += 1
    assert torch.equal(found.plan, plan)
    assert torch.equal(found.row_conditional(), rows)
    with pytest.raises(ValueError, match="changed after their plan"):
        found.log_plan  # noqa: B018


@pytest.mark.long
def test_plans_equal_those_of_pot_whose_columns_come_first() -> None:
    ot = pytest.importorskip("ot")
    cost = torch.rand(12, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for iterations in (1, 5, 50):
        found = sinkhorn(cost, 0.1, n_iterations=iterations).plan
        rows, columns = (torch.full((n,), 1 / n, dtype=torch.float64) for n in (12, 9))
        peer = ot.bregman.sinkhorn_log(
            columns.numpy(),
            rows.numpy(),
            cost.T.numpy(),
            0.1,
            numItermax=iterations,
            stopThr=0,
            warn=False,
        )
        close(found, torch.from_numpy(peer.T), rtol=1e-9)
