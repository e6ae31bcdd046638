"""Files in which data sets keep what takes long to make: written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyml.errors import UserError
from noisyml.storage.files import atomic


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; ``{}`` if there is none, or a damaged one, which is written anew."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_array(path: Path) -> NDArray[Any] | None:
    """The array in a ``.npy`` file; None if there is none, or a damaged one."""
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array


def make_folder(folder: Path) -> None:
    """Make the folder of a cache.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def write(path: Path, content: bytes | NDArray[Any]) -> None:
    """Write beside the target and rename: a second process sees all of it or nothing.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with atomic(path) as temporary, temporary.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                np.save(file, content, allow_pickle=False)
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"The cache {folder} cannot be written ({error.strerror}); set dataset.cache_dir to a "
        "folder you may write to, or to null."
    )
