"""A cheaper product with a proven error, to spare most float32 products of an exact search.

Rows are rotated (inner products stay), cut to their first coordinates where the rest carries
little, and rounded: on a CPU to integers of 8 bits, for the compiled loops (`kernels`) or without
these for oneDNN; on CUDA to bfloat16. What each row loses by it is *measured*: with z the kept
coordinates of a row, r the cut ones and z' what z is rounded to,

    <q, g> <= <z'_q, z'_g> + |z_q - z'_q| |g| + |z'_q| |z_g - z'_g| + |r_q| |r_g|

by Cauchy and Schwarz. So a pair whose cheap score lies below a query's floor by more than that is
out for certain; the others get a float32 score and go the way of all candidates. Neighbours and
scores are therefore those of the plain search, to the bit.

Processors without 8-bit dot products add products of 8-bit numbers up in 16 bits. The compiled
loops keep these sums in bounds by the rows' lengths; oneDNN does not, so left rows use only 7 bits
there.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from noisyml.similarity.exact import kernels
from noisyml.similarity.exact.float32 import Float32Filter, product_error
from noisyml.similarity.exact.tiles import GROUP, padded

#: Integers for the compiled loops or for oneDNN, or short floats.
Format = Literal["int8_loops", "int8_onednn", "bfloat16"]

_LEFT_LIMIT, _RIGHT_LIMIT = 63, 127
_LEFT_ZERO = 64
#: More coordinates for what rounding takes from the left rows.
_SPARE = 4
#: Clipping points of 7 and 8 bits, in standard deviations, that lose least of normal coordinates;
#: and of 8 bits where two neighbours share what one of them may have.
_LEFT_CLIP, _RIGHT_CLIP, SHARED_CLIP = 3.65, 4.3, 5.4
#: Rows that are rounded at once.
_ROWS_AT_ONCE = 1024
#: Rows of the trial that decides about the coarse product, and shares of D that it tries.
TRIAL_QUERIES, TRIAL_GALLERY = 512, 2048
_SHARES = (0.75, 0.5, 0.375, 0.25, 0.125)
#: What a candidate costs in multiply-adds of the coarse product.
_CANDIDATE_COST: dict[Format, int] = {
    "int8_loops": 20_000,
    "int8_onednn": 50_000,
    "bfloat16": 50_000,
}
#: How many of them one float32 multiply-add takes.
_FLOAT32_COST: dict[Format, float] = {"int8_loops": 2.9, "int8_onednn": 2.0, "bfloat16": 8.0}
#: The same of the loops' slower forms: plain C as measured without AVX2, NEON by its instructions.
_FLOAT32_COST_OF_FORMS = {"plain": 1.0, "neon": 1.3}
#: Pairs of a tile of integer rows that may be looked at; float32 is cheaper beyond.
_MOST_LOOKS = 1 / 8
#: Integer scores and bars stay within it, so that sums of three fit into 32 bits.
LARGEST_SUM = 2**29
#: Below this many multiply-adds no trial is worth its time.
LEAST_WORK = 2**34
#: Multiply-adds of the search per cube of D that pay for finding the principal axes.
_AXES_WORK = 200


@dataclass(frozen=True)
class CoarseRows:
    """Rounded rows and what rounding and cutting took from them.

    Attributes:
        rows: [n, d] int8 (left ones for oneDNN uint8) or bfloat16.
        norms: [n] float32, at least the norms of the rows before.
        rounding: [n] float32, at least the norm of what rounding took.
        cut: [n] float32, at least the norm of what was cut off.
        missing: [n] float32, what rounding may take from a score and the cheap score does not add.
        halves: [n] float32, halves of the squared norms (l2), or None.
    """

    rows: Tensor
    norms: Tensor
    rounding: Tensor
    cut: Tensor
    missing: Tensor
    halves: Tensor | None

    @classmethod
    def joined(cls, parts: list[CoarseRows]) -> CoarseRows:
        """The rows of all parts in order."""
        if len(parts) == 1:
            return parts[0]
        columns: dict[str, Any] = {}
        for name in cls._names():
            column = [getattr(part, name) for part in parts]
            columns[name] = None if column[0] is None else torch.cat(column)
        return cls(**columns)

    def __getitem__(self, part: slice) -> CoarseRows:
        columns: dict[str, Any] = {name: getattr(self, name) for name in self._names()}
        chosen: dict[str, Any] = {n: None if c is None else c[part] for n, c in columns.items()}
        return CoarseRows(**chosen)

    def room_for(self, n: int, bytes_of: Callable[[int], Tensor] | None = None) -> CoarseRows:
        """Uninitialised rows like these, `n` of them; `bytes_of` gives so many bytes for them."""
        columns: dict[str, Any] = {name: getattr(self, name) for name in self._names()}
        empty: dict[str, Any] = {
            name: None if column is None else column.new_empty((n, *column.shape[1:]))
            for name, column in columns.items()
            if bytes_of is None or name != "rows"
        }
        if bytes_of is not None:
            shape = n, *self.rows.shape[1:]
            room = bytes_of(math.prod(shape) * self.rows.element_size())
            empty["rows"] = room.view(self.rows.dtype).view(shape)
        return CoarseRows(**empty)

    def fill(self, other: CoarseRows) -> None:
        """Take over the content of as many other rows."""
        for name in self._names():
            column = getattr(self, name)
            if column is not None:
                column.copy_(getattr(other, name))

    @classmethod
    def _names(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls)]


class RoundedRows:
    """Rounded rows of a side, each rounded when it is first asked for.

    In one piece: pieces that stay, among temporaries that do not, would leave holes in the heap.

    Args:
        n: rows that are kept; later ones are rounded whenever they are asked for.
        bytes_of: gives room for so many bytes, int8; None: memory.
    """

    def __init__(self, n: int, bytes_of: Callable[[int], Tensor] | None = None) -> None:
        self._size, self._bytes_of = padded(n) + GROUP if n else 0, bytes_of
        self._all: CoarseRows | None = None
        self._known: set[int] = set()

    def keeps(self, start: int, n: int) -> bool:
        """True if `n` rows from number `start` on are kept."""
        return start + n <= self._size

    def rows(self, start: int, n: int, rounded: Callable[[], CoarseRows]) -> CoarseRows:
        """`n` rows, whole groups, from number `start` on, and how to round them if need be."""
        if not self.keeps(start, n):
            return rounded()
        part = slice(start, start + n)
        groups = range(part.start, part.stop, GROUP)
        if self._all is None or not self._known.issuperset(groups):
            new = rounded()
            if self._all is None:
                self._all = new.room_for(self._size, self._bytes_of)
            self._all[part].fill(new)
            self._known.update(groups)
        return self._all[part]

    def stretch(self, start: int, n: int) -> CoarseRows:
        """`n` rows from number `start` on that have all been asked for."""
        assert self._all is not None
        return self._all[start : start + n]


class CoarseFilter:
    """Cheap scores of blocks, in units of `unit`, and how far below the exact ones they may lie.

    Rows lose very different amounts to 8 bits: one coordinate beyond the clipping point is enough.
    So there what rounding may take from a score is added to it: for the left row by a few more
    coordinates, for the right row by a bias.

    Args:
        fine: the float32 filter whose prepared rows are rounded.
        basis: [d, D] float32 with orthonormal rows.
        spread: standard deviation of rotated coordinates.
        number_format: what rows are rounded to.
    """

    def __init__(
        self, fine: Float32Filter, basis: Tensor, spread: float, number_format: Format
    ) -> None:
        self.basis = basis
        self.number_format = number_format
        self._distances = fine.query.metric == "l2"
        self._dim = basis.shape[1]
        # The largest norms on either side, in the filter's units.
        self._reach = {
            role: 1.001 * float(side.norms.max()) / fine.scale
            for role, side in (("left", fine.query), ("right", fine.gallery))
        }
        # Of each rotated coordinate, relative to the row's norm; the spare of its
        # error pays for what `kernels.rounded` errs by.
        relative = product_error(self._dim)
        self._turning = math.sqrt(len(basis)) * relative
        self._norm_error = (self._dim + 8) * 2.0**-24
        self._steps = {"left": 1.0, "right": 1.0}
        self._limits = {"left": _LEFT_LIMIT, "right": _RIGHT_LIMIT}
        if number_format == "int8_loops":
            self._steps = dict.fromkeys(self._steps, spread * SHARED_CLIP / kernels.LIMIT)
        if number_format == "int8_onednn":
            self._steps = {
                "left": spread * _LEFT_CLIP / _LEFT_LIMIT,
                "right": spread * _RIGHT_CLIP / _RIGHT_LIMIT,
            }
        self.unit = self._steps["left"] * self._steps["right"]
        # Of the sums: those of integers are exact up to 2^24 and rounded to float32 beyond,
        # bfloat16 ones are summed in float32 and rounded to bfloat16.
        self._summing = 1.01 * 2.0**-8 + relative if number_format == "bfloat16" else 2.0**-20

    def rounded(self, role: Literal["left", "right"], prepared: Tensor) -> CoarseRows:
        """Rows [n, width] as the float32 filter prepares them, padding included."""
        # A stretch at a time: there are several float32 copies of it on the way.
        return CoarseRows.joined(
            [self._rounded(role, part) for part in prepared.split(_ROWS_AT_ONCE)]
        )

    def _rounded(self, role: Literal["left", "right"], prepared: Tensor) -> CoarseRows:
        whole = prepared[:, : self._dim]
        norms = torch.linalg.vector_norm(whole, dim=1) * (1 + self._norm_error)
        turned = whole @ self.basis.T
        slack = self._turning * norms
        cut = torch.zeros_like(norms)
        if len(self.basis) < self._dim:
            kept = torch.linalg.vector_norm(turned, dim=1) * (1 - self._norm_error) - slack
            rest = norms.to(torch.float64).square() - kept.clamp_(min=0).to(torch.float64).square()
            cut = rest.clamp_(min=0.0).sqrt_().to(torch.float32) * (1 + 2.0**-20)
        whole_numbers = None
        if self.number_format == "bfloat16":
            rows = turned.to(torch.bfloat16)
            lost = torch.linalg.vector_norm(turned - rows, dim=1)
        elif self.number_format == "int8_loops":
            rows, lost = kernels.rounded(turned, self._steps[role])
        else:
            limit, step = self._limits[role], self._steps[role]
            whole_numbers = (turned / step).round_().clamp_(-limit, limit)
            lost = torch.linalg.vector_norm(turned.sub_(whole_numbers, alpha=step), dim=1)
        rounding = lost * (1 + self._norm_error) + slack
        missing = rounding * self._reach["right"]
        if role == "right" and self.number_format != "int8_loops":
            # The left factor is a rounded row, which may be longer than the row.
            missing = rounding * (2 * self._reach["left"])
        if whole_numbers is not None:
            rows, missing = self._with_spare(role, whole_numbers, missing)
        # The float32 filter's column holds minus the half.
        halves = None
        if self._distances:
            halves = prepared[:, -1 if role == "left" else -2].neg()
        return CoarseRows(rows, norms, rounding, cut, missing, halves)

    def _with_spare(
        self, role: Literal["left", "right"], whole_numbers: Tensor, missing: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Integer rows with the coordinates that add the left rows' loss, and what they leave."""
        shape = (len(whole_numbers), _SPARE)
        if role == "right":
            spare = whole_numbers.new_full(shape, _RIGHT_LIMIT)
            return torch.cat([whole_numbers, spare], 1).to(torch.int8), torch.zeros_like(missing)
        worth = self.unit * _RIGHT_LIMIT
        wanted = (missing / worth).ceil_()[:, None]
        filled = torch.arange(_SPARE, device=missing.device) * _LEFT_LIMIT
        spare = (wanted - filled).clamp_(0, _LEFT_LIMIT)
        missing = (missing * (1 + 2.0**-20) - spare.sum(1) * worth).clamp_(min=0.0)
        rows = torch.cat([whole_numbers, spare], 1).add_(_LEFT_ZERO).to(torch.uint8)
        return rows, missing

    def packed(self, right: CoarseRows) -> Tensor:
        """Right rows in the form that `products` or, for the compiled loops, `hits` takes."""
        if self.number_format == "int8_loops":
            return kernels.packed(right.rows)
        if self.number_format != "int8_onednn":
            return right.rows
        packed: Tensor = torch.ops.onednn.qlinear_prepack(right.rows, None)
        return packed

    def products(self, left: CoarseRows, right: CoarseRows, packed: Tensor) -> Tensor:
        """Scores [m, n] in units of `unit`: float32, or bfloat16."""
        if self.number_format == "int8_onednn":
            bias = right.rounding * ((left.norms + left.rounding).max() * (1 + 2.0**-20))
            if right.halves is not None:
                bias -= right.halves
            scores = int8_product(left.rows, packed, bias / self.unit)
        elif self.number_format == "int8_loops":
            scores = left.rows.to(torch.float32) @ right.rows.to(torch.float32).T
            lost, lost_too = self._losses(left, right)
            scores += (lost / self.unit)[:, None]
            scores += (lost_too if right.halves is None else lost_too - right.halves) / self.unit
        else:
            scores = left.rows @ packed.T
            if right.halves is not None:
                scores = scores.to(torch.float32).sub_(right.halves)
        if left.halves is not None:
            scores.sub_((left.halves / self.unit)[:, None])
        return scores

    def hits(
        self,
        left: CoarseRows,
        right: CoarseRows,
        packed: Tensor,
        exact: tuple[kernels.FloatRows, kernels.FloatRows],
        floors: tuple[Tensor, Tensor],
        keys: tuple[Tensor, Tensor],
    ) -> tuple[kernels.Pairs, kernels.Pairs] | None:
        """Pairs of integer rows whose float32 score reaches the floor of the left or right one.

        Args:
            left, right: the rounded rows; as many count as there are floors.
            packed: the right rows, packed.
            exact: both sides' rows, as the float32 filter prepares or takes them.
            floors: float32 [m] and [n]; +inf where nothing is wanted.
            keys: int64 [m] and [n]; pairs of equal keys do not count.

        Returns:
            pairs by left and by right query, or None if float32 products are cheaper for so many.
        """
        m, n = len(floors[0]), len(floors[1])
        both = left[:m], right[:n]
        sides = []
        for mine, theirs, added, rows, floor, key in zip(
            both, both[::-1], self._losses(*both), exact, floors, keys, strict=True
        ):
            bias = (added if mine.halves is None else added - mine.halves).to(torch.float64)
            bias = bias.div_(self.unit).ceil_()
            if bool((bias > LARGEST_SUM).any()):
                return None
            cut = 1.0001 * mine.cut.to(torch.float64) * theirs.cut.max()
            sides.append(
                kernels.IntegerSide(
                    mine.rows if mine is both[0] else packed,
                    bias.clamp_(min=-LARGEST_SUM).to(torch.int32),
                    integer_bar((floor.to(torch.float64) - cut) / self.unit, LARGEST_SUM),
                    key,
                    rows,
                    floor,
                )
            )
        return kernels.scan_integers(sides[0], sides[1], _MOST_LOOKS)

    def _losses(self, left: CoarseRows, right: CoarseRows) -> tuple[Tensor, Tensor]:
        """[m] and [n] float32: what rounding may take from a score, in two parts."""
        longest = (left.norms + left.rounding).max() * (1 + 2.0**-20)
        return left.missing * (1 + 2.0**-20), right.rounding * longest

    def bar(self, floor: Tensor, mine: CoarseRows, theirs: CoarseRows) -> Tensor:
        """[n] float32: pairs of `mine` whose cheap score lies below it miss the score `floor` [n].

        Of `mine`, the first n rows count.
        """
        bar = (floor - self.errors(mine[: len(floor)], theirs)) / self.unit
        bar = bar.to(torch.float32)
        return torch.nextafter(bar, torch.full_like(bar, -torch.inf))

    def errors(self, mine: CoarseRows, theirs: CoarseRows) -> Tensor:
        """[n] float64: how far below the exact score of one of `mine` with any of `theirs` the
        cheap one may lie, in the float32 filter's units."""
        length = (mine.norms + mine.rounding).to(torch.float64)
        longest = (theirs.norms + theirs.rounding).max().to(torch.float64)
        bound = mine.cut.to(torch.float64) * theirs.cut.max()
        if self.number_format != "int8_loops":  # whose cheap scores hold all of it
            bound = bound + mine.missing + theirs.missing.max()
        return 1.0001 * bound + self._summing * (length + longest).square()


class Patience:
    """Turns at which to try again what has failed: after 1, 2, 4, ... turns without it."""

    def __init__(self) -> None:
        self._waiting, self._step = 0, 1

    def ready(self) -> bool:
        """True if this turn is one to try."""
        if self._waiting:
            self._waiting -= 1
            return False
        return True

    def tell(self, worked: bool) -> None:
        """Take in how the try ended."""
        self._waiting, self._step = (0, 1) if worked else (self._step, 2 * self._step)


def integer_bar(floor: Tensor, largest: int) -> Tensor:
    """[n] int32 from float64: whole numbers that are no larger lie below the floor for certain.

    Whatever is so low that it may lie beyond sums of up to `largest` lets everything through.
    """
    limits = torch.iinfo(torch.int32)
    bar = floor.floor().sub_(2)
    bar.masked_fill_(bar < -largest, limits.min)
    return bar.clamp_(max=limits.max).to(torch.int32)


def int8_product(left: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Float32 [m, n] of uint8 rows [m, d] with zero point 64, packed int8 rows [n, d] and bias."""
    one = torch.ones(1)
    zero = torch.zeros(1, dtype=torch.int64)
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        left, 1.0, _LEFT_ZERO, packed, one, zero, bias, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


@functools.cache
def int8_works() -> bool:
    """True if this build and processor multiply 8-bit integers without overflow."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_prepack")):
        return False
    # All products of one sign and at their largest: what saturates, saturates here.
    left = torch.full((64, 256), _LEFT_ZERO + _LEFT_LIMIT, dtype=torch.uint8)
    left[1::2] = _LEFT_ZERO - _LEFT_LIMIT
    right = torch.full((64, 256), _RIGHT_LIMIT, dtype=torch.int8)
    right[1::3] = -_RIGHT_LIMIT
    try:
        found = int8_product(left, torch.ops.onednn.qlinear_prepack(right, None), None)
    except RuntimeError:
        return False
    expected = (left.to(torch.float32) - _LEFT_ZERO) @ right.to(torch.float32).T
    return torch.equal(found, expected)


def number_format_of(device: torch.device) -> Format | None:
    """The cheap number format that `device` is fast at, if any."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else None
    if device.type != "cpu":
        return None
    if kernels.available():
        return "int8_loops"
    return "int8_onednn" if int8_works() else None


def chosen_filter(
    fine: Float32Filter,
    queries: tuple[Tensor, Tensor],
    gallery: tuple[Tensor, Tensor],
    k: int,
    pairs: int,
    symmetric: bool,
    shift: int,
    keys: tuple[Tensor, Tensor] | None = None,
) -> CoarseFilter | None:
    """The coarse filter that a trial on a sample finds cheapest; None if float32 is no dearer.

    A sample of the gallery shows where the k-th of all items would lie; the share of pairs that a
    filter cannot rule out follows from the scores and errors of the trial itself.

    Args:
        fine: the float32 filter.
        queries: numbers [m] int64 and rows [m, D] of some queries.
        gallery: numbers and rows of some gallery items.
        k: neighbours wanted.
        pairs: pairs of queries and gallery items to be searched.
        symmetric: the queries are gallery items, and each product serves both.
        shift: the gallery number of the first query, if so.
        keys: int64 [m] and [n]; pairs of equal keys are passed over whatever their score.
    """
    number_format = number_format_of(fine.query.norms.device)
    dim = gallery[1].shape[1]
    if number_format is None or pairs * dim < LEAST_WORK or not len(queries[0]):
        return None
    left = fine.prepare("left", queries[1], queries[0])
    right = fine.prepare("right", gallery[1], gallery[0])
    n_left, n_right = len(queries[0]), len(gallery[0])
    scores = (left @ right.T)[:n_left, :n_right]
    if symmetric:
        scores.masked_fill_(queries[0][:, None] + shift == gallery[0], -torch.inf)
    n_gallery = len(fine.gallery.norms)
    rank = min(n_right, max(1, round(k * n_right / n_gallery)))
    floor = scores.topk(rank, dim=1).values[:, -1].to(torch.float64)

    best, least, previous = None, 0.9 * _float32_cost(number_format) * dim, math.inf
    for coarse in _filters(fine, right[:n_right, :dim], number_format, pairs):
        mine, theirs = coarse.rounded("left", left), coarse.rounded("right", right)
        cheap = coarse.products(mine, theirs, coarse.packed(theirs))[:n_left, :n_right]
        bar = (floor - coarse.errors(mine, theirs)[:n_left]) / coarse.unit
        passed = cheap >= bar[:, None]
        if keys is not None:
            passed &= keys[0][:, None] != keys[1]
        share = float(passed.to(torch.float32).mean())
        cost = len(coarse.basis) + (1 + symmetric) * _CANDIDATE_COST[number_format] * share
        if cost < least:
            best, least = coarse, cost
        if cost > previous:  # cutting off more will not help
            break
        previous = cost
    return best


def _float32_cost(number_format: Format) -> float:
    cost = _FLOAT32_COST[number_format]
    return (
        _FLOAT32_COST_OF_FORMS.get(kernels.form(), cost) if number_format == "int8_loops" else cost
    )


def _filters(
    fine: Float32Filter, rows: Tensor, number_format: Format, pairs: int
) -> Iterator[CoarseFilter]:
    """Coarse filters, longest first, given prepared rows [n, D] of the gallery."""
    dim = rows.shape[1]
    # Second moments, not covariance: what is cut off must be short.
    rows = rows.to(torch.float64)
    moments = rows.T @ rows
    lengths, axes = [dim], torch.eye(dim, dtype=torch.float64, device=rows.device)
    if pairs >= _AXES_WORK * dim**2:
        axes = torch.linalg.eigh(moments).eigenvectors.flip(1)
        lengths += [int(share * dim) // 16 * 16 for share in _SHARES]
    energy = torch.einsum("ij,ik,kj->j", axes, moments, axes).clamp_(min=0.0)
    generator = torch.Generator().manual_seed(0)
    for length in lengths:
        total = float(energy[:length].sum())
        if not length or not total:
            continue
        # Equally large coordinates round best, and a random rotation makes them so.
        normal = torch.randn(length, length, generator=generator, dtype=torch.float64)
        turn = torch.linalg.qr(normal.to(rows.device)).Q
        basis = (axes[:, :length] @ turn).T.to(torch.float32).contiguous()
        spread = math.sqrt(total / (len(rows) * length))
        yield CoarseFilter(fine, basis, spread, number_format)
