"""Files on a disk or on a web server, read where bytes of them are needed.

A server's file is never fetched as a whole: each request asks for a range of its bytes, over a
connection that a process keeps. What fails in passing is asked for again; what goes on failing ends
in one sentence that names the file, also in a worker process.
"""

from __future__ import annotations

import io
import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from noisyml.data.inputs import sentence_of
from noisyml.errors import UserError

if TYPE_CHECKING:
    import requests
    from typing_extensions import Buffer

#: Seconds before a request is repeated; after the last one it is given up.
PAUSES: tuple[float, ...] = (0.5, 2.0, 8.0)
#: Seconds without an answer after which a request has failed.
PATIENCE = 30
#: Bytes asked for at a time by whoever reads a file from its beginning.
READ_AHEAD = 1 << 20
#: Answers of servers that may do better a little later.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_KEPT = threading.local()


class ServerFailed(UserError):
    """A file that a server does not give; its sentence survives a worker process."""

    def __init__(self, message: str) -> None:
        super().__init__(sentence_of(ServerFailed, message))


class FileState(NamedTuple):
    """Properties that tell one state of a file from another.

    Attributes:
        name: last part of its path.
        size: number of bytes.
        version: time of its last change in nanoseconds; of a server's file its tag or date.
    """

    name: str
    size: int
    version: str


class _Answer(NamedTuple):
    content: bytes
    size: int
    version: str


class _Passing(Exception):
    """A failure that may be over at the next try."""


def is_remote(place: str | Path) -> bool:
    """True for the address of a file on a web server.

    Example:
        >>> is_remote("https://example.org/0.tar"), is_remote("shards/0.tar")
        (True, False)
    """
    return str(place).lower().startswith(("http://", "https://"))


def state_of(place: str | Path) -> FileState:
    """Name, size and version of a file.

    Raises:
        ServerFailed: a server does not give it.
        OSError: it is not on the disk.
    """
    if is_remote(place):
        answer = _ask(str(place), 0, 1)
        name = unquote(urlsplit(str(place)).path.rpartition("/")[2])
        return FileState(name, answer.size, answer.version)
    status = Path(place).stat()
    return FileState(Path(place).name, status.st_size, str(status.st_mtime_ns))


def opened(place: str | Path) -> BinaryIO:
    """The file for reading, from its beginning or any other byte.

    Raises:
        ServerFailed: a server does not give it; also while it is read.
        OSError: it is not on the disk.
    """
    if is_remote(place):
        return io.BufferedReader(_Remote(str(place)), READ_AHEAD)
    return open(place, "rb")


def read_at(place: str | Path, offset: int, size: int) -> bytes:
    """Some bytes of a file, fewer where it ends.

    Args:
        place: path or address.
        offset: first byte.
        size: number of bytes.

    Raises:
        ServerFailed: a server does not give them.
        OSError: the file is not on the disk.
    """
    if is_remote(place):
        return _ask(str(place), offset, size).content if size else b""
    with open(place, "rb") as file:
        file.seek(offset)
        return file.read(size)


class _Remote(io.RawIOBase):
    """A server's file as one that is open for reading."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._state = state_of(url)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._state.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        size = min(len(view), self._state.size - self._at)
        if size <= 0:
            return 0
        answer = _ask(self._url, self._at, size)
        if (answer.size, answer.version) != self._state[1:]:
            raise ServerFailed(f"{self._url} was changed while it was read; start again.")
        view[:size] = answer.content
        self._at += size
        return size


def _ask(url: str, offset: int, size: int) -> _Answer:
    """Bytes of a server's file, asked for again after failures in passing."""
    for pause in (*PAUSES, None):
        try:
            return _ask_once(url, offset, size)
        except _Passing as failure:
            if pause is None:
                raise ServerFailed(
                    f"{url} cannot be read: {failure}, {len(PAUSES) + 1} times in a row; see to "
                    "the server and resume the run, or fetch the file and give its path."
                ) from failure
            time.sleep(pause)
    raise AssertionError("the last failure is raised")


def _ask_once(url: str, offset: int, size: int) -> _Answer:
    import requests

    last = offset + size - 1
    try:
        with _session().get(
            url, headers={"Range": f"bytes={offset}-{last}"}, timeout=PATIENCE, stream=True
        ) as response:
            status = response.status_code
            if status in _PASSING:
                raise _Passing(f"the server answers {status} {response.reason}")
            told = re.fullmatch(
                r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", "").strip()
            )
            if status == 200 or (status == 206 and told is None):
                raise ServerFailed(
                    f"{url} cannot be read where it lies: the server gives no parts of files "
                    f"(HTTP ranges); fetch the file and give its path."
                )
            if told is None:
                raise ServerFailed(
                    f"{url} cannot be read: the server answers {status} {response.reason}; check "
                    "the address."
                )
            content = response.content
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _Passing(f"no answer ({type(error).__name__})") from error
    except requests.exceptions.ChunkedEncodingError as error:
        raise _Passing("the answer breaks off") from error
    except requests.RequestException as error:
        raise ServerFailed(f"{url} cannot be read ({error}); check the address.") from error
    first, end, whole = map(int, told.groups())
    if (
        first != offset
        or len(content) != min(size, whole - offset)
        or end != first + len(content) - 1
    ):
        raise _Passing(
            f"the server gives {len(content)} bytes from {first} for {size} from {offset}"
        )
    version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return _Answer(content, whole, version)


def _session() -> requests.Session:
    """This thread's connections; those of the process it was forked from are not its own."""
    if getattr(_KEPT, "owner", None) != os.getpid():
        try:
            import requests
        except ImportError as error:
            raise UserError(
                "Files on a web server need the library requests: pip install 'noisyml[captions]'."
            ) from error
        # Bodies as they are stored: a range of a compressed body would be another one.
        _KEPT.session = requests.Session()
        _KEPT.session.headers["Accept-Encoding"] = "identity"
        _KEPT.owner = os.getpid()
    session: requests.Session = _KEPT.session
    return session
