"""Tab completion of verbs, groups, options and settings."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from noisyml.command.config import conf_dir
from noisyml.command.hydra import run_hydra

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Verbs whose first word is an action.
ACTIONS = {"data": ("check", "show")}


def complete_shell(arguments: list[str], verbs: list[str]) -> int:
    """Serve ``noisyml -sc install=bash`` and the queries of the script it prints."""
    line = os.environ.get("COMP_LINE", "")
    if not any(argument.startswith("query=") for argument in arguments):
        return run_hydra(_no_task, "train", "train", arguments)
    words = line.split()
    complete = line.endswith(" ")
    if len(words) < 2 or (len(words) == 2 and not complete):
        typed = words[1] if len(words) == 2 else ""
        print(" ".join(verb for verb in verbs if verb.startswith(typed)))
        return 0
    verb, rest = words[1], line.split(words[1], 1)[1].lstrip()
    actions = ACTIONS.get(verb)
    if actions and (len(words) == 2 or (len(words) == 3 and not complete)):
        typed = "" if complete else words[2]
        print(" ".join(action for action in actions if action.startswith(typed)))
        return 0
    if actions and words[2] in actions:
        rest = rest.split(words[2], 1)[1].lstrip()
    if verb not in verbs or not (conf_dir() / f"{verb}.yaml").is_file():
        return 0
    os.environ["COMP_LINE"] = f"{words[0]} {rest}"
    # Whatever is wrong with a half-typed line, the prompt is no place to say it.
    with contextlib.suppress(Exception), contextlib.redirect_stderr(None):
        run_hydra(_no_task, verb, verb, arguments)
    return 0


def _no_task(config: DictConfig) -> None:
    """Nothing to run: Hydra only answers a completion query."""
