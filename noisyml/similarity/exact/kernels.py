"""Compiled loops for what PyTorch has no operation for: above all the scan for candidates.

A candidate is one pair in thousands. An operation that writes all scores only for the next one to
read and discard them spends as much on memory as on multiplying, so the loops in `loops/` compare
scores where they arise and hand out pairs. They are compiled when the package is installed
(`scripts/build_kernels.py`), and `loops.library` chooses among their forms. Where there is no
compiler `available` is false and the search does the same with PyTorch alone: the results are the
same bits, only later.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from noisyml.similarity.exact.loops import library

#: So much pays for starting a thread.
_ROWS_PER_THREAD, _PAIRS_PER_THREAD, _PAIRS_PER_SCAN = 64, 4096, 2**16
_SORTED_PER_THREAD, _CLASS_PAIRS_PER_THREAD = 2**14, 2**20
#: Parts of a scan per thread, and right rows of a part: whoever is done first takes the next one.
_PARTS_PER_THREAD, _COLUMNS_PER_PART = 4, 512
#: Room for pairs, however few are expected.
_LEAST_ROOM = 4096
#: Coordinates of integer rows come in multiples of it.
DEPTH_STEP = 32
#: Sizes of coordinates 2i and 2i + 1 of an integer row add up to at most this.
LIMIT = 127

#: As in loops.h.
_PANEL = 16
_FULL, _NO_MEMORY = 1, 2


class Pairs(NamedTuple):
    """Pairs of a tile that reach the floor of the query: all [h].

    Attributes:
        query: int32 or int64, row (column) of the tile that asks.
        place: likewise, column (row) that it found.
        score: float32.
    """

    query: Tensor
    place: Tensor
    score: Tensor

    def where(self, stays: Tensor) -> Pairs:
        """Those that a bool [h] marks."""
        return Pairs(self.query[stays], self.place[stays], self.score[stays])


#: Fields of the structs in `loops`.
_Fields = tuple[tuple[str, Any], ...]


def _fields(pointers: str = "", numbers: str = "") -> _Fields:
    named = [(name, ctypes.c_void_p) for name in pointers.split()]
    return (*named, *((name, ctypes.c_int64) for name in numbers.split()))


class _Found(ctypes.Structure):
    _fields_ = _fields("query place score", "count capacity")


class _Side(ctypes.Structure):
    _fields_ = _fields("rows bias bar key exact floor at factor")


class _Lists(ctypes.Structure):
    _fields_ = _fields("scores index count threshold margin lost", "k capacity")


class _Products(ctypes.Structure):
    _fields_ = (
        *_fields("left right", "width"),
        *_fields("rows columns", "n"),
        *_fields("out"),
    )


class _Pack(ctypes.Structure):
    _fields_ = (*_fields("rows", "n depth"), *_fields("packed"))


class _Round(ctypes.Structure):
    _fields_ = (*_fields("rows", "n width depth"), ("step", ctypes.c_float), *_fields("out lost"))


class _Integers(ctypes.Structure):
    _fields_ = (
        ("left", _Side),
        ("right", _Side),
        *_fields("", "first first_right n_left n_right depth width most_looks"),
        ("by_left", _Found),
        ("by_right", _Found),
    )


class _Tile(ctypes.Structure):
    _fields_ = (
        *_fields("tile", "first n_left n_right stride"),
        *_fields("left_floor right_floor"),
        ("by_left", _Found),
        ("by_right", _Found),
    )


class _Candidates(ctypes.Structure):
    _fields_ = (
        ("lists", _Lists),
        *_fields("query place score", "n first_query first_place part parts"),
    )


class _Between(ctypes.Structure):
    _fields_ = _fields(
        "sorted margin lengths counts touched rows singles doubles open",
        "width n part parts n_open",
    )


class _Caps(ctypes.Structure):
    _fields_ = (
        *_fields("counts caps rows lengths", "width n"),
        ("share", ctypes.c_double),
        ("caution", ctypes.c_double),
    )


class _Order(ctypes.Structure):
    _fields_ = _fields("scores relevant first places table sorted items", "n width room")


class _Samples(ctypes.Structure):
    _fields_ = (
        *_fields("p present missing extra errors suspected", "n classes"),
        *((name, ctypes.c_double) for name in ("floor", "miss_alpha", "extra_beta")),
    )


_Scan = _Integers | _Tile


class _Rooms:
    """Room for the pairs that each of some jobs finds on either side.

    Args:
        jobs: their number.
        capacity: pairs of one job and side; memory that is not used is never touched.
    """

    def __init__(self, jobs: int, capacity: int) -> None:
        self._numbers = torch.empty((jobs, 2, 2, capacity), dtype=torch.int32)
        self._scores = torch.empty((jobs, 2, capacity))
        self._capacity = capacity

    def empty(self, job: int) -> tuple[_Found, _Found]:
        """The rooms of a job, by left and by right."""
        by_left, by_right = (self._room(job, side) for side in (0, 1))
        return by_left, by_right

    def _room(self, job: int, side: int) -> _Found:
        at = 2 * job + side
        query = _address(self._numbers, 2 * at * self._capacity)
        place = _address(self._numbers, (2 * at + 1) * self._capacity)
        return _Found(query, place, _address(self._scores, at * self._capacity), 0, self._capacity)

    def pairs(self, done: Sequence[_Scan]) -> tuple[Pairs, Pairs]:
        """All pairs that were found, by left and by right."""
        by_left = [self._pairs(job, 0, scan.by_left) for job, scan in enumerate(done)]
        by_right = [self._pairs(job, 1, scan.by_right) for job, scan in enumerate(done)]
        return _joined(by_left), _joined(by_right)

    def _pairs(self, job: int, side: int, found: _Found) -> Pairs:
        query, place = self._numbers[job, side, :, : found.count]
        return Pairs(query, place, self._scores[job, side, : found.count])


def available() -> bool:
    """True if the loops were compiled and are not turned off."""
    return library.chosen() is not None


def form() -> str:
    """The vector unit of the loops that are used here."""
    return _loops().unit


def products(
    left: Tensor, right: Tensor, rows: Tensor, columns: Tensor, *, in_float64: bool = False
) -> Tensor:
    """Inner products [n] of left[rows[i]] and right[columns[i]].

    Args:
        left, right: [m, D] and [n, D], both float32 or both float64, on the CPU.
        rows, columns: int64 [n].
        in_float64: sum products of float32 rows in float64.
    """
    loop = {
        (torch.float32, False): "products",
        (torch.float32, True): "products_summed",
        (torch.float64, True): "products_double",
    }[left.dtype, in_float64 or left.dtype == torch.float64]
    left, right = left.contiguous(), right.contiguous()
    rows, columns = rows.contiguous(), columns.contiguous()
    out = torch.empty(len(rows), dtype=torch.float64 if in_float64 else left.dtype)

    def job(start: int, stop: int) -> _Products:
        return _Products(
            _address(left), _address(right), left.shape[1], _address(rows, start),
            _address(columns, start), stop - start, _address(out, start),
        )  # fmt: skip

    _run(loop, [job(*part) for part in _stretches(len(rows), _PAIRS_PER_THREAD)])
    return out


def packed(rows: Tensor) -> Tensor:
    """Integer rows [n, d] of the right side in the order in which they are multiplied: int8."""
    n, depth = rows.shape
    panel = _loops().library.noisyml_panel_bytes(depth)
    out = torch.empty(-(-n // _PANEL) * panel, dtype=torch.int8)
    rows = rows.contiguous()

    def job(start: int, stop: int) -> _Pack:
        to = _address(out, start // _PANEL * panel)
        return _Pack(_address(rows, start * depth), stop - start, depth, to)

    _run("pack", [job(*part) for part in _stretches(n, _ROWS_PER_THREAD)])
    return out


def rounded(rows: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Float32 rows [n, W] in whole multiples of `step`, as `LIMIT` asks.

    Returns:
        int8 [n, W padded with zeros], and the float32 norms [n] of what is lost: beside the
        rounding of a sum of W squares they err by at most 2^-23 of the row's norm.
    """
    n, width = rows.shape
    depth = width + -width % DEPTH_STEP
    out, lost = torch.empty((n, depth), dtype=torch.int8), torch.empty(n)
    rows = rows.contiguous()

    def job(start: int, stop: int) -> _Round:
        return _Round(
            _address(rows, start * width), stop - start, width, depth, step,
            _address(out, start * depth), _address(lost, start),
        )  # fmt: skip

    _run("round", [job(*part) for part in _stretches(n, _ROWS_PER_THREAD)])
    return out, lost


class FloatRows(NamedTuple):
    """Float32 rows, multiplied where they lie.

    Attributes:
        rows: [m, W].
        at: int64 [n], numbers of those that are meant; None: the first ones.
        factor: float32 [n], multiplies all products of a row; None: 1.
    """

    rows: Tensor
    at: Tensor | None = None
    factor: Tensor | None = None


class IntegerSide(NamedTuple):
    """One side of a tile of integer rows.

    Attributes:
        rows: int8 as `rounded` makes them: [n, d]; of the right side as `packed` gives them.
        bias: int32 [n], added to all products of a row.
        bar: int32 [n]: sums above it may reach what the row asks for.
        key: int64 [n]; pairs of equal keys do not count.
        exact: n float rows: their products are the scores.
        floor: float32 [n]: the score that the row asks for.
    """

    rows: Tensor
    bias: Tensor
    bar: Tensor
    key: Tensor
    exact: FloatRows
    floor: Tensor

    def parts(self) -> list[Tensor]:
        """All tensors."""
        parts = (self.rows, self.bias, self.bar, self.key, *self.exact, self.floor)
        return [part for part in parts if part is not None]

    def _from(self, start: int, rows_at: int) -> _Side:
        """The side from number `start` on, whose integer row begins at byte `rows_at`."""
        exact = self.exact
        return _Side(
            _address(self.rows, rows_at), _address(self.bias, start),
            _address(self.bar, start), _address(self.key, start),
            _address(exact.rows, 0 if exact.at is not None else start * exact.rows.shape[1]),
            _address(self.floor, start),
            None if exact.at is None else _address(exact.at, start),
            None if exact.factor is None else _address(exact.factor, start),
        )  # fmt: skip


def scan_integers(
    left: IntegerSide, right: IntegerSide, share: float
) -> tuple[Pairs, Pairs] | None:
    """Pairs whose integer score exceeds the bar of a row and whose float score reaches its floor.

    Args:
        left, right: the sides [m] and [n].
        share: largest share of all pairs to look at closely.

    Returns:
        pairs by left and by right query, or None if there are more to look at.
    """
    for side in (left, right):
        assert all(part.is_contiguous() for part in side.parts())
    depth, width = left.rows.shape[1], left.exact.rows.shape[1]
    n_left, n_right = len(left.bar), len(right.bar)
    panel = _loops().library.noisyml_panel_bytes(depth)
    threads = torch.get_num_threads() if n_left * n_right >= _PAIRS_PER_SCAN else 1
    wanted = threads * _PARTS_PER_THREAD if threads > 1 else 1
    # A part lays its left rows out anew, which costs little where it has many right ones.
    columns = _stretches(n_right, _COLUMNS_PER_PART, wanted)
    rows = _stretches(n_left, _ROWS_PER_THREAD, -(-wanted // max(1, len(columns))))
    parts = list(itertools.product(rows, columns))
    # What a thread may look at may all lie in one of its parts.
    looks = max(_LEAST_ROOM, int(share * n_left * n_right / threads))
    rooms = _Rooms(len(parts), looks)
    jobs = [
        _Integers(
            left._from(top, top * depth), right._from(start, start // _PANEL * panel), top, start,
            bottom - top, stop - start, depth, width, looks, *rooms.empty(number),
        )
        for number, ((top, bottom), (start, stop)) in enumerate(parts)
    ]  # fmt: skip
    done = _run("scan_integers", jobs, threads)
    return None if done is None else rooms.pairs(done)


def scan_tile(
    tile: Tensor, left_floor: Tensor, right_floor: Tensor, capacity: int
) -> tuple[Pairs, Pairs] | None:
    """Entries of a float32 tile [>= m, >= n] that reach the floor of their row or column.

    Args:
        tile: scores.
        left_floor, right_floor: float32 [m] and [n]; +inf where none is wanted.
        capacity: most pairs per thread and side.

    Returns:
        pairs by rows and by columns, or None if there are more than `capacity`.
    """
    assert tile.stride(1) == 1
    stride = tile.stride(0)

    parts = _stretches(len(left_floor), _ROWS_PER_THREAD)
    rooms = _Rooms(len(parts), max(capacity, _LEAST_ROOM))
    jobs = [
        _Tile(
            _address(tile, start * stride), start, stop - start, len(right_floor), stride,
            _address(left_floor, start), _address(right_floor), *rooms.empty(number),
        )
        for number, (start, stop) in enumerate(parts)
    ]  # fmt: skip
    done = _run("scan_tile", jobs)
    return None if done is None else rooms.pairs(done)


class Lists(NamedTuple):
    """The lists of a `noisyml.similarity.exact.shortlist.Shortlist`, see there.

    Attributes:
        scores: float32 [N, C], in descending order.
        numbers: int32 [N, C], of the gallery.
        taken: int64 [N]: so many slots of a list hold something; whoever needs more is lost.
        threshold, margins: float32 [N].
        lost: bool [N].
        k: how many are wanted in the end.
    """

    scores: Tensor
    numbers: Tensor
    taken: Tensor
    threshold: Tensor
    margins: Tensor
    lost: Tensor
    k: int


def enter(
    lists: Lists, queries: Tensor, index: Tensor, scores: Tensor, shift: tuple[int, int]
) -> None:
    """Sort candidates into the lists of their queries, as far as they reach the floor.

    Args:
        lists: all on the CPU.
        queries, index: int32 [n], query and gallery numbers, less `shift`.
        scores: float32 [n].
        shift: what to add to either.
    """
    *tensors, k = lists
    assert all(part.is_contiguous() for part in (*tensors, queries, index, scores))
    given = _Lists(*(_address(part) for part in tensors), k, lists.scores.shape[1])
    parts = max(1, min(torch.get_num_threads(), len(queries) // _PAIRS_PER_THREAD))
    # Every thread goes through all candidates; only what is done to a list takes time.
    candidates = _address(queries), _address(index), _address(scores), len(queries)
    _run("enter", [_Candidates(given, *candidates, *shift, part, parts) for part in range(parts)])


def count_between(
    counts: Tensor,
    ranked: Tensor,
    lengths: Tensor,
    rows: Tensor,
    scores: Tensor,
    margin: Tensor,
    touched: Tensor,
) -> Tensor:
    """Count scores by how many of their row's ranked ones are surely larger.

    Args:
        counts: int32 [b, R + 1], added to.
        ranked: float64 [b, R], descending.
        lengths: int64 [b], so many of a row count; the others are no larger.
        rows: int32 [n].
        scores: float32 or float64 [n].
        margin: float64 [b]: scores of a row that are no farther apart may be in any order.
        touched: bool [b], set for `rows`.

    Returns:
        int64 [u], places of the scores that were not counted because some ranked one is so near.
    """
    given = (ranked, margin, lengths, counts, touched, rows)
    assert all(part.is_contiguous() for part in (*given, scores))
    assert rows.dtype == torch.int32
    n, width = len(rows), ranked.shape[1]
    parts = max(1, min(torch.get_num_threads(), n // _PAIRS_PER_THREAD))
    opened = torch.empty((parts, n), dtype=torch.int64)
    single = scores.dtype == torch.float32
    both = (_address(scores), 0) if single else (0, _address(scores))
    done = _run(
        "count_between",
        [
            _Between(*map(_address, given), *both, _address(opened[part]), width, n, part, parts, 0)
            for part in range(parts)
        ],
    )
    assert done is not None
    return torch.cat([opened[job.part, : job.n_open] for job in done])


def put_in_order(
    scores: Tensor,
    relevant: Tensor,
    places: Tensor,
    table: Tensor,
    into: tuple[Tensor, Tensor],
) -> None:
    """Write the relevant scores of each row, the largest first and equal ones as they stand, and
    their items to the beginning of rows.

    Args:
        scores: float64 [n, W].
        relevant: bool [n, W].
        places: int64 [n, W], where in the table a column's item stands; or [n], where that of the
            first column does, the others' behind it.
        table: int64 [N].
        into: float64 and int64 [n, R]; a row has at most R relevant ones.
    """
    n, width = scores.shape
    given = (scores, relevant, places, table, *into)
    assert all(part.is_contiguous() for part in given)
    numbers = width, into[0].shape[1]
    one = places.ndim == 1
    _run(
        "put_in_order",
        [
            _Order(
                _address(scores, start * width), _address(relevant, start * width),
                _address(places, start) if one else 0,
                0 if one else _address(places, start * width),
                _address(table), *(_address(part, start * part.shape[1]) for part in into),
                stop - start, *numbers,
            )
            for start, stop in _stretches(n, max(1, _SORTED_PER_THREAD // max(1, width)))
        ],
    )  # fmt: skip


def within_caps(counts: Tensor, caps: Tensor, rows: Tensor, share: float, caution: float) -> Tensor:
    """Number of a row's running sums of counts that are, from the first on, within their caps:
    int64 [n].

    Args:
        counts: int32 [b, R + 1].
        caps: int32 [b, R].
        rows: int64 [n].
        share: of all, that has been counted; a sum that lies more than `caution` of its roots above
            this share of its cap is over it.
        caution: not negative.
    """
    given = (counts, caps, rows)
    assert all(part.is_contiguous() for part in given)
    lengths = torch.empty_like(rows)
    tables, width = (_address(counts), _address(caps)), caps.shape[1]
    _run(
        "within_caps",
        [
            _Caps(
                *tables, _address(rows, start), _address(lengths, start), width, stop - start,
                share, caution,
            )
            for start, stop in _stretches(len(rows), _ROWS_PER_THREAD)
        ],
    )  # fmt: skip
    return lengths


def rank_samples(
    p: Tensor, present: Tensor, floor: float, miss_alpha: float, extra_beta: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Contradictions of samples: see `noisyml.losses.multilabel.rcml.ranking_errors`.

    Args:
        p: float32 [n, C], on the CPU.
        present: bool [n, C].
        floor: added to the sum of a group before its root is taken.
        miss_alpha, extra_beta: factors of the two kinds of groups.

    Returns:
        errors float32 [n], suspected classes int64 [n], missing and extra groups float32 [n, C].

    Raises:
        ValueError: the two do not fit together.
    """
    if p.ndim != 2 or p.shape != present.shape or p.device != present.device:
        raise ValueError(
            f"probabilities {list(p.shape)} on {p.device} and labels {list(present.shape)} on "
            f"{present.device} must be [n, C] both, on one device"
        )
    p, present = p.contiguous(), present.contiguous()
    n, classes = p.shape
    missing, extra = torch.empty_like(p), torch.empty_like(p)
    errors, suspected = p.new_empty(n), torch.empty(n, dtype=torch.int64)
    tables, columns = (p, present, missing, extra), (errors, suspected)
    _run(
        "rank_samples",
        [
            _Samples(
                *(_address(table, start * classes) for table in tables),
                *(_address(column, start) for column in columns),
                stop - start, classes, floor, miss_alpha, extra_beta,
            )
            for start, stop in _stretches(n, max(1, _CLASS_PAIRS_PER_THREAD // max(1, classes**2)))
        ],
    )  # fmt: skip
    return errors, suspected, missing, extra


_Job = TypeVar("_Job", bound=ctypes.Structure)


def _joined(parts: list[Pairs]) -> Pairs:
    if not parts:
        nobody = torch.empty(0, dtype=torch.int32)
        return Pairs(nobody, nobody, torch.empty(0))
    if len(parts) == 1:
        return parts[0]
    return Pairs(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _run(loop: str, jobs: list[_Job], threads: int | None = None) -> list[_Job] | None:
    """Run a loop on all jobs, each in a thread of its own or by so many: the jobs as they are then.

    None if the room of one of them is full.
    """
    if not jobs:
        return []
    loops = _loops()
    array = (type(jobs[0]) * len(jobs))(*jobs)
    result = loops.library.noisyml_in_threads(
        ctypes.c_void_p(library.team()), ctypes.c_void_p(loops.loop(loop)), ctypes.byref(array),
        ctypes.c_int64(ctypes.sizeof(jobs[0])), ctypes.c_int64(len(jobs)),
        ctypes.c_int64(threads or len(jobs)),
    )  # fmt: skip
    if result == _NO_MEMORY:
        raise MemoryError(f"no memory for the loop {loop}")
    return None if result == _FULL else list(array)


def _loops() -> library.Loops:
    loops = library.chosen()
    assert loops is not None
    return loops


def _stretches(n: int, least: int, most: int | None = None) -> list[tuple[int, int]]:
    """``range(n)`` in at most so many parts (one per thread that PyTorch may use) of at least so
    much."""
    parts = max(1, min(most or torch.get_num_threads(), n // least))
    step = max(1, -(-n // parts))
    step += -step % _PANEL  # whole panels, and whole bands
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def _address(tensor: Tensor, offset: int = 0) -> int:
    """Address of the element number `offset` of a tensor's memory."""
    return tensor.data_ptr() + offset * tensor.element_size()
