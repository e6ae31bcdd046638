"""Runs that go before a run: a teacher for its student, a search for a schedule to be replayed.

The configuration names them in order (``stages=teacher``, or any mapping of this form)::

    stages:
      teacher:
        repeat: 1                                # so many times, each after the one before
        overrides: [method=prism, loss=triplet]  # what differs from the run itself
        without: [distillation]                  # parts it lacks

A part that a stage replaces (``method=...``) or lacks comes without the settings that the run has
for it, typed or from an experiment: they belong to another part. Each stage is a whole run of its
own in ``RUN_DIR/stages/NAME`` with its own configuration, checkpoints and metrics.
``${previous_run}`` is the folder of the stage before, in a stage as in the run itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from noisyml.command.words import words_in
from noisyml.errors import UserError
from noisyml.runs.folder import STAGES_FOLDER

if TYPE_CHECKING:
    from omegaconf import DictConfig


class StageRun(NamedTuple):
    """The configuration of a stage and its origin.

    Attributes:
        config: its composed configuration, not resolved.
        overrides: what it is composed from.
        choices: the option chosen in each group.
    """

    config: DictConfig
    overrides: list[str]
    choices: dict[str, str]


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


def compose_stages(
    config: DictConfig, typed: Sequence[str], choices: Mapping[str, str]
) -> list[StageRun]:
    """The configurations of a run's stages, in the order of `stage_folders`.

    Args:
        config: of the run itself, resolved.
        typed: the overrides it was composed from.
        choices: the option it has in each group.
    """
    found = []
    for stage in (config.get("stages") or {}).values():
        own = [str(override) for override in stage.overrides]
        composed = _compose_stage(typed, choices, own, list(stage.get("without") or ()))
        found += [copy.deepcopy(composed) for _ in range(stage.get("repeat", 1))]
    return found


def _compose_stage(
    typed: Sequence[str], of_run: Mapping[str, str], own: Sequence[str], without: Sequence[str]
) -> StageRun:
    from hydra import compose
    from omegaconf import open_dict

    # An option that the run has as well replaces nothing, and keeps its settings.
    ours = words_in(own)
    same = {word.key for word in ours if of_run.get(word.key) == word.value}
    changed = [word.key for word in ours if word.key not in same]
    overrides = [
        word.text
        for word in words_in(typed)
        if word.key not in same and not word.is_below(*changed, *without, "stages")
    ] + list(own)
    config = compose("train", overrides, return_hydra_config=True)
    choices = {
        group: option
        for group, option in config.hydra.runtime.choices.items()
        if group.partition("/")[0] != "hydra"
    }
    replaced = [key for key in changed if key in choices]
    # An experiment's values are merged last, into whatever part stands there: the parts in question
    # are taken from a configuration without it.
    theirs = [word.text for word in ours if word.is_below(*replaced)]
    if "method" not in replaced:
        theirs.append(f"method={choices['method']}")
    plain = compose("train", theirs)
    with open_dict(config):
        for part in (*replaced, *without):
            config.pop(part, None)
            if part in plain:
                config[part] = plain[part]
        # An experiment may bring the stages themselves.
        config.pop("stages", None)
        del config["hydra"]
    return StageRun(config, overrides, choices)
