"""JoCoR for several labels against reference values, gradients and masks."""

import functools

import pytest
import torch
from support import paths, vectors
from support.vectors import close
from torch import nn

from noisyml.losses.multilabel.jocor import jocor_loss, joint_losses, keep_rate, small_losses

GOLDEN = paths.GOLDEN / "mlnoise"
load = functools.partial(vectors.tensors, GOLDEN)


@pytest.mark.parametrize("unit", ["entry", "sample", "class"])
@pytest.mark.parametrize("name", ["jocor_derived", "jocor_derived_ties"])
def test_losses_masks_and_gradients(name, unit):
    case = load(name)
    first, second = (case[f"logits_{k}"].clone().requires_grad_() for k in (1, 2))
    losses = joint_losses(first, second, case["labels"], float(case["co_lambda"]))
    close(losses, case["loss_matrix"])
    keep = small_losses(losses, float(case["keep_rate"]), unit)
    assert torch.equal(keep, case[f"mask_{unit}"])
    loss = jocor_loss(losses, keep)
    loss.backward()
    close(loss, case[f"loss_{unit}"])
    close(first.grad, case[f"grad1_{unit}"])
    close(second.grad, case[f"grad2_{unit}"])


def test_the_released_divergence():
    case = load("jocor_idmn_literal")
    for step, rate in enumerate(case["keep_rate"].tolist()):
        first, second = (case[f"logits_{k}"][step].clone().requires_grad_() for k in (1, 2))
        losses = joint_losses(
            first, second, case["labels"][step], float(case["co_lambda"]), "released"
        )
        loss = jocor_loss(losses, small_losses(losses, rate))
        loss.backward()
        close(loss, case["loss"][step])
        close(first.grad, case["g1"][step])
        close(second.grad, case["g2"][step])


def test_training_two_networks_with_one_optimiser_is_the_released():
    case = load("train_jocor")
    networks = []
    for suffix in ("", "_net2"):
        names = [f"{name}{suffix}_init" for name in ("W1", "b1", "W2", "b2")]
        networks.append([nn.Parameter(case[name].clone()) for name in names])
    optimizer = torch.optim.Adam([w for network in networks for w in network], lr=float(case["lr"]))
    tau, gradual = float(case["hp_tau"]), int(case["hp_Tk"])
    rate, epoch = 1.0, 0
    for step, index in enumerate(case["index"]):
        if case["epoch0"][step] != epoch:
            epoch = int(case["epoch0"][step])
            # The released rule steps on, past the end where rounding keeps it from meeting it.
            if rate != 1 - tau:
                rate -= tau / gradual
        index = index[index >= 0]
        x, y = case["X"][index], case["Y"][index]
        logits = [torch.relu(x @ w1 + b1) @ w2 + b2 for w1, b1, w2, b2 in networks]
        losses = joint_losses(*logits, y, float(case["hp_lam"]), "released")
        loss = jocor_loss(losses, small_losses(losses, rate))
        close(loss, case["loss"][step], atol=1e-8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for suffix, network in zip(("", "_net2"), networks, strict=True):
        for name, weight in zip(("W1", "b1", "W2", "b2"), network, strict=True):
            close(weight, case[f"{name}{suffix}_final"], atol=1e-8)


def test_the_kept_share_falls_in_equal_steps():
    assert [round(keep_rate(e, 0.2, 4), 12) for e in range(6)] == [1, 0.95, 0.9, 0.85, 0.8, 0.8]
    assert keep_rate(0, 0.2, 0) == 0.8
    assert keep_rate(3, 0.0, 10) == 1.0


def test_something_is_always_kept_and_equals_fall_by_place():
    losses = torch.ones(3, 2)
    for unit, expected in (
        ("entry", [[True, False], [False, False], [False, False]]),
        ("sample", [[True, True], [False, False], [False, False]]),
        ("class", [[True, True], [False, False], [False, False]]),
    ):
        assert small_losses(losses, 0.01, unit).tolist() == expected


def test_agreeing_networks_cost_the_cross_entropy_alone():
    z = torch.randn(4, 3, dtype=torch.float64)
    y = torch.eye(4, 3, dtype=torch.float64)
    expected = nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
    close(joint_losses(z, z, y, 0.25), 1.5 * expected)
    assert (joint_losses(z, -z, y, 1.0) >= 0).all()
