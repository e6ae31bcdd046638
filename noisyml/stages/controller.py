"""Drives a run made of stages: decides, prepares and remembers them in ``stages.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from noisyml.errors import UserError
from noisyml.runs.folder import ADVICE, STAGES_FOLDER, RunFolder
from noisyml.stages.plan import (
    Handover,
    Policy,
    StagePlan,
    StageResult,
    StageUnfinishedError,
    from_plain,
    to_plain,
)
from noisyml.storage.files import write_atomically
from noisyml.storage.reading import read_json, reading


class StageController:
    """The stages of one run, decided by a policy as early as the results allow.

    ``stages.json`` lists the plans in the order in which they were decided, what the run itself is
    given once that is decided (``run``), whether its ``config.yaml`` says so (``applied``), and
    where configurations come from (``origin``). Every step is written before it is acted upon, so
    that a killed run goes on from wherever it was.

    Args:
        folder: of the run.
        policy: decides.
        prepare: writes the configuration of a stage into a folder.
        apply: writes the run's own configuration with what it is given.
    """

    def __init__(
        self,
        folder: RunFolder,
        policy: Policy,
        *,
        prepare: Callable[[RunFolder, StagePlan], None],
        apply: Callable[[Handover], None],
    ) -> None:
        self.folder = folder
        self.policy = policy
        self._prepare = prepare
        self._apply = apply

    def begin(self, origin: Mapping[str, Any]) -> None:
        """Start anew, and decide what needs no results.

        Args:
            origin: where configurations come from; kept for `origin_of`.

        Raises:
            UserError: a stage that cannot be composed.
        """
        self._write({"origin": dict(origin), "stages": [], "run": None, "applied": False})
        self._decide()

    def results(self) -> list[StageResult]:
        """The stages decided so far, finished or not."""
        return [self._result(plan["name"]) for plan in _read(self.folder)["stages"]]

    def pending(self) -> Iterator[RunFolder]:
        """The stages that are to be trained, one after the other; the caller trains each.

        As soon as it is decided what the run itself is given, its configuration says so.

        Raises:
            UserError: a stage that cannot be composed, or names that a policy gives twice.
        """
        while True:
            self._decide()
            record = _read(self.folder)
            if record["run"] is not None and not record["applied"]:
                self._apply(from_plain(Handover, record["run"]))
                self._write({**record, "applied": True})
            waiting = [result for result in self.results() if not result.finished]
            if not waiting:
                return
            yield RunFolder(waiting[0].path)
            if not waiting[0].finished:
                raise RuntimeError(f"The stage {waiting[0].name} was not trained.")

    def _decide(self) -> None:
        """Decide as far as the results allow, and prepare what was decided."""
        record = _read(self.folder)
        try:
            while record["run"] is None:
                results = [self._result(plan["name"]) for plan in record["stages"]]
                plan = self.policy.next(results)
                if plan is None:
                    record["run"] = to_plain(self.policy.hand_over(results))
                elif plan.name in [result.name for result in results]:
                    raise UserError(
                        f"{type(self.policy).__name__} plans a second stage '{plan.name}': each "
                        f"stage needs a name of its own."
                    )
                else:
                    record["stages"].append(to_plain(plan))
        except StageUnfinishedError:
            pass  # asked again when that stage is finished
        self._write(record)
        for values in record["stages"]:
            stage = RunFolder(self._result(values["name"]).path)
            if not stage.is_run():
                self._prepare(stage, from_plain(StagePlan, values))

    def _result(self, name: str) -> StageResult:
        return StageResult(self.folder.path / STAGES_FOLDER / name)

    def _write(self, record: Mapping[str, Any]) -> None:
        write_atomically(self.folder.stages_file, json.dumps(record, indent=2) + "\n")


def possible_handovers(folder: RunFolder) -> list[Handover]:
    """Settings in the ``config.yaml`` of a run that its stages may have given it.

    Nothing while that is undecided; for a run that was killed before it could be noted that the
    file is written, both.
    """
    record = _read(folder) if folder.stages_file.is_file() else {"run": None}
    if record["run"] is None:
        return [Handover()]
    given = from_plain(Handover, record["run"])
    return [given] if record["applied"] else [Handover(), given]


def origin_of(folder: RunFolder) -> dict[str, Any]:
    """Origin of the configurations of a run's stages, as `StageController.begin` was told it.

    Raises:
        UserError: the run was begun by a version that kept no record of its stages.
    """
    return dict(_read(folder)["origin"])


def _read(folder: RunFolder) -> dict[str, Any]:
    if not folder.stages_file.is_file():
        raise UserError(
            f"{folder.path} has stages but no {folder.stages_file.name}: an earlier version of "
            "noisyml began it, and it cannot be resumed; start it anew."
        )
    record = read_json(folder.stages_file, ADVICE)
    with reading(folder.stages_file, ADVICE):
        return {key: record[key] for key in ("origin", "stages", "run", "applied")}
