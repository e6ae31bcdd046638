"""Loggers that never ask anything."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger

from noisyml.runs.processes import is_main_process

log = logging.getLogger(__name__)

#: How long the server of Weights & Biases may take to answer, in seconds.
PATIENCE = 5.0


#: Settings that say where and how a run ran, not what it was.
LEFT_OUT = ("callbacks", "hydra", "logger", "paths", "report", "resume", "run_dir")

#: Types that loggers show as they are.
SIMPLE = bool | int | float | str


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run as loggers show them: dotted key to number, text or truth value.

    Args:
        config: the resolved configuration.
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
    loggers: Sequence[Logger], config: Mapping[str, Any], metrics: Mapping[str, float], step: int
) -> None:
    """Give loggers the final metrics of a run, beside the settings where they have a table of both.

    A run of Weights & Biases ends with them: the next one of the process is another.

    Args:
        loggers: of the run.
        config: the resolved configuration.
        metrics: final metrics by name; undefined ones (NaN) are left out.
        step: optimiser steps done.
    """
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    defined = {name: value for name, value in metrics.items() if math.isfinite(value)}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            # Its table wants settings and metrics at once; the metrics are then points, too.
            logger.log_hyperparams(parameters(config), defined, step=step)
        else:
            logger.log_metrics(defined, step=step)
        logger.save()
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def wandb_logger(save_dir: str, project: str, name: str, entity: str | None = None) -> Logger:
    """A Weights & Biases logger; offline, and saying so, if there is no key or no answer.

    Args:
        save_dir: folder that receives the ``wandb`` folder.
        project: project the run belongs to.
        name: display name of the run.
        entity: team or user; None: the key's own.
    """
    from lightning.pytorch.loggers import WandbLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    if wandb.run is not None:  # of a job of this process that failed; it would go on
        wandb.finish(exit_code=1)
    settings: dict[str, Any] = {}
    if os.environ.get("WANDB_MODE") not in ("offline", "disabled") and is_main_process():
        reason = None if _has_key() else "no API key (WANDB_API_KEY or `wandb login`)"
        reason = reason or _unreachable()
        if reason:
            log.warning(
                "wandb: %s, so the run is recorded offline in %s; `wandb sync` uploads it later.",
                reason,
                save_dir,
            )
            settings["offline"] = True
    return WandbLogger(save_dir=save_dir, project=project, name=name, entity=entity, **settings)


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def _unreachable() -> str | None:
    """Why the server does not answer within `PATIENCE`; None if it does, whatever it says."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(_server(), timeout=PATIENCE):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return f"no answer from {_server()} ({getattr(error, 'reason', error)})"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    host = _server().partition("://")[2]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
