"""Rows to be compared, read in blocks from wherever they lie."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from noisyml.errors import UserError

#: What a caller may pass as embeddings: [N, D], any floating dtype, on any device or on disk.
Array = Tensor | np.ndarray
#: Beyond this the partial sums of the second limbs no longer fit into float64.
MAX_DIM = 2**16


class RowSource:
    """A matrix [N, D] that is read in blocks and never copied whole.

    Args:
        array: [N, D] tensor, NumPy array or `numpy.memmap` of any floating dtype.
        what: its name in messages, for example "query".
        device: where blocks are put.

    Raises:
        UserError: not a matrix of floating-point numbers, no columns or too many.
    """

    def __init__(self, array: Array, what: str, device: torch.device) -> None:
        if isinstance(array, Tensor):
            floating = array.dtype.is_floating_point
            double = array.dtype == torch.float64
        else:  # an array, or what reads like one (noisyml.embeddings.store)
            floating = array.dtype.kind == "f" and array.dtype.itemsize <= 8
            double = array.dtype.itemsize == 8
        if array.ndim != 2 or not floating:
            raise UserError(
                f"The {what} embeddings have shape {list(array.shape)} and type {array.dtype}: "
                "pass a matrix [N, D] of floating-point numbers."
            )
        if not 1 <= array.shape[1] <= MAX_DIM:
            raise UserError(
                f"The {what} embeddings have {array.shape[1]} dimensions: search handles 1 to "
                f"{MAX_DIM}."
            )
        self.what = what
        self.device = device
        #: Blocks are float64 for float64 input and float32 for everything smaller.
        self.dtype = torch.float64 if double else torch.float32
        self._array = array.detach() if isinstance(array, Tensor) else array

    def __len__(self) -> int:
        return int(self._array.shape[0])

    @property
    def direct(self) -> bool:
        """True if blocks are the rows where they lie, not copies."""
        if not isinstance(self._array, Tensor):
            return False
        return self._array.dtype == self.dtype and self._array.device == self.device

    @property
    def dim(self) -> int:
        """D."""
        return int(self._array.shape[1])

    def block(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop - 1 as [stop - start, D] in `dtype`; not to be written to."""
        return self._on_device(self._array[start:stop])

    def take(self, index: Tensor) -> Tensor:
        """Rows `index` [n] int64 as [n, D] in `dtype`."""
        if isinstance(self._array, Tensor):
            return self._on_device(self._array[index.to(self._array.device)])
        return self._on_device(self._array[index.cpu().numpy()])

    def _on_device(self, part: Array) -> Tensor:
        if isinstance(part, np.ndarray):
            native = np.float64 if self.dtype == torch.float64 else np.float32
            part = np.ascontiguousarray(part, dtype=native)
            with warnings.catch_warnings():
                # PyTorch cannot promise not to write; we do.
                warnings.filterwarnings("ignore", message=".*not writable.*")
                part = torch.from_numpy(part)
        return part.to(self.device, self.dtype)
