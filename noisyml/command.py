"""Running a verb under Hydra: sweeps, ``--cfg``, completion, and errors in one sentence."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from noisyml.config import conf_dir, register_resolvers
from noisyml.errors import UserError
from noisyml.explain import as_user_error, check_flags, check_types

if TYPE_CHECKING:
    from omegaconf import DictConfig


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
    register_resolvers()
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
    failed: list[str] = []
    jobs = 0

    def guarded(config: DictConfig) -> Any:
        nonlocal jobs
        jobs += 1
        try:
            return task(config)
        except UserError as error:
            if not _runs_here():
                raise
            # The other jobs of a sweep go on; what failed is said again at the end.
            failed.append(str(error))
            print(f"noisyml: {error}", file=sys.stderr)
            return None

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=root)(guarded)()
    except Exception as error:
        raise as_user_error(error, root, overrides_in(arguments)) from error
    finally:
        sys.argv = saved_argv
        if saved_env is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = saved_env
    if jobs > 1 and failed:
        print(f"noisyml: {len(failed)} of {jobs} jobs failed, see above.", file=sys.stderr)
    return 2 if failed else 0


def count_jobs(arguments: list[str], params: Mapping[str, Any]) -> int:
    """How many jobs a sweep has: the product of the choices typed and those of the configuration.

    Args:
        arguments: what was typed after the verb.
        params: ``hydra.sweeper.params``; a key that is also typed counts as typed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    configured = [f"{key}={value}" for key, value in params.items()]
    parsed = OverridesParser.create().parse_overrides([*configured, *overrides_in(arguments)])
    choices = {
        override.key_or_group: len(list(override.sweep_string_iterator()))
        if override.is_sweep_override()
        else 1
        for override in parsed
    }
    return math.prod(choices.values())


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
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        typed = words[1] if len(words) == 2 else ""
        print(" ".join(verb for verb in verbs if verb.startswith(typed)))
        return 0
    if words[1] not in verbs or not (conf_dir() / f"{words[1]}.yaml").is_file():
        return 0
    os.environ["COMP_LINE"] = f"{words[0]} " + line.split(words[1], 1)[1].lstrip()
    return run_hydra(_no_task, words[1], words[1], arguments)


def _no_task(config: DictConfig) -> None:
    """Nothing to run: Hydra only answers a completion query."""


def overrides_in(arguments: list[str]) -> list[str]:
    """What was typed, without options and their values."""
    from hydra._internal.utils import get_args_parser

    return list(get_args_parser().parse_known_args(arguments)[0].overrides)
