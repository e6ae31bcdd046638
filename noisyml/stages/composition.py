"""The configuration of a stage: the run's own, with what the stage replaces or lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from noisyml.command.words import words_in
from noisyml.stages.plan import StagePlan

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Composes the root configuration with overrides; Hydra's own part of it under ``hydra``.
Compose = Callable[[Sequence[str]], "DictConfig"]
#: Keys that the options of the group ``method`` write outside their own node.
_WRITTEN_BY_METHOD = "param_groups"


class StageRun(NamedTuple):
    """A stage's configuration and its origin.

    Attributes:
        config: its composed configuration, not resolved.
        overrides: what it is composed from.
        choices: the option chosen in each group.
    """

    config: DictConfig
    overrides: list[str]
    choices: dict[str, str]


def compose_stage(
    plan: StagePlan, compose: Compose, typed: Sequence[str], of_run: Mapping[str, str]
) -> StageRun:
    """The configuration of a stage.

    A part that it replaces (``method=...``) or lacks comes without the settings that the run has
    for it, typed or from an experiment: they belong to another part.

    Args:
        plan: of the stage.
        compose: see `Compose`.
        typed: the overrides that the run itself is composed from.
        of_run: the option it has in each group.
    """
    from omegaconf import open_dict

    own, without = list(plan.overrides), list(plan.without)
    # An option that the run has as well replaces nothing, and keeps its settings.
    ours = words_in(own)
    same = {word.key for word in ours if of_run.get(word.key) == word.value}
    changed = [word.key for word in ours if word.key not in same]
    if "method" in changed:
        changed.append(_WRITTEN_BY_METHOD)
    overrides = [
        word.text
        for word in words_in(typed)
        if word.key not in same and not word.is_below(*changed, *without, "stages")
    ] + own
    config = compose(overrides)
    choices = chosen_options(config)
    replaced = [key for key in changed if key in choices or key == _WRITTEN_BY_METHOD]
    # An experiment's values are merged last, into whatever part stands there: the parts in question
    # are taken from a configuration without it.
    theirs = [word.text for word in ours if word.is_below(*replaced)]
    if "method" not in replaced:
        theirs.append(f"method={choices['method']}")
    plain = compose(theirs)
    with open_dict(config):
        for part in (*replaced, *without):
            config.pop(part, None)
            if part in plain:
                config[part] = plain[part]
        # An experiment may bring the stages themselves.
        config.pop("stages", None)
    return StageRun(config, overrides, choices)


def chosen_options(config: DictConfig) -> dict[str, str]:
    """The option chosen in each group, Hydra's own groups left out."""
    return {
        group: option
        for group, option in config.hydra.runtime.choices.items()
        if group.partition("/")[0] != "hydra"
    }
