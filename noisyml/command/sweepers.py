"""Hydra plugins that make the jobs of a sweep: every combination of values, a list, or a search.

A setting that only some of the jobs have is set where it exists, and that is said once.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, open_dict

from noisyml.checks import Count, Seed, WholeNonNegative, check_arguments
from noisyml.command.secrets import as_yaml, masked_words
from noisyml.command.studies import (
    BEST_FILE,
    distribution,
    example,
    missing_trials,
    sampler,
    write_best,
    write_results,
)
from noisyml.command.sweeps import OBJECTIVE, Sweep, lacking_key, objective_of, objective_value
from noisyml.command.words import Word, words_in
from noisyml.errors import UserError
from noisyml.runs.trials import JOURNAL_FILE, PRUNED, STUDY_NAME, PrunerName, Search, open_journal
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
    ``study.journal`` in the sweep's folder keeps it, and the trial under way is gone on with. A
    trial reports its objective after each validation, and is stopped where it is hopeless
    (`noisyml.runs.trials.Search`).

    Args:
        n_trials: jobs in all.
        n_jobs: jobs at a time, for launchers that run them beside each other.
        seed: of the search.
        method: ``tpe`` (tree-structured Parzen estimator) or ``random``.
        objective: metric to go by, on validation data; ``headline`` stands for that of the first
            evaluator.
        direction: ``maximize``, ``minimize``, or null: as the metric's evaluator says.
        on_test: True if the objective may be another metric than a ``val/...``; the report then
            says that the values were chosen on it.
        pruner: rule by which trials are stopped: ``median``, ``halving`` or ``none``.
        startup_trials: with ``median``, trials that must have finished before one is stopped.
        warmup_epochs: epochs in which no trial is stopped.
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
        on_test: bool = False,
        pruner: PrunerName = "median",
        startup_trials: WholeNonNegative = 5,
        warmup_epochs: WholeNonNegative = 1,
        params: Mapping[str, str] | None = None,
    ) -> None:
        given = {
            "n_trials": n_trials,
            "n_jobs": n_jobs,
            "seed": seed,
            "method": method,
            "objective": objective,
            "direction": direction,
            "on_test": on_test,
            "pruner": pruner,
            "startup_trials": startup_trials,
            "warmup_epochs": warmup_epochs,
        }
        check_arguments(type(self).__init__, given)
        self.n_trials, self.n_jobs, self.seed, self.method = n_trials, n_jobs, seed, method
        self.wanted, self.direction, self.on_test = objective, direction, on_test
        self.rule = Search(objective, pruner, startup_trials, warmup_epochs)

    def sweep(self, arguments: list[str]) -> float | None:
        """Run the trials that are missing; the best value, or None if no job ended well."""
        words = self.words()
        space = {word.target: distribution(word) for word in words if word.swept}
        if not space:
            raise UserError(
                "There is nothing to search: give a setting several values or an interval, e.g. "
                "'optimizer.lr=tag(log,interval(1e-4,1e-1))'."
            )
        fixed = [word.text for word in words if not word.swept]
        self._refusals: dict[str, Exception] = {}
        first = [f"{key}={example(values)}" for key, values in space.items()]
        lacking = self.lacking([*fixed, *first])
        composed = self.context.config_loader.load_sweep_config(
            self.composed, [w.text for w in words_in([*fixed, *first]) if w.key not in lacking]
        )
        objective, lower = objective_of(composed, self.wanted)
        self.rule = self._permitted(objective)
        direction = self.direction or ("minimize" if lower else "maximize")
        self.record()
        self.plan.jobs = self.n_trials
        if self.rule.pruner != "none":
            self.plan.search = self.rule
        study = self._study(direction)
        while batch := self._next(study, space):
            self._run(study, batch, fixed)
        return self._conclude(study)

    def _permitted(self, objective: str) -> Search:
        """The rule of the search with its objective by name.

        Raises:
            UserError: the values would be chosen on test data, and nobody has said so.
        """
        if objective.startswith("val/"):
            return replace(self.rule, objective=objective)
        if not self.on_test:
            raise UserError(
                f"hydra.sweeper.objective={objective} is no metric of validation data: what is "
                f"chosen on it looks better than it is. Go by a val/... metric, or say "
                f"hydra.sweeper.on_test=true, which labels the result so."
            )
        say(f"values are CHOSEN ON {objective}: its best value is no test result.")
        # It is known only when a run has ended.
        return replace(self.rule, objective=objective, pruner="none")

    def _study(self, direction: Literal["maximize", "minimize"]) -> Study:
        """The study in the sweep's folder, new or begun."""
        self.plan.home.mkdir(parents=True, exist_ok=True)
        storage = open_journal(self.plan.home / JOURNAL_FILE)
        import optuna

        study = optuna.create_study(
            storage=storage, study_name=STUDY_NAME, direction=direction, load_if_exists=True
        )
        if study.direction.name.lower() != direction:
            raise UserError(
                f"{self.plan.home} holds a search with direction={study.direction.name.lower()}: "
                f"choose another hydra.sweep.dir."
            )
        return study

    def _next(self, study: Study, space: Mapping[str, BaseDistribution]) -> list[FrozenTrial]:
        """Trials to run now: those that a kill left under way, or new ones; none at the end."""
        begun = missing_trials(study, space)
        if begun:
            return begun[: self.n_jobs]
        done = len(study.get_trials(deepcopy=False))
        drawn: list[Trial] = []
        for number in range(done, min(done + self.n_jobs, self.n_trials)):
            study.sampler = sampler(self.method, self.seed + 1_000_003 * number)
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
                value = None if metrics is None else objective_value(metrics, self.rule.objective)
                reported = study.get_trials(deepcopy=False)[trial.number]
                if value is None or value != value:
                    study.tell(trial.number, state=TrialState.FAIL)
                elif PRUNED in reported.user_attrs:
                    study.tell(trial.number, state=TrialState.PRUNED)
                else:
                    study.tell(trial.number, value)
                write_best(self.plan.home, study, self.rule.objective)
            write_results(self.plan.home, study, self._facts())

    def _facts(self) -> dict[str, Any]:
        """Settings of the search, for its results."""
        return {
            "objective": self.rule.objective,
            "on_test": self.on_test and not self.rule.objective.startswith("val/"),
            "sampler": self.method,
            "seed": self.seed,
            "pruner": self.rule.pruner,
            "n_trials": self.n_trials,
        }

    def _conclude(self, study: Study) -> float | None:
        """Write and say what came out."""
        write_results(self.plan.home, study, self._facts(), importance=True)
        facts = write_best(self.plan.home, study, self.rule.objective)
        if facts is None:
            return None
        listed = " ".join(f"{key}={value}" for key, value in facts["params"].items())
        pruned = f" ({facts['pruned']} more stopped early)" if facts["pruned"] else ""
        print(
            f"best {facts['objective']} {facts['value']:.4f} of {facts['trials']} jobs{pruned}, in "
            f"job {facts['job']}: {listed}\nbest {self.plan.home / BEST_FILE}"
        )
        return float(facts["value"])


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
