"""Jobs: runs by their overrides, in folders named after what their configuration resolves to.

Two cells, two tables or a claim that ask for the same run share its folder. A finished one is not
trained again, and a broken one is gone on with, whatever asked for it first.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.command.config import conf_dir, register_resolvers
from noisyml.command.words import Word, words_in
from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder
from noisyml.storage.files import write_atomically
from noisyml.storage.reading import DamagedFileError

if TYPE_CHECKING:
    from hydra.plugins.config_source import ConfigResult, ConfigSource
    from omegaconf import DictConfig

#: Words of every job: nothing but the run itself is wanted of it.
QUIET = ("report=false", "callbacks.progress=null")
#: What says where or how a run is kept, and not what it is.
_INCIDENTAL = ("hydra", "name", "report", "resume", "run_dir", "previous_run", "logger")
_DIGITS = 12


@dataclass(frozen=True)
class Job:
    """A run to be made, or made already.

    Attributes:
        overrides: words after ``noisyml train``.
        key: hexadecimal digits of the resolved configuration's hash.
    """

    overrides: tuple[str, ...]
    key: str

    def folder(self, runs: Path) -> RunFolder:
        """Its folder below the one of all runs."""
        return RunFolder(runs / self.key)

    def is_finished(self, runs: Path) -> bool:
        """True if its folder holds a finished run."""
        folder = self.folder(runs)
        try:
            finished = folder.status().get("state") == "finished"
        except DamagedFileError:
            return False
        return finished and folder.metrics_file.is_file()

    def command(self, runs: Path) -> str:
        """The command that makes it."""
        import shlex

        place = f"hydra.run.dir={self.folder(runs).path}"
        return shlex.join(["noisyml", "train", *self.overrides, *QUIET, place])


@contextlib.contextmanager
def composing() -> Iterator[Composer]:
    """Context in which configurations are composed."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for source in GlobalHydra.instance().config_loader().get_sources():
            _parse_once(source)
        yield Composer()
    GlobalHydra.instance().clear()


def _parse_once(source: ConfigSource) -> None:
    """Let one of Hydra's sources of YAML files, made for this context, read each file once."""
    load = source.load_config
    parsed: dict[str, ConfigResult] = {}

    def load_config(config_path: str) -> ConfigResult:
        if config_path not in parsed:
            parsed[config_path] = load(config_path)
        return copy.deepcopy(parsed[config_path])  # Hydra changes what it is given

    source.load_config = load_config  # type: ignore[method-assign]


class Composer:
    """Composes the configurations of training runs, those of the same options once.

    Hydra reads and merges some thirty files for every configuration. Values come last there, in the
    order typed; here they are put into a copy of what the options alone gave.
    """

    def __init__(self) -> None:
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a training run, Hydra's own part included, for the caller to change.

        Raises:
            Exception: Hydra's, about a word that does not fit.
        """
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        words = words_in([*overrides, *QUIET])
        if any(word.prefix or word.package for word in words):
            return _by_hydra(words)
        chosen = [word for word in words if word.chooses]
        key = tuple(word.text for word in chosen)
        if key not in self._bases:
            self._bases[key] = _by_hydra(chosen)
        config = self._bases[key].copy()
        try:
            for word in words:
                if not word.chooses:
                    OmegaConf.update(config, word.key, word.typed_value(), merge=True)
        except (OmegaConfBaseException, UserError):
            return _by_hydra(words)  # which says what does not fit
        return config


def _by_hydra(words: Sequence[Word]) -> DictConfig:
    from hydra import compose

    return compose("train", [word.text for word in words], return_hydra_config=True)


def repeated(
    config: DictConfig, overrides: Sequence[str], varied: Sequence[Mapping[str, int]]
) -> list[Job]:
    """The jobs of a composed configuration with other seeds, those that resolve alike once.

    Args:
        config: of `overrides`.
        overrides: without seeds.
        varied: for each job, seeds by their keys; one that the configuration lacks is left out.
    """
    from omegaconf import OmegaConf

    plain = _without_places(config)
    found: dict[tuple[str, ...], Job] = {}
    for seeds in varied:
        having = {key: seed for key, seed in seeds.items() if has(config, key)}
        words = tuple(f"{key}={seed}" for key, seed in having.items())
        if words in found:
            continue
        for key, seed in having.items():
            OmegaConf.update(plain, key, seed)
        found[words] = Job((*overrides, *words), _hash(plain))
    return distinct(list(found.values()))


def has(config: DictConfig, key: str) -> bool:
    """True if a configuration has a setting at a dotted key."""
    from omegaconf import OmegaConf

    parent, _, name = key.rpartition(".")
    node: Any = OmegaConf.select(config, parent) if parent else config
    return node is not None and OmegaConf.is_dict(node) and name in node


def fingerprint(config: DictConfig) -> str:
    """The first digits of the hash of what a configuration resolves to.

    Where data, caches and results lie counts for nothing.
    """
    return _hash(_without_places(config))


def _without_places(config: DictConfig) -> DictConfig:
    """A copy with words in the place of folders."""
    plain = config.copy()
    for place in plain.paths:
        plain.paths[place] = f"PATH_{place}"
    return plain


def _hash(plain: DictConfig) -> str:
    from noisyml.command.secrets import resolved

    found = {key: value for key, value in resolved(plain).items() if key not in _INCIDENTAL}
    found.get("callbacks", {}).pop("progress", None)
    text = json.dumps(found, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def write_list(jobs: Sequence[Job], file: Path) -> None:
    """Write jobs for ``hydra/sweeper=listed``."""
    words = [[*job.overrides, *QUIET, f"hydra.sweep.subdir={job.key}"] for job in jobs]
    write_atomically(file, json.dumps({"jobs": words}, indent=1) + "\n")


def distinct(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, those with the same configuration once."""
    return list({job.key: job for job in jobs}.values())
