"""One step of TLDR outside of a run, and the advice on steps that are too few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from noisyml.methods.vectors.twins import Twins

#: Lengths by which LARS must be able to move a matrix for a fit that does not stay near its start.
ENOUGH_TRAVEL = 5.0


def train_on_pairs(
    encoder: nn.Module,
    twins: Twins,
    optimizer: Optimizer,
    schedule: LRScheduler,
    pairs: Iterable[tuple[Tensor, Tensor]],
) -> Iterator[Tensor]:
    """Take a step on each batch of pairs; gives its loss, detached, which need not be read.

    Args:
        encoder: [B, D] to codes [B, d], in training mode.
        twins: projector, normalisation and loss.
        optimizer: of the parameters of both.
        schedule: stepped after each batch.
        pairs: both sides [B, D] of a batch.
    """
    for first, second in pairs:
        loss = twins(
            encoder(first), encoder(second), lambda sides=(first, second): torch.cat(sides)
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.detach()


def lack_of_steps(steps: int, rate: float, momentum: float, trust: float) -> str | None:
    """A sentence on a run in which LARS cannot move the weights far; None where it can.

    A matrix moves by about ``rate * trust / (1 - momentum)`` of its length in a step, and the
    cosine halves that on average.

    Args:
        steps: of the run.
        rate: learning rate at the top of the schedule.
        momentum: of the optimiser.
        trust: its share of a matrix's length.

    Example:
        >>> lack_of_steps(10_000, 0.8, 0.9, 1e-3) is None
        True
        >>> lack_of_steps(800, 0.1, 0.9, 1e-3).split(", ")[0]
        '800 steps at a rate of 0.1 move the weights by at most 0.4 times their length'
    """
    travel = steps * rate * trust / (1 - momentum) / 2
    if travel >= ENOUGH_TRAVEL:
        return None
    return (
        f"{steps} steps at a rate of {rate:g} move the weights by at most {travel:.2g} times their "
        f"length, which leaves them near their start: raise the learning rate about "
        f"{2 * ENOUGH_TRAVEL / travel:.2g}-fold, or train longer."
    )
