"""Schedules and parameter groups."""

import math

import pytest
import torch
from torch import nn

from noisyml import optim
from noisyml.errors import UserError


def rates(make, steps, **settings):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = make(optimizer, total_steps=steps, **settings)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


def test_cosine_starts_full_passes_half_and_ends_at_its_share():
    seen = rates(optim.cosine, 100)
    assert seen[0] == 2.0
    assert math.isclose(seen[50], 1.0)
    assert abs(seen[100]) < 1e-12
    assert math.isclose(rates(optim.cosine, 100, final_share=0.1)[100], 0.2)


def test_cosine_equals_the_one_of_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    ours = rates(optim.cosine, 40)
    for expected in ours[:40]:
        assert math.isclose(optimizer.param_groups[0]["lr"], expected, abs_tol=1e-9)
        optimizer.step()
        theirs.step()


def test_warm_up_rises_linearly_then_hands_over():
    seen = rates(optim.constant, 20, warmup_steps=4)
    assert seen[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates(optim.cosine, 20, warmup_steps=4)[4] == 2.0


def test_milestones_are_shares_of_the_run():
    seen = rates(optim.step, 100, milestones=(0.3, 0.6), gamma=0.1)
    assert seen[29] == 2.0
    assert math.isclose(seen[30], 0.2)
    assert math.isclose(seen[60], 0.02)


def test_parameters_go_to_the_longest_matching_prefix():
    module = nn.ModuleDict(
        {
            "encoder": nn.ModuleDict({"head": nn.Linear(2, 2), "body": nn.Linear(2, 2)}),
            "loss": nn.Linear(1, 1),
        }
    )
    module["encoder"]["body"].bias.requires_grad_(False)
    groups = optim.parameter_groups(
        module, {"encoder": {"lr": 1.0}, "encoder.head": {"lr": 2.0}, "loss": {"weight_decay": 0.0}}
    )
    found = {group["name"]: len(group["params"]) for group in groups}
    assert found == {"encoder": 1, "encoder.head": 2, "loss": 2}
    assert {g["name"]: g.get("lr") for g in groups}["encoder.head"] == 2.0


def test_a_prefix_of_nothing_is_refused_but_a_loss_may_have_no_parameters():
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    assert len(optim.parameter_groups(module, {"loss": {"lr": 1.0}})) == 1
    with pytest.raises(UserError, match="no parameter is named 'encodr"):
        optim.parameter_groups(module, {"encodr": {"lr": 1.0}})
