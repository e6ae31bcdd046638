"""Parquet columns that hold one value per row, or a list of equally many."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray


def to_column(values: NDArray[Any]) -> Any:
    """An Arrow array of an array [N], or [N, C] as lists of the fixed size C."""
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def from_column(column: Any) -> NDArray[Any]:
    """The array [N] or [N, C] of a column of a table.

    Raises:
        ValueError: lists of different sizes.
    """
    import pyarrow.types as types

    if types.is_list(column.type):
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), -1)
    if types.is_fixed_size_list(column.type):
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), column.type.list_size)
    array: NDArray[Any] = column.to_numpy()
    return array
