"""Images that lie one after the other in a few large files, with captions beside them.

The files lie on a disk or on a web server. The places of the records are found in one pass, which
is kept; after that every image is read on its own, so that batches, resuming and processes work as
with single files.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from noisyml.data.base import Split
from noisyml.data.inputs import BrokenImage, InputKind, as_seen
from noisyml.data.readers.partition import carve_samples
from noisyml.data.readers.places import FileState, ServerFailed, is_remote, read_at, state_of
from noisyml.errors import UserError
from noisyml.storage import caches

log = logging.getLogger(__name__)

#: Raise when the meaning of a kept index changes.
FORMAT = 1


class Record(NamedTuple):
    """Place and caption of one image in a file.

    Attributes:
        key: its name, unique in the file.
        caption: its text.
        offset: first byte.
        size: number of bytes.
    """

    key: str
    caption: str
    offset: int
    size: int


@dataclass(frozen=True)
class RecordImages:
    """Images read from records.

    Attributes:
        files: paths or addresses of the large files.
        file: [N], which of them.
        offset, size: [N] int64, of each record.
        keys: N names, for messages.
        unpack: bytes of a record to those of an encoded image.
    """

    kind: ClassVar[InputKind] = "images"

    files: Sequence[str]
    file: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    keys: Sequence[str]
    unpack: Callable[[bytes], bytes] = bytes

    def __len__(self) -> int:
        return len(self.file)

    def content(self, index: int) -> bytes:
        """The encoded image at `index`."""
        place = self.files[int(self.file[index])]
        return self.unpack(read_at(place, int(self.offset[index]), int(self.size[index])))

    def load(self, index: int) -> Image.Image:
        """The image at `index`, RGB as a viewer shows it.

        Raises:
            BrokenImage: it is damaged; with its name.
            ServerFailed: the server of its file does not give it.
        """
        try:
            with Image.open(io.BytesIO(self.content(index))) as image:
                return as_seen(image)
        except (MemoryError, ServerFailed):
            raise
        except Exception as error:
            path = self.files[int(self.file[index])]
            raise BrokenImage(f"{path}: {self.keys[index]}", str(error)) from error


def record_splits(
    files: Sequence[str],
    read: Callable[[str], Iterator[Record]],
    unpack: Callable[[bytes], bytes],
    fractions: tuple[float, float],
    seed: int,
    cache_dir: Path | None,
) -> dict[str, Split]:
    """``train``, ``val`` (if its share is not 0) and ``test`` of records, by shares of the names.

    Args:
        files: paths or addresses of the large files.
        read: finds the records of one.
        unpack: see `RecordImages`.
        fractions: shares for ``val`` and ``test``.
        seed: which of the possible carvings.
        cache_dir: folder where places and captions are kept; None: found anew each time.

    Raises:
        UserError: no records, or a name that occurs twice.
        ServerFailed: a server does not give a file.
    """
    states = [state_of(file) for file in files]
    found = [_index(f, state, read, cache_dir) for f, state in zip(files, states, strict=True)]
    keys = [f"{one.name}/{r.key}" for one, rows in zip(states, found, strict=True) for r in rows]
    folder = files[0].rpartition("/")[0]
    if not keys:
        raise UserError(f"{folder} holds no image with a caption; check the files.")
    if len(set(keys)) != len(keys):
        twice = next(key for key, number in Counter(keys).items() if number > 1)
        raise UserError(f"{twice} occurs twice in {folder}; remove one of the two.")
    records = [record for rows in found for record in rows]
    number = np.repeat(np.arange(len(files)), [len(rows) for rows in found])
    captions = np.array([record.caption for record in records], dtype=object)
    offset, size = (np.array([r[i] for r in records], dtype=np.int64) for i in (2, 3))
    parts = carve_samples(np.zeros(len(keys), dtype=np.int64), keys, *fractions, seed)
    digest = hashlib.sha256()
    for state in states:
        digest.update(f"{state.name}\0{state.size}\0{state.version}\0".encode())
    splits = {}
    for part, name in enumerate(("train", "val", "test")):
        rows = np.flatnonzero(parts == part)
        if not len(rows):
            continue
        own = [keys[row] for row in rows.tolist()]
        inputs = RecordImages(list(files), number[rows], offset[rows], size[rows], own, unpack)
        fingerprint = f"{digest.hexdigest()}[{name} of {fractions} by {seed}]"
        splits[name] = Split(name, inputs, captions[rows], [], own, fingerprint)
    return splits


def _index(
    file: str, state: FileState, read: Callable[[str], Iterator[Record]], cache_dir: Path | None
) -> list[Record]:
    """The records of a file, found in a pass over it or kept from an earlier one."""
    if cache_dir is None:
        return list(read(file))
    address = file if is_remote(file) else Path(file).resolve()
    name = f"{FORMAT} {read.__qualname__} {address} {state.size} {state.version}"
    kept = cache_dir / "records" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return [Record(*row) for row in json.loads(kept.read_bytes())]
    if is_remote(file):
        log.info("looking for images in %s (%.0f MB)", file, state.size / 1e6)
    rows = list(read(file))
    caches.write(kept, json.dumps(rows).encode())
    return rows
