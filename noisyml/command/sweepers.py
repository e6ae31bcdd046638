"""Hydra plugins that make the jobs of a sweep: every combination of values, a list, or a search.

A setting that only some of the jobs have is set where it exists, and that is said once.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, open_dict

from noisyml.checks import Count, Seed, check_arguments
from noisyml.command.secrets import as_yaml, masked_words
from noisyml.command.sweeps import OBJECTIVE, Sweep, lacking_key, objective_of, objective_value
from noisyml.command.words import Word, words_in
from noisyml.errors import UserError
from noisyml.storage.files import write_atomically
from noisyml.storage.reading import read_json

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext, TaskFunction
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

#: Where Hydra looks for plugins.
NAMESPACE = "hydra_plugins"
#: Values of a search and how it went so far, in the folder of the sweep.
JOURNAL_FILE, BEST_FILE = "study.journal", "best.json"


def say(sentence: str) -> None:
    """Tell the user something about a sweep."""
    print(f"noisyml: {sentence}", file=sys.stderr, flush=True)


class _OwnSweeper(Sweeper):
    """Common part of our sweepers: what was typed, and jobs that compose."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take up the sweep that the task knows."""
        self.context, self.composed = hydra_context, config
        sweep = getattr(task_function, "sweep", None)
        assert isinstance(sweep, Sweep)
        self.plan = sweep
        self.starter = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        _withdraw()
        self._known: dict[tuple[str, ...], frozenset[str]] = {}

    def words(self) -> list[Word]:
        """Settings of each job, each once: what the configuration brings, then what was typed."""
        brought = [f"{key}={values}" for key, values in self.plan.params.items()]
        found: dict[str, Word] = {}
        for word in words_in([*brought, *self.plan.typed]):
            found[f"{word.key}@{word.package}"] = word
        return list(found.values())

    def lacking(self, job: Sequence[str]) -> frozenset[str]:
        """The settings among a job's words that its configuration does not have."""
        # Choices decide which settings there are, and not their values.
        choices = tuple(w.text if w.chooses else w.target for w in words_in(job))
        if choices not in self._known:
            lacking: set[str] = set()
            while True:
                kept = [w.text for w in words_in(job) if w.key not in lacking]
                try:
                    self.context.config_loader.load_sweep_config(self.composed, kept)
                    break
                except Exception as error:
                    key = lacking_key(error)
                    if key is None or key in lacking:
                        raise
                    self._refusals.setdefault(key, error)
                    lacking.add(key)
            self._known[choices] = frozenset(lacking)
        return self._known[choices]

    def possible(self, jobs: Sequence[Sequence[str]]) -> list[list[str]]:
        """The jobs, each without the settings that it lacks, equal ones once.

        Raises:
            Exception: Hydra's, about a typed setting that no job has.
        """
        self._refusals: dict[str, Exception] = {}
        lacking = [self.lacking(job) for job in jobs]
        nowhere = frozenset.intersection(*lacking)
        for key in nowhere:
            if key not in self.plan.params:
                raise self._refusals[key]
            say(f"{key}={self.plan.params[key]} of the experiment is left out: no job has it.")
        for key in frozenset.union(*lacking) - nowhere:
            without = [job for job, gone in zip(jobs, lacking, strict=True) if key in gone]
            having = [job for job, gone in zip(jobs, lacking, strict=True) if key not in gone]
            say(f"{key} is set where it exists: not with {_difference(without, having)}.")
        found: dict[tuple[str, ...], None] = {}
        for job, gone in zip(jobs, lacking, strict=True):
            found.setdefault(tuple(w.text for w in words_in(job) if w.key not in gone))
        if len(found) < len(jobs):
            say(f"{len(jobs) - len(found)} of {len(jobs)} jobs would repeat another: left out.")
        return [list(job) for job in found]

    def record(self) -> None:
        """Write the sweep's configuration, ``multirun.yaml``."""
        with open_dict(self.composed.hydra.overrides):
            self.composed.hydra.overrides.task = masked_words(self.plan.typed)
        write_atomically(self.plan.home / "multirun.yaml", as_yaml(self.composed))


def _difference(without: Sequence[Sequence[str]], having: Sequence[Sequence[str]]) -> str:
    """Those choices that tell some jobs from others."""
    ours = {word.text for job in without for word in words_in(job) if word.chooses}
    theirs = {word.text for job in having for word in words_in(job) if word.chooses}
    return ", ".join(sorted(ours - theirs)) or f"{len(without)} of the jobs"


class JobSweeper(_OwnSweeper):
    """Every combination of the values, in the place of Hydra's basic sweeper.

    Args:
        max_batch_size: jobs that are handed to the launcher at a time; null: all.
        params: what the configuration brings to vary.
    """

    def __init__(
        self, max_batch_size: int | None = None, params: Mapping[str, str] | None = None
    ) -> None:
        check_arguments(_batch, {"max_batch_size": max_batch_size})
        self.max_batch_size = max_batch_size

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs; what they return, batch by batch."""
        lists = []
        for word in self.words():
            values = word.values() if word.swept else []
            if word.swept and not values:
                raise UserError(
                    f"{word.text} names no values that could be listed: search it with "
                    f"hydra/sweeper=optuna, or type values."
                )
            lists.append([f"{word.target}={value}" for value in values] or [word.text])
        jobs = self.possible([list(job) for job in itertools.product(*lists)])
        self.plan.jobs = len(jobs)
        self.record()
        return _launched(self.starter, jobs, self.max_batch_size)


def _launched(starter: Launcher, jobs: Sequence[Sequence[str]], batch_size: int | None) -> Any:
    """The results of jobs, handed to a launcher in batches."""
    size = batch_size or len(jobs)
    returns = []
    for start in range(0, len(jobs), size):
        batch = starter.launch(jobs[start : start + size], initial_job_idx=start)
        # Reading a result raises what ended its job.
        returns.append([result.return_value for result in batch])
    return returns


def _batch(max_batch_size: Count | None) -> None:
    """The signature of the basic sweeper's setting."""


class ListSweeper(_OwnSweeper):
    """Jobs that have nothing in common but their folder: a list of them in a file.

    Args:
        file: JSON with ``jobs``, a list of lists of words; a word ``hydra.sweep.subdir=NAME`` names
            the folder of its job.
        max_batch_size: jobs that are handed to the launcher at a time; null: all.
        params: nothing; here because every sweeper has it.
    """

    def __init__(
        self,
        file: str,
        max_batch_size: int | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        check_arguments(_batch, {"max_batch_size": max_batch_size})
        self.file, self.max_batch_size = Path(file), max_batch_size

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs; what they return, batch by batch."""
        jobs = read_json(self.file, "write the list anew")["jobs"]
        self.plan.jobs = len(jobs)
        self.record()
        return _launched(self.starter, jobs, self.max_batch_size)


class StudySweeper(_OwnSweeper):
    """A search with Optuna for the values that make a metric best.

    Each job is a trial whose number names its folder. A trial depends on the seed, its number and
    the trials that had ended, so that a search that was killed goes on as if it had not been:
    ``study.journal`` in the sweep's folder keeps it, and the trial under way is gone on with.

    Args:
        n_trials: jobs in all.
        n_jobs: jobs at a time, for launchers that run them beside each other.
        seed: of the search.
        method: ``tpe`` (tree-structured Parzen estimator) or ``random``.
        objective: metric to go by; ``headline`` stands for that of the first evaluator.
        direction: ``maximize``, ``minimize``, or null: as the metric's evaluator says.
        params: what the configuration brings to search.
    """

    def __init__(
        self,
        n_trials: Count = 20,
        n_jobs: Count = 1,
        seed: Seed = 0,
        method: Literal["tpe", "random"] = "tpe",
        objective: str = OBJECTIVE,
        direction: Literal["maximize", "minimize"] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        given = {
            "n_trials": n_trials,
            "n_jobs": n_jobs,
            "seed": seed,
            "method": method,
            "objective": objective,
            "direction": direction,
        }
        check_arguments(type(self).__init__, given)
        self.n_trials, self.n_jobs, self.seed, self.method = n_trials, n_jobs, seed, method
        self.wanted, self.direction = objective, direction

    def sweep(self, arguments: list[str]) -> float | None:
        """Run the trials that are missing; the best value, or None if no job ended well."""
        words = self.words()
        space = {word.target: _distribution(word) for word in words if word.swept}
        if not space:
            raise UserError(
                "There is nothing to search: give a setting several values or an interval, e.g. "
                "'optimizer.lr=tag(log,interval(1e-4,1e-1))'."
            )
        fixed = [word.text for word in words if not word.swept]
        self._refusals: dict[str, Exception] = {}
        first = [f"{key}={_example(values)}" for key, values in space.items()]
        lacking = self.lacking([*fixed, *first])
        composed = self.context.config_loader.load_sweep_config(
            self.composed, [w.text for w in words_in([*fixed, *first]) if w.key not in lacking]
        )
        self.objective, lower = objective_of(composed, self.wanted)
        if not self.objective.startswith("val/"):
            say(f"the search goes by {self.objective}: its best value is no test result.")
        direction = self.direction or ("minimize" if lower else "maximize")
        self.record()
        self.plan.jobs = self.n_trials
        study = self._study(direction)
        while batch := self._next(study, space):
            self._run(study, batch, fixed)
        return self._conclude(study)

    def _study(self, direction: Literal["maximize", "minimize"]) -> Study:
        """The study in the sweep's folder, new or begun."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan.home.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(self.plan.home / JOURNAL_FILE)))
        study = optuna.create_study(
            storage=storage, study_name="noisyml", direction=direction, load_if_exists=True
        )
        if study.direction.name.lower() != direction:
            raise UserError(
                f"{self.plan.home} holds a search with direction={study.direction.name.lower()}: "
                f"choose another hydra.sweep.dir."
            )
        return study

    def _next(self, study: Study, space: Mapping[str, BaseDistribution]) -> list[FrozenTrial]:
        """Trials to run now: those that a kill left under way, or new ones; none at the end."""
        import optuna
        from optuna.trial import TrialState

        trials = study.get_trials(deepcopy=False)
        begun = [t for t in trials if t.state == TrialState.RUNNING]
        for trial in begun:
            if trial.params.keys() != space.keys():
                # Killed while it was being drawn, or typed with another space.
                study.tell(trial.number, state=TrialState.FAIL)
        begun = [t for t in begun if t.params.keys() == space.keys()]
        if begun:
            return begun[: self.n_jobs]
        drawn: list[Trial] = []
        for number in range(len(trials), min(len(trials) + self.n_jobs, self.n_trials)):
            samplers = optuna.samplers
            seed = self.seed + 1_000_003 * number
            study.sampler = (
                samplers.TPESampler(seed=seed % 2**32)
                if self.method == "tpe"
                else samplers.RandomSampler(seed=seed % 2**32)
            )
            drawn.append(study.ask(dict(space)))
        return [study.get_trials(deepcopy=False)[trial.number] for trial in drawn]

    def _run(self, study: Study, trials: Sequence[FrozenTrial], fixed: Sequence[str]) -> None:
        """Run trials, those of consecutive numbers together, and tell the study their values."""
        from optuna.trial import TrialState

        for _, group in itertools.groupby(enumerate(trials), lambda pair: pair[1].number - pair[0]):
            together = [trial for _, trial in group]
            jobs = []
            for trial in together:
                job = [*fixed, *(f"{key}={value}" for key, value in trial.params.items())]
                gone = self.lacking(job)
                jobs.append([w.text for w in words_in(job) if w.key not in gone])
            results = self.starter.launch(jobs, initial_job_idx=together[0].number)
            for trial, result in zip(together, results, strict=True):
                metrics = result.return_value
                value = None if metrics is None else objective_value(metrics, self.objective)
                if value is None or value != value:
                    study.tell(trial.number, state=TrialState.FAIL)
                else:
                    study.tell(trial.number, value)
                self._write_best(study)

    def _write_best(self, study: Study) -> dict[str, Any] | None:
        """Write the best trial so far; None if none has a value."""
        from optuna.trial import TrialState

        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not done:
            return None
        best = study.best_trial
        facts = {
            "objective": self.objective,
            "direction": study.direction.name.lower(),
            "value": best.value,
            "job": best.number,
            "params": best.params,
            "trials": len(done),
        }
        write_atomically(self.plan.home / BEST_FILE, json.dumps(facts, indent=2) + "\n")
        return facts

    def _conclude(self, study: Study) -> float | None:
        facts = self._write_best(study)
        if facts is None:
            return None
        listed = " ".join(f"{key}={value}" for key, value in facts["params"].items())
        print(
            f"best {facts['objective']} {facts['value']:.4f} of {facts['trials']} jobs, in job "
            f"{facts['job']}: {listed}\nbest {self.plan.home / BEST_FILE}"
        )
        return float(facts["value"])


def _distribution(word: Word) -> BaseDistribution:
    """The values that a word lets a search choose from."""
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    sweep = word.sweep()
    log = "log" in getattr(sweep, "tags", ())
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start or 0, sweep.end or 0
        if not low < high or (log and low <= 0):
            raise UserError(f"{word.text}: an interval runs from low to high, with log above 0.")
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    if isinstance(sweep, RangeSweep) and all(
        isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step)
    ):
        values = [int(value) for value in word.values()]
        if len(values) > 1 and values[0] < values[-1]:
            return IntDistribution(values[0], values[-1], step=values[1] - values[0])
    return CategoricalDistribution(word.values())


def _example(values: BaseDistribution) -> Any:
    """One of the values of a distribution."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(values, CategoricalDistribution):
        return values.choices[0]
    return values.low  # type: ignore[attr-defined]


_KINDS = (JobSweeper, StudySweeper, ListSweeper)


def register() -> None:
    """Make the sweepers known to Hydra, which takes plugins from ``hydra_plugins`` alone."""
    if importlib.util.find_spec(NAMESPACE) is None:
        # No plugin is installed.
        sys.modules[NAMESPACE] = package = ModuleType(NAMESPACE)
        package.__path__ = []
    module = f"{NAMESPACE}.noisyml"
    sys.modules[module] = sys.modules[__name__]
    setattr(importlib.import_module(NAMESPACE), "noisyml", sys.modules[__name__])  # noqa: B010
    for kind in _KINDS:
        kind.__module__ = module
        Plugins.instance().register(kind)


def _withdraw() -> None:
    """Forget them: launchers carry the list of plugins to processes that cannot import them."""
    plugins = Plugins.instance()
    for kind in _KINDS:
        plugins.class_name_to_class.pop(f"{kind.__module__}.{kind.__name__}", None)
        listed = plugins.plugin_type_to_subclass_list[Sweeper]
        if kind in listed:
            listed.remove(kind)
