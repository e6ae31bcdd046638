"""Vectors as the inputs of a split: rows that are read, and prepared, when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from noisyml.data.inputs import ChosenInputs, InputKind, Inputs
from noisyml.errors import UserError

#: Rows that a pass over all of them reads at a time.
ROWS_AT_ONCE = 2**13


class VectorRows:
    """A matrix [N, D] of float32 that lies where it lies; what is asked for is prepared then.

    Rows are converted, shifted and scaled, or brought to length 1 as they are read; a slice of
    float32 rows that need nothing of this is a view. It behaves like an array on disk: `shape`,
    `ndim`, `dtype`, a length, and indexing by a number, a slice or numbers.

    Args:
        stored: [N, D] numbers: an array, a memory map, or what reads like one.
        rows: numbers of the rows wanted [M] int64; None: all.
        mean: [D], subtracted; None: nothing is.
        scale: [D], divides what is left; None: nothing does.
        unit_norm: bring rows to length 1, last; rows of zeros stay.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(
        self,
        stored: Any,
        rows: NDArray[np.int64] | None = None,
        mean: NDArray[np.floating[Any]] | None = None,
        scale: NDArray[np.floating[Any]] | None = None,
        unit_norm: bool = False,
    ) -> None:
        self.stored, self.rows = stored, rows
        self.mean, self.scale, self.unit_norm = mean, scale, unit_norm
        self.shape = (len(stored) if rows is None else len(rows), int(stored.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        if self.rows is not None:
            key = self.rows[key]
        found = np.asarray(self.stored[key])
        prepared: NDArray[Any] = found.astype(np.float32, copy=False)
        if self.mean is not None:
            prepared = prepared - self.mean.astype(np.float32)
        if self.scale is not None:
            prepared = prepared / self.scale.astype(np.float32)
        if self.unit_norm:
            length = np.linalg.norm(prepared, axis=-1, keepdims=True)
            prepared = prepared / np.where(length > 0, length, 1)
        return prepared.astype(np.float32, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("prepared rows cannot become one array without a copy")
        return np.array(self[:], dtype=dtype)

    def take(self, rows: NDArray[np.int64]) -> VectorRows:
        """Some of the rows, by number [M] int64."""
        wanted = rows if self.rows is None else self.rows[rows]
        return VectorRows(self.stored, wanted, self.mean, self.scale, self.unit_norm)

    def prepared(self, mean: NDArray[np.floating[Any]] | None, unit_norm: bool) -> VectorRows:
        """The rows as stored, prepared in another way."""
        return VectorRows(self.stored, self.rows, mean, None, unit_norm)

    def column_means(self) -> NDArray[np.float64]:
        """Means [D] of the rows, in one pass."""
        total = np.zeros(self.shape[1])
        for start in range(0, len(self), ROWS_AT_ONCE):
            total += self[start : start + ROWS_AT_ONCE].sum(axis=0, dtype=np.float64)
        return total / max(1, len(self))


@dataclass(frozen=True)
class VectorInputs:
    """Vectors in memory or on disk."""

    kind: ClassVar[InputKind] = "vectors"

    rows: VectorRows

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> NDArray[np.float32]:
        """The vector [D] at `index`."""
        return self.rows[index]


def vector_rows(inputs: Inputs[Any]) -> VectorRows:
    """All vectors of a split's inputs, as they are or chosen from others; nothing is read.

    Raises:
        UserError: inputs of another kind, or vectors that noise takes from elsewhere.
    """
    if isinstance(inputs, VectorInputs):
        return inputs.rows
    if isinstance(inputs, ChosenInputs):
        return vector_rows(inputs.inputs).take(inputs.rows)
    raise UserError(
        f"Vectors are needed here, but the data set gives {inputs.kind}"
        + (" of two sources" if inputs.kind == "vectors" else "")
        + ": choose e.g. dataset=vectors, and noise that keeps the inputs."
    )
