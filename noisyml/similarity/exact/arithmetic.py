"""Exact scores of rows.

An exact score depends on no order of summation. A row (divided by its norm for cosine, moved by a
common centre for l2) is split into two limbs: multiples of 2^-26 of the power of two above its
norm, and the rest in multiples of 2^-46. Products of such numbers and their partial sums fit into
float64 without rounding, so the inner product of two rows is the same bits in whatever order,
block, process or matrix shape it is computed. Hence identical rows tie exactly, and rows are told
apart down to about 2^-41 of the product of their norms.

Norms decide the powers of two, so they too must not depend on a library's order of summation: they
are summed by halves, with elementwise additions only.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from noisyml.errors import UserError
from noisyml.similarity.exact import kernels
from noisyml.similarity.exact.sources import RowSource

Metric = Literal["cosine", "ip", "l2"]
#: Norms outside of this range would overflow or underflow when squared; smaller rows count as zero.
_LARGEST_NORM = 2.0**480
_SMALLEST_NORM = 2.0**-480
_FIRST_GRID_BITS = 26
_SECOND_GRID_BITS = 46
#: 1.5 * 2^52: adding and subtracting it rounds a float64 to an integer.
_ROUNDER = 1.5 * 2.0**52
#: Rows per block while norms are taken.
_ROWS_AT_ONCE = 1024
#: Rows whose mean is the centre of l2 distances.
_CENTRE_ROWS = 64


def tree_sum(values: Tensor) -> Tensor:
    """Sum over the last dimension by halves, overwriting `values` [..., D]; bits fixed by D alone.

    Elementwise additions round alike on every device, thread count and block shape, which a
    library's own reduction does not promise.
    """
    width = values.shape[-1]
    while width > 1:
        half = (width + 1) // 2
        values[..., : width - half].add_(values[..., half:width])
        width = half
    return values[..., 0].clone()


def centre_positions(n: int) -> list[int]:
    """Up to 64 row numbers, spread evenly over ``range(n)``."""
    return sorted({i * n // _CENTRE_ROWS for i in range(_CENTRE_ROWS)}) if n else []


def centre_of(rows: Tensor) -> Tensor:
    """About the mean [D] float64 of rows [n, D]; zeros for none.

    Rounded to a quarter of their spread, so that differences of whole (or otherwise short) numbers
    stay exact, and with them their ties.
    """
    # Whoever reads all rows will complain of broken ones, and name them.
    rows = rows[torch.isfinite(rows).all(1)].to(torch.float64)
    if not len(rows):
        return rows.new_zeros(rows.shape[1])
    mean = tree_sum(rows.T.contiguous()) / len(rows)
    spread = float((rows - mean).abs().max())
    if not 0.0 < spread < torch.inf:
        return mean
    step = 2.0 ** (math.frexp(spread)[1] - 2)
    return (mean / step).round_().mul_(step)


@dataclass(frozen=True)
class Side:
    """Facts about every row of one side that comparisons need.

    Attributes:
        metric: how rows are compared.
        centre: [D] float64 subtracted from every row (l2), or None.
        factor: [N] float64 by which a row is multiplied (cosine: one over its norm).
        norms: [N] float64, norms after that.
        half_squares: [N] float64, half the exact squared norms (l2), or None.
    """

    metric: Metric
    centre: Tensor | None
    factor: Tensor
    norms: Tensor
    half_squares: Tensor | None

    @classmethod
    def of(cls, source: RowSource, metric: Metric, centre: Tensor | None) -> Side:
        """Read all rows of `source` once.

        Raises:
            UserError: a row holds NaN, an infinity or something close to one.
        """
        n = len(source)
        norms = torch.empty(n, dtype=torch.float64, device=source.device)
        for start in range(0, n, _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, n))
            rows = source.block(part.start, part.stop).to(torch.float64, copy=True)
            if centre is not None:
                rows -= centre
            norms[part] = tree_sum(rows.mul_(rows)).sqrt_()
        broken = (~(norms <= _LARGEST_NORM)).nonzero().flatten()
        if len(broken):
            raise UserError(
                f"{len(broken)} of {n} {source.what} embeddings hold NaN, infinite or immense "
                f"values (first: row {int(broken[0])}), so nothing can be found with them; look "
                "for a diverged loss or a broken file."
            )
        alive = norms >= _SMALLEST_NORM
        if metric == "cosine":
            factor = torch.where(alive, 1.0 / norms, 0.0)
            return cls(metric, centre, factor, alive.to(torch.float64), None)
        side = cls(metric, centre, alive.to(torch.float64), torch.where(alive, norms, 0.0), None)
        if metric == "ip":
            return side
        halves = torch.empty_like(norms)
        for start in range(0, n, _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, n))
            high, low = side.limbs(source.block(part.start, part.stop), part)
            cross = (high * low).sum(1)
            halves[part] = 0.5 * ((high * high).sum(1) + (cross + cross))
        return cls(metric, centre, side.factor, side.norms, halves)

    def canonical(self, raw: Tensor, which: slice | Tensor) -> Tensor:
        """Rows `which`, whose content is `raw` [n, D], as they are compared: new float64 [n, D]."""
        rows = raw.to(torch.float64, copy=True)
        if self.centre is not None:
            rows -= self.centre
        return rows.mul_(self.factor[which, None])

    def limbs(self, raw: Tensor, which: slice | Tensor) -> tuple[Tensor, Tensor]:
        """First and second limbs of rows `which`, whose content is `raw`: float64 [n, D] each."""
        low = self.canonical(raw, which)
        if self.metric == "cosine":
            power = torch.ones_like(self.norms[which, None])
        else:
            exponent = torch.frexp(self.norms[which, None]).exponent.to(torch.int64)
            # 2^exponent, put together from bits: powers of two must be exact.
            power = ((1023 + exponent) << 52).view(torch.float64)
        rounder = power * (_ROUNDER * 2.0**-_FIRST_GRID_BITS)
        high = (low + rounder).sub_(rounder)
        rounder = power * (_ROUNDER * 2.0**-_SECOND_GRID_BITS)
        low = low.sub_(high).add_(rounder).sub_(rounder)
        return high, low

    def output_scale(self) -> float:
        """Factor from an inner score to the score that callers see."""
        return 2.0 if self.metric == "l2" else 1.0


def double_error(query_norms: Tensor, gallery_norms: Tensor, metric: Metric, dim: int) -> Tensor:
    """Bound of the error of a float64 inner score, given canonical norms [...].

    The float64 product in any order (Higham, Accuracy and Stability of Numerical Algorithms, eq.
    3.5), both grids, and the product of the second limbs, which the exact score leaves out.
    """
    root = math.sqrt(dim)
    relative = 1.01 * ((dim + 8) * 2.0**-53 + 4 * root * 2.0**-47 + 4 * dim * 2.0**-54)
    if metric == "l2":
        return relative * 0.5 * (query_norms + gallery_norms) ** 2
    return relative * query_norms * gallery_norms


def exact_pairs(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
    """Exact inner products [n] of rows in limbs, pair by pair; the same with the sides swapped."""
    cross = (left[0] * right[1]).sum(1) + (left[1] * right[0]).sum(1)
    return cross + (left[0] * right[0]).sum(1)


def exact_products(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
    """Exact inner products [n, m] of all rows in limbs; the same bits as `exact_pairs`."""
    products = left[0] @ right[1].T
    products += left[1] @ right[0].T
    products += left[0] @ right[0].T
    return products


def sampled_products(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Inner products [n] of left[rows[i]] and right[columns[i]] without gathering rows.

    Args:
        left, right: [m, D] and [n, D] of one floating dtype.
        rows, columns: int64 [n].
    """
    if left.device.type != "cpu":
        return _gathered_products(left, right, rows, columns)
    if kernels.available():
        return kernels.products(left, right, rows, columns)
    if bool((rows[1:] < rows[:-1]).any()):
        rows, order = rows.sort()
        products = torch.empty(len(rows), dtype=left.dtype)
        products[order] = sampled_products(left, right, rows, columns[order])
        return products
    starts = torch.zeros(len(left) + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(rows, minlength=len(left)), 0, out=starts[1:])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Sparse CSR tensor support is in beta.*")
        # The checks would ask for sorted columns, which the product does not need.
        where = torch.sparse_csr_tensor(
            starts,
            columns,
            left.new_zeros(len(columns)),
            (len(left), len(right)),
            check_invariants=False,
        )
        return torch.sparse.sampled_addmm(where, left, right.T, beta=0.0).values()


def _gathered_products(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`sampled_products` by gathering the rows, a stretch at a time."""
    at_once = max(1, 2**25 // max(1, left.shape[1]))
    parts = [
        (left[rows[i : i + at_once]] * right[columns[i : i + at_once]]).sum(1)
        for i in range(0, len(rows), at_once)
    ]
    return torch.cat(parts) if parts else left.new_empty(0)
