"""Reference vectors from files, and the comparison with them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file by name; the suffix may be left out."""
    with np.load((folder / name).with_suffix(".npz"), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def tensors(folder: Path, name: str, prefix: str = "") -> dict[str, Any]:
    """The same as tensors, texts as `str`; of names that begin with `prefix` what follows it."""
    return {
        key.removeprefix(prefix): str(value)
        if value.dtype.kind == "U"
        else torch.from_numpy(np.asarray(value))
        for key, value in arrays(folder, name).items()
        if key.startswith(prefix)
    }


def close(
    found: Any, expected: Any, *, rtol: float = 1e-9, atol: float = 1e-11, **options: bool
) -> None:
    """Refuse values that differ by more than rounding in double precision.

    Args:
        found: tensors, arrays or numbers.
        expected: the same.
        rtol: share of the expected value.
        atol: on top.
        **options: ``check_dtype``, ``equal_nan``, see `torch.testing.assert_close`.

    Raises:
        AssertionError: they do.
    """
    if isinstance(expected, np.ndarray | np.generic):
        expected = torch.as_tensor(expected)
    if isinstance(expected, Tensor) and not isinstance(found, Tensor):
        found = torch.as_tensor(found, dtype=expected.dtype)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, **options)
