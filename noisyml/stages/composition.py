"""The configuration of a stage: the run's own, with what the stage replaces or lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from noisyml.command.config import package_of
from noisyml.command.words import Word, words_in
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
    places = {word.key: _place(word) for word in ours if word.key in changed and word.chooses}
    changed += [place for place in places.values() if place not in changed]
    overrides = [
        word.text
        for word in words_in(typed)
        if word.key not in same and not word.is_below(*changed, *without, "stages")
    ] + own
    config = compose(overrides)
    choices = chosen_options(config)
    replaced = [
        key
        for key in changed
        if key in choices or key == _WRITTEN_BY_METHOD or key in places.values()
    ]
    # An experiment's values are merged last, into whatever part stands there: the parts in question
    # are taken from a configuration without it.
    theirs = [word.text for word in ours if word.is_below(*replaced)]
    if "method" not in replaced:
        theirs.append(f"method={choices['method']}")
    plain = compose(theirs)
    with open_dict(config):
        for part in (*replaced, *without):
            _exchange(config, part, plain)
        # An experiment may bring the stages themselves.
        config.pop("stages", None)
    return StageRun(config, overrides, choices)


def _place(word: Word) -> str:
    """The dotted key under which the settings of a chosen option stand."""
    option = str(word.value)
    try:
        place = package_of(word.key, option)
    except OSError:  # an option of one's own folder, or no option at all
        return word.key
    parent, _, leaf = place.rpartition(".")
    if place == "_global_":
        return word.key
    return parent if leaf == option else place


def _exchange(config: DictConfig, part: str, plain: DictConfig) -> None:
    """Put a part of `plain` in the place of that of `config`; nothing where it has none."""
    from omegaconf import OmegaConf

    parent, _, leaf = part.rpartition(".")
    holder = OmegaConf.select(config, parent) if parent else config
    if holder is None:
        return
    holder.pop(leaf, None)
    given = OmegaConf.select(plain, parent) if parent else plain
    if given is not None and leaf in given:
        # Not its value: interpolations are resolved later.
        holder[leaf] = given._get_node(leaf)


def chosen_options(config: DictConfig) -> dict[str, str]:
    """The option chosen in each group, Hydra's own groups left out."""
    return {
        group: option
        for group, option in config.hydra.runtime.choices.items()
        if group.partition("/")[0] != "hydra"
    }
