"""Sweeps: what they vary, where their folder lies, and what runs their jobs."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.command.config import chosen_by, conf_dir, options, sweep_values_of
from noisyml.command.words import Word, options_of, quoted, split_line, words_in
from noisyml.errors import UserError, causes
from noisyml.runs.trials import NEEDS_OPTUNA, Search, Trial

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Runs the jobs of a sweep one after the other in this process.
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
#: Runs every combination of values; Hydra's own, in whose place `JOB_SWEEPER` works.
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
JOB_SWEEPER = "hydra_plugins.noisyml.JobSweeper"
STUDY_SWEEPER = "hydra_plugins.noisyml.StudySweeper"
LIST_SWEEPER = "hydra_plugins.noisyml.ListSweeper"
#: The metric that a search goes by unless told otherwise: on validation data.
OBJECTIVE = "val/headline"


@dataclass
class Sweep:
    """A sweep before its jobs begin.

    Attributes:
        home: the absolute folder of its jobs, the same wherever they run.
        launcher, sweeper: import paths.
        typed: what was typed, but for Hydra's own settings, in its order.
        shared: choices that all jobs have in common, and Hydra's own settings.
        params: what the configuration brings to vary beside what was typed.
        jobs: how many jobs there are; 0 while nobody knows.
        search: what a search asks of its jobs while they train; None of other sweeps, and of a
            search that stops none.
    """

    home: Path
    launcher: str
    sweeper: str
    typed: list[str]
    shared: list[str]
    params: dict[str, str]
    jobs: int = 0
    search: Search | None = None

    @property
    def is_ours(self) -> bool:
        """True if one of our own sweepers makes the jobs."""
        return self.sweeper in (JOB_SWEEPER, STUDY_SWEEPER, LIST_SWEEPER)

    def varied(self) -> dict[str, int]:
        """The settings that it varies, with their numbers of values."""
        return swept_keys(self.typed, self.params)


#: The sweep whose job this process is working on.
_UNDER_WAY: ContextVar[Sweep | None] = ContextVar("sweep", default=None)


@contextmanager
def under_way(sweep: Sweep | None) -> Iterator[None]:
    """Let `current_sweep` tell the sweep while the context is open."""
    token = _UNDER_WAY.set(sweep)
    try:
        yield
    finally:
        _UNDER_WAY.reset(token)


def current_sweep() -> Sweep | None:
    """The sweep that the job under way belongs to; None outside one."""
    return _UNDER_WAY.get()


def current_trial(folder: Path) -> Trial | None:
    """The trial of a search that the job under way is; None if it is none.

    Args:
        folder: of its run.
    """
    from hydra.core.hydra_config import HydraConfig

    sweep = current_sweep()
    if sweep is None or sweep.search is None:
        return None
    return Trial.of(folder, sweep.home, HydraConfig.get().job.num, sweep.search)


def sweep_settings(root: str, arguments: list[str], say: Callable[[str], None]) -> Sweep:
    """The sweep that a command line asks for.

    Where the configured folder is named after a choice that the sweep varies, it is named after
    all of them: ``prism-digits+glyphs``.

    Args:
        root: name of the root YAML.
        arguments: what was typed after the verb.
        say: called with a sentence about what is varied, or left out, though it was not typed.

    Raises:
        UserError: a search without Optuna.
    """
    from hydra import initialize_config_dir
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals
    from omegaconf import open_dict

    flags, overrides = split_line(arguments)
    known = get_args_parser().parse_known_args(flags)[0]
    folders = [Path(known.config_dir).resolve()] if known.config_dir else []
    search = [f"hydra.searchpath=[{quoted(f'file://{folder}')}]" for folder in folders]
    words = words_in(overrides)
    varied: dict[str, list[str]] = {}
    first: list[str] = []
    setup_globals()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for word in words:
            if not word.swept:
                first.append(word.text)
            elif values := word.values():
                varied[word.key] = values
                first.append(f"{word.target}={values[0]}")
        config = _composed(known.config_name or root, search, first)
    GlobalHydra.instance().clear()
    with open_dict(config):
        for group in varied.keys() & config.hydra.runtime.choices.keys():
            values = varied[group]
            several = "+".join(values) if len(values) <= 3 else f"{len(values)}_{group}s"
            config.hydra.runtime.choices[group] = several
    HydraConfig.instance().set_config(config)
    sweeper = str(config.hydra.sweeper["_target_"])
    if sweeper == STUDY_SWEEPER and not importlib.util.find_spec("optuna"):
        raise UserError(NEEDS_OPTUNA)
    params = {str(k): str(v) for k, v in (config.hydra.sweeper.get("params") or {}).items()}
    return Sweep(
        home=Path(config.hydra.sweep.dir).absolute(),
        launcher=str(config.hydra.launcher["_target_"]),
        sweeper=JOB_SWEEPER if sweeper == BASIC_SWEEPER else sweeper,
        typed=[word.text for word in words if not word.is_below("hydra")],
        shared=[w.text for w in words if not w.swept and (w.chooses or w.is_below("hydra"))],
        params=_brought(params, words, folders, say, searched=sweeper == STUDY_SWEEPER),
    )


def _composed(root: str, search: list[str], overrides: list[str]) -> DictConfig:
    """The configuration of a first job, without the settings that it may lack and others have."""
    from hydra import compose

    lacking: set[str] = set()
    while True:
        kept = [word.text for word in words_in(overrides) if word.key not in lacking]
        try:
            return compose(root, [*search, *kept], return_hydra_config=True)
        except Exception as error:
            key = lacking_key(error)
            if key is None or key in lacking:
                raise
            lacking.add(key)


def lacking_key(error: BaseException) -> str | None:
    """The key of an override that Hydra refused because the configuration has no such setting."""
    found = (re.match(r"Could not override '([^'@]+)", str(link)) for link in causes(error))
    return next((match[1] for match in found if match), None)


def _brought(
    params: Mapping[str, str],
    words: Sequence[Word],
    folders: Sequence[Path],
    say: Callable[[str], None],
    searched: bool,
) -> dict[str, str]:
    """The values that the configuration brings and that stay, with what is typed, worth running.

    Those that an experiment has from the one it is built on are not its own, and those of a group
    compete with what was typed for the same choice where its options choose that as well.
    """
    typed = {word.key for word in words}
    chosen = {word.key: options_of(word) for word in words if word.chooses and not word.deletes}
    experiments = chosen.get("experiment", [])
    own = {key for name in experiments for key in sweep_values_of("experiment", name, folders)}
    trees = [folder / "experiment" for folder in (*folders, conf_dir())]
    stated = {
        key
        for tree in trees
        for file in tree.glob("*.yaml")
        for key in sweep_values_of("experiment", file.stem, folders)
    }
    kept: dict[str, str] = {}
    for key, values in params.items():
        if key in typed:
            continue
        if experiments and key in stated and key not in own:
            say(f"{key}={values} belongs to what experiment={'+'.join(experiments)} is built on.")
            continue
        brought = Word.parse(f"{key}={values}").values()
        chooses = {group for option in brought for group in chosen_by(key, option, folders)}
        if rivals := sorted(chooses & chosen.keys()):
            say(f"{key}={values} of the experiment is left out: {rivals[0]} was typed.")
            continue
        if fixed := _fixed_by(key, chosen, folders):
            say(f"{key}={values} of the experiment is left out: {fixed}.")
            continue
        kept[key] = values
    varied = swept_keys([], kept)
    told = any(not word.is_below("hydra", "experiment") for word in words)
    if varied and searched and told:
        first = next(iter(varied))
        say(f"The configuration searches {', '.join(varied)} too; type {first}=ONE to choose.")
    elif varied and told:
        listed = ", ".join(f"{key} ({n} values)" for key, n in varied.items())
        say(
            f"The configuration brings values for {listed}, which are all run; type "
            f"{next(iter(varied))}=ONE to choose."
        )
    return kept


def _fixed_by(key: str, chosen: Mapping[str, Sequence[str]], folders: Sequence[Path]) -> str | None:
    """The typed word that leaves nothing to choose in a group; None if none does."""
    from hydra.utils import get_class

    # A recipe is a method with its loss and selector: these are not varied beside it.
    for name in chosen.get("recipe", ()):
        if key in chosen_by("recipe", name, folders):
            return f"recipe={name} chooses it"
    if key in ("selector", "loss", "memory"):
        targets = {o.name: o.target for o in options("method") if o.target is not None}
        for name in chosen.get("method", ()):
            parts = (
                getattr(get_class(targets[name]), "needs_parts", ()) if targets.get(name) else ()
            )
            if targets.get(name) and key not in parts:
                return f"method={name} asks no {key}"
    return None


def check_launcher(words: Sequence[Word]) -> None:
    """Refuse a launcher whose package is not installed.

    Raises:
        UserError: such a one.
    """
    for word in words:
        kind = (word.value or "").partition("_")[0]
        package = f"hydra_{kind}_launcher"
        if (
            word.key == "hydra/launcher"
            and kind in ("joblib", "ray", "submitit")
            and not importlib.util.find_spec(f"hydra_plugins.{package}")
        ):
            raise UserError(
                f"hydra/launcher={word.value} needs the package {package.replace('_', '-')}: "
                f"pip install 'noisyml[launchers]'."
            )


def swept_keys(typed: Sequence[str], params: Mapping[str, Any]) -> dict[str, int]:
    """The settings a sweep varies, with their numbers of values.

    Args:
        typed: words.
        params: values that the configuration brings; a key that is also typed counts as typed.
    """
    configured = [f"{key}={value}" for key, value in params.items()]
    found: dict[str, int] = {}
    for word in words_in([*configured, *typed]):
        found.pop(word.key, None)
        if word.swept:
            found[word.key] = max(1, len(word.values()))
    return found


def objective_of(config: DictConfig, wanted: str = OBJECTIVE) -> tuple[str, bool]:
    """The metric that a search goes by, and whether less of it is better.

    Args:
        config: of a training run.
        wanted: a metric's name; ``headline`` stands for that of the run's first evaluator.

    Raises:
        UserError: the configuration has no evaluators.
    """
    from hydra.utils import instantiate

    nodes = [node for node in (config.get("evaluators") or {}).values() if node is not None]
    if not nodes:
        raise UserError("A search needs metrics, and this configuration has no evaluators.")
    evaluators = [instantiate(node, _convert_="all") for node in nodes]
    split, _, name = wanted.partition("/")
    if name == "headline":
        name = str(evaluators[0].headline)
    return f"{split}/{name}", any(name in each.lower_is_better for each in evaluators)


def objective_value(metrics: Any, name: str) -> float:
    """The value of the metric that a search goes by, of a job's results.

    Raises:
        UserError: the job has no such metric.
    """
    if not isinstance(metrics, Mapping) or name not in metrics:
        there = sorted(k for k in metrics if "/" in k) if isinstance(metrics, Mapping) else []
        raise UserError(
            f"hydra.sweeper.objective={name} is no metric of the jobs; these are: "
            f"{', '.join(there) or 'none'}."
        )
    return float(metrics[name])
