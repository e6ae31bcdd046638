"""Matrices of vectors in files, read where they lie.

================== ===============================================================================
``.npy``           a matrix [N, D], mapped
``.npz``           an array of the archive, read into memory
``.parquet``       a column of lists, or all columns of numbers, read into memory
``.fvecs .bvecs``  each row its length (int32) and as many float32 or uint8, mapped
                   (the format of INRIA's TEXMEX corpus)
``.h5 .hdf5``      a data set of the file, read in blocks (extra ``hdf5``)
================== ===============================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyml.errors import UserError, did_you_mean
from noisyml.storage.text import read_text

SUFFIXES = (".npy", ".npz", ".parquet", ".fvecs", ".bvecs", ".h5", ".hdf5")
#: Suffixes of files that hold several arrays by name.
SEVERAL = (".npz", ".parquet", ".h5", ".hdf5")
#: Names of labels inside such a file that ``auto`` looks for.
LABEL_NAMES = ("labels", "label", "y")
#: Ends of the names of files of labels beside a file of vectors, likewise.
LABEL_FILES = (".labels.npy", ".labels.txt")


class Hdf5Rows:
    """A data set of an HDF5 file; each process opens the file anew.

    Args:
        path: the file.
        name: of the data set.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._file: Any = None
        self.shape = tuple(int(size) for size in self._rows().shape)
        self.ndim = len(self.shape)
        self.dtype = np.dtype(self._rows().dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __getitem__(self, key: Any) -> NDArray[Any]:
        if isinstance(key, slice | int | np.integer):
            return np.asarray(self._rows()[key])
        # HDF5 reads rows in their order, each once.
        wanted, places = np.unique(np.asarray(key), return_inverse=True)
        found: NDArray[Any] = np.asarray(self._rows()[wanted])[places]
        return found

    def _rows(self) -> Any:
        if self._file is None:
            self._file = _hdf5(self.path)
        return self._file[self.name]


def _hdf5(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"{path} needs h5py, which is not installed: pip install 'noisyml[hdf5]'."
        ) from error
    return h5py.File(path, "r")


def open_matrix(path: Path, key: str | None = None) -> Any:
    """A matrix [N, D] of numbers that is read when it is indexed.

    Args:
        path: see the table at the head of this module.
        key: name of the array in a file that holds several; None: the only one that fits.

    Raises:
        UserError: there is no such file or array, or it is no matrix of numbers.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path} is no file of vectors: its name must end in {', '.join(SUFFIXES)}."
        )
    if key is not None and suffix not in SEVERAL:
        raise UserError(f"{path} holds one array, and key={key} names one: leave it out (null).")
    try:
        rows = _READERS[suffix](path, key)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read as {suffix} ({error}).") from error
    if len(rows.shape) != 2 or rows.dtype.kind not in "fiu" or not rows.shape[1]:
        raise UserError(
            f"{path} holds {rows.dtype} {list(rows.shape)}, but vectors are a matrix [N, D] of "
            f"numbers."
        )
    return rows


def _chosen(names: list[str], key: str | None, path: Path, what: str) -> str:
    """The name asked for, or the only one.

    Raises:
        UserError: it is not there, or there are several.
    """
    if key is None and len(names) == 1:
        return names[0]
    if key is None:
        there = ", ".join(names) or "none"
        raise UserError(f"{path} holds {what}: {there}. Say dataset.key=... which are the vectors.")
    if key not in names:
        raise UserError(
            f"{path} has no '{key}'.{did_you_mean(key, names)} It has: {', '.join(names)}."
        )
    return key


def _npy(path: Path, key: str | None) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _npz(path: Path, key: str | None) -> Any:
    with np.load(path, allow_pickle=False) as archive:
        names = list(archive.files)
        if key is None:
            names = [name for name in names if name not in LABEL_NAMES]
        return archive[_chosen(names, key, path, "several arrays")]


def _parquet(path: Path, key: str | None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path, memory_map=True)
    listed = [
        field.name
        for field in table.schema
        if pa.types.is_list(field.type)
        or pa.types.is_large_list(field.type)
        or pa.types.is_fixed_size_list(field.type)
    ]
    if not listed and key is None:
        numbers = [
            field.name
            for field in table.schema
            if field.name not in LABEL_NAMES
            and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
        ]
        columns = [table.column(name).to_numpy() for name in numbers]
        return np.stack(columns, axis=1) if columns else np.empty((table.num_rows, 0))
    column = table.column(_chosen(listed, key, path, "several columns of lists")).combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    if not len(column) or len(flat) % len(column):
        raise UserError(f"{path} holds lists of different lengths, which are no matrix.")
    lengths = {len(column[0]), len(column[len(column) - 1])}
    if lengths != {len(flat) // len(column)}:
        raise UserError(f"{path} holds lists of different lengths, which are no matrix.")
    return flat.reshape(len(column), -1)


def _vecs(path: Path, kind: type[np.generic]) -> Any:
    size = np.fromfile(path, dtype="<i4", count=1)
    dim = int(size[0]) if len(size) else 0
    width = 4 + dim * np.dtype(kind).itemsize
    if dim < 1 or path.stat().st_size % width:
        raise UserError(f"{path} does not hold rows of {dim} numbers each: it is damaged.")
    raw = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, width)
    if not (raw[:, :4] == raw[0, :4]).all():
        raise UserError(f"{path} holds rows of different lengths, which are no matrix.")
    if kind is np.uint8:
        return raw[:, 4:]
    return np.memmap(path, dtype="<f4", mode="r").reshape(-1, dim + 1)[:, 1:]


def _h5(path: Path, key: str | None) -> Any:
    found: list[str] = []

    def note(name: str, item: Any) -> None:
        if len(getattr(item, "shape", ())) == 2:
            found.append(name)

    with _hdf5(path) as file:
        file.visititems(note)
    return Hdf5Rows(path, _chosen(found, key, path, "several matrices"))


_READERS = {
    ".npy": _npy,
    ".npz": _npz,
    ".parquet": _parquet,
    ".fvecs": lambda path, key: _vecs(path, np.float32),
    ".bvecs": lambda path, key: _vecs(path, np.uint8),
    ".h5": _h5,
    ".hdf5": _h5,
}


def read_labels(path: Path, labels: str | None) -> NDArray[Any] | None:
    """Labels of the vectors in a file: numbers or words [N]; None where there are none.

    Args:
        path: of the vectors.
        labels: name of the labels inside the file; ``auto``: one of ``labels``, ``label``, ``y``,
            or the file beside that is called like it and ends in ``.labels.npy`` or
            ``.labels.txt`` (a line for each); None: none.

    Raises:
        UserError: there are none of that name, or they are no list of numbers or words.
    """
    if labels is None:
        return None
    suffix = path.suffix.lower()
    found = _labels_inside(path, suffix, labels) if suffix in SEVERAL else None
    if found is None and labels != "auto":
        raise UserError(f"{path} has no labels '{labels}': say dataset.labels=auto, or null.")
    if found is None:
        files = [path.with_suffix(end) for end in LABEL_FILES]
        beside = next((file for file in files if file.is_file()), None)
        if beside is None:
            return None
        if beside.suffix == ".npy":
            found = np.load(beside, allow_pickle=False)
        else:
            found = np.asarray(read_text(beside).split("\n"))
            found = found[:-1] if len(found) and not found[-1] else found
    if found.ndim != 1 or found.dtype.kind not in "iuUSO":
        raise UserError(
            f"The labels of {path} are {found.dtype} {list(found.shape)}: one whole number or word "
            f"for each vector is needed."
        )
    return found


def _labels_inside(path: Path, suffix: str, labels: str) -> NDArray[Any] | None:
    wanted = LABEL_NAMES if labels == "auto" else (labels,)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            name = next((name for name in wanted if name in archive.files), None)
            return None if name is None else archive[name]
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        names = pq.read_schema(path).names
        name = next((name for name in wanted if name in names), None)
        if name is None:
            return None
        column: NDArray[Any] = pq.read_table(path, columns=[name]).column(0).to_numpy()
        return column
    with _hdf5(path) as file:
        name = next((name for name in wanted if name in file), None)
        if name is None:
            return None
        found = np.asarray(file[name])
        return found.astype(str) if found.dtype.kind == "S" else _words(found)


def _words(found: NDArray[Any]) -> NDArray[Any]:
    """Words that HDF5 gives as bytes, as text."""
    if found.dtype.kind != "O":
        return found
    return np.asarray([x.decode() if isinstance(x, bytes) else str(x) for x in found])
