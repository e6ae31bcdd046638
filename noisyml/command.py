"""Running a verb under Hydra: sweeps, ``--cfg``, completion, and errors in one sentence."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from noisyml import __version__
from noisyml.config import conf_dir, register_resolvers
from noisyml.errors import EXIT_USER_ERROR, SweepError, UserError
from noisyml.explain import as_user_error, check_flags, check_types

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Verbs whose first word is an action, for completion.
ACTIONS = {"data": ("check", "show")}


def run_hydra(task: Callable[[DictConfig], Any], root: str, verb: str, arguments: list[str]) -> int:
    """Run `task` under Hydra (sweeps, ``--cfg``, ``--help``, launchers) with our error messages.

    Args:
        task: receives the composed configuration of each job.
        root: name of the root YAML, e.g. ``train``.
        verb: the word typed after ``noisyml``; shown in help texts.
        arguments: what was typed after the verb.

    Raises:
        UserError: any mistake a user can make, in one sentence.
    """
    import hydra

    check_flags(arguments)
    if "--version" in arguments:
        print(__version__)
        return 0
    register_resolvers()
    # A reader that closes the pipe (head) is no reason for pages about logging.
    logging.raiseExceptions = False
    logging.getLogger("hydra._internal.core_plugins.basic_launcher").setLevel(logging.WARNING)
    try:
        check_types(root, overrides_in(arguments))
    except UserError:
        raise
    except Exception as error:
        raise as_user_error(error, root, overrides_in(arguments)) from error
    saved_argv, saved_env = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [f"{sys.argv[0]}", *arguments]
    # Hydra then hands us the exception itself instead of printing its own account of it.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    typed = overrides_in(arguments)
    failed: list[Exception] = []
    jobs = 0

    def guarded(config: DictConfig) -> Any:
        nonlocal jobs
        jobs += 1
        try:
            return task(config)
        except Exception as error:
            mended = as_user_error(error, root, typed)
            if isinstance(mended, SweepError) or not _runs_here():
                raise mended from error
            if not isinstance(mended, UserError):
                raise
            # The other jobs of a sweep go on; that some failed is said again at the end.
            failed.append(mended)
            if "-m" in arguments or "--multirun" in arguments:
                print(f"noisyml: {mended}", file=sys.stderr)
            return None

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=root)(guarded)()
    except Exception as error:
        raise as_user_error(error, root, typed) from error
    finally:
        sys.argv = saved_argv
        if saved_env is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = saved_env
    if failed and not {"-m", "--multirun"} & set(arguments):
        raise failed[0]
    if failed:
        print(f"noisyml: {len(failed)} of {jobs} jobs failed, see above.", file=sys.stderr)
    return EXIT_USER_ERROR if failed else 0


def swept_keys(arguments: list[str], params: Mapping[str, Any]) -> dict[str, int]:
    """The settings a sweep varies, with their numbers of values.

    Args:
        arguments: what was typed after the verb.
        params: ``hydra.sweeper.params``; a key that is also typed counts as typed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    configured = [f"{key}={value}" for key, value in params.items()]
    parsed = OverridesParser.create().parse_overrides([*configured, *overrides_in(arguments)])
    found: dict[str, int] = {}
    for override in parsed:
        found.pop(override.key_or_group, None)
        if override.is_sweep_override():
            found[override.key_or_group] = len(list(override.sweep_string_iterator()))
    return found


def _runs_here() -> bool:
    """True unless a launcher has moved the job into another process."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().launcher.get("_target_", "")).endswith("BasicLauncher")


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


def overrides_in(arguments: list[str]) -> list[str]:
    """What was typed, without options and their values."""
    from hydra._internal.utils import get_args_parser

    return list(get_args_parser().parse_known_args(arguments)[0].overrides)
