"""Weights & Biases: it never asks anything, and waits for nobody."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from noisyml.callbacks.dashboards.base import Dashboard, FileKind, Suspects, place_of
from noisyml.runs.processes import is_main_process

log = logging.getLogger(__name__)

#: How long the server may take to answer, in seconds.
PATIENCE = 5.0
#: Folder of files that are to be uploaded, in the folder of the run.
STAGING = "wandb/staging"
_KINDS = {"noise": "dataset", "checkpoint": "model"}


class WandbDashboard(WandbLogger, Dashboard):
    """A run of Weights & Biases with a table of suspects, and artifacts."""

    def show_suspects(self, suspects: Suspects, step: int) -> None:
        """Show a table with a picture in each row."""
        import wandb

        columns: list[Any] = list(suspects.table)
        rows: list[Any] = suspects.table.to_numpy().tolist()
        if suspects.images is not None:
            columns = ["image", *columns]
            shown = zip(suspects.images, rows, strict=True)
            rows = [[wandb.Image(image), *row] for image, row in shown]
        self.experiment.log({"suspects": wandb.Table(columns=columns, data=rows)})

    def keep_file(self, file: Path, kind: FileKind) -> None:
        """Keep an artifact; recorded offline it is uploaded from the run folder later."""
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self.experiment.id}", type=_KINDS[kind])
        artifact.add_file(str(file), skip_cache=True, policy="immutable")
        self.experiment.log_artifact(artifact)

    def close(self) -> None:
        """End the run of this process."""
        self.experiment.finish()


def wandb_logger(
    save_dir: str, project: str, name: str, entity: str | None = None
) -> WandbDashboard:
    """A Weights & Biases logger; offline, and saying so, if there is no key or no answer.

    The jobs of a sweep are a group.

    Args:
        save_dir: folder that receives the ``wandb`` folder.
        project: project the run belongs to.
        name: display name of the run.
        entity: team or user; None: the key's own.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    if os.environ.get("WANDB_DATA_DIR", STAGING).endswith(STAGING):
        # Files of tables wait there for `wandb sync`; unless told otherwise, with their run.
        os.environ["WANDB_DATA_DIR"] = str(Path(save_dir).absolute() / STAGING)
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
    place = place_of(Path(save_dir), name)
    return WandbDashboard(
        save_dir=save_dir,
        project=project,
        name=place.name,
        group=place.group,
        entity=entity,
        # What was typed may hold a secret; environment.json describes the machine.
        settings=wandb.Settings(x_disable_meta=True),
        **settings,
    )


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
