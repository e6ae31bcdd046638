"""Runs that go before a run: a teacher for its student, a search for a schedule to be replayed.

The configuration names them in order (``stages=teacher``, or any mapping of this form)::

    stages:
      teacher:
        repeat: 1                                # so many times, each after the one before
        overrides: [method=prism, loss=triplet]  # what differs from the run itself
        without: [distillation]                  # parts it lacks, with what was typed for them

Each is a whole run of its own in ``RUN_DIR/stages/NAME`` with its own configuration, checkpoints
and metrics. ``${previous_run}`` is the folder of the stage before, in a stage as in the run itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from noisyml.errors import UserError
from noisyml.runs import STAGES_FOLDER

if TYPE_CHECKING:
    from omegaconf import DictConfig


def stage_folders(run_dir: Path, config: DictConfig) -> list[Path]:
    """The folders of a run's stages, in the order in which they are trained.

    Raises:
        UserError: a stage that is not described as the head of this module says.
    """
    folders = []
    for name, stage in (config.get("stages") or {}).items():
        if (
            stage is None
            or "overrides" not in stage
            or set(stage) - {"overrides", "repeat", "without"}
        ):
            raise UserError(
                f"stages.{name} must be a mapping with overrides (a list of settings) and, if "
                "wanted, repeat and without (a list of parts)."
            )
        repeat = stage.get("repeat", 1)
        if not isinstance(repeat, int) or repeat < 0:
            raise UserError(f"stages.{name}.repeat={repeat} must be a whole number from 0 up.")
        numbers = [""] if repeat == 1 else [f"_{i + 1}" for i in range(repeat)]
        folders += [run_dir / STAGES_FOLDER / f"{name}{number}" for number in numbers]
    return folders


def stage_overrides(config: DictConfig, typed: Sequence[str]) -> list[list[str]]:
    """For each stage, the overrides it is composed from: what was typed, then what differs.

    A part that the stage replaces (``method=...``) or lacks takes the typed settings below it
    along.
    """
    found = []
    for stage in (config.get("stages") or {}).values():
        own = [str(override) for override in stage.overrides]
        replaced = {_key(override) for override in own} | set(stage.get("without") or ())
        kept = [
            override
            for override in typed
            if not any(_key(override) == r or _key(override).startswith(f"{r}.") for r in replaced)
            and _key(override).partition(".")[0] != "stages"
        ]
        found += [[*kept, *own]] * int(stage.get("repeat", 1))
    return found


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
