"""Schedules found by the runs that were trained with ``scheduler=plateau``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder


class FoundSchedule(NamedTuple):
    """The schedule that a plateau rule made of the validation scores of a run.

    Attributes:
        rates: the rate during each epoch.
        milestones: finished epochs after which the rate fell.
        best_epoch: number, from 0, of the first epoch with the best score; a replay has one more.
        factor: of each fall.
    """

    rates: list[float]
    milestones: list[int]
    best_epoch: int
    factor: float


def schedule_of_scores(
    scores: Sequence[float],
    lr: float,
    *,
    factor: float = 0.1,
    patience: int = 4,
    threshold: float = 1e-4,
) -> FoundSchedule:
    """The rates that ``scheduler=plateau`` sets if the epochs of a run end with these scores.

    The two-stage protocol of ProxyNCA++ (arXiv 2004.01113): a schedule found on held-out classes is
    replayed on all of them, up to the epoch that was best.

    Args:
        scores: one per epoch, larger is better.
        lr: rate at the start.
        factor: of the rate at each fall.
        patience: epochs without an improvement that are let pass.
        threshold: an improvement exceeds this share of the best value so far.

    Raises:
        UserError: no scores, or one that is not a number.
    """
    if not scores or any(math.isnan(score) for score in scores):
        raise UserError(
            "A schedule is replayed from the validation scores of every epoch, and some are "
            "missing: validate after every epoch (trainer.check_val_every_n_epoch=1)."
        )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    watch = ReduceLROnPlateau(
        optimizer, mode="max", factor=factor, patience=patience, threshold=threshold
    )
    rates = []
    for score in scores:
        rates.append(float(optimizer.param_groups[0]["lr"]))
        watch.step(score)
    falls = [epoch for epoch in range(1, len(rates)) if rates[epoch] < rates[epoch - 1]]
    best = max(range(len(scores)), key=lambda epoch: scores[epoch])
    return FoundSchedule(rates, falls, best, factor)


def found_schedule(run: RunFolder) -> FoundSchedule:
    """The schedule that a run with ``scheduler=plateau`` found, epochs of warm-up left out.

    Args:
        run: a finished run.

    Raises:
        UserError: the run is not there, not finished, or had another kind of schedule.
    """
    if run.status().get("state") != "finished":
        raise UserError(f"{run.path} holds no finished run whose schedule could be replayed.")
    config = run.config()
    settings = config["scheduler"] or {}
    if not str(settings.get("_target_", "")).endswith("Plateau"):
        raise UserError(
            f"The run {run.path} was not trained with scheduler=plateau, so it has no schedule "
            "to replay."
        )
    history, monitor = run.history(), settings["monitor"]
    if monitor not in history:
        raise UserError(f"The run {run.path} has no {monitor} to find a schedule from.")
    scores = history.dropna(subset=[monitor]).groupby("epoch")[monitor].last()
    warmup = int(config["method"].get("warmup_epochs", 0))
    scores = scores[scores.index >= warmup]
    return schedule_of_scores(
        [float(score) for score in scores],
        1.0,
        factor=settings["factor"],
        patience=settings["patience"],
        threshold=settings["threshold"],
    )
