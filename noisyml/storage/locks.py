"""Locks that the processes of one machine share, whatever its operating system."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


class Taken(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock while the context is open; it ends with the process, however that ends.

    Args:
        path: of a file that stands for the lock and holds nothing; its folder exists.
        wait: for as long as another process holds it; or else refuse at once.

    Raises:
        Taken: another process holds it, and this one does not wait.
        OSError: the file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise Taken(str(path)) from None
    try:
        yield
    finally:
        lock.release()
