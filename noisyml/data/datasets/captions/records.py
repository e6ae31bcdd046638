"""Images that lie one after the other in a few large files, with captions beside them.

The places of the records are found in one pass, which is kept; after that every image is read on
its own, so that batches, resuming and processes work as with single files.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
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
from noisyml.errors import UserError
from noisyml.storage import caches

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
        files: the large files.
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
        with open(self.files[int(self.file[index])], "rb") as file:
            file.seek(int(self.offset[index]))
            return self.unpack(file.read(int(self.size[index])))

    def load(self, index: int) -> Image.Image:
        """The image at `index`, RGB as a viewer shows it; raises `BrokenImage` naming it."""
        try:
            with Image.open(io.BytesIO(self.content(index))) as image:
                return as_seen(image)
        except MemoryError:
            raise
        except Exception as error:
            path = self.files[int(self.file[index])]
            raise BrokenImage(f"{path}: {self.keys[index]}", str(error)) from error


def record_splits(
    files: Sequence[Path],
    read: Callable[[Path], Iterator[Record]],
    unpack: Callable[[bytes], bytes],
    fractions: tuple[float, float],
    seed: int,
    cache_dir: Path | None,
) -> dict[str, Split]:
    """``train``, ``val`` (if its share is not 0) and ``test`` of records, by shares of the names.

    Args:
        files: the large files.
        read: finds the records of one.
        unpack: see `RecordImages`.
        fractions: shares for ``val`` and ``test``.
        seed: which of the possible carvings.
        cache_dir: folder where places and captions are kept; None: found anew each time.

    Raises:
        UserError: no records, or a name that occurs twice.
    """
    found = [_index(file, read, cache_dir) for file in files]
    keys = [f"{file.name}/{r.key}" for file, rows in zip(files, found, strict=True) for r in rows]
    if not keys:
        raise UserError(f"{files[0].parent} holds no image with a caption; check the files.")
    if len(set(keys)) != len(keys):
        twice = next(key for key, number in Counter(keys).items() if number > 1)
        raise UserError(f"{twice} occurs twice in {files[0].parent}; remove one of the two.")
    records = [record for rows in found for record in rows]
    number = np.repeat(np.arange(len(files)), [len(rows) for rows in found])
    captions = np.array([record.caption for record in records], dtype=object)
    offset, size = (np.array([r[i] for r in records], dtype=np.int64) for i in (2, 3))
    parts = carve_samples(np.zeros(len(keys), dtype=np.int64), keys, *fractions, seed)
    digest = hashlib.sha256()
    for file in files:
        facts = file.stat()
        digest.update(f"{file.name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    splits = {}
    for part, name in enumerate(("train", "val", "test")):
        rows = np.flatnonzero(parts == part)
        if not len(rows):
            continue
        own = [keys[row] for row in rows.tolist()]
        inputs = RecordImages(
            [str(file) for file in files], number[rows], offset[rows], size[rows], own, unpack
        )
        fingerprint = f"{digest.hexdigest()}[{name} of {fractions} by {seed}]"
        splits[name] = Split(name, inputs, captions[rows], [], own, fingerprint)
    return splits


def _index(
    file: Path, read: Callable[[Path], Iterator[Record]], cache_dir: Path | None
) -> list[Record]:
    """The records of a file, found in a pass over it or kept from an earlier one."""
    if cache_dir is None:
        return list(read(file))
    facts = file.stat()
    name = f"{FORMAT} {read.__qualname__} {file.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    kept = cache_dir / "records" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return [Record(*row) for row in json.loads(kept.read_bytes())]
    rows = list(read(file))
    caches.write(kept, json.dumps(rows).encode())
    return rows
