"""Configurations kept in run folders, as they are read back to be built from."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from noisyml.command.config import flatten, top_level_keys
from noisyml.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from noisyml.runs.folder import RunFolder


def saved_config(folder: RunFolder, verb: str) -> DictConfig:
    """The resolved configuration of a run, to resume, evaluate or build its parts.

    Args:
        folder: of the run.
        verb: that made it, e.g. ``train``.

    Raises:
        UserError: an earlier version of noisyml made the run, and this one cannot build it.
    """
    from omegaconf import OmegaConf

    content = folder.config()
    if why := _why_older(content, verb):
        raise UserError(
            f"{folder.path} was made by an earlier version of noisyml (its configuration {why}): "
            f"`noisyml report` still reads it, but it can be neither resumed nor evaluated; "
            f"{verb} anew."
        )
    return OmegaConf.create(content)


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
    if not target.startswith("noisyml."):
        return True
    try:
        pkgutil.resolve_name(target)
    except (ImportError, AttributeError):
        return False
    return True
