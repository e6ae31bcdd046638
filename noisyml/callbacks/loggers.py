"""Loggers that never ask anything."""

from __future__ import annotations

import logging
import os
from typing import Any

from lightning.pytorch.loggers import Logger

log = logging.getLogger(__name__)


def wandb_logger(save_dir: str, project: str, name: str, entity: str | None = None) -> Logger:
    """A Weights & Biases logger; offline, and saying so, if there is no key.

    Args:
        save_dir: folder that receives the ``wandb`` folder.
        project: project the run belongs to.
        name: display name of the run.
        entity: team or user; None: the key's own.
    """
    from lightning.pytorch.loggers import WandbLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    settings: dict[str, Any] = {}
    if not _has_key() and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
        log.warning(
            "wandb: no API key (WANDB_API_KEY or `wandb login`), so the run is recorded offline in "
            "%s; `wandb sync` uploads it later.",
            save_dir,
        )
        settings["offline"] = True
    return WandbLogger(save_dir=save_dir, project=project, name=name, entity=entity, **settings)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
