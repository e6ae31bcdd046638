"""Dashboards: the parts of a run they show are decided here, each of them says how.

A dashboard is a logger of Lightning that can show more than parameters and metrics. Any other
logger of Lightning is given these two.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray

from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder

#: Settings that say where and how a run ran, not what it was.
LEFT_OUT = ("callbacks", "hydra", "logger", "paths", "report", "resume", "run_dir")
#: Types that dashboards show as they are.
SIMPLE = bool | int | float | str
#: Samples trusted least that are shown.
SHOWN = 48

FileKind = Literal["noise", "checkpoint"]


@dataclass(frozen=True)
class Suspects:
    """Training samples that were trusted least.

    Attributes:
        table: columns ``key``, ``label`` (as the data have it) and ``p_clean``, the least first.
        images: uint8 [n, s, s, 3], one per row; None where there are none.
    """

    table: pd.DataFrame
    images: NDArray[np.uint8] | None

    @classmethod
    def read(cls, folder: RunFolder) -> Suspects | None:
        """Those of a finished run; None where nothing was judged."""
        pictures = folder.path / "thumbnails.npz"
        if pictures.is_file():
            with np.load(pictures, allow_pickle=False) as arrays:
                columns = {"key": "key", "label": "observed_name", "p_clean": "p_clean"}
                table = pd.DataFrame({name: arrays[array] for name, array in columns.items()})
                return cls(table[:SHOWN], arrays["images"][:SHOWN])
        if folder.suspects_file.is_file():
            table = pd.read_csv(folder.suspects_file, nrows=SHOWN)
            return cls(table[["key", "label", "p_clean"]], None)
        return None


class Dashboard(Logger, ABC):
    """A logger that shows the samples trusted least, and keeps files."""

    @abstractmethod
    def show_suspects(self, suspects: Suspects, step: int) -> None:
        """Show the samples trusted least.

        Args:
            suspects: of the run.
            step: optimiser steps done.
        """

    @abstractmethod
    def keep_file(self, file: Path, kind: FileKind) -> None:
        """Keep a file of the run with it, where the dashboard keeps files.

        Args:
            file: in the run folder.
            kind: what it is.
        """

    def show_results(
        self, parameters: Mapping[str, Any], metrics: Mapping[str, float], step: int
    ) -> None:
        """Show final metrics.

        Args:
            parameters: of the run, as they were announced.
            metrics: by name, all of them numbers.
            step: optimiser steps done.
        """
        self.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        """End the run; the next one of the process is another."""
        self.save()


class Place(NamedTuple):
    """The name of a run and the group it belongs to."""

    name: str
    group: str | None


def place_of(folder: Path, name: str) -> Place:
    """Name and group on a dashboard of the run in a folder: the jobs of a sweep are a group.

    Args:
        folder: of the run.
        name: that its configuration has.
    """
    home = folder.resolve().parent
    if not (home / "multirun.yaml").is_file():
        return Place(name, None)
    return Place(f"{name}/{folder.name}", f"{home.parent.name}/{home.name}")


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run as dashboards show them: dotted key to number, text or truth value.

    Args:
        config: the resolved configuration, secrets masked.
    """
    from noisyml.command.config import flatten

    leaves = dict(flatten({str(k): v for k, v in config.items() if k not in LEFT_OUT}))
    groups = {key.rpartition(".")[0] for key in leaves}
    return {
        key: "null" if value is None else value if isinstance(value, SIMPLE) else str(value)
        for key, value in leaves.items()
        if key not in groups
    }


def announce_run(loggers: Sequence[Logger], config: Mapping[str, Any]) -> None:
    """Tell loggers the settings of a run, before it begins."""
    for logger in loggers:
        logger.log_hyperparams(parameters(config))


def announce_results(
    loggers: Sequence[Logger],
    folder: RunFolder,
    config: Mapping[str, Any],
    metrics: Mapping[str, float],
    step: int,
) -> None:
    """Give loggers what came out of a run: metrics, samples trusted least, files.

    Args:
        loggers: of the run.
        folder: of the run.
        config: the resolved configuration, secrets masked.
        metrics: final metrics by name; undefined ones (NaN) are left out.
        step: optimiser steps done.
    """
    defined = {name: value for name, value in metrics.items() if math.isfinite(value)}
    suspects = Suspects.read(folder) if loggers else None
    for logger in loggers:
        if not isinstance(logger, Dashboard):
            logger.log_metrics(defined, step=step)
            logger.save()
            continue
        logger.show_results(parameters(config), defined, step)
        if suspects is not None:
            logger.show_suspects(suspects, step)
        for file, kind in _files(folder):
            logger.keep_file(file, kind)
        logger.close()


def _files(folder: RunFolder) -> Iterator[tuple[Path, FileKind]]:
    """Files of a run that go with it: the noise, and the best model or else the last."""
    if folder.noise_file.is_file():
        yield folder.noise_file, "noise"
    models = [folder.checkpoints / f"{stem}.ckpt" for stem in ("best", "last")]
    for model in [file for file in models if file.is_file()][:1]:
        yield model, "checkpoint"


def needs(package: str, extra: str) -> UserError:
    """The sentence for a dashboard whose package is not installed.

    Args:
        package: that is missing.
        extra: of noisyml that brings it, and name of the logger.
    """
    return UserError(f"logger={extra} needs {package}: pip install 'noisyml[{extra}]'.")
