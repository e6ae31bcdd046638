"""Looking over vectors before training on them: values, lengths, copies, constant columns."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyml.data.base import Split
from noisyml.data.vectors import ROWS_AT_ONCE, vector_rows


@dataclass(frozen=True)
class VectorReport:
    """Findings of `check_vectors` in one split of N vectors.

    Attributes:
        split: the split's name.
        vectors: N.
        columns: D.
        not_finite: keys of vectors with NaN or infinite entries.
        zero: keys of vectors without length, which have no cosine.
        constant_columns: numbers of columns that are the same everywhere.
        lengths: least, median and greatest length of the finite ones; empty if there are none.
        copies: keys of vectors that are equal, group by group, of this split and the ones before.
    """

    split: str
    vectors: int
    columns: int
    not_finite: list[str]
    zero: list[str]
    constant_columns: list[int]
    lengths: tuple[float, ...]
    copies: list[list[str]]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return asdict(self)


def check_vectors(
    splits: Mapping[str, Split], progress: Callable[[int], None] | None = None
) -> list[VectorReport]:
    """Read every vector of some splits, block by block.

    Splits that hold the same file twice (documents that train and are searched) are read once.

    Args:
        splits: by name, of vectors.
        progress: called with the number of vectors done since its last call.
    """
    reports = []
    seen: dict[bytes, str] = {}
    read: set[tuple[int, bytes]] = set()
    for name, split in splits.items():
        rows = vector_rows(split.inputs)
        what = id(rows.stored), b"" if rows.rows is None else rows.rows.tobytes()
        again = what in read
        read.add(what)
        reports.append(_check(name, split, rows, None if again else seen, progress))
    return reports


def _check(
    name: str,
    split: Split,
    rows: Any,
    seen: dict[bytes, str] | None,
    progress: Callable[[int], None] | None,
) -> VectorReport:
    n, columns = rows.shape
    bad, zero, lengths = [], [], []
    least = np.full(columns, np.inf)
    most = np.full(columns, -np.inf)
    copies: dict[str, list[str]] = defaultdict(list)
    for start in range(0, n, ROWS_AT_ONCE):
        block: NDArray[np.float32] = np.asarray(rows[start : start + ROWS_AT_ONCE])
        finite = np.isfinite(block).all(axis=1)
        length = np.linalg.norm(block, axis=1)
        bad += [split.keys[start + int(row)] for row in np.flatnonzero(~finite)]
        zero += [split.keys[start + int(row)] for row in np.flatnonzero(finite & (length == 0))]
        lengths.append(length[finite])
        if finite.any():
            least = np.minimum(least, block[finite].min(axis=0))
            most = np.maximum(most, block[finite].max(axis=0))
        for row in range(len(block)) if seen is not None else ():
            digest = hashlib.blake2b(block[row].tobytes(), digest_size=16).digest()
            own = f"{name}:{split.keys[start + row]}"
            first = seen.setdefault(digest, own)  # type: ignore[union-attr]
            if first != own:
                copies[first].append(own)
        if progress is not None:
            progress(len(block))
    every = np.concatenate(lengths) if lengths else np.empty(0)
    spread = (every.min(), np.median(every), every.max()) if len(every) else ()
    return VectorReport(
        name,
        n,
        columns,
        bad,
        zero,
        np.flatnonzero(least == most).tolist(),
        tuple(float(x) for x in spread),
        [[first, *others] for first, others in copies.items()],
    )
