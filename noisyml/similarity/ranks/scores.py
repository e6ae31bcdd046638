"""Scores of (query, gallery) pairs in four grades: filtered, near, close and exact.

* *Filter scores* are one float32 matrix product. Their rounding error has a proven bound.
* *Near scores* sum the float32 products of the pairs that the filter cannot place in float64
  (of float64 embeddings: float64 products). Their error does not grow with the dimension.
* *Close scores* are inner products of float64 rows.
* *Exact scores* settle the rest. Rows (unit rows for cosine) are split into two limbs: multiples of
  2^-26 of the power of two above the row's norm, and the rest in multiples of 2^-46. Products of
  such numbers and their partial sums fit into float64 without rounding, so the inner product of two
  rows is the same bits in whatever order, block, process or matrix shape it is computed. Hence
  identical rows tie exactly, results do not depend on the block size or the number of processes,
  and embeddings are told apart down to a relative 1e-14 whatever their type.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from noisyml.errors import UserError
from noisyml.similarity.exact import kernels
from noisyml.similarity.exact.arithmetic import Side
from noisyml.similarity.exact.float32 import Float32Filter, input_rounding
from noisyml.similarity.exact.kernels import FloatRows

#: Rows whose norms are computed at once.
_NORMS_AT_ONCE = 2048
#: Pairs, or rows of a product, scored in float64 at once: 512 rows of 512 are 2 MiB.
_ROWS_AT_ONCE = 512
#: Rows of items that are scored with one another at once.
_SQUARE = 128
#: Scoring one pair by itself costs about as much as this many elements of a float64 product.
EXACT_PAIR_COST = 64
#: The same in the compiled loops.
COMPILED_PAIR_COST = 3
_NEAR_PAIR_COST = 16

_GRID_BITS = 26
_SECOND_GRID_BITS = 46

Limbs = tuple[Tensor, ...]


class Rows:
    """The embeddings of one side, scaled and rounded on the fly so that no second copy is kept.

    Args:
        embeddings: [N, D], any floating dtype.
        norms: [N] float64, the rows' norms.
        metric: ``cosine`` divides each row by its norm (a zero row stays zero, and so do all its
            scores); ``l2`` divides all rows by `scale`.
        scale: a power of two not below any norm, common to queries and gallery; used by ``l2``.
    """

    def __init__(
        self, embeddings: Tensor, norms: Tensor, metric: Literal["cosine", "l2"], scale: float
    ) -> None:
        self.embeddings = embeddings
        double = embeddings.dtype == torch.float64
        self.filter_dtype = torch.float64 if double else torch.float32
        if metric == "cosine":
            self.factor = torch.where(norms > 0, 1.0 / norms, 0.0)
            self.norms = (norms > 0).to(torch.float64)
            self._grid = torch.full_like(norms, 2.0**_GRID_BITS)
            self.half_squares: Tensor | None = None
        else:
            self.factor = torch.full_like(norms, 1.0 / scale)
            self.norms = norms / scale
            exponent = torch.frexp(self.norms).exponent.to(torch.int64).clamp(min=-900)
            # 2^(26 - exponent), put together from bits: powers of two must be exact.
            self._grid = ((1023 + _GRID_BITS - exponent) << 52).view(torch.float64)
            self.half_squares = torch.zeros_like(norms)
            for start in range(0, len(norms), _NORMS_AT_ONCE):
                part = torch.arange(
                    start, min(start + _NORMS_AT_ONCE, len(norms)), device=norms.device
                )
                high, low = self.exact(part)
                square = (high * high).sum(1)
                cross = (high * low).sum(1)
                self.half_squares[part] = 0.5 * (square + (cross + cross))

    def __len__(self) -> int:
        return len(self.embeddings)

    def side(self) -> Side:
        """Facts about these rows that a filter needs."""
        metric: Literal["cosine", "l2"] = "cosine" if self.half_squares is None else "l2"
        return Side(metric, None, self.factor, self.norms, self.half_squares)

    def raw(self, index: Tensor) -> Tensor:
        """Rows `index` [n] as they came: float32, or float64 if they came so."""
        return self.embeddings.index_select(0, index).to(self.filter_dtype)

    def scaled(self, index: Tensor) -> Tensor:
        """Rows `index` [n] in the filter's arithmetic: float32, or float64 if they came so."""
        return self.raw(index) * self.factor[index, None].to(self.filter_dtype)

    def double(self, index: Tensor) -> Limbs:
        """Rows `index` [n] as they are: one limb, float64 [n, D]."""
        rows = self.embeddings.index_select(0, index).to(torch.float64)
        return (rows.mul_(self.factor[index, None]),)

    def exact(self, index: Tensor) -> Limbs:
        """First and second limbs of rows `index` [n]: float64 [n, D] each."""
        (rows,) = self.double(index)
        grid = self._grid[index, None]
        high = (rows * grid).round_().div_(grid)
        grid = grid * 2.0 ** (_SECOND_GRID_BITS - _GRID_BITS)
        return high, rows.sub_(high).mul_(grid).round_().div_(grid)


def checked_norms(embeddings: Tensor, what: str) -> Tensor:
    """Row norms [N] float64 of [N, D] embeddings, computed in blocks.

    Raises:
        UserError: a row holds NaN or an infinity.
    """
    norms = torch.empty(len(embeddings), dtype=torch.float64, device=embeddings.device)
    for start in range(0, len(embeddings), _NORMS_AT_ONCE):
        block = embeddings[start : start + _NORMS_AT_ONCE].to(torch.float64)
        norms[start : start + _NORMS_AT_ONCE] = (block * block).sum(1).sqrt_()
    broken = (~torch.isfinite(norms)).nonzero().flatten()
    if len(broken):
        raise UserError(
            f"{len(broken)} of {len(norms)} {what} embeddings hold NaN or infinite values (first: "
            f"row {int(broken[0])}), so they cannot be ranked; look for a diverged loss, lower the "
            "learning rate or evaluate an earlier checkpoint."
        )
    return norms


class PairScores:
    """Scores of (query, gallery) pairs: larger is nearer.

    ``cosine``: the inner product of unit rows. ``l2``: minus half the squared distance, in units
    of the common scale squared.
    """

    def __init__(self, query: Rows, gallery: Rows) -> None:
        self.query = query
        self.gallery = gallery
        dim = query.embeddings.shape[1]
        self.filter = Float32Filter(query.side(), gallery.side(), dim, 1.0)
        both = query.embeddings, gallery.embeddings
        #: Pairs of rows are multiplied where they lie, which makes them cheap.
        self.compiled = (
            kernels.available()
            and both[0].dtype == both[1].dtype
            and both[0].dtype in (torch.float32, torch.float64)
            and all(rows.device.type == "cpu" and rows.is_contiguous() for rows in both)
        )
        # Error of a float32 inner product of length D in any order (Higham, Accuracy and Stability
        # of Numerical Algorithms, eq. 3.5), of its rounded inputs, and of the grid.
        self._filter_error = 1.01 * (
            (dim + 32) * 2.0**-24 + math.sqrt(dim) * 2.0**-25 + 2.1 * input_rounding()
        )
        # The same of the compiled loops, which add up 32 partial sums of every 32nd term, so that
        # a number passes through few additions: those, three more in eight of the sums, five to
        # add these up, and seven of what is left over.
        additions = self.filter.width // 32 + 3 + 5 + 7
        self._pair_error = min(
            self._filter_error,
            1.01 * ((additions + 33) * 2.0**-24 + math.sqrt(dim) * 2.0**-25),
        )
        # The same in float64, and both rows on the second grid.
        self._close_error = 1.01 * (
            (dim + 32) * 2.0**-53 + math.sqrt(dim) * 2.0 ** (2 - _SECOND_GRID_BITS)
        )
        # Two rows times their rounded factors and their product, summed in float64.
        self._near_error = self._close_error
        if not self.compiled:
            self._near_error += 2.6 * torch.finfo(query.filter_dtype).eps
        # What float32 cannot represent is lost whatever the size of the rest.
        self._underflow = (dim + 2) * 2.0**-124

    def filtered(self, role: Literal["left", "right"], index: Tensor) -> Tensor:
        """Rows `index` [n] of the queries (left) or the gallery (right) as the filter takes them:
        float32 [m, W], zero-padded to whole groups."""
        rows = self.query if role == "left" else self.gallery
        return self.filter.prepare(role, rows.raw(index), index)

    def where_they_lie(self, role: Literal["left", "right"], index: Tensor) -> FloatRows | None:
        """Rows `index` [n] for the filter's products without being prepared, where that can be."""
        rows = self.query if role == "left" else self.gallery
        return self.filter.where_they_lie(role, rows.embeddings, index, index)

    def filter_error(self, query_index: Tensor, gallery_index: Tensor) -> Tensor:
        """For each query [n]: how far `filtered` may be from `exact`, over the gallery items."""
        return self._filter_error * self._magnitude(query_index, gallery_index) + self._underflow

    def pair_error(self, query_index: Tensor, gallery_index: Tensor) -> Tensor:
        """For each query [n]: how far the filter's score may be from `exact` where a compiled loop
        multiplied the two rows, over the gallery items."""
        return self._pair_error * self._magnitude(query_index, gallery_index) + self._underflow

    def near_error(self, query_index: Tensor, gallery_index: Tensor) -> Tensor:
        """For each query [n]: how far `near` may be from `exact`, over the gallery items."""
        return self._near_error * self._magnitude(query_index, gallery_index) + self._underflow

    def close_error(self, query_index: Tensor, gallery_index: Tensor) -> Tensor:
        """For each query [n]: how far `close_block` may be from `exact`, over the gallery items."""
        return self._close_error * self._magnitude(query_index, gallery_index) + self._underflow

    def _magnitude(self, query_index: Tensor, gallery_index: Tensor) -> Tensor:
        """Largest sum of the absolute terms of a score of each query."""
        if self.gallery.half_squares is None:
            return torch.ones(len(query_index), dtype=torch.float64, device=query_index.device)
        norms = self.query.norms[query_index]
        return 0.5 * (norms + self.gallery.norms[gallery_index].max()) ** 2

    def near(self, query_index: Tensor, gallery_index: Tensor) -> Tensor:
        """Scores float64 [n] of pairs (query_index[i], gallery_index[i]), up to `near_error`."""
        if self.compiled:
            return self.close(query_index, gallery_index)
        scores = torch.empty(len(query_index), dtype=torch.float64, device=query_index.device)
        double = self.query.double, self.gallery.double
        if not _by_product(query_index, gallery_index, *double, scores, _NEAR_PAIR_COST):
            for start in range(0, len(query_index), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                products = self.query.scaled(query_index[part])
                products *= self.gallery.scaled(gallery_index[part])
                scores[part] = products.sum(1, dtype=torch.float64)
        return self._minus_half_squares(scores, query_index, gallery_index)

    def close(self, query_index: Tensor, gallery_index: Tensor) -> Tensor:
        """Scores float64 [n] of pairs (query_index[i], gallery_index[i]), up to `close_error`."""
        if self.compiled:
            return self._minus_half_squares(
                kernels.products(
                    self.query.embeddings,
                    self.gallery.embeddings,
                    query_index,
                    gallery_index,
                    in_float64=True,
                ).mul_(self.query.factor[query_index] * self.gallery.factor[gallery_index]),
                query_index,
                gallery_index,
            )
        return self._in_float64(query_index, gallery_index, self.query.double, self.gallery.double)

    def exact(self, query_index: Tensor, gallery_index: Tensor) -> Tensor:
        """Exact scores float64 [n] of the pairs (query_index[i], gallery_index[i])."""
        return self._in_float64(query_index, gallery_index, self.query.exact, self.gallery.exact)

    def _in_float64(
        self,
        query_index: Tensor,
        gallery_index: Tensor,
        query_rows: Callable[[Tensor], Limbs],
        gallery_rows: Callable[[Tensor], Limbs],
    ) -> Tensor:
        """Scores of pairs from rows in limbs.

        Many pairs among few rows go through a matrix product, few pairs one by one; with exact
        limbs both give the same bits because nothing rounds.
        """
        scores = torch.empty(len(query_index), dtype=torch.float64, device=query_index.device)
        rows = query_rows, gallery_rows
        if not _by_product(query_index, gallery_index, *rows, scores, EXACT_PAIR_COST):
            for start in range(0, len(query_index), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                pairs = query_index[part], gallery_index[part]
                if not _by_product(*pairs, *rows, scores[part], EXACT_PAIR_COST):
                    scores[part] = _one_by_one(query_rows(pairs[0]), gallery_rows(pairs[1]))
        return self._minus_half_squares(scores, query_index, gallery_index)

    def _minus_half_squares(
        self, scores: Tensor, query_index: Tensor, gallery_index: Tensor
    ) -> Tensor:
        if self.query.half_squares is not None and self.gallery.half_squares is not None:
            # The sum of the two halves first: it does not depend on which side is the query.
            scores -= (
                self.query.half_squares[query_index] + self.gallery.half_squares[gallery_index]
            )
        return scores

    def close_block(
        self, query_index: Tensor, gallery_index: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """Scores float64 [n, m], up to `close_error`, of all pairs of query_index [n] and
        gallery_index [m], perhaps in `out`."""
        scores = out
        if scores is None:
            shape = (len(query_index), len(gallery_index))
            scores = torch.empty(shape, dtype=torch.float64, device=query_index.device)
        left = self.query.double(query_index)
        for side in range(0, len(gallery_index), _ROWS_AT_ONCE):
            right = self.gallery.double(gallery_index[side : side + _ROWS_AT_ONCE])
            scores[:, side : side + _ROWS_AT_ONCE] = _products(left, right)
        return self._minus_half_squares(scores, query_index[:, None], gallery_index)

    def close_to_one_another(self, index: Tensor) -> Tensor:
        """`close_block` [n, n] of few items with one another, where the queries are the gallery:
        each product serves both sides."""
        n = len(index)
        scores = torch.empty((n, n), dtype=torch.float64, device=index.device)
        (rows,) = self.query.double(index)
        for top in range(0, n, _SQUARE):
            bottom = min(top + _SQUARE, n)
            torch.mm(rows[top:bottom], rows[top:].T, out=scores[top:bottom, top:])
            scores[bottom:, top:bottom] = scores[top:bottom, bottom:].T
        return self._minus_half_squares(scores, index[:, None], index)


def _by_product(
    query_index: Tensor,
    gallery_index: Tensor,
    query_rows: Callable[[Tensor], Limbs],
    gallery_rows: Callable[[Tensor], Limbs],
    scores: Tensor,
    pair_cost: int,
) -> bool:
    """Fill `scores` [n] from matrix products of the rows involved if that is cheaper."""
    rows, row_of = query_index.unique(return_inverse=True)
    columns, column_of = gallery_index.unique(return_inverse=True)
    if len(rows) * len(columns) > pair_cost * len(row_of):
        return False
    step = _ROWS_AT_ONCE
    block_columns = -(-len(columns) // step)
    block_of = row_of // step * block_columns + column_of // step
    order = block_of.argsort()
    bounds = [0, *torch.bincount(block_of).cumsum(0).tolist()]
    held = -1
    for block, (first, last) in enumerate(itertools.pairwise(bounds)):
        if first == last:
            continue
        top, side = block // block_columns * step, block % block_columns * step
        if top != held:
            held, left = top, query_rows(rows[top : top + step])
        products = _products(left, gallery_rows(columns[side : side + step]))
        pairs = order[first:last]
        scores[pairs] = products[row_of[pairs] - top, column_of[pairs] - side]
    return True


def _one_by_one(left: Limbs, right: Limbs) -> Tensor:
    """Inner products [n] of the n-th rows of both sides."""
    if len(left) == 1:
        return (left[0] * right[0]).sum(1)
    cross = (left[0] * right[1]).sum(1) + (left[1] * right[0]).sum(1)
    return cross + (left[0] * right[0]).sum(1)


def _products(left: Limbs, right: Limbs) -> Tensor:
    """Inner products [n, m] of all rows of both sides.

    Of exact limbs each of the three products is exact, so their sum is the same with the sides
    swapped.
    """
    if len(left) == 1:
        return left[0] @ right[0].T
    products = left[0] @ right[1].T
    products += left[1] @ right[0].T
    products += left[0] @ right[0].T
    return products
