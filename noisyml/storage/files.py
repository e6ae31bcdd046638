"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisyml.errors import UserError, causes

#: What the system says when a disk, a quota or the allowed size of a file is used up.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: What NumPy says of an array that it could write in part, instead of why.
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written")
#: Bytes that are written at once.
_AT_ONCE = 1 << 20
#: Less free space than this makes writers that do not say why they failed suspicious, in bytes.
_NEARLY_NOTHING = 1 << 20


class DiskFull(UserError):
    """A file for which there is no space."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(
            f"There is no space left to write {path}: free some and type the command again (a run "
            f"goes on with resume=...)."
        )


def is_disk_full(error: BaseException, folder: Path | None = None) -> bool:
    """True if an error comes of a disk, quota or size of a file that is used up.

    Args:
        error: with its causes.
        folder: that was written to; PyTorch does not say why it cannot write.
    """
    for link in causes(error):
        if isinstance(link, DiskFull) or (isinstance(link, OSError) and link.errno in _FULL):
            return True
        if isinstance(link, OSError) and link.errno is None and _CUT_SHORT.search(str(link)):
            return True
        if isinstance(link, RuntimeError) and "PytorchStreamWriter" in str(link):
            return folder is not None and shutil.disk_usage(folder).free < _NEARLY_NOTHING
    return False


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
        DiskFull: there is no space for it.
        OSError: the folder or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull(path) from error
        raise
    own = "" if sole_writer else f".{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}{own}.tmp")
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        full = is_disk_full(error, path.parent)
        temporary.unlink(missing_ok=True)
        if full and not isinstance(error, DiskFull):
            raise DiskFull(path) from error
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
        DiskFull: there is no space for it.
        OSError: the folder or the file cannot be written.
    """
    with atomic(path, durable=durable) as temporary:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8", newline="\n")
        else:
            temporary.write_bytes(content)


def scratch(folder: Path, n: int) -> NDArray[np.int8]:
    """`n` bytes to work with that lie on disk instead of in memory: int8, to be written and read.

    The file has no name, so that nothing is left of it after a kill.

    Args:
        folder: whose disk it lies on; made if need be.
        n: at least 1.

    Raises:
        DiskFull: there is no space for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            # All of it now: where a mapped file cannot grow, the process is killed.
            for start in range(0, n, _AT_ONCE):
                file.write(bytes(min(_AT_ONCE, n - start)))
            file.flush()
        except OSError as error:
            if is_disk_full(error):
                raise DiskFull(folder) from error
            raise
        return np.memmap(file, dtype=np.int8, mode="r+", shape=(n,))
