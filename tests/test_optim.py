"""Schedules and parameter groups."""

import functools
import math

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support import paths, vectors
from torch import nn

from noisyml import optim
from noisyml.errors import UserError

ROOT = paths.ROOT
load = functools.partial(vectors.arrays, paths.GOLDEN)


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


def test_milestones_in_epochs_as_released_with_rkd():
    """There the schedule is stepped at the start of an epoch."""
    golden = load("rkd/lr_schedule.npz")
    settings = {"milestones": golden["milestones"].tolist(), "gamma": float(golden["gamma"])}
    epochs, steps = len(golden["epoch"]), 3
    seen = rates(optim.multistep, epochs * steps, epochs=epochs, stepped_at="start", **settings)
    found = np.array(seen[:-1]).reshape(epochs, steps) / 2.0 * golden["base_lr"]
    np.testing.assert_allclose(found, np.repeat(golden["lr"][:, None], steps, axis=1), rtol=1e-12)
    later = rates(optim.multistep, epochs * steps, epochs=epochs, **settings)
    assert later[steps:-1] == seen[:-1][:-steps], "stepped at the end it falls one epoch later"


@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_milestones_in_epochs_fall_between_epochs(steps_per_epoch):
    seen = rates(optim.multistep, 3 * steps_per_epoch, epochs=3, milestones=[1, 2], gamma=0.5)
    expected = np.repeat([2.0, 1.0, 0.5], steps_per_epoch)
    assert seen[:-1] == expected.tolist()
    assert rates(optim.multistep, 6, epochs=3, milestones=[1], warmup_steps=4)[0] == 0.5


def test_an_exponential_rate_falls_between_epochs_as_released_with_eac():
    golden = load("eac/train_two_epochs_f32.npz")
    settings = {"epochs": 2, "gamma": float(golden["gamma"])}
    seen = np.array(rates(optim.exponential, 6, **settings)) / 2.0 * golden["lr_per_epoch"][0]
    np.testing.assert_allclose(seen[:6], np.repeat(golden["lr_per_epoch"], 3), rtol=1e-12)
    np.testing.assert_allclose(seen[6], golden["lr_after"], rtol=1e-12)
    assert rates(optim.exponential, 6, epochs=2, warmup_steps=4)[0] == 0.5
    with pytest.raises(UserError, match="scheduler=exponential counts epochs"):
        rates(optim.exponential, 6, epochs=None)


@pytest.mark.parametrize("epochs", [70, 100, 200])
def test_a_cosine_falls_between_epochs_as_released_with_promptcal(epochs):
    golden = load("promptcal/schedules")[f"lr_E{epochs}"]
    settings = {"epochs": epochs, "final_share": 0.001}
    seen = np.array(rates(optim.cosine_epochs, 2 * epochs, **settings)) / 2.0 * 0.1
    np.testing.assert_allclose(seen[: 2 * epochs], np.repeat(golden, 2), rtol=1e-9)
    with pytest.raises(UserError, match="scheduler=cosine_epochs counts epochs"):
        rates(optim.cosine_epochs, 6, epochs=None)


def test_an_exponential_rate_may_fall_a_little_at_every_step():
    seen = np.array(rates(optim.exponential_steps, 30, gamma=0.9, decay_steps=10))
    np.testing.assert_allclose(seen, 2.0 * 0.9 ** (np.arange(31) / 10), rtol=1e-12)
    assert rates(optim.exponential_steps, 30, warmup_steps=4)[0] == 0.5
    with pytest.raises(UserError, match="decay_steps=0 must be a whole number of at least 1"):
        rates(optim.exponential_steps, 6, decay_steps=0)


def test_a_plateau_keeps_its_count_over_a_checkpoint(tmp_path):
    def fresh():
        rates = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 10.0)]
        optimizer = torch.optim.SGD(rates)
        return optimizer, optim.Plateau(optimizer, total_steps=9, patience=2)

    scores = [0.5, 0.4, 0.45, 0.3, 0.6, 0.5, 0.5, 0.5]
    optimizer, plateau = fresh()
    seen = []
    for number, score in enumerate(scores):
        if number == 3:
            state = {"optimizer": optimizer.state_dict(), "plateau": plateau.state_dict()}
            torch.save(state, tmp_path / "checkpoint")
            state = torch.load(tmp_path / "checkpoint", weights_only=True)
            optimizer, plateau = fresh()
            optimizer.load_state_dict(state["optimizer"])
            plateau.load_state_dict(state["plateau"])
        for _ in range(3):
            optimizer.step()
            plateau.step()
        plateau.observe({"val/precision_at_1": score})
        seen.append([group["lr"] for group in optimizer.param_groups])
    shares = [1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01]
    np.testing.assert_allclose(seen, np.outer(shares, [1.0, 10.0]))
    assert plateau.get_last_lr() == pytest.approx([0.1, 1.0]), "as of the last step"


def test_a_plateau_names_the_metrics_there_are():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau = optim.Plateau(optimizer, monitor="val/precision_at_2")
    with pytest.raises(UserError, match=r"not measured. Did you mean 'val/precision_at_1'\?"):
        plateau.observe({"val/precision_at_1": 0.5, "val/map_at_r": 0.4})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": -1}, "trainer.max_epochs=-1: set it"),
        ({"epochs": 3, "stepped_at": "middle"}, "stepped_at=middle must be end or start"),
    ],
)
def test_impossible_milestones_are_refused_in_a_sentence(settings, said):
    with pytest.raises(UserError, match=said):
        rates(optim.multistep, 9, milestones=[1], **settings)


def test_configs_of_schedules_in_epochs_build():
    root = OmegaConf.create({"trainer": {"max_epochs": 80}})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    for name, kind in (
        ("multistep", torch.optim.lr_scheduler.LambdaLR),
        ("plateau", optim.Plateau),
    ):
        root.scheduler = OmegaConf.load(ROOT / "conf" / "scheduler" / f"{name}.yaml")
        schedule = instantiate(root.scheduler, _convert_="all")(optimizer, total_steps=800)
        assert type(schedule) is kind
    assert schedule.monitor == "val/precision_at_1"


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


def test_parameters_are_chosen_by_the_end_of_their_names():
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    groups = optim.parameter_groups(module, {"*bias": {"weight_decay": 0.0}})
    sizes = {group["name"]: [p.ndim for p in group["params"]] for group in groups}
    assert sizes == {"default": [2, 2], "*bias": [1, 1]}
    with pytest.raises(UserError, match=r"no parameter is named '\*gain"):
        optim.parameter_groups(module, {"*gain": {"lr": 1.0}})


def test_a_prefix_of_nothing_is_refused_but_a_loss_may_have_no_parameters():
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    assert len(optim.parameter_groups(module, {"loss": {"lr": 1.0}})) == 1
    with pytest.raises(UserError, match="no parameter is named 'encodr"):
        optim.parameter_groups(module, {"encodr": {"lr": 1.0}})


def test_a_line_then_half_a_cosine_is_the_released_schedule():
    golden = load("mlnoise/lr_schedule.npz")
    for row, expected in zip(golden["warmup_max_base_start_eta"], golden["lr"], strict=True):
        warmup, steps, base, start, eta = row.tolist()
        seen = rates(
            optim.warmup_cosine,
            int(steps),
            warmup_steps=int(warmup),
            start_share=start / base,
            final_share=eta / base,
        )
        expected = expected[~np.isnan(expected)]
        np.testing.assert_allclose(np.array(seen) / 2.0 * base, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("steps", "warmup"), [(10_001, 10_000), (101, 100), (100, 0)])
def test_the_length_of_the_rise_follows_the_run(steps, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    (factor,) = optim.warmup_cosine(optimizer, total_steps=steps).lr_lambdas
    assert factor(0) == (0.1 if warmup else 1.0)
    assert factor(warmup) == 1.0
    assert warmup == 0 or factor(warmup // 2) < 1.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: optim.adam([], lr=0), "^lr=0 must be a number above 0"),
        (lambda: optim.adamw([], betas=[0.9]), r"^betas=\[0\.9\] must be a list of 2"),
        (lambda: optim.adam([], betas=[0.9, 1.0]), r"^betas\[1\]=1\.0 must be a number from 0 to"),
        (lambda: optim.sgd([], lr=0.1, momentum=1), "^momentum=1 must be"),
        (lambda: rates(optim.cosine, 5, final_share=2.5), "^final_share=2.5 must be a number"),
        (lambda: rates(optim.constant, 5, warmup_steps=-1), "^warmup_steps=-1 must be a whole"),
        (lambda: rates(optim.step, 5, milestones=[2.0]), r"^milestones\[0\]=2\.0 must be a number"),
        (lambda: rates(optim.Plateau, 5, factor=1.0), "^factor=1.0 must be a number above 0"),
    ],
)
def test_settings_out_of_range_are_refused_in_a_sentence(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_optimizers_are_those_of_torch():
    weight = torch.nn.Parameter(torch.zeros(2))
    for make, kind in (
        (optim.adam, torch.optim.Adam),
        (optim.adamw, torch.optim.AdamW),
        (optim.sgd, torch.optim.SGD),
    ):
        made = make([weight], lr=0.1, weight_decay=0.01, maximize=True)
        assert type(made) is kind
        assert made.defaults == kind([weight], lr=0.1, weight_decay=0.01, maximize=True).defaults


# -- LARS and its schedule -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [optim.adam, optim.adamw])
def test_a_rate_that_leaves_no_weight_in_place_is_said(make, caplog):
    make([nn.Parameter(torch.zeros(1))], lr=1.0)
    assert not caplog.text
    make([nn.Parameter(torch.zeros(1))], lr=1e6)
    assert "optimizer.lr=1e+06 moves every weight by about that much" in caplog.text


def test_lars_is_the_released_one():
    golden = load("tldr/lars")
    number = int(golden["n_params"])
    weights = [nn.Parameter(torch.from_numpy(golden[f"p{j}_0"].copy())) for j in range(number)]
    optimizer = optim.lars(
        [{"params": weights, "name": "all"}],
        lr=1.0,
        momentum=float(golden["momentum"]),
        weight_decay=float(golden["weight_decay"]),
        trust=float(golden["eta"]),
    )
    for step, lr in enumerate(golden["lrs"], start=1):
        for j, weight in enumerate(weights):
            weight.grad = torch.from_numpy(golden[f"g{j}_{step}"].copy())
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        optimizer.step()
        for j, weight in enumerate(weights):
            vectors.close(weight.detach(), golden[f"p{j}_{step}"], atol=1e-10)


def test_lars_keeps_groups_and_their_settings():
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = optim.lars(
        [{"params": [weight, bias], "name": "head", "lr": 0.5, "weight_decay": 0.1}], lr=0.2
    )
    first, second = optimizer.param_groups
    assert (first["name"], second["name"]) == ("head", "head, one dimension")
    assert first["lr"] == second["lr"] == 0.5
    assert (first["decay"], second["decay"]) == (0.1, 0.0)
    weight.grad, bias.grad = torch.zeros(2, 2), torch.full((2,), 2.0)
    optimizer.step()
    assert torch.equal(bias.detach(), torch.zeros(2))
    # Decay alone is the gradient: the weights move by trust * lr of their length.
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 1 - 0.5 * 1e-3))
    assert len(optim.lars([weight, bias], lr=0.1).param_groups) >= 2


@pytest.mark.parametrize("name", ["default", "small", "nowarm"])
def test_the_schedule_of_twins_is_the_released_one(name):
    golden = load("tldr/lr_schedule")
    assert name in golden["names"].tolist()
    fields = dict(zip(golden["cfg_fields"].tolist(), golden[f"{name}_cfg"].tolist(), strict=True))
    epochs, n, batch = (int(fields[x]) for x in ("epochs", "n_data", "batch_size"))
    expected = golden[f"{name}_lr"]
    optimizer = torch.optim.SGD(
        [nn.Parameter(torch.zeros(1))], lr=fields["learning_rate"] * batch / 256
    )
    schedule = optim.twin_cosine(
        optimizer,
        total_steps=len(expected),
        epochs=epochs,
        warmup_epochs=int(fields["warmup_epochs"]),
        num_samples=n,
        batch_size=batch,
    )
    for lr in expected:
        assert math.isclose(optimizer.param_groups[0]["lr"], lr, rel_tol=1e-9, abs_tol=1e-12)
        optimizer.step()
        schedule.step()


def test_a_curve_of_twins_ends_with_its_run_unless_told_the_sizes():
    seen = rates(optim.twin_cosine, 20, epochs=4, warmup_epochs=1)
    assert seen[:5] == [2.0 * t / 5 for t in range(1, 6)]
    assert math.isclose(seen[19], 2.0 * 1e-3)
    with pytest.raises(UserError, match="never leave its warm-up"):
        rates(optim.twin_cosine, 20, epochs=4, warmup_epochs=4)
    with pytest.raises(UserError, match="set both"):
        rates(optim.twin_cosine, 20, epochs=4, warmup_epochs=1, num_samples=10)
