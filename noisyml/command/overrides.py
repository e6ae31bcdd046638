"""Changing a saved configuration, outside Hydra: for resuming and evaluating runs."""

from __future__ import annotations

import copy

from omegaconf import DictConfig, OmegaConf

from noisyml.command.config import conf_dir, flatten, package_of
from noisyml.command.mistakes import suggest_key
from noisyml.command.words import Word, as_hydra_reads, options_of, words_in
from noisyml.errors import UserError, did_you_mean


def apply_overrides(config: DictConfig, overrides: list[str], *, groups: bool) -> DictConfig:
    """A copy of a resolved configuration with some values changed.

    Args:
        config: the configuration of a run.
        overrides: ``key=value``; with `groups` also ``group=option``, which replaces that part by
            the option's YAML file.
        groups: True if parts may be replaced as a whole.

    Raises:
        UserError: a key that does not exist, a part that may not be replaced, or an unknown option.
    """
    changed = copy.deepcopy(config)
    values = []
    for word in words_in(as_hydra_reads(overrides, sweep=False)):
        if word.value is None or word.deletes:
            raise UserError(f"'{word.text}' is no setting: write key=value.")
        if not (word.chooses or isinstance(OmegaConf.select(config, word.key), DictConfig)):
            values.append(word)
        elif groups:
            _replace(changed, word)
        else:
            raise UserError(
                f"A resumed run keeps its {word.key}: start a new run with {word.text} instead."
            )
    known = [key for key, _ in flatten(changed)]
    for word in values:
        if word.key not in known:
            hint = suggest_key(word.key, known)
            raise UserError(f"There is no setting '{word.key}' in this run.{hint}")
        before = OmegaConf.select(changed, word.key, throw_on_missing=False)
        value = word.typed_value()
        if isinstance(before, int | float) and not isinstance(value, int | float):
            was = str(before).lower() if isinstance(before, bool) else before
            raise UserError(f"{word.text} should be a number or a switch; it was {was}.")
        OmegaConf.update(changed, word.key, value)
    return changed


def _replace(config: DictConfig, word: Word) -> None:
    """Put the options that a word chooses in the place of what a group has in `config`."""
    if not word.chooses:
        raise UserError(
            f"{word.key} is no choice of one part: change its settings, {word.key}.KEY=VALUE."
        )
    parts = {}
    for option in options_of(word):
        file = conf_dir() / word.key / f"{option}.yaml"
        if not file.is_file():
            known = sorted(path.stem for path in file.parent.glob("*.yaml"))
            raise UserError(
                f"There is no {word.key} '{option}'.{did_you_mean(option, known)} "
                f"Choose from: {', '.join(known)}."
            )
        place, part = package_of(word.key, option), OmegaConf.load(file)
        if place == "_global_" or "defaults" in part:
            raise UserError(f"{word.text} is made of several parts and cannot be exchanged here.")
        parent, _, leaf = place.rpartition(".")
        if parent and leaf == option:
            # Options of this group stand beside each other by name; the old ones go.
            OmegaConf.update(config, parent, {}, merge=False, force_add=True)
        parts[place] = part
    for place, part in parts.items():
        OmegaConf.update(config, place, part, merge=False, force_add=True)
