"""The first training steps of a method in mixed precision, beside those in full precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning
import torch
from lightning import Callback
from lightning.pytorch.plugins import MixedPrecision
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from noisyml.assembly.build import assemble
from noisyml.assembly.nodes import build

#: Scale of the first loss in 16-mixed. The usual 65536 overflows at first and skips steps until it
#: has been halved often enough, which a run does not feel; here each step is to be compared.
FIRST_SCALE = 64.0
#: Largest difference of the first losses, and smallest cosine between the first gradients, of a
#: method that works in mixed precision: rounding to three digits may move a sample over a
#: threshold, or a neighbour. Later steps begin with other weights, and small networks drift apart
#: quickly: they must have numbers, and nothing more is asked of them.
MOST_LOSS, LEAST_COSINE = 0.05, 0.9
#: Epochs between validations, of which there are none in a few steps.
_NEVER = 10**9


class Steps(NamedTuple):
    """Losses and gradients of the first steps of a training.

    Attributes:
        losses: of each step.
        gradients: of each step, [P] float64 on the CPU: of everything that is trained, in the order
            of its names; 0 where a step has none.
    """

    losses: list[float]
    gradients: list[Tensor]


class Comparison(NamedTuple):
    """The steps in mixed precision beside those in full precision.

    Attributes:
        steps: done in mixed precision.
        expected: done in full precision.
        finite: True if no loss and no gradient in mixed precision is NaN or infinite.
        first_loss: difference of the first losses, as a share of the one in full precision.
        loss: largest difference of two losses of a step, likewise.
        cosines: between the gradients of each step; 1 where both are 0.
    """

    steps: int
    expected: int
    finite: bool
    first_loss: float
    loss: float
    cosines: list[float]

    @property
    def wrong(self) -> str:
        """A clause on what no rounding explains; empty if there is nothing."""
        if self.steps != self.expected:
            return f"{self.steps} steps instead of {self.expected}"
        if not self.finite:
            return "a loss or a gradient is no number"
        return ""

    @property
    def apart(self) -> str:
        """A clause on the first step, if it is far from the one in full precision; else empty."""
        if self.first_loss > MOST_LOSS:
            return f"the first loss is off by {self.first_loss:.0%}"
        if self.cosines and self.cosines[0] < LEAST_COSINE:
            return (
                f"the first gradient has a cosine of {self.cosines[0]:.2f} with that in full "
                f"precision"
            )
        return ""


def first_steps(config: DictConfig, precision: str, number: int) -> Steps:
    """Train the first steps of a run, without a run folder.

    Args:
        config: of the run, resolved, as its folder holds it; what it stores in float64 is stored in
            float32 here.
        precision: of Lightning's trainer: ``32-true``, ``bf16-mixed``, on a card ``16-mixed``.
        number: of steps.

    Raises:
        UserError: data are missing, or parts do not go together.
    """
    config = in_single_precision(config)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    assembly = assemble(config)
    watch = _Watch(number)
    arithmetic: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cuda", init_scale=FIRST_SCALE)
        plugin = MixedPrecision("16-mixed", "cuda", scaler)
        arithmetic = {"precision": None, "plugins": [plugin]}
    trainer = build(
        config.trainer,
        callbacks=[watch],
        logger=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=_NEVER,
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        **arithmetic,
    )
    trainer.fit(assembly.method, assembly.data)
    return Steps(watch.losses, watch.gradients)


def compare(full: Steps, mixed: Steps) -> Comparison:
    """The comparison of steps in mixed precision with those in full precision.

    Args:
        full: in full precision.
        mixed: the same steps in mixed precision.
    """
    apart = [_apart(*pair) for pair in zip(full.losses, mixed.losses, strict=False)]
    gradients = zip(full.gradients, mixed.gradients, strict=False)
    finite = all(map(math.isfinite, mixed.losses))
    return Comparison(
        steps=len(mixed.gradients),
        expected=len(full.gradients),
        finite=finite and all(bool(one.isfinite().all()) for one in mixed.gradients),
        first_loss=next(iter(apart), 0.0),
        loss=max(apart, default=0.0),
        cosines=[_cosine(*pair) for pair in gradients],
    )


def in_single_precision(config: DictConfig) -> DictConfig:
    """A configuration in which nothing is stored in float64."""

    def single(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: single(value) for key, value in node.items()}
        if isinstance(node, list):
            return [single(value) for value in node]
        return "float32" if node == "float64" else node

    return OmegaConf.create(single(OmegaConf.to_container(config)))


class _Watch(Callback):
    """Notes losses and gradients, and ends training after some steps."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.losses: list[float] = []
        self.gradients: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Note the gradients, which a scaler has unscaled by now."""
        found = [torch.zeros(0, dtype=torch.float64)]
        for weight in pl_module.parameters():
            if weight.requires_grad:
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
                found.append(gradient.detach().flatten().to("cpu", torch.float64))
        self.gradients.append(torch.cat(found))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss of a step, if it has one."""
        if outputs is not None:
            self.losses.append(float(outputs["loss"]))
        if trainer.global_step >= self.number:
            trainer.should_stop = True


def _apart(full: float, mixed: float) -> float:
    return abs(mixed - full) / max(abs(full), 1e-12) if mixed != full else 0.0


def _cosine(full: Tensor, mixed: Tensor) -> float:
    if not full.any() and not mixed.any():
        return 1.0
    return float(torch.nn.functional.cosine_similarity(full, mixed, dim=0))
