"""The nearest of many moving centroids for every row, found again and again as k-means needs it.

Float64 decides, and most pairs of a row and a centroid are ruled out without it, in two ways.

- **Bounds.** For every row `lower` is a distance that all centroids but its own kept. If one of
  them moves by v it still keeps `lower` - v (Hamerly, "Making k-means even faster", SDM 2010).
  A few fast centroids would spoil the bound: these are compared with every row, and `lower` counts
  for the others alone. How many are called fast is what costs least.
- **Integers.** Pairs that are left are compared in 8-bit integers with a measured error
  (`noisyml.similarity.exact.quantised`); only those that may matter are scored in float64.

So the labels are those of comparing every row with every centroid in float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from noisyml.similarity.exact import kernels
from noisyml.similarity.exact.float32 import product_error
from noisyml.similarity.exact.quantised import LARGEST_SUM, SHARED_CLIP, integer_bar

#: Rows of a block; fewer where they are copied, or compared with all centroids in float32.
_BLOCK_ROWS, _FEW_ROWS = 8192, 512
#: Pairs of a block, as a share of all, that may be scored one by one.
_MOST_PAIRS = 1 / 8
#: The first centroids, at least so many and one of so many, tell a row where to begin.
_FIRST, _FIRST_SHARE = 64, 8
#: One centroid of so many shall lie above a row's floor, and so many rows tell where that is.
_WANTED_SHARE, _SAMPLE = 64, 128
#: Fast centroids are counted in steps.
_STEP = 16
#: What a row costs beside the centroids that it is compared with, in such centroids.
_ROW_COST = 50
#: From this share of all rows on all are compared: rows need not be copied then.
_NEARLY_ALL = 0.8


def supported(x: Tensor) -> bool:
    """True for contiguous float32 rows on a CPU that runs the compiled loops."""
    fits = x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()
    return fits and kernels.available()


class _Columns(NamedTuple):
    """Centroids that rows are compared with.

    Attributes:
        number: int64 [k], which they are.
        rows: int8 [k, d], rounded.
        bias: int32 [k], see `kernels.IntegerSide`.
    """

    number: Tensor
    rows: Tensor
    bias: Tensor

    def chosen(self, number: Tensor) -> _Columns:
        """Some of all."""
        return _Columns(number, self.rows[number], self.bias[number])


class NearestCentroids:
    """Finds the nearest centroid of every row, and remembers what helps next time.

    A row is y = scale x - mean. The score of a centroid c is y.c - |c|^2 / 2, so that the squared
    distance is |y|^2 less twice the score. Among equal scores the lowest number wins.

    Args:
        x: [n, D], `supported`.
        mean: [D] float64.
        scale: [n] float64; None: 1.
        squares: [n] float64, |y|^2.
        free: [m] int64, the rows that are asked for.
    """

    def __init__(
        self, x: Tensor, mean: Tensor, scale: Tensor | None, squares: Tensor, free: Tensor
    ) -> None:
        self._x, self._mean, self._free = x, mean, free
        self._scale = None if scale is None else scale[free]
        self._squares = squares[free]
        norms = self._squares.sqrt()
        # At least those of scale x.
        self._lengths = norms + mean.norm()
        width = x.shape[1] + -x.shape[1] % kernels.DEPTH_STEP
        self._mix = _Mix(width)
        spread = math.sqrt(float(self._squares.mean()) / width) if len(free) else 0.0
        self._step = spread * SHARED_CLIP / kernels.LIMIT or 1.0
        self._rows = torch.empty((len(free), width), dtype=torch.int8)
        self._lost = torch.empty_like(norms)
        for start in range(0, len(free), _FEW_ROWS):
            part = slice(start, start + _FEW_ROWS)
            rows = x[free[part]]
            if self._scale is not None:
                rows *= self._scale[part, None].to(torch.float32)
            rows -= mean.to(torch.float32)
            self._rows[part], self._lost[part] = self._mix.rounded(rows, norms[part], self._step)
        self._lost += 2.0**-22 * self._lengths  # scaling and centring round, too
        self._longest = norms + self._lost
        self.forget()

    def forget(self) -> None:
        """Start anew: centroids that come next have nothing to do with those before."""
        self._centroids: Tensor | None = None
        self._labels = torch.zeros_like(self._free)
        self._lower = torch.full_like(self._lost, -torch.inf)

    def __call__(self, centroids: Tensor) -> Tensor:
        """Numbers [m] int64 of the nearest of at least two centroids [K, D] float32."""
        if not len(self._free):
            return self._labels
        before, self._single = self._centroids, centroids.contiguous()
        now = self._centroids = centroids.to(torch.float64)
        halves = 0.5 * now.square().sum(1)
        self._offsets = halves + now @ self._mean
        columns = self._rounded_centroids(halves)
        everyone = torch.arange(len(self._free))
        if before is None:
            self._labels = self._first_labels()
        self._own = self._scores(everyone, self._labels)
        fast, unsure = columns.number[:0], everyone
        if before is not None:
            longest = float(now.norm(dim=1).max())
            fast, speed, unsure = self._plan((now - before).norm(dim=1), longest)
            self._lower -= speed
        if len(fast):
            sure = torch.ones(len(everyone), dtype=torch.bool)
            sure[unsure] = False
            self._compare(_or_all(sure.nonzero().flatten(), everyone), columns.chosen(fast))
        if len(unsure):
            unsure = _or_all(unsure, everyone)
            self._level = self._level_for(unsure)
            self._lower[unsure] = torch.inf
            self._compare(unsure, columns)
        return self._labels.clone()

    def _first_labels(self) -> Tensor:
        """The nearest of the first centroids."""
        some = torch.arange(min(len(self._single), max(_FIRST, len(self._single) // _FIRST_SHARE)))
        parts = torch.arange(len(self._free)).split(_FEW_ROWS)
        return torch.cat([self._float32_scores(part, some).argmax(1) for part in parts])

    # -- who is compared with whom -----------------------------------------------------------------

    def _plan(self, moved: Tensor, longest: float) -> tuple[Tensor, float, Tensor]:
        """Fast centroids, the speed of the fastest other one, and rows to compare with all.

        Args:
            moved: [K] float64, how far the centroids moved.
            longest: the largest norm of a centroid.
        """
        upper = (self._squares - 2 * self._own).clamp_(min=0).sqrt_()
        # The root of what float64 may err by in a squared distance, for either bound.
        reach = float(self._lengths.max()) + longest
        room = self._lower - upper - 2 * math.sqrt(len(self._mean) * 2.0**-50) * reach
        m, k = len(room), len(moved)
        speeds, order = moved.sort(descending=True)
        counts = torch.arange(0, k, _STEP)
        unsure = torch.searchsorted(room.sort().values, speeds[counts], right=True)
        cost = unsure * (k + _ROW_COST) + (m - unsure) * (counts + _ROW_COST * (counts > 0))
        best = int(cost.argmin())
        speed = float(speeds[counts[best]])
        return order[: counts[best]], speed, (room <= speed).nonzero().flatten()

    def _level_for(self, rows: Tensor) -> float:
        """A score that a few others than a row's own reach: the bound for those below is as good
        as can be had for little.
        """
        some = rows[:: max(1, len(rows) // _SAMPLE)]
        scores = self._float32_scores(some, torch.arange(len(self._single)))
        scores.scatter_(1, self._labels[some, None], -torch.inf)
        last = scores.topk(min(scores.shape[1] - 1, self._few())).values[:, -1]
        return _most(last) + self._blur

    def _few(self) -> int:
        """Centroids that a row shall meet: the nearest, the next and some more."""
        return max(2, len(self._single) // _WANTED_SHARE)

    # -- comparing ---------------------------------------------------------------------------------

    def _compare(self, rows: Tensor, columns: _Columns) -> None:
        """Give `rows` the nearest of these centroids and their own; lower their bounds."""
        everyone = len(rows) == len(self._free)
        packed, nowhere = kernels.packed(columns.rows), torch.full(columns.bias.shape, torch.inf)
        right = kernels.IntegerSide(
            packed, columns.bias, torch.full_like(columns.bias, torch.iinfo(torch.int32).max),
            columns.number, kernels.FloatRows(torch.empty(len(nowhere), 0)), nowhere,
        )  # fmt: skip
        for start in range(0, len(rows), _BLOCK_ROWS):
            part = rows[start : start + _BLOCK_ROWS]
            which = slice(start, start + len(part)) if everyone else part
            floor = self._own[part].clamp(max=self._level)
            left = kernels.IntegerSide(
                self._rows[which], self._bias[which], integer_bar(floor / self._unit, LARGEST_SUM),
                self._labels[which], kernels.FloatRows(torch.empty(len(part), 0)),
                torch.full(part.shape, -torch.inf),
            )  # fmt: skip
            found = kernels.scan_integers(left, right, _MOST_PAIRS) if self._fits else None
            if found is not None:
                row, place = (numbers.to(torch.int64) for numbers in found[0][:2])
                self._decide(part, row, columns.number[place], floor)
                continue
            for few in part.split(_FEW_ROWS):
                self._decide(few, *self._pairs_by_float32(few, columns.number))

    def _pairs_by_float32(self, rows: Tensor, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of a row and a centroid that score at least the row's floor, and the floors."""
        scores = self._float32_scores(rows, number)
        scores.masked_fill_(number == self._labels[rows, None], -torch.inf)
        error = self._float32_error * self._lengths[rows]
        # No lower than a few reach, or the pairs of many rows at once would have to be scored.
        few = scores.topk(min(len(number), self._few())).values[:, -1] - 2 * error
        floor = torch.maximum(self._own[rows].clamp(max=self._level), few)
        row, place = (scores >= (floor - error)[:, None]).nonzero().unbind(1)
        return row, number[place], floor

    def _decide(self, rows: Tensor, row: Tensor, column: Tensor, floor: Tensor) -> None:
        """Score pairs in float64; others than these and a row's own are below its floor.

        Args:
            rows: int64 [b].
            row: int64 [p], places in `rows`.
            column: int64 [p], centroids, not the row's own.
            floor: float64 [b].
        """
        own, labels = self._own[rows], self._labels[rows]
        scores = self._scores(rows[row], column)
        best = torch.full_like(own, -torch.inf).scatter_reduce_(0, row, scores, "amax")
        at_best = scores == best[row]
        first = torch.full_like(labels, len(self._single))
        first.scatter_reduce_(0, row[at_best], column[at_best], "amin")
        left = column != first[row]
        second = floor.scatter_reduce(0, row[left], scores[left], "amax")
        nearer = (best > own) | ((best == own) & (first < labels))
        self._labels[rows] = torch.where(nearer, first, labels)
        self._own[rows] = torch.where(nearer, best, own)
        others = torch.maximum(second, torch.where(nearer, own, best))
        bound = (self._squares[rows] - 2 * others).clamp_(min=0).sqrt_()
        self._lower[rows] = torch.minimum(self._lower[rows], bound)

    # -- scores ------------------------------------------------------------------------------------

    def _scores(self, rows: Tensor, columns: Tensor) -> Tensor:
        """[p] float64, of rows and centroids by number, pair by pair."""
        found = kernels.products(self._x, self._single, self._free[rows], columns, in_float64=True)
        if self._scale is not None:
            found *= self._scale[rows]
        return found.sub_(self._offsets[columns])

    def _float32_scores(self, rows: Tensor, columns: Tensor) -> Tensor:
        """[b, k] float64, of all these rows and centroids, by a float32 product."""
        found = (self._x[self._free[rows]] @ self._single[columns].T).to(torch.float64)
        if self._scale is not None:
            found *= self._scale[rows, None]
        return found.sub_(self._offsets[columns])

    def _rounded_centroids(self, halves: Tensor) -> _Columns:
        """All centroids as columns, given the halves of their squares; what they mean for rows.

        With rounded y' and c', y.c <= y'.c' + |y - y'| |c| + |y'| |c - c'| (Cauchy and Schwarz).
        Both terms are products of a row's and a centroid's number: what most rows keep to is put
        into the bias of the centroids, and what a row has beyond it into its own.
        """
        norms = (2 * halves).sqrt()
        root, largest = math.sqrt(float(2 * halves.mean())), float(norms.max())
        # Centroids that are much longer than others must not be cut short.
        spread = max(root, largest / 2) / math.sqrt(self._rows.shape[1])
        step = spread * SHARED_CLIP / kernels.LIMIT or 1.0
        rows, lost = self._mix.rounded(self._single, norms, step)
        self._unit = self._step * step
        most_lost, longest = _most(self._lost), _most(self._longest)
        added = most_lost * norms + longest * lost
        self._blur = float(added.mean())
        bias = ((added - halves) / self._unit).ceil_()
        beyond = (self._lost - most_lost).clamp_(min=0) * largest
        beyond += (self._longest - longest).clamp_(min=0) * lost.max()
        beyond = (beyond / self._unit).ceil_()
        self._fits = float(bias.max()) <= LARGEST_SUM and float(beyond.max()) <= LARGEST_SUM
        self._bias = beyond.clamp_(max=LARGEST_SUM).to(torch.int32)
        self._float32_error = largest * product_error(len(self._mean))
        bias = bias.clamp_(-LARGEST_SUM, LARGEST_SUM).to(torch.int32)
        return _Columns(torch.arange(len(norms)), rows, bias)


class _Mix:
    """A rotation that makes the coordinates of rows about equally large, which round best.

    It takes sqrt(D) operations a coordinate, not D: coordinates are turned in groups, then across.

    Args:
        width: of rotated rows, a multiple of `kernels.DEPTH_STEP`.
    """

    def __init__(self, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.width = width
        self._turns = []
        for size in (kernels.DEPTH_STEP, width // kernels.DEPTH_STEP):
            normal = torch.randn(size, size, generator=generator, dtype=torch.float64)
            self._turns.append(torch.linalg.qr(normal).Q.to(torch.float32))
        self._error = sum(len(turn) ** 0.5 * product_error(len(turn)) for turn in self._turns)

    def rounded(self, rows: Tensor, norms: Tensor, step: float) -> tuple[Tensor, Tensor]:
        """Rotated rows in whole multiples of `step`, and what that takes from them.

        Args:
            rows: [n, D] float32.
            norms: [n] float64, theirs.

        Returns:
            int8 [n, width] as `kernels.rounded` gives them, and float64 [n], at least the norms of
            the difference.
        """
        within, across = self._turns
        turned = pad(rows, (0, self.width - rows.shape[1])).view(-1, len(within)) @ within
        turned = turned.view(len(rows), len(across), len(within)).transpose(1, 2)
        turned = turned.reshape(-1, len(across)) @ across
        numbers, lost = kernels.rounded(turned.view(len(rows), self.width), step)
        # What else these norms err by is within the spare of the rotation's error.
        exact = lost.to(torch.float64) * (1 + (self.width + 8) * 2.0**-24)
        return numbers, exact + self._error * norms


def _most(values: Tensor) -> float:
    """The value that nine of ten do not exceed."""
    return float(values.kthvalue(max(1, len(values) * 9 // 10)).values)


def _or_all(rows: Tensor, everyone: Tensor) -> Tensor:
    """Rows, or all where that is hardly more."""
    return everyone if len(rows) >= _NEARLY_ALL * len(everyone) else rows
