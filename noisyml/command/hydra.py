"""Running a verb under Hydra: sweeps, ``--cfg``, completion, and errors in one sentence."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml import __version__
from noisyml.command.config import conf_dir, register_resolvers
from noisyml.command.mistakes import as_user_error, check_flags, check_types
from noisyml.errors import EXIT_USER_ERROR, SweepError, UserError
from noisyml.runs.processes import is_main_process, started_elsewhere
from noisyml.storage.files import write_atomically

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Verbs whose first word is an action, for completion.
ACTIONS = {"data": ("check", "show")}
#: Runs the jobs of a sweep one after the other in this process.
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
#: Where jobs in other processes write how they ended, in the folder of the sweep.
JOBS_FOLDER = ".jobs"


@dataclass
class JobEnd:
    """How one job ended: where its results lie, and what went wrong."""

    number: int
    folder: str
    error: str | None = None


@dataclass
class Outcome:
    """How a command ended: the exit status, its jobs in order, and the folder they have in common.

    The folder is that of the single run, or of the sweep; None if no job was started.
    """

    status: int
    jobs: list[JobEnd]
    home: Path | None

    @property
    def folders(self) -> list[Path]:
        """The folders of the jobs that ended well."""
        return [Path(job.folder) for job in self.jobs if job.error is None]


def run_hydra(task: Callable[[DictConfig], Any], root: str, verb: str, arguments: list[str]) -> int:
    """`run_jobs` for a verb that needs the exit status alone."""
    return run_jobs(task, root, verb, arguments).status


def run_jobs(
    task: Callable[[DictConfig], Any], root: str, verb: str, arguments: list[str]
) -> Outcome:
    """Run `task` under Hydra (sweeps, ``--cfg``, ``--help``, launchers) with our error messages.

    Args:
        task: receives the composed configuration of each job; must pickle, for launchers that move
            jobs into other processes or to other machines.
        root: name of the root YAML, e.g. ``train``.
        verb: the word typed after ``noisyml``; shown in help texts.
        arguments: what was typed after the verb.

    Raises:
        UserError: any mistake a user can make, in one sentence. A mistake in one job of a sweep is
            printed instead and leaves the other jobs alone.
    """
    import hydra

    check_flags(arguments)
    if "--version" in arguments:
        print(__version__)
        return Outcome(0, [], None)
    register_resolvers()
    # A reader that closes the pipe (head) is no reason for pages about logging.
    logging.raiseExceptions = False
    for chatty in ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    typed = overrides_in(arguments)
    _check_launcher(typed)
    home: Path | None = None
    launcher = BASIC_LAUNCHER
    try:
        check_types(root, typed)
        if {"-m", "--multirun"} & set(arguments):
            home, launcher, brought = sweep_settings(root, arguments)
            if brought:
                print(f"noisyml: {brought}", file=sys.stderr)
            arguments = [*arguments, f"hydra.sweep.dir={_quoted(str(home))}"]
    except UserError:
        raise
    except Exception as error:
        raise as_user_error(error, root, typed) from error
    job = _Job(task, root, typed, home, Path.cwd())
    if home is not None:
        shutil.rmtree(home / JOBS_FOLDER, ignore_errors=True)
    saved_argv, saved_env = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [f"{sys.argv[0]}", *arguments]
    # Hydra then hands us the exception itself instead of printing its own account of it.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=root)(job)()
    except Exception as error:
        mended = as_user_error(error, root, typed)
        if launcher != BASIC_LAUNCHER and not isinstance(mended, UserError):
            mended = UserError(
                f"{launcher.rpartition('.')[2]} gave the sweep up ({type(error).__name__}: "
                f"{str(error).strip().partition(chr(10))[0]}); the same command with "
                f"hydra.sweep.dir={home} trains what is missing."
            )
        raise mended from error
    finally:
        sys.argv = saved_argv
        if saved_env is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = saved_env
    if job.failure is not None:
        raise job.failure
    if home is None:
        return Outcome(0, job.ended, Path(job.ended[0].folder) if job.ended else None)
    ended = job.ended if launcher == BASIC_LAUNCHER else _recorded_ends(home)
    failed = [end for end in ended if end.error is not None]
    if failed:
        print(f"noisyml: {len(failed)} of {len(ended)} jobs failed:", file=sys.stderr)
        for end in failed:
            print(f"  job {end.number}: {end.error}", file=sys.stderr)
    return Outcome(EXIT_USER_ERROR if failed else 0, ended, home)


class _Job:
    """What Hydra calls for each job, here or wherever a launcher has moved it."""

    def __init__(
        self,
        task: Callable[[DictConfig], Any],
        root: str,
        typed: list[str],
        sweep: Path | None,
        directory: Path,
    ) -> None:
        self.task, self.root, self.typed, self.sweep = task, root, typed, sweep
        self.directory = directory
        self.ended: list[JobEnd] = []
        self.failure: Exception | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # In a new process: Hydra resolves parts of the configuration before it calls the job.
        register_resolvers()

    def __call__(self, config: DictConfig) -> Any:
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        here = self.sweep is None or hydra.launcher["_target_"] == BASIC_LAUNCHER
        end = JobEnd(0 if self.sweep is None else hydra.job.num, hydra.runtime.output_dir)
        if not here:
            os.chdir(self.directory)
            # Bars of several jobs would write over each other; lines do not.
            os.environ["TTY_COMPATIBLE"] = "0"
        result = None
        try:
            result = self.task(config)
        except Exception as error:
            mended = as_user_error(error, self.root, self.typed)
            ours = isinstance(mended, UserError)
            # Ranks that torchrun or srun started may still be at work on a job that failed here.
            final = isinstance(mended, SweepError) or (self.sweep and started_elsewhere())
            if here and (final or not ours):
                raise mended from error
            if not ours:
                traceback.print_exception(error)
            end.error = str(mended) if ours else f"{type(error).__name__}: {error}"
            if self.sweep is None:
                # Raised when Hydra is done, which would add an account of its own.
                self.failure = mended
                if mended is not error:
                    mended.__cause__ = error
            elif is_main_process():
                print(f"noisyml: {end.error}", file=sys.stderr, flush=True)
        if here:
            self.ended.append(end)
        elif self.sweep is not None and is_main_process():
            text = json.dumps(asdict(end))
            write_atomically(self.sweep / JOBS_FOLDER / f"{end.number}.json", text)
        return result


def _recorded_ends(home: Path) -> list[JobEnd]:
    """How the jobs ended that a launcher ran in other processes."""
    files = (home / JOBS_FOLDER).glob("*.json")
    return sorted((JobEnd(**json.loads(f.read_text())) for f in files), key=lambda end: end.number)


def sweep_settings(root: str, arguments: list[str]) -> tuple[Path, str, str]:
    """The folder of a sweep, the same for all its jobs wherever they run, and its launcher.

    Where the configured folder is named after a choice that the sweep varies, it is named after
    all of them: ``prism-digits+glyphs``.

    Args:
        root: name of the root YAML.
        arguments: what was typed after the verb.

    Returns:
        The absolute path, the import path of the launcher, and a sentence about what is varied
        though it was not typed, if anything is.
    """
    from hydra import compose, initialize_config_dir
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.utils import setup_globals
    from omegaconf import open_dict

    options = get_args_parser().parse_known_args(arguments)[0]
    first: list[str] = []
    if options.config_dir:
        first.append(
            f"hydra.searchpath=[{_quoted(f'file://{Path(options.config_dir).resolve()}')}]"
        )
    varied: dict[str, list[str]] = {}
    setup_globals()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        for override in parser.parse_overrides(options.overrides):
            if override.is_discrete_sweep():
                values = list(override.sweep_string_iterator())
                varied[override.key_or_group] = values
                first.append(f"{override.get_key_element()}={values[0]}")
            elif not override.is_sweep_override():
                first.append(str(override.input_line))
        config = compose(options.config_name or root, first, return_hydra_config=True)
    GlobalHydra.instance().clear()
    with open_dict(config):
        for group in varied.keys() & config.hydra.runtime.choices.keys():
            values = varied[group]
            several = "+".join(values) if len(values) <= 3 else f"{len(values)}_{group}s"
            config.hydra.runtime.choices[group] = several
    HydraConfig.instance().set_config(config)
    launcher = str(config.hydra.launcher["_target_"])
    params = config.hydra.sweeper.get("params") or {}
    return Path(config.hydra.sweep.dir).absolute(), launcher, _brought(params, arguments)


def _brought(params: Mapping[str, Any], arguments: list[str]) -> str:
    """What a configuration varies by itself, which decides over other settings that were typed."""
    typed = {argument.lstrip("+~").partition("=")[0] for argument in overrides_in(arguments)}
    varied = swept_keys([], {key: value for key, value in params.items() if key not in typed})
    if not varied or not any(key != "experiment" and not key.startswith("hydra") for key in typed):
        return ""  # nothing was typed that might be overruled
    listed = ", ".join(f"{key} ({n} values)" for key, n in varied.items())
    first = next(iter(varied))
    return (
        f"The configuration brings values for {listed}, which are all run; type {first}=ONE to "
        "choose."
    )


def _quoted(text: str) -> str:
    """`text` as a quoted value of Hydra's override grammar."""
    # Backslashes count only before a quote, and before the one that ends the value.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", r"\'"), text) + "'"


def _check_launcher(overrides: list[str]) -> None:
    """Refuse a launcher whose package is not installed.

    Raises:
        UserError: such a launcher.
    """
    for override in overrides:
        group, _, name = override.partition("=")
        package = f"hydra_{name.partition('_')[0]}_launcher"
        if (
            group == "hydra/launcher"
            and name.partition("_")[0] in ("joblib", "ray", "submitit")
            and not importlib.util.find_spec(f"hydra_plugins.{package}")
        ):
            raise UserError(
                f"hydra/launcher={name} needs the package {package.replace('_', '-')}: "
                f"pip install 'noisyml[launchers]'."
            )


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
