"""Parquet columns that hold one value per row, or a list of equally many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyml.storage.reading import reading

#: What to do about a damaged file.
ADVICE = "restore it from a copy, or make anew what wrote it"


def to_column(values: NDArray[Any]) -> Any:
    """An Arrow array of an array [N], or [N, C] as lists of the fixed size C."""
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def from_column(column: Any, otherwise: Any | None = None) -> NDArray[Any]:
    """The array [N] or [N, C] of a column of a table.

    Args:
        column: of the table.
        otherwise: another column, whose values stand where the first one has none.

    Raises:
        ValueError: lists of different sizes.
    """
    import pyarrow.compute as compute
    import pyarrow.types as types

    if otherwise is not None and column.null_count:
        column = compute.coalesce(column, otherwise)
    if types.is_list(column.type):
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), -1)
    if types.is_fixed_size_list(column.type):
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), column.type.list_size)
    array: NDArray[Any] = column.to_numpy()
    return array


def row_groups(path: Path, columns: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
    """The arrays of some columns, one row group after the other, so that no file is held whole.

    Raises:
        DamagedFileError: it is no Parquet file, or has no such columns.
    """
    import pyarrow.parquet as pq

    with reading(path, ADVICE), pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, columns=list(columns))
            yield {name: from_column(table[name]) for name in columns}


def last_epoch(path: Path, columns: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of some columns in the rows with the largest ``epoch``, in their order."""
    import pyarrow.parquet as pq

    newest = [int(group["epoch"].max()) for group in row_groups(path, ["epoch"])]
    found = []
    with reading(path, ADVICE), pq.ParquetFile(path) as file:
        for number, epoch in enumerate(newest):
            if epoch == max(newest):
                table = file.read_row_group(number, columns=[*columns, "epoch"])
                found.append({name: from_column(table[name]) for name in table.column_names})
    whole = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    return {name: whole[name][whole["epoch"] == max(newest)] for name in columns}
