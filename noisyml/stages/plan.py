"""Interface of policies: what a stage is made from, what it hands on, what it resulted in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from noisyml.checks import Checked
from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder

_Plan = TypeVar("_Plan", bound="Handover")


class StageUnfinishedError(Exception):
    """The results of a stage were asked for before it is finished."""


@dataclass(frozen=True)
class StageResult:
    """A stage of a run: known by its folder from the start, by its results when it is finished.

    A policy that asks for results too early is interrupted by `StageUnfinishedError` and asked
    again when the stage is finished; it need not care.

    Attributes:
        path: folder of the stage.
    """

    path: Path

    @property
    def name(self) -> str:
        """The stage's name, which its folder bears."""
        return self.path.name

    @property
    def finished(self) -> bool:
        """True if the stage has been trained and tested."""
        return RunFolder(self.path).status().get("state") == "finished"

    @property
    def run(self) -> RunFolder:
        """The run folder with all results.

        Raises:
            StageUnfinishedError: they are not there yet.
        """
        if not self.finished:
            raise StageUnfinishedError(self.name)
        return RunFolder(self.path)

    @property
    def metrics(self) -> dict[str, float]:
        """Final metrics by name (``val/map_at_r``); an undefined one is NaN.

        Raises:
            StageUnfinishedError: they are not there yet.
        """
        return self.run.metrics()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration as plain dictionaries.

        Raises:
            StageUnfinishedError: the stage is not finished.
        """
        return self.run.config()


@dataclass(frozen=True, kw_only=True)
class Handover:
    """Settings that a stage, or the run itself, is given by the stages before it.

    Attributes:
        previous: run folder that ``${previous_run}`` stands for in its configuration.
        init_from: run folder or checkpoint whose encoder it starts from (``init_from``).
        settings: values by their keys (``trainer.max_epochs``, or a whole part), set before the
            configuration is resolved; its ``config.yaml`` shows them.
    """

    previous: Path | None = None
    init_from: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StagePlan(Handover):
    """Recipe of a stage, beyond the run's own configuration.

    Attributes:
        name: of its folder, one of its own for each stage of a run.
        overrides: what differs from the run itself, as typed: ``method=prism``, ``loss.margin=1``.
        without: parts that it lacks.
        previous: see `Handover`.
        init_from: see `Handover`.
        settings: see `Handover`.

    Raises:
        UserError: a name that is no folder's.
    """

    name: str
    overrides: Sequence[str] = ()
    without: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith(".") or "/" in self.name:
            raise UserError(f"A stage cannot be called '{self.name}': its folder bears the name.")


class Policy(Checked, ABC):
    """Decides from the results so far what is trained next, before the run itself.

    The same results must lead to the same decision, chance included (draw from a generator seeded
    by a setting and the number of stages): an interrupted run may ask again. What was decided is
    kept and not asked for again.
    """

    @abstractmethod
    def next(self, done: Sequence[StageResult]) -> StagePlan | None:
        """The next stage.

        Args:
            done: all stages so far, in the order of their plans.

        Returns:
            Its plan, or None to go on to the run itself.
        """

    def hand_over(self, done: Sequence[StageResult]) -> Handover:
        """Settings that the run itself is given; by default the folder of the last stage.

        Args:
            done: all stages, in the order of their plans.
        """
        return Handover(previous=done[-1].path if done else None)


def to_plain(handover: Handover) -> dict[str, Any]:
    """A plan as values that JSON can hold; `StagePlan` and `Handover` take them back."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    found = plain(asdict(handover))
    assert isinstance(found, dict)
    return found


def from_plain(kind: type[_Plan], values: Mapping[str, Any]) -> _Plan:
    """Undo `to_plain`."""
    paths = {key: Path(values[key]) for key in ("previous", "init_from") if values[key]}
    return kind(**{**values, **paths})
