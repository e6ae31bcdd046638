"""Running a verb under Hydra: sweeps, ``--cfg``, completion, and errors in one sentence."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml import __version__
from noisyml.command.config import conf_dir, register_resolvers
from noisyml.command.mistakes import as_user_error, check_flags, check_types
from noisyml.command.sweeps import (
    BASIC_LAUNCHER,
    JOB_SWEEPER,
    OBJECTIVE,
    Sweep,
    check_launcher,
    objective_of,
    objective_value,
    sweep_settings,
    under_way,
)
from noisyml.command.words import as_typed, quoted, split_line, words_in
from noisyml.errors import EXIT_USER_ERROR, SweepError, UserError
from noisyml.runs.processes import (
    end_children,
    handle_termination,
    is_main_process,
    started_elsewhere,
)
from noisyml.storage.files import write_atomically

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Where jobs in other processes write how they ended, in the folder of the sweep.
JOBS_FOLDER = ".jobs"


@dataclass
class JobEnd:
    """The end of one job: where its results lie, and what went wrong."""

    number: int
    folder: str
    error: str | None = None


@dataclass
class Outcome:
    """The end of a command: the exit status, its jobs in order, and the folder they have in common.

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
    arguments = as_typed(arguments)
    flags, typed = split_line(arguments)
    check_launcher(words_in(typed))
    sweep: Sweep | None = None
    try:
        check_types(root, typed)
        if {"-m", "--multirun"} & set(flags):
            sweep = sweep_settings(root, arguments, _say)
            typed_for_hydra = sweep.shared if sweep.is_ours else typed
            arguments = [*flags, *typed_for_hydra, f"hydra.sweep.dir={quoted(str(sweep.home))}"]
            if sweep.is_ours:
                register_sweepers()
            if sweep.sweeper == JOB_SWEEPER:
                arguments.append(f"hydra.sweeper._target_={JOB_SWEEPER}")
    except UserError:
        raise
    except Exception as error:
        raise as_user_error(error, root, typed) from error
    if not any(word.key == "hydra.output_subdir" for word in words_in(typed)):
        # Our own files say all of it, with secrets masked.
        arguments.append("hydra.output_subdir=null")
    home = None if sweep is None else sweep.home
    launcher = BASIC_LAUNCHER if sweep is None else sweep.launcher
    job = _Job(task, root, typed, sweep, Path.cwd())
    if home is not None:
        shutil.rmtree(home / JOBS_FOLDER, ignore_errors=True)
    saved_argv, saved_env = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [f"{sys.argv[0]}", *arguments]
    # Hydra then hands us the exception itself instead of printing its own account of it.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    before = signal.getsignal(signal.SIGTERM)
    if sweep is not None:
        # Between jobs too: what launchers have started must not outlive the command.
        handle_termination()
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
    except KeyboardInterrupt:
        if launcher != BASIC_LAUNCHER:
            end_children()
        raise
    finally:
        if sweep is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
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
    """The function that Hydra calls for each job, here or wherever a launcher has moved it."""

    def __init__(
        self,
        task: Callable[[DictConfig], Any],
        root: str,
        typed: list[str],
        sweep: Sweep | None,
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
            with under_way(self.sweep):
                result = self.task(config)
                if self.sweep is not None and not self.sweep.is_ours:
                    # Sweepers of other packages want one number.
                    result = _objective(config, result)
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
            write_atomically(self.sweep.home / JOBS_FOLDER / f"{end.number}.json", text)
        return result


def register_sweepers() -> None:
    """Make our sweepers known to Hydra."""
    from noisyml.command.sweepers import register

    register()


def _say(sentence: str) -> None:
    """Tell the user something about a sweep."""
    if is_main_process():
        print(f"noisyml: {sentence}", file=sys.stderr, flush=True)


def _objective(config: DictConfig, metrics: Any) -> float:
    from hydra.core.hydra_config import HydraConfig

    wanted = HydraConfig.get().sweeper.get("objective", OBJECTIVE)
    return objective_value(metrics, objective_of(config, str(wanted))[0])


def _recorded_ends(home: Path) -> list[JobEnd]:
    """The ends of the jobs that a launcher ran in other processes."""
    files = (home / JOBS_FOLDER).glob("*.json")
    return sorted(
        (JobEnd(**json.loads(f.read_bytes())) for f in files),
        key=lambda end: end.number,
    )
