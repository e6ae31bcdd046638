"""Learning-rate schedules per step, and parameter groups by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from noisyml.errors import UserError


def constant(optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0) -> LambdaLR:
    """A constant rate after an optional linear warm-up.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run; unused here, every schedule takes it.
        warmup_steps: steps over which the rate rises linearly from 0.
    """
    return LambdaLR(optimizer, lambda step: _warmup(step, warmup_steps))


def cosine(
    optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0, final_share: float = 0.0
) -> LambdaLR:
    """Half a cosine from the full rate at the end of the warm-up to `final_share` of it at the end.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run.
        warmup_steps: steps over which the rate rises linearly from 0.
        final_share: share of the rate left at the end, in [0, 1].
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return _warmup(step, warmup_steps)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def step(
    optimizer: Optimizer,
    *,
    total_steps: int,
    milestones: Iterable[float] = (0.5, 0.75),
    gamma: float = 0.1,
    warmup_steps: int = 0,
) -> LambdaLR:
    """The rate is multiplied by `gamma` at each milestone.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run.
        milestones: shares of the run, in (0, 1).
        gamma: factor at each milestone.
        warmup_steps: steps over which the rate rises linearly from 0.
    """
    at = [share * total_steps for share in milestones]
    return LambdaLR(
        optimizer,
        lambda now: _warmup(now, warmup_steps) * gamma ** sum(now >= milestone for milestone in at),
    )


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def parameter_groups(
    module: nn.Module, settings: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Split trainable parameters into groups by the longest matching name prefix.

    Args:
        module: whose parameters are trained.
        settings: prefix of a parameter's name (``loss``, ``encoder.head``) to optimiser arguments
            (``lr``, ``weight_decay``) that differ from the optimiser's own.

    Returns:
        Groups for a `torch.optim` optimiser; empty ones are left out.

    Raises:
        UserError: a prefix fits no parameter of the module, trained or frozen.
    """
    names = [name for name, _ in module.named_parameters()]
    for prefix in settings:
        # Losses without parameters are common: a setting for them is idle, not wrong.
        if prefix != "loss" and not any(_below(name, prefix) for name in names):
            known = sorted({name.partition(".")[0] for name in names})
            raise UserError(
                f"param_groups: no parameter is named '{prefix}...'; there are {', '.join(known)}."
            )
    groups: dict[str, dict[str, Any]] = {"": {"params": [], "name": "default"}}
    for prefix, changed in settings.items():
        groups[prefix] = {"params": [], "name": prefix, **changed}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            prefix = max((p for p in groups if _below(name, p)), key=len)
            groups[prefix]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _below(name: str, prefix: str) -> bool:
    return prefix == "" or name == prefix or name.startswith(f"{prefix}.")


#: Optimiser and schedule as configured: everything but parameters and run length is filled in.
OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
SchedulerFactory = Callable[..., LambdaLR]
