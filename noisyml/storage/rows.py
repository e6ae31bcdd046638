"""Rows of numbers on disk, as NumPy or ``noisyml embed`` wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyml.errors import UserError
from noisyml.storage.reading import read_npy


def read_rows(path: Path) -> NDArray[np.floating]:
    """A matrix [N, D] of floats in memory.

    Args:
        path: a ``.npy`` file; a folder that ``noisyml embed`` wrote, of whose splits ``train`` is
            read, else the only one; or the folder of one split.

    Raises:
        UserError: nothing of the kind, a split that is not complete, or several to choose from.
    """
    if path.is_dir():
        return _shards(_split_folder(path))
    rows: NDArray[Any] = read_npy(path, "give a .npy file of numbers, or a folder of noisyml embed")
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise UserError(
            f"{path} holds {rows.dtype} {list(rows.shape)}, and rows of floats [N, D] are needed."
        )
    return np.asarray(rows)


def _split_folder(path: Path) -> Path:
    for folder in (path, path / "embeddings"):
        if (folder / "index.json").is_file():
            return folder
        splits = sorted(inner.parent for inner in folder.glob("*/index.json"))
        named = [split for split in splits if split.name == "train"]
        if len(named or splits) == 1:
            return (named or splits)[0]
        if splits:
            names = ", ".join(split.name for split in splits)
            raise UserError(f"{path} holds the splits {names}: name the folder of one of them.")
    raise UserError(f"{path} holds no whole split of embeddings: write it with `noisyml embed`.")


def _shards(folder: Path) -> NDArray[np.floating]:
    shards = sorted(folder.glob("[0-9]*.npy"))
    parts = [np.asarray(read_npy(shard, "embed again into another folder")) for shard in shards]
    return np.concatenate(parts).astype(np.float32, copy=False)
