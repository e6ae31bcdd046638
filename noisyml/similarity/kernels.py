"""Compiled loops for what PyTorch has no operation for: the scan for candidates on a CPU.

A candidate is one pair in thousands. An operation that writes all scores only for the next one to
read and discard them spends as much on memory as on multiplying, so `kernels.c` compares scores
where they arise and hands out pairs. It is compiled when the package is installed
(`scripts/build_kernels.py`). Where there is no compiler, or the processor is not an x86-64 with
AVX2, `available` is false and the search does the same with PyTorch alone: the results are the
same bits, only later.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

#: Where `scripts/build_kernels.py` puts the compiled loops.
LIBRARY = Path(__file__).with_name("_kernels.so")
#: The version of the C functions that this module calls.
_INTERFACE = 1
#: Left rows that are multiplied together: a thread gets whole bands.
_BAND = 4
#: So much pays for starting a thread.
_ROWS_PER_THREAD, _PAIRS_PER_THREAD = 64, 4096
#: Room for pairs, however few are expected.
_LEAST_ROOM = 4096
#: Coordinates of integer rows come in multiples of it.
DEPTH_STEP = 8
#: Integer rows stay within it on both sides of zero.
LIMIT = 63

#: As in kernels.c.
_LEFT_ZERO, _PANEL, _SHORT_STEP = 64, 16, 32
_FULL, _NO_MEMORY = 1, 2


class Pairs(NamedTuple):
    """Pairs of a tile that reach the floor of the query: all [h].

    Attributes:
        query: int64, row (column) of the tile that asks.
        place: int64, column (row) that it found.
        score: float32.
    """

    query: Tensor
    place: Tensor
    score: Tensor

    def where(self, stays: Tensor) -> Pairs:
        """Those that a bool [h] marks."""
        return Pairs(self.query[stays], self.place[stays], self.score[stays])


class _Found(ctypes.Structure):
    _fields_ = (
        ("query", ctypes.c_void_p),
        ("place", ctypes.c_void_p),
        ("score", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
    )


class _Buffer:
    """Room for pairs, filled by one thread."""

    def __init__(self, capacity: int, scored: bool) -> None:
        self.numbers = torch.empty((2, capacity), dtype=torch.int32)
        self.scores = torch.empty(capacity if scored else 0)
        self.found = _Found(
            self.numbers[0].data_ptr(), self.numbers[1].data_ptr(),
            self.scores.data_ptr() if scored else None, 0, capacity,
        )  # fmt: skip

    def pairs(self) -> Pairs:
        count = int(self.found.count)
        query, place = self.numbers[:, :count].to(torch.int64)
        return Pairs(query, place, self.scores[:count].clone())


@functools.cache
def _library() -> ctypes.CDLL | None:
    if not LIBRARY.exists():
        log.info("The search loops are not compiled here, so searches take longer: see the README.")
        return None
    try:
        library = ctypes.CDLL(str(LIBRARY))
        interface = library.noisyml_interface()
    except (OSError, AttributeError) as error:
        log.warning("The compiled search loops in %s cannot be loaded: %s", LIBRARY, error)
        return None
    if interface != _INTERFACE:
        log.warning(
            "The compiled search loops in %s belong to another version of noisyml and stay unused: "
            "install the package again.",
            LIBRARY,
        )
        return None
    return library if library.noisyml_supported() else None


def available() -> bool:
    """Whether the loops were compiled and this processor runs them."""
    return _library() is not None


def products(
    left: Tensor, right: Tensor, rows: Tensor, columns: Tensor, *, in_float64: bool = False
) -> Tensor:
    """Inner products [n] of left[rows[i]] and right[columns[i]].

    Args:
        left, right: [m, D] and [n, D], both float32 or both float64, on the CPU.
        rows, columns: int64 [n].
        in_float64: sum products of float32 rows in float64.
    """
    library = _library()
    assert library is not None
    call = {
        (torch.float32, False): library.noisyml_products,
        (torch.float32, True): library.noisyml_products_summed,
        (torch.float64, True): library.noisyml_products_double,
    }[left.dtype, in_float64 or left.dtype == torch.float64]
    left, right = left.contiguous(), right.contiguous()
    rows, columns = rows.contiguous(), columns.contiguous()
    out = torch.empty(len(rows), dtype=torch.float64 if in_float64 else left.dtype)
    width = ctypes.c_int64(left.shape[1])

    def work(start: int, stop: int) -> int:
        call(
            _pointer(left), _pointer(right), width, _pointer(rows, start), _pointer(columns, start),
            ctypes.c_int64(stop - start), _pointer(out, start),
        )  # fmt: skip
        return 0

    _in_threads(work, len(rows), _PAIRS_PER_THREAD)
    return out


def packed(rows: Tensor) -> Tensor:
    """Integer rows [n, d] of the right side in the order in which they are multiplied: int8."""
    library = _library()
    assert library is not None
    n, depth = rows.shape
    out = torch.empty((n + -n % _PANEL) * depth, dtype=torch.int8)
    rows = rows.contiguous()
    library.noisyml_pack(_pointer(rows), ctypes.c_int64(n), ctypes.c_int64(depth), _pointer(out))
    return out


def shortened(rows: Tensor, scale: float) -> Tensor:
    """Float32 rows [n, W] times `scale`, rounded to int16: [n, W padded with zeros].

    No inner product of two rows may leave 32 bits, and no coordinate 16.
    """
    library = _library()
    assert library is not None
    n, width = rows.shape
    out = torch.empty((n, width + -width % _SHORT_STEP), dtype=torch.int16)
    rows = rows.contiguous()
    library.noisyml_shorten(
        _pointer(rows), ctypes.c_int64(n), ctypes.c_int64(width), ctypes.c_int64(out.shape[1]),
        ctypes.c_float(scale), _pointer(out),
    )  # fmt: skip
    return out


class IntegerSide(NamedTuple):
    """One side of a tile of integer rows.

    Attributes:
        rows: int8, within `LIMIT` of zero: [n, d], d a multiple of `DEPTH_STEP`; of the right side
            as `packed` gives them.
        sums: int32 [n], of the whole numbers of a row.
        bias: int32 [n], added to all products of a row.
        bar: int32 [n]: sums above it may reach what the row asks for.
        short_rows: int16 [>= n, W], see `shortened`.
        finer: int32 [n]: products of these above it may.
        key: int64 [n]; pairs of equal keys do not count.
    """

    rows: Tensor
    sums: Tensor
    bias: Tensor
    bar: Tensor
    short_rows: Tensor
    finer: Tensor
    key: Tensor


def scan_integers(
    left: IntegerSide, right: IntegerSide, capacity: int
) -> tuple[Pairs, Pairs] | None:
    """Pairs whose two integer scores exceed both bars of a row.

    Args:
        left, right: the sides [m] and [n].
        capacity: most pairs per thread and side.

    Returns:
        pairs by left and by right query, without scores, or None if there are more than `capacity`.
    """
    library = _library()
    assert library is not None
    for side in (left, right):
        assert all(part.is_contiguous() for part in side)
    depth, width = left.rows.shape[1], left.short_rows.shape[1]
    # The unsigned left rows lie above zero, which adds as many times the right rows' sums.
    right_bias = right.bias - _LEFT_ZERO * right.sums

    def work(start: int, stop: int, by_left: _Buffer, by_right: _Buffer) -> int:
        result: int = library.noisyml_scan_integers(
            _pointer(left.rows, start * depth), ctypes.c_int64(stop - start),
            _pointer(right.rows), ctypes.c_int64(len(right.sums)), ctypes.c_int64(depth),
            _pointer(left.bias, start), _pointer(right_bias),
            _pointer(left.bar, start), _pointer(right.bar),
            _pointer(left.key, start), _pointer(right.key),
            _pointer(left.short_rows, start * width), _pointer(right.short_rows),
            ctypes.c_int64(width), _pointer(left.finer, start), _pointer(right.finer),
            ctypes.byref(by_left.found), ctypes.byref(by_right.found),
        )  # fmt: skip
        return result

    return _scan(work, len(left.rows), capacity, scored=False)


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
    library = _library()
    assert library is not None
    assert tile.stride(1) == 1
    stride = tile.stride(0)

    def work(start: int, stop: int, by_left: _Buffer, by_right: _Buffer) -> int:
        result: int = library.noisyml_scan_tile(
            _pointer(tile, start * stride), ctypes.c_int64(stop - start),
            ctypes.c_int64(len(right_floor)), ctypes.c_int64(stride),
            _pointer(left_floor, start), _pointer(right_floor),
            ctypes.byref(by_left.found), ctypes.byref(by_right.found),
        )  # fmt: skip
        return result

    return _scan(work, len(left_floor), capacity, scored=True)


def _scan(
    work: Callable[[int, int, _Buffer, _Buffer], int], n_left: int, capacity: int, scored: bool
) -> tuple[Pairs, Pairs] | None:
    room = max(capacity, _LEAST_ROOM)
    # Here and not in the threads, whose memory the C library keeps apart when they are gone.
    buffers = {
        start: (_Buffer(room, scored), _Buffer(room, scored))
        for start, _ in _stretches(n_left, _ROWS_PER_THREAD)
    }

    def part(start: int, stop: int) -> int:
        return work(start, stop, *buffers[start])

    results = _in_threads(part, n_left, _ROWS_PER_THREAD)
    if _NO_MEMORY in results:
        raise MemoryError("no memory for the scan of a tile")
    if _FULL in results:
        return None
    by_left, by_right = [], []
    for start in sorted(buffers):
        found, served = (buffer.pairs() for buffer in buffers[start])
        by_left.append(Pairs(found.query + start, found.place, found.score))
        by_right.append(Pairs(served.query, served.place + start, served.score))
    return _joined(by_left), _joined(by_right)


def _joined(parts: list[Pairs]) -> Pairs:
    if not parts:
        nobody = torch.empty(0, dtype=torch.int64)
        return Pairs(nobody, nobody, torch.empty(0))
    if len(parts) == 1:
        return parts[0]
    return Pairs(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _in_threads(work: Callable[[int, int], int], n: int, least: int) -> list[int]:
    """Results of `work` on the `_stretches` of ``range(n)``, each in a thread of its own."""
    bounds = _stretches(n, least)
    if len(bounds) <= 1:
        return [work(*bound) for bound in bounds]
    # Threads of their own, not kept: a pool would be dead in forked loader processes.
    with ThreadPoolExecutor(len(bounds)) as pool:
        return list(pool.map(lambda bound: work(*bound), bounds))


def _stretches(n: int, least: int) -> list[tuple[int, int]]:
    """``range(n)`` in parts, one per thread that PyTorch may use and that gets at least so much."""
    threads = max(1, min(torch.get_num_threads(), n // least))
    step = max(1, -(-n // threads))
    step += -step % _BAND
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def _pointer(tensor: Tensor, offset: int = 0) -> ctypes.c_void_p:
    """Where the element number `offset` of a tensor's memory lies."""
    return ctypes.c_void_p(tensor.data_ptr() + offset * tensor.element_size())
