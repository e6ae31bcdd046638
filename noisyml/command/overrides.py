"""Changing a saved configuration, outside Hydra: for resuming and evaluating runs."""

from __future__ import annotations

import copy

from omegaconf import DictConfig, OmegaConf

from noisyml.command.config import conf_dir, flatten, group_names
from noisyml.command.mistakes import suggest_key
from noisyml.errors import UserError, did_you_mean


def apply_overrides(config: DictConfig, overrides: list[str], *, groups: bool) -> DictConfig:
    """A copy of a resolved configuration with some values changed.

    Args:
        config: the configuration of a run.
        overrides: ``key=value``; with `groups` also ``group=option``, which replaces that part by
            the option's YAML file.
        groups: whether parts may be replaced as a whole.

    Raises:
        UserError: a key that does not exist, a part that may not be replaced, or an unknown option.
    """
    changed = copy.deepcopy(config)
    values = []
    for override in overrides:
        key, equals, text = override.lstrip("+").partition("=")
        if not equals:
            raise UserError(f"'{override}' is no setting: write key=value.")
        if not isinstance(OmegaConf.select(config, key), DictConfig) and key not in group_names():
            values.append((key, text))
        elif groups:
            _replace(changed, key, text)
        else:
            raise UserError(
                f"A resumed run keeps its {key}: start a new run with {override} instead."
            )
    known = [key for key, _ in flatten(changed)]
    for key, text in values:
        if key not in known:
            raise UserError(f"There is no setting '{key}' in this run.{suggest_key(key, known)}")
        before = OmegaConf.select(changed, key, throw_on_missing=False)
        value = OmegaConf.create(f"x: {text}").x if text else None
        if isinstance(before, int | float) and not isinstance(value, int | float):
            raise UserError(f"{key}={text} should be a number or a switch; it was {before}.")
        OmegaConf.update(changed, key, value)
    return changed


def _replace(config: DictConfig, group: str, option: str) -> None:
    file = conf_dir() / group / f"{option}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in file.parent.glob("*.yaml"))
        raise UserError(
            f"There is no {group} '{option}'.{did_you_mean(option, known)} "
            f"Choose from: {', '.join(known)}."
        )
    part = OmegaConf.load(file)
    if "defaults" in part:
        raise UserError(f"{group}={option} is made of several files and cannot be exchanged here.")
    config[group] = part
