"""Optimisers and learning-rate schedules whose settings are checked; parameter groups by name."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from noisyml.checks import (
    Checked,
    Count,
    Interval,
    NonNegative,
    OpenShare,
    Positive,
    Share,
    WholeNonNegative,
    checked,
)
from noisyml.errors import UserError, did_you_mean

log = logging.getLogger(__name__)

#: Parameters, or groups of them with settings of their own.
Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]
#: Lowers a rate.
Factor = Annotated[float, Interval(gt=0, lt=1)]


@checked
def sgd(
    params: Parameters,
    *,
    lr: Positive,
    momentum: OpenShare = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: bool = False,
    **settings: Any,
) -> Optimizer:
    """Stochastic gradient descent, see `torch.optim.SGD`.

    Args:
        params: what is trained.
        lr: learning rate at the top of the schedule.
        momentum: share of the last update kept.
        weight_decay: L2 penalty.
        nesterov: look-ahead momentum.
        **settings: further arguments of `torch.optim.SGD`.
    """
    return torch.optim.SGD(
        params,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
        **settings,
    )


@checked
def adam(
    params: Parameters,
    *,
    lr: Positive = 1e-3,
    weight_decay: NonNegative = 0.0,
    betas: tuple[OpenShare, OpenShare] = (0.9, 0.999),
    **settings: Any,
) -> Optimizer:
    """Adam, whose weight decay is an L2 penalty, see `torch.optim.Adam`.

    Args:
        params: what is trained.
        lr: learning rate at the top of the schedule.
        weight_decay: L2 penalty.
        betas: decay of the moment estimates.
        **settings: further arguments of `torch.optim.Adam`.
    """
    _say_if_too_large(lr)
    return torch.optim.Adam(params, lr=lr, weight_decay=weight_decay, betas=betas, **settings)


@checked
def adamw(
    params: Parameters,
    *,
    lr: Positive = 1e-3,
    weight_decay: NonNegative = 0.0,
    betas: tuple[OpenShare, OpenShare] = (0.9, 0.999),
    **settings: Any,
) -> Optimizer:
    """AdamW, whose weight decay stands beside the gradient, see `torch.optim.AdamW`.

    Args:
        params: what is trained.
        lr: learning rate at the top of the schedule.
        weight_decay: share of the weights taken off per unit of rate.
        betas: decay of the moment estimates.
        **settings: further arguments of `torch.optim.AdamW`.
    """
    _say_if_too_large(lr)
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, betas=betas, **settings)


def _say_if_too_large(lr: float) -> None:
    """Say so where every step of Adam moves every weight, of size 1 or less, by more than 1."""
    if lr > 1:
        log.warning(
            "optimizer.lr=%g moves every weight by about that much in each step of Adam: training "
            "diverges; rates from 1e-5 to 1e-2 are usual.",
            lr,
        )


@checked
def lars(
    params: Parameters,
    *,
    lr: Positive,
    momentum: OpenShare = 0.9,
    weight_decay: NonNegative = 1e-6,
    trust: Positive = 1e-3,
) -> Optimizer:
    """LARS as Barlow Twins and TLDR released it, on timm's: see `timm.optim.Lars`.

    A matrix moves by ``trust * |weights| / |gradient|`` times its gradient, weight decay being part
    of the gradient and of its length; biases and scales (one dimension) move by their gradient,
    without decay (You et al., arXiv 1708.03888; Zbontar et al., ICML 2021).

    Args:
        params: what is trained.
        lr: learning rate at the top of the schedule.
        momentum: share of the last update kept.
        weight_decay: L2 penalty on matrices.
        trust: eta, the share of its length by which a matrix moves at a rate of 1.
    """
    from timm.optim.lars import Lars

    groups: list[dict[str, Any]] = []
    for given in params:
        group = dict(given) if isinstance(given, Mapping) else {"params": [given]}
        parameters, decay = list(group.pop("params")), group.pop("weight_decay", weight_decay)
        name = group.pop("name", "default")
        matrices = [p for p in parameters if p.ndim != 1]
        others = [p for p in parameters if p.ndim == 1]
        split = {"params": matrices, "name": name, "always_adapt": True, "decay": decay}
        rest = {"params": others, "name": f"{name}, one dimension", "always_adapt": False}
        groups += [group | part for part in (split, rest | {"decay": 0.0}) if part["params"]]
    # timm adds the lengths of decay and gradient, the released code adds the vectors: the decay
    # joins the gradient before timm sees it.
    optimizer: Optimizer = Lars(groups, lr=lr, momentum=momentum, trust_coeff=trust, eps=0.0)
    optimizer.register_step_pre_hook(_decay_gradients)
    return optimizer


@torch.no_grad()
def _decay_gradients(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        trained = [p for p in group["params"] if p.grad is not None]
        if group["decay"] and trained:
            gradients = [p.grad for p in trained]
            torch._foreach_add_(gradients, trained, alpha=group["decay"])


@checked
def constant(
    optimizer: Optimizer, *, total_steps: int, warmup_steps: WholeNonNegative = 0
) -> LambdaLR:
    """A constant rate after an optional linear warm-up.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run; unused here, every schedule takes it.
        warmup_steps: steps over which the rate rises linearly from 0.
    """
    return LambdaLR(optimizer, lambda step: _warmup(step, warmup_steps))


@checked
def cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    warmup_steps: WholeNonNegative = 0,
    final_share: Share = 0.0,
) -> LambdaLR:
    """Half a cosine from the full rate at the end of the warm-up to `final_share` of it at the end.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run.
        warmup_steps: steps over which the rate rises linearly from 0.
        final_share: share of the rate left at the end.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return _warmup(step, warmup_steps)
        return _half_cosine(step, warmup_steps, total_steps, final_share)

    return LambdaLR(optimizer, factor)


@checked
def cosine_epochs(
    optimizer: Optimizer,
    *,
    total_steps: int,
    epochs: int | None,
    final_share: Share = 0.0,
) -> LambdaLR:
    """Half a cosine from epoch to epoch, constant within each, as PyTorch's `CosineAnnealingLR`.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run, an equal number for each epoch.
        epochs: epochs of the run.
        final_share: share of the rate that would be reached after the last epoch.

    Raises:
        UserError: the number of epochs is not known.
    """
    known = _known_epochs("cosine_epochs", epochs)
    return LambdaLR(
        optimizer, lambda now: _half_cosine(now * known // total_steps, 0, known, final_share)
    )


@checked
def warmup_cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    warmup_steps: WholeNonNegative | None = None,
    start_share: Share = 0.1,
    final_share: Share = 0.1,
) -> LambdaLR:
    """A line from a share of the rate up to the full one, then half a cosine down to a share.

    The schedule of the multi-label studies of Burgert et al. (arXiv 2207.13975, 2601.08446), in
    closed form; without a warm-up it starts with the full rate.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run.
        warmup_steps: W, steps of the line, its two ends included; None: 10,000 in a run of more
            steps than that, else 100 in a run of more than that, else 0.
        start_share: share of the rate in the first step of a warm-up.
        final_share: share of the rate left at the end.
    """
    if warmup_steps is None:
        warmup_steps = next((steps for steps in (10_000, 100) if total_steps > steps), 0)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return start_share + (1 - start_share) * step / max(1, warmup_steps - 1)
        return _half_cosine(step, warmup_steps, total_steps, final_share)

    return LambdaLR(optimizer, factor)


@checked
def step(
    optimizer: Optimizer,
    *,
    total_steps: int,
    milestones: Sequence[Share] = (0.5, 0.75),
    gamma: Positive = 0.1,
    warmup_steps: WholeNonNegative = 0,
) -> LambdaLR:
    """The rate is multiplied by `gamma` at each milestone.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run.
        milestones: shares of the run.
        gamma: factor at each milestone.
        warmup_steps: steps over which the rate rises linearly from 0.
    """
    at = [share * total_steps for share in milestones]
    return LambdaLR(
        optimizer,
        lambda now: _warmup(now, warmup_steps) * gamma ** sum(now >= milestone for milestone in at),
    )


@checked
def poly(
    optimizer: Optimizer,
    *,
    total_steps: int,
    power: Positive = 0.9,
    warmup_steps: WholeNonNegative = 0,
) -> LambdaLR:
    """The rate is multiplied by ``(1 - step / total_steps) ** power`` (DeepLab, ClassMix, S4GAN).

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run.
        power: of the share of the run that is left.
        warmup_steps: steps over which the rate rises linearly from 0.
    """
    return LambdaLR(
        optimizer,
        lambda now: _warmup(now, warmup_steps) * max(0.0, 1 - now / total_steps) ** power,
    )


@checked
def multistep(
    optimizer: Optimizer,
    *,
    total_steps: int,
    epochs: int | None,
    milestones: Sequence[WholeNonNegative],
    gamma: Positive = 0.1,
    stepped_at: Literal["end", "start"] = "end",
    warmup_steps: WholeNonNegative = 0,
) -> LambdaLR:
    """The rate is multiplied by `gamma` after each of several numbers of epochs.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run, an equal number for each epoch.
        epochs: epochs of the run.
        milestones: finished epochs after which the rate falls.
        gamma: factor at each milestone.
        stepped_at: ``end`` of an epoch, or its ``start`` as in PyTorch 1.0: a milestone of 40 is
            then in force in the 40th epoch, not from the 41st on.
        warmup_steps: steps over which the rate rises linearly from 0.

    Raises:
        UserError: the number of epochs is not known.
    """
    known = _known_epochs("multistep", epochs)
    early = int(stepped_at == "start")

    def factor(now: int) -> float:
        epoch = now * known // total_steps + early
        return _warmup(now, warmup_steps) * gamma ** sum(epoch >= at for at in milestones)

    return LambdaLR(optimizer, factor)


@checked
def exponential(
    optimizer: Optimizer,
    *,
    total_steps: int,
    epochs: int | None,
    gamma: Positive = 0.9,
    warmup_steps: WholeNonNegative = 0,
) -> LambdaLR:
    """The rate is multiplied by `gamma` after every epoch.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run, an equal number for each epoch.
        epochs: epochs of the run.
        gamma: factor after each epoch.
        warmup_steps: steps over which the rate rises linearly from 0.

    Raises:
        UserError: the number of epochs is not known.
    """
    known = _known_epochs("exponential", epochs)
    return LambdaLR(
        optimizer,
        lambda now: float(_warmup(now, warmup_steps) * gamma ** (now * known // total_steps)),
    )


@checked
def exponential_steps(
    optimizer: Optimizer,
    *,
    total_steps: int,
    gamma: Positive = 0.9,
    decay_steps: Count = 10_000,
    warmup_steps: WholeNonNegative = 0,
) -> LambdaLR:
    """The rate is multiplied by ``gamma ** (1 / decay_steps)`` after every step.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run; unused here, every schedule takes it.
        gamma: factor after `decay_steps`.
        decay_steps: see `gamma`.
        warmup_steps: steps over which the rate rises linearly from 0.
    """
    return LambdaLR(
        optimizer, lambda now: float(_warmup(now, warmup_steps) * gamma ** (now / decay_steps))
    )


@checked
def twin_cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    epochs: Count,
    warmup_epochs: WholeNonNegative = 10,
    final_share: Share = 1e-3,
    num_samples: Count | None = None,
    batch_size: Count | None = None,
) -> LambdaLR:
    """A line from 0 over whole epochs, then half a cosine: the schedule of Barlow Twins and TLDR.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run.
        epochs: epochs of the run.
        warmup_epochs: epochs of the line, fewer than those of the run.
        final_share: share of the rate left at the end.
        num_samples: N; with `batch_size` the curve has the released length ``epochs * N / B``,
            although an incomplete last batch is left out and the run ends a little before it. None:
            the curve ends with the run.
        batch_size: B, see `num_samples`.

    Raises:
        UserError: a warm-up that never ends, or only one of the two sizes.
    """
    if warmup_epochs >= epochs:
        raise UserError(
            f"warmup_epochs={warmup_epochs} must be fewer than the {epochs} epochs of the run: the "
            f"rate would never leave its warm-up."
        )
    if (num_samples is None) != (batch_size is None):
        raise UserError("scheduler.num_samples and scheduler.batch_size go together: set both.")
    last, first = total_steps, total_steps * warmup_epochs // epochs
    if num_samples is not None and batch_size is not None:
        last, first = (n * num_samples // batch_size for n in (epochs, warmup_epochs))

    def factor(step: int) -> float:
        now = step + 1  # the released code counts from 1
        return now / first if now < first else _half_cosine(now, first, last, final_share)

    return LambdaLR(optimizer, factor)


@checked
def multistep_steps(
    optimizer: Optimizer,
    *,
    total_steps: int,
    milestones: Sequence[WholeNonNegative],
    gamma: Positive = 0.1,
    warmup_steps: WholeNonNegative = 0,
    warmup_share: Share = 1 / 3,
) -> LambdaLR:
    """The rate is multiplied by `gamma` after each of several numbers of steps.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run; unused here, every schedule takes it.
        milestones: finished steps after which the rate falls.
        gamma: factor at each milestone.
        warmup_steps: steps over which the rate rises linearly.
        warmup_share: share of the rate that the rise begins with.
    """

    def factor(now: int) -> float:
        rise = 1.0
        if now < warmup_steps:
            rise = warmup_share + (1 - warmup_share) * now / warmup_steps
        return rise * gamma ** sum(now >= at for at in milestones)

    return LambdaLR(optimizer, factor)


def _known_epochs(name: str, epochs: int | None) -> int:
    if epochs is None or epochs < 1:
        raise UserError(
            f"scheduler={name} counts epochs, and trainer.max_epochs={epochs}: set it, or use "
            f"scheduler=step, which counts shares of the run."
        )
    return epochs


class Plateau(Checked, LRScheduler):
    """Multiplies the rate by `factor` where a validation metric has stopped rising.

    A step leaves the rate as it is; `observe` is told the metrics after every validation, before
    a checkpoint of that moment is written.

    Args:
        optimizer: whose rates are scheduled.
        total_steps: steps of the run; unused here, every schedule takes it.
        monitor: name of the metric, larger is better.
        factor: of the rate.
        patience: validations without an improvement that are let pass; the next lowers the rate.
        threshold: an improvement exceeds this share of the best value so far.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int = 0,
        monitor: str = "val/precision_at_1",
        factor: Factor = 0.1,
        patience: WholeNonNegative = 4,
        threshold: NonNegative = 1e-4,
    ) -> None:
        self.monitor = monitor
        self._watch = ReduceLROnPlateau(
            optimizer, mode="max", factor=factor, patience=patience, threshold=threshold
        )
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rates as they are."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Lower the rates if the metric has not risen for too long.

        Args:
            metrics: of one validation, by name.

        Raises:
            UserError: the metric is not among them.
        """
        if self.monitor not in metrics:
            raise UserError(
                f"scheduler.monitor={self.monitor} is not measured."
                f"{did_you_mean(self.monitor, metrics)} There are {', '.join(metrics)}."
            )
        self._watch.step(metrics[self.monitor])

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        state = {name: x for name, x in super().state_dict().items() if name != "_watch"}
        return {"schedule": state, "watch": self._watch.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        super().load_state_dict(state_dict["schedule"])
        self._watch.load_state_dict(state_dict["watch"])


def _half_cosine(step: int, first: int, last: int, final_share: float) -> float:
    """From 1 at step `first` to `final_share` at step `last` and later."""
    progress = min(1.0, (step - first) / max(1, last - first))
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def parameter_groups(
    module: nn.Module, settings: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Split trainable parameters into groups by the longest matching part of their names.

    Args:
        module: whose parameters are trained.
        settings: prefix of a parameter's name (``loss``, ``encoder.head``), or with a star its end
            (``*bias``), to optimiser arguments (``lr``, ``weight_decay``) that differ from the
            optimiser's own.

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
    if prefix.startswith("*"):
        return name.endswith(prefix[1:])
    return prefix == "" or name == prefix or name.startswith(f"{prefix}.")


#: Optimiser and schedule as configured: everything but parameters and run length is filled in.
OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
SchedulerFactory = Callable[..., LambdaLR | Plateau]
