"""A search before it begins: its rows, its request, its block sizes, and the form of its answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from noisyml.errors import UserError
from noisyml.similarity.exact import kernels
from noisyml.similarity.exact.arithmetic import Side, centre_positions
from noisyml.similarity.exact.sources import Array, RowSource
from noisyml.similarity.exact.tiles import GROUP, padded

#: Working memory unless told otherwise, beside inputs and what is kept per query.
_BUDGET_BYTES = {"cpu": 2**27, "cuda": 2**31}
#: Rows and columns of a tile beyond which nothing is gained: 16 MiB on a CPU.
_LARGEST_TILE = {"cpu": (2048, 2048), "cuda": (8192, 16384)}
#: The compiled loops keep no tile: against so many gallery rows, what a block of queries costs by
#: itself is paid less often with wider panels, and twice the memory.
_WIDE_FROM, _WIDE_PANEL, _WIDE_BUDGET_BYTES = 2**16, 8192, 2**28


class TopK(NamedTuple):
    """The nearest gallery items of each query, best first.

    Attributes:
        scores: [Nq, k], larger is nearer: inner products (``ip``), cosines (``cosine``) or squared
            distances times -1 (``l2``); float64 where an input was float64, else float32. -inf
            where a query has fewer than k candidates.
        index: [Nq, k] int64, gallery row numbers; -1 where a query has fewer than k candidates.
    """

    scores: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class Gallery(Protocol):
    """All rows that are searched, wherever they lie.

    Attributes:
        side: norms and the like of all of them.
        dtype: float32 or float64, of the blocks.
    """

    side: Side
    dtype: torch.dtype

    def panels(self, size: int) -> Iterator[slice]:
        """Consecutive stretches of at most `size` rows; together, all rows."""
        ...

    def panel(self, which: slice) -> Tensor:
        """The rows [n, D] of one of these stretches; not to be written to."""
        ...

    def needed(self, wanted: list[bool]) -> list[bool]:
        """The panels to be visited if those marked in `wanted` are wanted here."""
        ...

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Up to n rows that this process can read by itself: their numbers [m], rows [m, D]."""
        ...


class LocalGallery:
    """A gallery that this process can read by itself."""

    def __init__(self, source: RowSource, side: Side) -> None:
        self.side = side
        self.dtype = source.dtype
        self._source = source

    def panels(self, size: int) -> Iterator[slice]:
        """See `Gallery`."""
        return stretches(len(self._source), size)

    def panel(self, which: slice) -> Tensor:
        """See `Gallery`."""
        return self._source.block(which.start, which.stop)

    def needed(self, wanted: list[bool]) -> list[bool]:
        """See `Gallery`."""
        return wanted

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """See `Gallery`."""
        numbers = spread_out(len(self._source), n).to(self._source.device)
        return numbers, self._source.take(numbers)


class Task(NamedTuple):
    """A search: queries, gallery, and what is asked of them.

    Attributes:
        queries: this process's queries.
        query_side: their norms and the like.
        gallery: what is searched.
        k: neighbours wanted, at least 1.
        exclude: [Nq, m] int64 gallery numbers to leave out, -1 for none; or None.
        own: if the queries are gallery rows, the stretch of the gallery that they are, in order,
            and each is left out for itself; or None.
        fast: whether a cheaper product may go before the float32 one.
    """

    queries: RowSource
    query_side: Side
    gallery: Gallery
    k: int
    exclude: Tensor | None
    own: range | None
    fast: bool


class Blocks(NamedTuple):
    """Rows and columns of a tile, multiples of `GROUP`; columns a multiple of rows.

    The rest of the budget, `cache_bytes`, may be spent on rounded copies of the queries.
    """

    query: int
    gallery: int
    cache_bytes: int


def positions(n: int) -> Tensor:
    """The rows, of n in all, whose mean is the centre of l2 distances: [m] int64."""
    return torch.tensor(centre_positions(n), dtype=torch.int64)


def spread_out(n: int, most: int) -> Tensor:
    """Up to `most` numbers, spread evenly over ``range(n)``: int64 [m]."""
    return torch.arange(min(n, most)) * n // max(1, min(n, most))


def check_dims(query_dim: int, gallery_dim: int) -> None:
    """Refuse rows that cannot be compared.

    Raises:
        UserError: dimensions differ.
    """
    if query_dim != gallery_dim:
        raise UserError(
            f"The queries have {query_dim} dimensions and the gallery has {gallery_dim}: embed "
            "both with the same model."
        )


def device_of(queries: Array, device: torch.device | str | None) -> torch.device:
    """The device to compute on: the one asked for, or that of the queries.

    Raises:
        UserError: there is no such device.
    """
    if device is None:
        return queries.device if isinstance(queries, Tensor) else torch.device("cpu")
    found = torch.device(device)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device} is asked for, and there is no CUDA here: say device=cpu.")
    return found


def checked_exclude(
    exclude: Array | None, n_queries: int, n_gallery: int, device: torch.device
) -> Tensor | None:
    """`exclude` as int64 [Nq, m].

    Raises:
        UserError: other shapes, other types, or no rows of the gallery.
    """
    if exclude is None:
        return None
    given = torch.as_tensor(exclude, device=device)
    if given.is_floating_point() or given.ndim not in (1, 2) or len(given) != n_queries:
        raise UserError(
            f"exclude has shape {list(given.shape)} and type {given.dtype}: give integer gallery "
            f"rows of shape [{n_queries}] or [{n_queries}, m], one line per query."
        )
    given = given.to(torch.int64)
    given = given[:, None] if given.ndim == 1 else given
    if given.numel() and (int(given.min()) < -1 or int(given.max()) >= n_gallery):
        raise UserError(
            f"exclude holds numbers from {int(given.min())} to {int(given.max())}: gallery rows go "
            f"from 0 to {n_gallery - 1}, and -1 means none."
        )
    return given


def block_sizes(
    dim: int,
    device: torch.device,
    memory_budget_bytes: int | None,
    query_block: int | None,
    gallery_block: int | None,
    fast_gallery: int = 0,
) -> Blocks:
    """The largest useful tile whose working memory fits into the budget, unless told otherwise.

    Args:
        dim: D.
        device: where to compute.
        memory_budget_bytes, query_block, gallery_block: as in `noisyml.similarity.search.topk`.
        fast_gallery: gallery rows to be searched by cheaper products first.
    """
    kind = device.type if device.type in _BUDGET_BYTES else "cpu"
    (rows, columns), budget = _LARGEST_TILE[kind], _BUDGET_BYTES[kind]
    if device.type == "cpu" and fast_gallery >= _WIDE_FROM and kernels.available():
        columns, budget = _WIDE_PANEL, _WIDE_BUDGET_BYTES
    if memory_budget_bytes is not None:
        budget = memory_budget_bytes

    def needed() -> int:
        # The tile, its maxima and candidates; float32 and float64 copies of its rows.
        return 6 * rows * columns + (rows + columns) * dim * 20

    while needed() > budget and columns > GROUP:
        if columns > 4 * rows or rows == GROUP:
            columns //= 2
        else:
            rows //= 2
    rows = padded(query_block or rows)
    columns = padded(gallery_block or columns)
    columns = max(rows, columns // rows * rows)
    return Blocks(rows, columns, max(0, budget - needed()))


def stretches(n: int, size: int) -> Iterator[slice]:
    """``range(n)`` in consecutive slices of at most `size`."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
