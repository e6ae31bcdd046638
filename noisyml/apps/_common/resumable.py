"""A verb whose run folder can be gone on with: what training and embedding do alike around it.

A command is typed, or starts again in the folder of an interrupted one (``resume=DIR``, or the same
``hydra.run.dir``); it leads other ranks, or is one of them; it claims the folder, keeps its status
true, and calls the verb's recipe. A verb says what is its own about that by subclassing
`ResumableVerb`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from noisyml.apps._common.folder import (
    is_made_by,
    record_death,
    recorded,
    write_inputs,
)
from noisyml.assembly.saved import saved_config
from noisyml.assembly.trusted import admit, admitting
from noisyml.errors import SweepError, UserError
from noisyml.runs.folder import RunFolder
from noisyml.runs.trials import PRUNED_STATE
from noisyml.storage.files import write_atomically

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from noisyml.command.hydra import Outcome
    from noisyml.command.words import Word
    from noisyml.runs.processes import Followers

log = logging.getLogger(__name__)


class ResumableVerb(ABC):
    """A verb that works in a run folder and goes on there after any interruption.

    Instances hold nothing, so that launchers may carry them to other processes.
    """

    #: The word typed after ``noisyml``, and the name of its root YAML.
    verb: ClassVar[str]
    #: What a folder of it holds, for messages.
    holds: ClassVar[str]
    #: Keys, and parts with all that is below them, that may change when a folder is gone on with.
    free: ClassVar[tuple[str, ...]]
    #: True if these alone may be typed beside ``resume=``.
    keeps_the_rest: ClassVar[bool] = False

    # -- what a verb says of itself ------------------------------------------------------------

    @abstractmethod
    def recipe(self, config: DictConfig, folder: RunFolder, title: str) -> dict[str, float]:
        """The work itself, from the resolved configuration to metrics; the same on every rank."""

    @abstractmethod
    def configure(
        self,
        config: DictConfig,
        folder: RunFolder,
        settings: Sequence[str],
        choices: dict[str, str],
    ) -> tuple[DictConfig, dict[str, str]]:
        """The resolved configuration of a new command, and the option chosen in each group.

        Args:
            config: as Hydra composed it.
            folder: of the run.
            settings: the words that `foreign` has found.
            choices: of this verb's groups.
        """

    @abstractmethod
    def check(self, config: DictConfig) -> None:
        """Refuse values that no run can have, before anything is read or written.

        Raises:
            UserError: such a value.
        """

    def foreign(self, words: Sequence[Word]) -> list[str]:
        """Those words that do not belong to this verb's own configuration."""
        return []

    def is_begun(self, folder: RunFolder) -> bool:
        """True if the folder holds something that must be gone on with, not written over."""
        return folder.is_run()

    def is_finished(self, folder: RunFolder) -> bool:
        """True if there is nothing left to do in the folder."""
        return folder.status().get("state") in ("finished", PRUNED_STATE)

    def begin(
        self, config: DictConfig, folder: RunFolder, typed: list[str], choices: dict[str, str]
    ) -> None:
        """Write what a new run is made from."""
        write_inputs(folder, config, typed, choices)

    def go_on(self, config: DictConfig, folder: RunFolder, typed: Sequence[str]) -> None:
        """Write the configuration with which a folder is gone on with.

        Args:
            config: resolved.
            folder: of the run.
            typed: what was typed beside ``resume=``; nothing where the command is the same.
        """
        if typed:
            write_changes(config, folder, typed)

    def changed(self, composed: DictConfig, config: DictConfig, folder: RunFolder) -> str | None:
        """The first setting in which the folder's run differs, apart from those that are free.

        Args:
            composed: as Hydra composed it.
            config: the same, resolved.
            folder: of the run.
        """
        return first_difference(config, folder, self.free)

    def work(
        self, config: DictConfig, folder: RunFolder, title: str, followers: Followers
    ) -> dict[str, float]:
        """Everything that a run consists of; a run of several stages has several recipes."""
        return self.run(config, folder, title, followers)

    def check_places(  # noqa: B027 (most verbs build nothing that writes by itself)
        self, config: DictConfig, folder: RunFolder, typed: Collection[str]
    ) -> None:
        """Refuse a saved configuration that would write outside its folder; some keys were typed.

        Raises:
            UntrustedError: it would.
        """

    def finish(
        self, config: DictConfig, folder: RunFolder, metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """The work of rank 0 alone when all ranks are done; further metrics."""
        return {}

    @abstractmethod
    def conclude(self, home: Path, folders: Sequence[Path]) -> None:
        """Say what there is now: in the folder of a run or sweep, and in those of its runs."""

    # -- what all such verbs do ----------------------------------------------------------------

    def main(self, arguments: list[str]) -> int:
        """Run ``noisyml VERB [overrides]`` or ``noisyml VERB resume=DIR [overrides]``."""
        from noisyml.command.words import as_typed, last_given, overrides_in, words_in
        from noisyml.runs.processes import Followers, follow, is_main_process, started_elsewhere

        if started_elsewhere() and not is_main_process():
            return follow(self.join)
        arguments = as_typed(arguments)
        words = words_in(overrides_in(arguments))
        with Followers() as followers:
            if (resume := last_given(words, "resume")) is not None:
                others = [word for word in words if word.key != "resume"]
                return self.resume(Path(resume), others, followers)
            outcome = self.start(arguments, followers)
            if outcome.home is not None and outcome.folders and is_main_process():
                self.conclude(outcome.home, outcome.folders)
            return outcome.status

    def start(self, arguments: list[str], followers: Followers) -> Outcome:
        """Run what was typed, without ``resume=``: one job or a sweep.

        Args:
            arguments: after the verb.
            followers: the ranks that wait for a run.
        """
        from noisyml.command.hydra import run_jobs
        from noisyml.command.words import overrides_in, words_in

        settings = self.foreign(words_in(overrides_in(arguments)))
        own = [argument for argument in arguments if argument not in settings]
        task = partial(self.job, settings=settings, followers=followers)
        return run_jobs(task, self.verb, self.verb, own)

    def job(
        self, config: DictConfig, settings: list[str], followers: Followers
    ) -> dict[str, float]:
        """One job of Hydra: a new folder, or one that an interrupted command left behind.

        Args:
            config: the composed configuration.
            settings: further words, see `foreign`.
            followers: the ranks that wait for a run.
        """
        from noisyml.runs.processes import follow, is_main_process

        if not is_main_process():
            # A launcher that starts several tasks for a job, as submitit can.
            follow(self.join)
            return {}
        with followers, admitting():
            return self.lead(config, settings, followers)

    def lead(
        self, config: DictConfig, settings: list[str], followers: Followers
    ) -> dict[str, float]:
        """A job on rank 0, which alone writes into the run folder."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from noisyml.command.words import words_of_job
        from noisyml.runs.processes import check_ranks

        hydra = HydraConfig.get()
        folder = RunFolder(Path(hydra.runtime.output_dir))
        composed = config
        config, choices = self.configure(composed, folder, settings, dict(hydra.runtime.choices))
        self.check(config)
        check_ranks(config)
        admit(config)
        if folder.is_run() and not is_made_by(folder, self.verb):
            raise SweepError(
                f"{folder.path} holds another kind of run; choose another hydra.run.dir."
            )
        if not self.is_begun(folder):
            typed = [*words_of_job(hydra), *settings]
            self.begin(config, folder, typed, choices)
        elif changed := self.changed(composed, config, folder):
            swept = hydra.mode == RunMode.MULTIRUN
            raise SweepError(
                f"{folder.path} holds {self.holds} with another {changed}; choose another "
                f"hydra.{'sweep' if swept else 'run'}.dir, or remove that folder."
            )
        elif self.is_finished(folder):
            log.info("%s is finished already; left as it is.", folder.path)
            return folder.metrics()
        else:
            self.go_on(config, folder, ())
        return self.work(config, folder, _title(config), followers)

    def join(self, path: Path) -> None:
        """Work as a further rank on the run in the folder `path`."""
        from noisyml.runs.processes import Followers

        folder = RunFolder(path)
        with admitting():
            # Rank 0 has typed it, or has checked it.
            admit(folder.config())
            config = saved_config(folder, self.verb)
            self.run(config, folder, str(config.name), Followers())

    def resume(self, path: Path, words: Sequence[Word], followers: Followers) -> int:
        """``noisyml VERB resume=DIR [overrides]``: compute what is missing.

        Raises:
            UserError: no run of this verb and version, or a setting that must stay.
        """
        from noisyml.command.overrides import apply_overrides
        from noisyml.runs.processes import check_ranks, is_main_process

        folder = RunFolder(path)
        if not folder.is_run():
            raise UserError(
                f"{path} holds no run (no {folder.config_file.name}); nothing to resume."
            )
        if not is_made_by(folder, self.verb):
            raise UserError(f"{path} was not made by `noisyml {self.verb}`; nothing to resume.")
        logging.basicConfig(level=logging.INFO, format="[%(levelname)s] %(message)s")
        typed = [word.text for word in words]
        kept = [w for w in words if self.keeps_the_rest and not w.is_below(*self.free)]
        if kept:
            raise UserError(
                f"What `noisyml {self.verb}` goes on with keeps its {kept[0].key}: start anew with "
                f"{kept[0].text} instead."
            )
        config = apply_overrides(saved_config(folder, self.verb), typed, groups=False)
        config.run_dir = str(folder.path)
        self.check_places(config, folder, [word.key for word in words])
        self.check(config)
        check_ranks(config)
        if is_main_process():
            if self.is_finished(folder) and not typed:
                page = (
                    f"; its report is {folder.report_file}" if folder.report_file.is_file() else ""
                )
                print(f"{path} is {folder.status()['state']} already{page}.")
                return 0
            if typed:
                self.go_on(config, folder, typed)
        with admitting():
            admit(config)
            self.work(config, folder, str(config.name), followers)
        if is_main_process():
            self.conclude(folder.path, [folder.path])
        return 0

    def run(
        self, config: DictConfig, folder: RunFolder, title: str, followers: Followers
    ) -> dict[str, float]:
        """The recipe with its other processes; the folder's status says how it ends."""
        from noisyml.runs.processes import (
            interruptible,
            is_main_process,
            other_ranks,
            processes_here,
        )

        command = [self.verb, f"resume={folder.path}"]
        here = other_ranks(processes_here(config), command, partial(record_death, folder))
        if not is_main_process():
            with here, _process_group(), interruptible():
                return self.recipe(config, folder, title)
        with folder.claimed(), recorded(folder, shlex.join(["noisyml", *command])):
            with followers.lead(folder.path), here, _process_group(), interruptible():
                metrics = self.recipe(config, folder, title)
            metrics |= self.finish(config, folder, metrics)
        return metrics


def write_changes(config: DictConfig, folder: RunFolder, typed: Sequence[str]) -> None:
    """Write a run's changed configuration, and what was typed after what was typed before."""
    from noisyml.command.secrets import as_yaml, words_as_yaml

    if typed:
        write_atomically(folder.overrides_file, words_as_yaml([*folder.overrides(), *typed]))
    write_atomically(folder.config_file, as_yaml(config))


def first_difference(config: DictConfig, folder: RunFolder, free: Sequence[str]) -> str | None:
    """The first setting in which a configuration differs from that of a folder's run.

    Args:
        config: resolved.
        folder: of the run.
        free: keys, and parts with all that is below them, that may differ.
    """
    from noisyml.command.config import flatten
    from noisyml.command.words import Word

    missing = object()
    wanted, there = dict(flatten(config)), dict(flatten(folder.config()))
    for key in {**wanted, **there}:
        differs = wanted.get(key, missing) != there.get(key, missing)
        if differs and not Word.parse(key).is_below(*free):
            return key
    return None


def _title(config: DictConfig) -> str:
    """The run's name, or its number in a sweep and what is varied there."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from noisyml.command.secrets import masked_words
    from noisyml.command.sweeps import current_sweep
    from noisyml.command.words import words_in, words_of_job

    hydra, sweep = HydraConfig.get(), current_sweep()
    if hydra.mode != RunMode.MULTIRUN or sweep is None:
        return str(config.name)
    varied = sweep.varied()
    jobs = sweep.jobs or math.prod(varied.values())
    here = [word.text for word in words_in(words_of_job(hydra)) if word.key in varied]
    return f"[{hydra.job.num + 1}/{jobs}] {' '.join(masked_words(here))}"


@contextlib.contextmanager
def _process_group() -> Iterator[None]:
    """Leave no process group behind: the next run of this process has its own."""
    import torch.distributed as dist

    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
