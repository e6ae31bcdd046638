"""Nearest neighbours of embeddings on disk: written from an exact or approximate search, and read.

A folder of neighbours holds ``neighbours.npy`` [N, k] int64, ``scores.npy`` [N, k] float32 and,
written last, ``index.json``: its presence says that all is there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import Count, checked
from noisyml.embeddings.store import EmbeddedSplit
from noisyml.errors import UserError
from noisyml.storage.files import atomic, write_atomically
from noisyml.storage.reading import read_json, read_npy, reading
from noisyml.storage.tables import table_for_spreadsheet

if TYPE_CHECKING:
    from noisyml.similarity.approximate.search import ApproximateTopK

#: Raise when the meaning of the files changes.
FORMAT = 1
NEIGHBOURS_FILE, SCORES_FILE, INDEX_FILE = "neighbours.npy", "scores.npy", "index.json"
#: Rows of neighbours.csv written at a time.
CSV_ROWS = 10_000
#: What to do about a damaged file of neighbours.
ADVICE = "search the neighbours again"

#: Embeddings [N, D] that are read in blocks: a split of a store, or an array, in memory or mapped.
StoredRows = EmbeddedSplit | NDArray[np.floating[Any]]
Metric = Literal["cosine", "ip", "l2"]
Precision = Literal["exact", "fast"]
Index = Literal["exact", "ivf", "ivfpq", "hnsw"]
Device = Literal["cpu", "cuda"]


@checked
def write_neighbours(
    rows: StoredRows,
    folder: Path,
    *,
    k: Count,
    gallery: StoredRows | None = None,
    metric: Metric = "cosine",
    precision: Precision = "exact",
    index: Index = "exact",
    recall_queries: Count = 1000,
    device: Device = "cpu",
    memory_budget_bytes: Count | None = None,
    csv: bool = False,
) -> dict[str, float]:
    """Find and write ``neighbours.npy`` [N, k] int64 and ``scores.npy`` [N, k] float32.

    Neighbours are row numbers of the gallery (of the rows themselves, if there is none, each row
    without itself), the nearest first; of equal ones the first. Scores grow with similarity. Where
    an approximate search finds fewer than k, the rest is -1 with a score of -inf.
    ``index.json``, written last, says what was searched how. A search keeps what is done in the
    folder until then, and the same call goes on with it after a kill.

    Args:
        rows: [N, D].
        folder: created if need be.
        k: neighbours per row.
        gallery: [M, D], None for the rows themselves.
        metric: ``cosine``, ``ip`` or ``l2``.
        precision: ``exact`` or ``fast``, see `noisyml.similarity.search`.
        index: ``exact``, or approximate: ``ivf``, ``ivfpq``, ``hnsw``.
        recall_queries: approximate only: rows on which recall is measured.
        device: where to compute.
        memory_budget_bytes: working memory of an exact search beyond inputs and outputs; None for
            its default.
        csv: also write ``neighbours.csv``.

    Returns:
        ``rows_per_second``, and ``recall`` of an approximate search.

    Raises:
        UserError: fewer rows than neighbours, or rows that cannot be compared.

    Example:
        >>> import tempfile
        >>> rows = np.array([[1, 0], [0, 1], [1, 0.1]], np.float32)
        >>> folder = Path(tempfile.mkdtemp())
        >>> found = write_neighbours(rows, folder, k=1)  # doctest: +ELLIPSIS
        1 neighbours of 3 rows among 2 in ... s (... rows/s)
        graph ...
        >>> read_neighbours(folder).index.tolist()
        [[2], [2], [0]]
    """
    within = len(rows) - 1 if gallery is None else len(gallery)
    if k > within:
        others = "other rows" if gallery is None else "rows of the gallery"
        raise UserError(f"k={k} asks for more neighbours than the {within} {others} there are.")
    folder.mkdir(parents=True, exist_ok=True)
    scores, neighbours, near, seconds = _search(
        rows,
        gallery,
        k,
        metric=metric,
        precision=precision,
        index=index,
        recall_queries=recall_queries,
        device=device,
        memory_budget_bytes=memory_budget_bytes,
        keep_in=folder,
    )
    recall = None if near is None else near.recall
    _save(folder / NEIGHBOURS_FILE, neighbours.astype(np.int64, copy=False))
    _save(folder / SCORES_FILE, scores.astype(np.float32, copy=False))
    if csv:
        _write_csv(folder / "neighbours.csv", rows, rows if gallery is None else gallery)
    facts = {
        "format": FORMAT,
        "k": k,
        "metric": metric,
        "precision": precision,
        "index": index,
        "device": device,
        "recall": recall,
        "backend": None if near is None else near.backend,
        "rows": _origin(rows),
        "gallery": None if gallery is None else _origin(gallery),
    }
    write_atomically(folder / INDEX_FILE, json.dumps(facts, indent=2) + "\n")
    # PyTorch is only there once something is searched.
    from noisyml.similarity.exact import kernels

    rate = len(rows) / seconds
    said = f"{k} neighbours of {len(rows):,} rows among {within:,} in {seconds:.1f} s"
    print(f"{said} ({rate:,.0f} rows/s)" + ("" if recall is None else f", recall {recall:.4f}"))
    if index == "exact" and device == "cpu" and not kernels.available():
        print("The compiled search loops are not used here, so this took longer: see the README.")
    print(f"graph {folder}")
    return {"rows_per_second": rate} | ({} if recall is None else {"recall": recall})


@dataclass(frozen=True)
class Neighbours:
    """Neighbours as `read_neighbours` finds them.

    Attributes:
        index: [N, k] int64, mapped from disk: row numbers of the gallery, the nearest first; -1
            where an approximate search found fewer than k.
        scores: [N, k] float32, mapped from disk, larger is nearer; -inf where there is none.
        facts: what was searched how (``k``, ``metric``, ``precision``, ``index``, ``device``,
            ``recall``, ``backend``) and where the rows come from (``rows``, and ``gallery`` or
            None: ``rows``, ``dim``, ``path``, and of a store's split ``split``, ``data`` and
            ``encoder``).
    """

    index: NDArray[np.int64]
    scores: NDArray[np.float32]
    facts: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def gallery_rows(self) -> int:
        """Number of rows that `index` counts through."""
        searched = self.facts["gallery"] or self.facts["rows"]
        return int(searched["rows"])


def read_neighbours(path: Path | str) -> Neighbours:
    """Open a folder of neighbours; nothing is read until it is indexed.

    Args:
        path: the run folder of ``noisyml knn``, or a folder ``knn/SPLIT`` of ``noisyml embed``.

    Raises:
        UserError: the folder holds no neighbours, incomplete ones, or those of another version.
    """
    folder = Path(path)
    file = folder / INDEX_FILE
    if not file.is_file():
        raise UserError(
            f"{folder} holds no neighbours: give the folder that `noisyml knn` wrote, or a folder "
            "knn/SPLIT of `noisyml embed knn=...`."
        )
    facts = read_json(file, ADVICE)
    with reading(file, ADVICE):
        version, shape = facts["format"], (int(facts["rows"]["rows"]), int(facts["k"]))
    if version != FORMAT:
        raise UserError(
            f"{folder} holds neighbours in format {version}, but this version of noisyml reads "
            f"format {FORMAT}: search the neighbours again."
        )
    index, scores = (_mapped(folder / name, shape) for name in (NEIGHBOURS_FILE, SCORES_FILE))
    return Neighbours(index, scores, facts)


def _mapped(path: Path, shape: tuple[int, int]) -> NDArray[Any]:
    """The array [N, k] in a file, mapped."""
    array = read_npy(path, ADVICE)
    if array.shape != shape:
        raise UserError(
            f"{path} has shape {list(array.shape)}, but {INDEX_FILE} beside it says "
            f"{list(shape)}: search the neighbours again."
        )
    return array


def _search(
    rows: Any,
    gallery: Any,
    k: int,
    *,
    metric: Metric,
    precision: Precision,
    index: Index,
    recall_queries: int,
    device: Device,
    memory_budget_bytes: int | None,
    keep_in: Path,
) -> tuple[NDArray[Any], NDArray[np.int64], ApproximateTopK | None, float]:
    """Scores, neighbours, what an approximate search answered, and the seconds that it took.

    Rows are read in blocks from wherever they lie; nothing is copied whole.
    """
    from noisyml.runs.progress import bar
    from noisyml.similarity.approximate.search import approximate_topk
    from noisyml.similarity.search import self_topk, topk

    began = time.perf_counter()  # PyTorch has been loaded
    with bar("rows") as shown:
        task = shown.add_task("searching", total=len(rows), note="")
        settings: dict[str, Any] = {
            "metric": metric,
            "device": device,
            "keep_in": keep_in,
            "progress": lambda done, total: shown.update(
                task, completed=len(rows) * done // max(total, 1)
            ),
        }
        if index != "exact":
            own = np.arange(len(rows)) if gallery is None else None
            settings |= {"exclude": own, "index": index, "recall_sample": recall_queries}
            near = approximate_topk(rows, rows if gallery is None else gallery, k, **settings)
            found: tuple[Any, ...] = near[:2]
        else:
            settings |= {"precision": precision, "memory_budget_bytes": memory_budget_bytes}
            exact = (
                self_topk(rows, k, **settings)
                if gallery is None
                else topk(rows, gallery, k, **settings)
            )
            found, near = (exact.scores, exact.index), None
    seconds = time.perf_counter() - began
    scores, neighbours = (part.cpu().numpy() for part in found)
    return scores, neighbours, near, seconds


def _origin(rows: StoredRows) -> dict[str, Any]:
    """Origin of rows, for ``index.json``."""

    origin: dict[str, Any] = {"rows": int(rows.shape[0]), "dim": int(rows.shape[1])}
    if isinstance(rows, np.ndarray):
        return origin | {"path": str(getattr(rows, "filename", None))}
    return origin | {
        "path": str(rows.folder),
        "split": rows.name,
        "data": rows.facts["data"],
        "encoder": rows.facts["encoder"],
    }


def _save(path: Path, array: NDArray[Any]) -> None:
    """Write an array so that a kill leaves all of it or nothing."""
    with atomic(path, sole_writer=True) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _write_csv(
    path: Path,
    rows: StoredRows,
    gallery: StoredRows,
) -> None:
    """One line per neighbour: query, rank from 1, neighbour, score; names where there are any."""
    import pandas as pd

    neighbours = np.load(path.with_name(NEIGHBOURS_FILE), mmap_mode="r", allow_pickle=False)
    scores = np.load(path.with_name(SCORES_FILE), mmap_mode="r", allow_pickle=False)
    queries, candidates = _names(rows), _names(gallery)
    n, k = neighbours.shape
    with (
        atomic(path, sole_writer=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        for start in range(0, n, CSV_ROWS):
            part = slice(start, min(start + CSV_ROWS, n))
            table = pd.DataFrame(
                {
                    "query": np.repeat(queries[part], k),
                    "rank": np.tile(np.arange(1, k + 1), part.stop - part.start),
                    "neighbour": _called(candidates, neighbours[part].ravel()),
                    "score": scores[part].ravel(),
                }
            )
            table = table_for_spreadsheet(table)
            table.to_csv(file, header=start == 0, index=False, float_format="%.6g")


def _called(names: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """The names of rows; None where an approximate search found none (-1)."""
    found = names.astype(object)[rows]
    found[rows < 0] = None
    return found


def _names(rows: StoredRows) -> NDArray[Any]:
    """Names of the rows, or their numbers where they have none."""
    return np.arange(len(rows)) if isinstance(rows, np.ndarray) else rows.names
