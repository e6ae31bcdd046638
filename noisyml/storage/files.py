"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic(path: Path, *, durable: bool = False, sole_writer: bool = False) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when the context ends well.

    A reader, or a kill, sees the old file or the new one, never half. The temporary file is removed
    if the context fails. Its name ends in ``.tmp``, so functions that append a suffix of their own
    (``numpy.save``) want an open file.

    Args:
        path: of the finished file; its folder is made if need be.
        durable: also survive a power cut.
        sole_writer: nobody else writes `path` at the same time: the temporary file has a fixed
            name, so that one which a kill left behind is written over by the next attempt.

    Yields:
        The temporary file's path; it is the caller's to make.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = "" if sole_writer else f".{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}{own}.tmp")
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(
    path: Path, content: str | bytes | memoryview, *, durable: bool = False
) -> None:
    """Write text or bytes so that a reader, or a kill, sees the old file or the new one.

    Args:
        path: of the file; its folder is made if need be.
        content: of the whole file.
        durable: also survive a power cut.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    with atomic(path, durable=durable) as temporary:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8", newline="\n")
        else:
            temporary.write_bytes(content)
