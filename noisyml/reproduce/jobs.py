"""Jobs: runs by their overrides, in folders named after what their configuration resolves to.

Two cells, two tables or a claim that ask for the same run share its folder. A finished one is not
trained again, and a broken one is gone on with, whatever asked for it first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.command.config import conf_dir, register_resolvers
from noisyml.runs.folder import RunFolder
from noisyml.storage.files import write_atomically
from noisyml.storage.reading import DamagedFileError

if TYPE_CHECKING:
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
def composing() -> Iterator[None]:
    """Let `composed` work while the context is open."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a training run, Hydra's own part included; inside `composing`.

    Raises:
        Exception: Hydra's, about a word that does not fit.
    """
    from hydra import compose

    return compose("train", [*overrides, *QUIET], return_hydra_config=True)


def repeated(
    config: DictConfig, overrides: Sequence[str], varied: Sequence[tuple[str, int]]
) -> Job:
    """The job of a composed configuration with other seeds.

    Args:
        config: of `overrides`; its seeds are changed.
        overrides: without seeds.
        varied: keys of seeds with their values; one that the configuration lacks is left out.
    """
    from omegaconf import OmegaConf

    having = [(key, value) for key, value in varied if has(config, key)]
    for key, value in having:
        OmegaConf.update(config, key, value)
    return Job((*overrides, *(f"{key}={value}" for key, value in having)), fingerprint(config))


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
    from noisyml.command.secrets import resolved

    plain = config.copy()
    for place in plain.paths:
        plain.paths[place] = f"PATH_{place}"
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
