"""Products and sums of sparse CSR tensors, and the blocks of rows in which they fit into memory."""

from __future__ import annotations

import warnings
from typing import Annotated, NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from noisyml.checks import Ge

#: Bytes of one stored entry of a product: column int64 and weight float64.
_ENTRY_BYTES = 16
#: Working memory in bytes: room for one entry at least.
EntryBudget = Annotated[int, Ge(_ENTRY_BYTES)]


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """The product of two sparse CSR tensors; its columns are not sorted within a row.

    PyTorch multiplies sparse matrices with cuSPARSE and MKL; where it was built without MKL, SciPy
    does.
    """
    if left.is_cuda or torch.backends.mkl.is_available():
        return torch.sparse.mm(left, right)
    return _from_scipy(_as_scipy(left) @ _as_scipy(right))


def add(left: Tensor, right: Tensor) -> Tensor:
    """The sum of two sparse CSR tensors, by the same libraries."""
    if left.is_cuda or torch.backends.mkl.is_available():
        return left + right
    return _from_scipy(_as_scipy(left) + _as_scipy(right))


def _as_scipy(x: Tensor) -> scipy.sparse.csr_matrix:
    parts = (x.values().numpy(), x.col_indices().numpy(), x.crow_indices().numpy())
    return scipy.sparse.csr_matrix(parts, shape=tuple(x.shape))


def _from_scipy(x: scipy.sparse.csr_matrix) -> Tensor:
    return csr(
        torch.from_numpy(x.indptr.astype(np.int64)),
        torch.from_numpy(x.indices.astype(np.int64)),
        torch.from_numpy(x.data),
        x.shape[1],
    )


def csr(offsets: Tensor, columns: Tensor, weights: Tensor, n_columns: int) -> Tensor:
    """The sparse tensor [N, n_columns] of compressed rows, unchecked."""
    with warnings.catch_warnings():
        # PyTorch calls all of its CSR tensors a beta; nothing the user could act upon.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        return torch.sparse_csr_tensor(
            offsets, columns, weights, size=(len(offsets) - 1, n_columns), check_invariants=False
        )


def row_blocks(entries: Tensor, budget: int) -> list[tuple[int, int]]:
    """Contiguous blocks of rows with at most `budget` `entries` [N] each, of one row at least."""
    total = entries.to(torch.float64).cumsum(0).cpu().numpy()
    blocks, start = [], 0
    while start < len(total):
        done = total[start - 1] if start else 0.0
        stop = max(int(np.searchsorted(total, done + budget, side="right")), start + 1)
        blocks.append((start, stop))
        start = stop
    return blocks


def entries_within(memory_budget_bytes: EntryBudget) -> int:
    """Number of stored entries of a product that the budget holds."""
    return memory_budget_bytes // _ENTRY_BYTES


class FactoredWalk(NamedTuple):
    """The random walk on consensus counts, ``P = diag(1 / s) (O^T O - diag(c))``, by its factors.

    A product with O and one with its transpose cost a fraction of one with P, whose rows have the
    neighbours of neighbours.

    Attributes:
        neighbours: O, neighbourhoods as sparse CSR rows of ones [N, N].
        reverse: its transpose.
        diagonal: c [N], the neighbourhoods that hold a node.
        sums: s [N], positive.
    """

    neighbours: Tensor
    reverse: Tensor
    diagonal: Tensor
    sums: Tensor

    def times(self, dense: Tensor) -> Tensor:
        """P with a dense matrix [N, M]; what is 0 without rounding may be some 1e-16 here."""
        found = torch.sparse.mm(self.reverse, torch.sparse.mm(self.neighbours, dense))
        return found.addcmul_(self.diagonal[:, None], dense, value=-1).div_(self.sums[:, None])

    def least(self, factors: int) -> float:
        """A bound below which no product of so many of P's non-zero entries lies."""
        return float(self.sums.max()) ** -factors if len(self.sums) else 1.0
