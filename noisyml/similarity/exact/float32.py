"""Scores by a float32 product, with a proven bound of their error."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from noisyml.similarity.exact import kernels
from noisyml.similarity.exact.arithmetic import Side
from noisyml.similarity.exact.tiles import padded


def input_rounding() -> float:
    """Relative rounding of the inputs that the current float32 matmul precision allows.

    PyTorch may lower the precision of float32 products process-wide; the filter's error bound
    follows it, so the results do not change. If its two ways of asking are mixed it refuses to
    answer, and the coarsest is assumed.
    """
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        precision = "medium"
    return {"highest": 0.0, "high": 2.0**-11}.get(precision, 2.0**-8)


def product_error(length: int) -> float:
    """Largest error of a float32 inner product of so many numbers, as a share of both norms.

    Higham, Accuracy and Stability of Numerical Algorithms, eq. 3.5: an inner product of length n in
    any order errs by at most n u / (1 - n u) times that of the absolute values. 32 more u pay for
    the rounding of the inputs and to spare.
    """
    return 1.01 * ((length + 32) * 2.0**-24 + 2.1 * input_rounding())


class Float32Filter:
    """Scores by a float32 product.

    For l2, two more columns carry the halves of the squared norms, so that the product of a left
    and a right row is minus half their squared distance.

    Args:
        query: the left side.
        gallery: the right side (or, in a self-join, the same).
        dim: D.
        scale: a power of two not below any norm; scores are in units of its square.
    """

    def __init__(self, query: Side, gallery: Side, dim: int, scale: float) -> None:
        self.query, self.gallery = query, gallery
        self.scale = scale
        self.width = dim + (2 if query.metric == "l2" else 0)
        # Factors that float32 cannot hold with room to spare are applied in float64.
        factors = [side.factor / scale for side in (query, gallery)]
        self._single = all(_moderate(some, 60) for some in factors)
        # Left for the end they must not raise what products lose below 2^-126, at most 2^-150 a
        # coordinate, beyond what `errors` has for it.
        self._late = query.metric != "l2" and all(_moderate(some, 12) for some in factors)

    def errors(self) -> Tensor:
        """[Nq] float64: how far a query's scores may lie from the exact ones.

        See `product_error`, whose spare pays for the grid of the exact scores too; the last term
        is for underflow.
        """
        relative = product_error(self.width)
        norms = self.query.norms / self.scale
        largest = self.gallery.norms.max() / self.scale if len(self.gallery.norms) else 0.0
        if self.query.metric == "l2":
            return relative * 0.5 * (norms + largest) ** 2 + 2.0**-100
        return relative * norms * largest + 2.0**-100

    def where_they_lie(
        self, role: Literal["left", "right"], rows: Tensor, which: slice | Tensor, at: Tensor | None
    ) -> kernels.FloatRows | None:
        """Rows `which`, to be multiplied without being prepared; None where that cannot be.

        Their factors are applied to sums instead of coordinates: two roundings a side as there.

        Args:
            role: side of the product.
            rows: content of the side [n, D].
            which: numbers of its rows.
            at: int64, where in `rows` these are; None: they are all that is there.
        """
        plain = rows.dtype == torch.float32 and rows.device.type == "cpu" and rows.is_contiguous()
        if not (self._late and plain):
            return None
        side = self.query if role == "left" else self.gallery
        return kernels.FloatRows(rows, at, (side.factor[which] / self.scale).to(torch.float32))

    def prepare(self, role: Literal["left", "right"], raw: Tensor, which: slice | Tensor) -> Tensor:
        """Rows `which`, whose content is `raw` [n, D]: float32 [n padded, width]."""
        side = self.query if role == "left" else self.gallery
        rows = raw.new_empty((padded(len(raw)), self.width), dtype=torch.float32)
        rows[len(raw) :] = 0.0
        if side.metric != "l2":
            factor = side.factor[which, None] / self.scale
            if self._single:
                factor = factor.to(raw.dtype)
            torch.mul(raw, factor, out=rows[: len(raw)])
            return rows
        rows[: len(raw), :-2] = side.canonical(raw, which).div_(self.scale)
        assert side.half_squares is not None  # always so for l2
        one, half = (-2, -1) if role == "left" else (-1, -2)
        rows[: len(raw), one] = 1.0
        rows[: len(raw), half] = (side.half_squares[which] / -(self.scale**2)).to(torch.float32)
        return rows


def _moderate(factors: Tensor, bits: int) -> bool:
    """True if all factors but zeros lie within 2^-bits and 2^bits."""
    alive = factors[factors > 0]
    return not len(alive) or bool((alive.min() > 2.0**-bits) & (alive.max() < 2.0**bits))


def common_scale(query: Side, gallery: Side) -> float:
    """A power of two not below any norm of either side; 1 for cosine."""
    if query.metric == "cosine":
        return 1.0
    largest = max((float(s.norms.max()) for s in (query, gallery) if len(s.norms)), default=0.0)
    return 2.0 ** math.frexp(largest)[1]
