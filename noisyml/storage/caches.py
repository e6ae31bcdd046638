"""Files that keep what takes long to make: whole or not at all, and done without where need be."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from noisyml.storage.files import DiskFull, atomic, is_disk_full

log = logging.getLogger(__name__)

#: Errors of a cache that takes nothing: no right to write there, no space, another file in its way.
CANNOT_WRITE = (OSError, DiskFull)
#: Folders that were said to take nothing.
_SAID: set[Path] = set()


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; ``{}`` if there is none, or a damaged one, which is written anew."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any] | None:
    """The array in a ``.npy`` file; None if there is none, or a damaged one.

    Args:
        path: of the file.
        mapped: leave the array on disk.
    """
    try:
        found = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if isinstance(found, np.ndarray) else None


def write(path: Path, content: bytes | NDArray[Any]) -> bool:
    """Write beside the target and rename: a second process sees all of it or nothing.

    Returns:
        False, after a warning, if it cannot be written: what it would keep is made anew next time.
    """
    try:
        with atomic(path) as temporary, temporary.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                np.save(file, content, allow_pickle=False)
    except CANNOT_WRITE as error:
        done_without(path.parent, error)
        return False
    return True


def done_without(folder: Path, error: Exception) -> None:
    """Say, once in a process, that a cache takes nothing and what is made will be made again."""
    if folder in _SAID:
        return
    _SAID.add(folder)
    full = isinstance(error, DiskFull)
    reason = "no space is left" if full else getattr(error, "strerror", None) or str(error)
    log.warning("The cache %s cannot be written (%s): nothing is kept there.", folder, reason)


class ArrayFile:
    """A ``.npy`` file whose array is filled piece by piece, in memory where a disk takes none.

    Its space is taken at once: a file that grows as its pages are touched ends the process without
    a word (SIGBUS) when the disk is full. Used as a context, at whose end the file takes its name.

    Args:
        path: of the file; nobody else writes it at the same time.

    Attributes:
        kept: True once the whole array lies in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept = False
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._mapped: np.memmap[Any, np.dtype[Any]] | None = None

    def make(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """The array to fill, once; its values are arbitrary or zero."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            array = np.lib.format.open_memmap(self._temporary, mode="w+", dtype=dtype, shape=shape)
            _take_space(self._temporary, array.offset + array.nbytes)
        except OSError as error:
            self._discard()
            done_without(self.path.parent, DiskFull(self.path) if is_disk_full(error) else error)
            return np.zeros(shape, dtype)
        self._mapped = array
        return array

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._mapped is None:
            return
        if kind is not None:
            self._discard()
            return
        self._mapped.flush()
        self._temporary.replace(self.path)
        self.kept = True

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


def _take_space(path: Path, size: int) -> None:
    """Make sure that a file of zeros, of this size in bytes, has its space on the disk."""
    with path.open("rb+") as file:
        reserve = getattr(os, "posix_fallocate", None)  # not on every system
        if reserve is not None:
            reserve(file.fileno(), 0, size)
            return
        for start in range(0, size, 1 << 24):
            part = min(1 << 24, size - start)
            header = file.read(part)
            file.seek(start)
            file.write(header)
