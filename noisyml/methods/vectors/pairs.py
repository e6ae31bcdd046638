"""Pairs of rows that are alike: neighbour graphs of vectors, and partners drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from noisyml.checks import Count, Seed, Share, WholeNonNegative, checked
from noisyml.embeddings.neighbours import read_neighbours
from noisyml.errors import UserError
from noisyml.similarity.approximate.search import approximate_topk
from noisyml.similarity.search import self_topk, topk

#: How rows are compared: ``cosine``, ``inner_product`` and ``l2`` leave a row itself out by its
#: number; ``inner_product_raw`` drops the first of k + 1 hits, whoever that is, as released.
GraphMetric = Literal["cosine", "inner_product", "l2", "inner_product_raw"]
_SEARCHED: Mapping[GraphMetric, Literal["cosine", "ip", "l2"]] = {
    "cosine": "cosine",
    "inner_product": "ip",
    "l2": "l2",
    "inner_product_raw": "ip",
}
#: Names of the released library, and the sub-quantisers of its product quantisation.
Approximation = Literal["low", "medium", "high"]
SUBQUANTISERS: Mapping[Approximation, int] = {"low": 32, "medium": 16, "high": 8}
#: Share of the rows on which codes are trained, and the fewest that fill 8 bits.
TRAIN_SHARE, FEWEST_TRAINED = 0.1, 256
#: Rows whose lists are compared at a time.
ROWS_AT_ONCE = 2**14


class Rows(Protocol):
    """A matrix [N, D] of floats that lies in memory or on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True)
class Pairs:
    """Neighbour lists of N rows.

    Attributes:
        index: [N, k] int64, numbers of rows; -1 where there are fewer.
        recall: of an approximate search, else None.
    """

    index: NDArray[np.int64]
    recall: float | None = None

    def __post_init__(self) -> None:
        if self.index.ndim != 2 or self.index.dtype.kind not in "iu" or not self.index.shape[1]:
            raise UserError(
                f"A neighbour graph is a matrix [N, k] of whole numbers, not {self.index.dtype} "
                f"{list(self.index.shape)}."
            )
        if self.index.size and not (-1 <= self.index.min() <= self.index.max() < len(self.index)):
            raise UserError(
                f"The neighbour graph of {len(self.index)} rows names row "
                f"{max(int(self.index.max()), int(-self.index.min()))}: numbers run from 0 to "
                f"{len(self.index) - 1}, and -1 stands for none."
            )

    def __len__(self) -> int:
        return len(self.index)

    def partners(self, rows: NDArray[np.int64], draws: NDArray[np.uint64]) -> NDArray[np.int64]:
        """One neighbour of each row [b] int64; of a row without any, the row itself.

        Args:
            rows: [b] int64.
            draws: [b] random numbers, which decide.
        """
        lists = np.asarray(self.index[rows])
        there = lists >= 0
        counts = there.sum(axis=1)
        place = (draws % np.maximum(counts, 1).astype(np.uint64)).astype(np.int64)
        if not there.all():
            # The place counts neighbours that are there, wherever the gaps lie.
            lists = np.take_along_axis(lists, np.argsort(~there, axis=1, kind="stable"), axis=1)
        chosen = lists[np.arange(len(rows)), place]
        return np.where(counts > 0, chosen, rows)


@checked
def knn_pairs(
    rows: Any,
    n_neighbors: Count = 5,
    *,
    metric: GraphMetric = "cosine",
    knn_approximation: Approximation | None = None,
    seed: Seed = 0,
    device: Literal["cpu", "cuda"] = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Each row's nearest other rows.

    Memory beyond the rows is bounded: blocks of the search, and 12 bytes a neighbour; rows are read
    in blocks from wherever they lie.

    Args:
        rows: [N, D] floats: an array, a memory map, or what reads like one.
        n_neighbors: k, below N.
        metric: see `GraphMetric`.
        knn_approximation: None: exact. ``low``, ``medium``, ``high``: product quantisation with
            32, 16 or 8 sub-quantisers of 8 bits, trained on a tenth of the rows drawn at random;
            `Pairs.recall` tells what it found.
        seed: of that draw.
        device: where to search.
        progress: of an exact search, see `noisyml.similarity.search.topk`.

    Raises:
        UserError: too few rows, rows that are not finite, or columns that cannot be quantised.
    """
    n, dim = len(rows), int(rows.shape[1])
    if n_neighbors >= n:
        raise UserError(
            f"n_neighbors={n_neighbors} asks for more neighbours than the {n - 1} other rows: "
            f"lower it."
        )
    raw, name = metric == "inner_product_raw", _SEARCHED[metric]
    k = n_neighbors + int(raw)
    if knn_approximation is None:
        settings: dict[str, Any] = {"metric": name, "device": device, "progress": progress}
        found = topk(rows, rows, k, **settings) if raw else self_topk(rows, k, **settings)
        index, recall = found.index.cpu().numpy(), None
    else:
        parts, trained = SUBQUANTISERS[knn_approximation], max(1, int(n * TRAIN_SHARE))
        if dim % parts:
            raise UserError(
                f"knn_approximation={knn_approximation} cuts rows into {parts} parts, which do not "
                f"divide their {dim} columns: use another approximation, or none (exact)."
            )
        if trained < FEWEST_TRAINED:
            raise UserError(
                f"knn_approximation={knn_approximation} learns its codes from a tenth of the rows, "
                f"and {n} rows are too few for its {FEWEST_TRAINED} codes: search exactly "
                f"(knn_approximation=None), which is fast at this size."
            )
        near = approximate_topk(
            rows,
            rows,
            k,
            metric=name,
            exclude=None if raw else np.arange(n),
            index="ivfpq",
            n_lists=1,
            n_probes=1,
            n_subquantisers=parts,
            shortlist=0,
            train_size=trained,
            seed=seed,
            device=device,
        )
        index, recall = near.index.cpu().numpy(), near.recall
    return Pairs(np.ascontiguousarray(index[:, int(raw) :]), recall)


def given_pairs(graph: Any, n_rows: int, n_neighbors: int | None = None) -> Pairs:
    """Pairs of a graph that a user brings.

    Args:
        graph: neighbours [N, k] as an array; a mapping or list of lists of them, of any lengths; a
            folder that ``noisyml knn`` wrote; or a ``.npy`` file.
        n_rows: N of the rows that it must fit; -1: not known yet.
        n_neighbors: columns to use; None: all.

    Raises:
        UserError: it is none of these, of other rows, or has fewer columns.
    """
    if isinstance(graph, str | Path):
        index: Any = _read(Path(graph))
    elif isinstance(graph, Mapping):
        if sorted(graph) != list(range(len(graph))):
            raise UserError("A neighbour graph as a mapping needs a list for each row from 0 on.")
        index = _padded([graph[row] for row in range(len(graph))])
        n_neighbors = None
    elif isinstance(graph, Sequence):
        index = _padded(graph)
        n_neighbors = None
    elif isinstance(graph, Tensor):
        index = graph.cpu().numpy()
    else:
        index = np.asarray(graph)
    if n_rows >= 0 and len(index) != n_rows:
        raise UserError(
            f"The neighbour graph has {len(index)} rows, and there are {n_rows} vectors: search "
            f"the neighbours of these vectors."
        )
    if n_neighbors is not None and index.ndim == 2 and index.shape[1] < n_neighbors:
        raise UserError(
            f"The neighbour graph lists {index.shape[1]} neighbours of each row, and "
            f"n_neighbors={n_neighbors}: lower that."
        )
    if n_neighbors is not None and index.ndim == 2:
        index = index[:, :n_neighbors]
    return Pairs(index)


def _read(path: Path) -> NDArray[np.int64]:
    if path.is_dir():
        found = read_neighbours(path)
        if found.facts["gallery"] is not None:
            raise UserError(
                f"{path} holds neighbours among the rows of a gallery: pairs need those of rows "
                f"among themselves (`noisyml knn` without gallery=)."
            )
        return found.index
    if not path.is_file():
        raise UserError(
            f"There is no {path}: a graph is a folder that `noisyml knn` wrote, or a .npy file of "
            f"row numbers [N, k]."
        )
    try:
        index: NDArray[np.int64] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is not a .npy file of numbers ({error}).") from error
    return index


def _padded(lists: Sequence[Any]) -> NDArray[np.int64]:
    lengths = [len(one) for one in lists]
    index = np.full((len(lists), max(lengths, default=0) or 1), -1, dtype=np.int64)
    for row, one in enumerate(lists):
        index[row, : lengths[row]] = one
    return index


@checked
def with_random_edges(
    pairs: Pairs, share: Share, seed: Seed = 0
) -> tuple[Pairs, NDArray[np.bool_]]:
    """A graph in which some edges lead to other rows, drawn at random, and which [N, k] bool.

    Args:
        pairs: k below N - 1.
        share: of the edges; the number of replaced ones is exact, up to rounding.
        seed: which edges, and where they lead.
    """
    rng = np.random.default_rng([seed, 0xED6E])
    index = np.array(pairs.index)
    n, k = index.shape
    places = rng.permutation(n * k)[: round(share * n * k)]
    replaced = np.zeros(n * k, dtype=np.bool_)
    replaced[places] = True
    # Any row but the one that the edge leaves.
    rows = places // k
    index.reshape(-1)[places] = (rows + rng.integers(1, n, len(places))) % n
    return replace(pairs, index=index), replaced.reshape(n, k)


@checked
def supported_edges(pairs: Pairs, min_shared: WholeNonNegative) -> NDArray[np.bool_]:
    """Edges whose ends have neighbours in common, [N, k] bool.

    The ends of a true edge lie in one neighbourhood; those of a wrong one mostly share nobody. The
    other end itself counts as a neighbour of each (closed neighbourhoods), so that a mutual edge
    shares both ends.

    Args:
        pairs: of N rows.
        min_shared: fewest common members of the two closed neighbourhoods beyond the end itself.
    """
    index = np.asarray(pairs.index)
    n, k = index.shape
    keep = np.zeros((n, k), dtype=np.bool_)
    closed = np.sort(np.concatenate([np.arange(n)[:, None], index], axis=1), axis=1)
    size = max(1, ROWS_AT_ONCE // k)
    for start in range(0, n, size):
        block = index[start : start + size]
        own = closed[start : start + size]
        others = closed[np.maximum(block, 0)]
        # Members of each other neighbourhood [b, k, k + 1] that are in one's own [b, k + 1].
        common = (others[:, :, :, None] == own[:, None, None, :]) & (others >= 0)[:, :, :, None]
        keep[start : start + size] = (common.any(axis=3).sum(axis=2) - 1 >= min_shared) & (
            block >= 0
        )
    return keep


def without(pairs: Pairs, keep: NDArray[np.bool_]) -> Pairs:
    """The graph with the edges where `keep` [N, k] is true."""
    return replace(pairs, index=np.where(keep, pairs.index, -1))
