"""Files of estimators: models without pickled objects, snapshots, arrays."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyml.errors import UserError
from noisyml.storage.files import atomic

#: The snapshot that a resumed fit goes on from.
LATEST = "latest_snapshot.pth"
_KEYS = ("inputdim", "n_components", "encoder", "projector", "norm_layer")


def write_model(path: Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers and words so that a kill leaves all of them or none."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def read_model(path: Path) -> dict[str, Any]:
    """A model that `write_model` wrote; nothing in it is executed.

    Raises:
        UserError: it is not there, damaged, or something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"There is no {path}.") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a model of TLDR ({reason}).") from error
    known = content.get("architecture") if isinstance(content, dict) else None
    if not isinstance(known, dict) or any(key not in known for key in _KEYS):
        raise UserError(f"{path} is not a model of TLDR: it names no architecture.")
    return dict(content)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a ``.npy`` file whole or not at all."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


class Snapshots:
    """Models that a fit leaves behind.

    Args:
        folder: receives them; None: nowhere.
        every: epochs between those that are kept; 0: only the latest is.
    """

    def __init__(self, folder: Any, every: int) -> None:
        self.folder = None if folder is None else Path(folder)
        self.every = every

    def write(self, content: dict[str, Any], epoch: int, best: bool) -> None:
        """Write what is due after an epoch.

        Args:
            content: see `write_model`.
            epoch: epochs done.
            best: it is the best so far, and asked for.
        """
        assert self.folder is not None
        write_model(self.folder / LATEST, content)
        if self.every and epoch % self.every == 0:
            write_model(self.folder / f"snapshot_{epoch}.pth", content)
        if best:
            write_model(self.folder / "best.pth", content)
