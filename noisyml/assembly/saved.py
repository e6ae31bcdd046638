"""Configurations kept in run folders, as they are read back to be built from."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.assembly.trusted import check_saved
from noisyml.command.config import flatten, top_level_keys
from noisyml.errors import UserError
from noisyml.runs.folder import STAGES_FOLDER

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from noisyml.runs.folder import RunFolder


def saved_config(folder: RunFolder, verb: str) -> DictConfig:
    """The resolved configuration of a run, to resume, evaluate or build its parts.

    It may come from anybody: what it names is checked before anything is built. Paths in the run
    folder are those of where it lies now.

    Args:
        folder: of the run.
        verb: that made it, e.g. ``train``.

    Raises:
        UntrustedError: see `noisyml.assembly.trusted`.
        UserError: an earlier version of noisyml made the run, and this one cannot build it.
    """
    from omegaconf import DictConfig, OmegaConf

    content = folder.config()
    if why := _why_older(content, verb):
        raise UserError(
            f"{folder.path} was made by an earlier version of noisyml (its configuration {why}): "
            f"`noisyml report` still reads it, but it can be neither resumed nor evaluated; "
            f"{verb} anew."
        )
    check_saved(content, folder.config_file)
    config = OmegaConf.create(_moved(content, *_places(content.get("run_dir"), folder.path)))
    assert isinstance(config, DictConfig)
    return config


def _why_older(content: dict[str, Any], verb: str) -> str | None:
    """The sign that an earlier version wrote a configuration, None if there is none.

    Every configuration has the keys of its verb's root YAML, and names modules that are there.
    """
    lacking = [key for key in top_level_keys(verb) if key not in content]
    if lacking:
        return f"lacks {', '.join(lacking)}"
    for key, value in flatten(content):
        if key.endswith("_target_") and not _exists(str(value)):
            return f"names {value}, which is gone"
    return None


def _exists(target: str) -> bool:
    """True if an import path of this package leads to something; others are not looked up."""
    parts = target.split(".")
    if parts[0] != "noisyml" or any(part.startswith("_") for part in parts):
        return True
    try:
        pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return False
    return True


def _places(before: str | None, now: Path) -> tuple[str, str]:
    """The folder of a run, of which a stage is a part, when it was written, and today."""
    then, today = Path(before or now), now.absolute()
    if then.parent.name == today.parent.name == STAGES_FOLDER:
        then, today = then.parents[1], today.parents[1]
    return str(then), str(today)


def _moved(node: Any, then: str, today: str) -> Any:
    """Nested values in which paths at or below one folder lie at or below another one."""
    if isinstance(node, Mapping):
        return {key: _moved(value, then, today) for key, value in node.items()}
    if isinstance(node, list):
        return [_moved(value, then, today) for value in node]
    if isinstance(node, str) and (node == then or node.startswith(f"{then}/")):
        return today + node.removeprefix(then)
    return node
