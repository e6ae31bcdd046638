"""Policies: fixed lists of stages, and schedules that are found first and then replayed.

A mapping ``stages: {NAME: {overrides, repeat, without}, ...}`` is a fixed list (`FixedStages`); a
mapping with a ``_target_`` is any class that follows `noisyml.stages.plan.Policy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noisyml.checks import ArgumentError, WholeNonNegative, check_fields
from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder
from noisyml.stages.plan import Handover, Policy, StagePlan, StageResult
from noisyml.stages.schedules import found_schedule


@dataclass(frozen=True)
class Stage:
    """One entry of a fixed list.

    Attributes:
        overrides: what differs from the run itself.
        repeat: stages like this one after the other; 0 leaves it out.
        without: parts of the run that the stage lacks.
        also: what differs beside `overrides`, which need not be repeated then.

    Raises:
        ArgumentError: a value of another kind.
    """

    overrides: Sequence[str]
    repeat: WholeNonNegative = 1
    without: Sequence[str] = ()
    also: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    def plans(self, name: str) -> list[StagePlan]:
        """The stages it stands for, numbered if there are several."""
        overrides = [*self.overrides, *self.also]
        numbers = [""] if self.repeat == 1 else [f"_{i + 1}" for i in range(self.repeat)]
        return [
            StagePlan(name=name + number, overrides=overrides, without=self.without)
            for number in numbers
        ]


class FixedStages(Policy):
    """Stages in a fixed order, each given the folder of the one before: teachers, generations.

    Args:
        stages: by name, the settings of a `Stage`.

    Raises:
        UserError: an entry that is no such mapping.
    """

    def __init__(self, stages: Mapping[str, Any]) -> None:
        self.plans = [
            plan for name, entry in stages.items() for plan in _stage(name, entry).plans(name)
        ]

    def next(self, done: Sequence[StageResult]) -> StagePlan | None:
        """The next of the list."""
        if len(done) == len(self.plans):
            return None
        plan = self.plans[len(done)]
        previous = done[-1].path if done else None
        return StagePlan(
            name=plan.name, overrides=plan.overrides, without=plan.without, previous=previous
        )


class Continued(FixedStages):
    """Stages in a fixed order, each from the weights of the one before; the run itself too.

    What a method takes from the stage before is its encoder, and what its `load_encoder` takes
    beside it (promptcal: a projection head).

    Args:
        stages: by name, the settings of a `Stage`.

    Raises:
        UserError: an entry that is no such mapping.
    """

    def next(self, done: Sequence[StageResult]) -> StagePlan | None:
        """The next of the list, from the weights of the last one."""
        plan = super().next(done)
        if plan is None or not done:
            return plan
        return replace(plan, init_from=done[-1].path)

    def hand_over(self, done: Sequence[StageResult]) -> Handover:
        """The folder of the last stage, and its weights."""
        last = done[-1].path if done else None
        return Handover(previous=last, init_from=last)


class Development(FixedStages):
    """A run on held-out classes finds a schedule, and the run itself replays it (ProxyNCA++).

    Its falls of the rate are repeated at the same epochs, and training ends after its best one.
    Source: Teh, DeVries and Taylor, ECCV 2020 (arXiv 2004.01113), section 4.

    Args:
        development: settings of the `Stage` that finds it, with ``scheduler=plateau``.
        warmup_epochs: first epochs of the run itself, which the schedule does not count.
    """

    def __init__(self, development: Mapping[str, Any], warmup_epochs: WholeNonNegative = 0) -> None:
        super().__init__({"development": development})
        self.warmup_epochs = warmup_epochs

    def hand_over(self, done: Sequence[StageResult]) -> Handover:
        """The found schedule, and the number of epochs."""
        if not done:
            return Handover()
        run = done[-1].run
        return Handover(previous=run.path, settings=replayed(run, self.warmup_epochs))


class Replay(Policy):
    """No stage: the run itself replays the schedule that an earlier run found.

    Args:
        run: folder of a finished run with ``scheduler=plateau``.
        warmup_epochs: first epochs of the run itself, which the schedule does not count.
    """

    def __init__(self, run: str, warmup_epochs: WholeNonNegative = 0) -> None:
        self.run = run
        self.warmup_epochs = warmup_epochs

    def next(self, done: Sequence[StageResult]) -> StagePlan | None:
        """None: the other run is finished."""
        return None

    def hand_over(self, done: Sequence[StageResult]) -> Handover:
        """The found schedule, and the number of epochs."""
        run = RunFolder(Path(self.run))
        return Handover(settings=replayed(run, self.warmup_epochs))


def replayed(run: RunFolder, warmup_epochs: int) -> dict[str, Any]:
    """Settings that replay the schedule which a run has found.

    Args:
        run: a finished run with ``scheduler=plateau``.
        warmup_epochs: first epochs of the new run, which the schedule does not count.

    Raises:
        UserError: a run without such a schedule.
    """
    found = found_schedule(run)
    epochs = warmup_epochs + found.best_epoch + 1
    return {
        "trainer.max_epochs": epochs,
        "scheduler": {
            "_target_": "noisyml.optim.multistep",
            "_partial_": True,
            "epochs": epochs,
            "milestones": [warmup_epochs + epoch for epoch in found.milestones],
            "gamma": found.factor,
        },
    }


def _stage(name: str, entry: Any) -> Stage:
    known = set(Stage.__dataclass_fields__)
    if not isinstance(entry, Mapping) or "overrides" not in entry or set(entry) - known:
        raise UserError(
            f"stages.{name} must be a mapping with overrides (a list of settings) and, if wanted, "
            "repeat, without (a list of parts) and also (more settings)."
        )
    try:
        return Stage(**entry)
    except ArgumentError as error:
        raise error.below(f"stages.{name}") from None
