"""Nearest neighbours of embeddings, as a graph on disk.

``noisyml knn embeddings=DIR`` reads what ``noisyml embed`` wrote, or any ``.npy`` file [N, D]. Each
row's neighbours are the most similar other rows, or, with ``gallery=``, the most similar rows of
that. Exact by default; ``index=ivf|ivfpq|hnsw`` searches approximately and says how well.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from noisyml.apps._folder import recorded, refuse_foreign, write_inputs
from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder
from noisyml.storage.files import atomic, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from omegaconf import DictConfig

    from noisyml.embeddings.store import EmbeddedSplit

#: Raise when the meaning of the files changes.
FORMAT = 1
#: Rows of neighbours.csv written at a time.
CSV_ROWS = 10_000

Metric = Literal["cosine", "ip", "l2"]
Precision = Literal["exact", "fast"]
Index = Literal["exact", "ivf", "ivfpq", "hnsw"]
Device = Literal["cpu", "cuda"]


def main(arguments: list[str]) -> int:
    """Run ``noisyml knn embeddings=DIR_OR_NPY [overrides]``."""
    from noisyml.command.hydra import run_hydra

    return run_hydra(job, "knn", "knn", arguments)


def job(config: DictConfig) -> dict[str, float]:
    """One job of Hydra: a folder with the neighbours."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    hydra = HydraConfig.get()
    folder = RunFolder(Path(hydra.runtime.output_dir))
    resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(resolved, DictConfig)
    check_values(resolved)
    refuse_foreign(folder)
    rows = open_rows("embeddings", config.embeddings, "split", config.split)
    gallery = None
    if config.gallery is not None:
        gallery = open_rows("gallery", config.gallery, "gallery_split", config.gallery_split)
    elif config.gallery_split is not None:
        raise UserError("gallery_split=... needs gallery=..., the folder that has this split.")
    write_inputs(folder, resolved, list(hydra.overrides.task), dict(hydra.runtime.choices))
    with folder.claimed(), recorded(folder, "the same command with another hydra.run.dir"):
        metrics = write_graph(
            rows,
            folder.path,
            k=config.k,
            gallery=gallery,
            metric=config.metric,
            precision=config.precision,
            index=config.index,
            recall_queries=config.recall_queries,
            device=config.device,
            memory_budget_bytes=config.memory_budget_bytes,
            csv=config.csv,
        )
        folder.write_metrics({f"knn/{key}": value for key, value in metrics.items()})
    return metrics


def check_values(config: DictConfig) -> None:
    """Refuse values that no search can have, before anything is read or written.

    Raises:
        UserError: such a value.
    """
    known = {"metric": Metric, "precision": Precision, "index": Index, "device": Device}
    for key, kind in known.items():
        choices = get_args(kind)
        if config[key] not in choices:
            raise UserError(f"{key}={config[key]} is not known: use one of {', '.join(choices)}.")
    for key in ("k", "recall_queries", "memory_budget_bytes"):
        value = config[key]
        if value is None and key == "memory_budget_bytes":
            continue
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{key}={value} must be a whole number of at least 1.")


def open_rows(
    key: str, path: str, split_key: str, split: str | None
) -> EmbeddedSplit | NDArray[np.floating[Any]]:
    """Embeddings [N, D] behind a path, nothing read yet.

    Args:
        key: the setting that named the path, for messages.
        path: a folder of `noisyml embed`, or a ``.npy`` file.
        split_key: the setting that named the split.
        split: which split of the folder; None: the only one.

    Raises:
        UserError: there is nothing of that kind.
    """
    import numpy as np

    from noisyml.embeddings.store import EmbeddingStore

    place = Path(path)
    if place.is_dir():
        store = EmbeddingStore(place)
        if split is None and len(store.splits) > 1:
            raise UserError(
                f"{place} holds the splits {', '.join(store.splits)}: say {split_key}=... ."
            )
        return store.split(split or store.splits[0])
    if not place.is_file():
        raise UserError(
            f"There is no {place}: {key}= is a folder of `noisyml embed` or a .npy file."
        )
    if split is not None:
        raise UserError(f"{place} is a file and has no splits: leave {split_key}={split} out.")
    try:
        rows = np.load(place, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{place} is not a .npy file of numbers ({error}).") from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f":
        raise UserError(
            f"{place} does not hold one matrix [N, D] of floating-point numbers; write one with "
            f"numpy.save."
        )
    return rows


def write_graph(
    rows: EmbeddedSplit | NDArray[np.floating[Any]],
    folder: Path,
    *,
    k: int,
    gallery: EmbeddedSplit | NDArray[np.floating[Any]] | None = None,
    metric: Metric = "cosine",
    precision: Precision = "exact",
    index: Index = "exact",
    recall_queries: int = 1000,
    device: Device = "cpu",
    memory_budget_bytes: int | None = None,
    csv: bool = False,
) -> dict[str, float]:
    """Find and write ``neighbours.npy`` [N, k] int64 and ``scores.npy`` [N, k] float32.

    Neighbours are row numbers of the gallery (of the rows themselves, if there is none, each row
    without itself), the nearest first; of equal ones the first. Scores grow with similarity. Where
    an approximate search finds fewer than k, the rest is -1 with a score of -inf.
    ``index.json``, written last, says what was searched how.

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
    """
    import numpy as np

    within = len(rows) - 1 if gallery is None else len(gallery)
    if k > within:
        others = "other rows" if gallery is None else "rows of the gallery"
        raise UserError(f"k={k} asks for more neighbours than the {within} {others} there are.")
    folder.mkdir(parents=True, exist_ok=True)
    scores, neighbours, recall, seconds = _search(
        rows,
        gallery,
        k,
        metric=metric,
        precision=precision,
        index=index,
        recall_queries=recall_queries,
        device=device,
        memory_budget_bytes=memory_budget_bytes,
    )
    _save(folder / "neighbours.npy", neighbours.astype(np.int64, copy=False))
    _save(folder / "scores.npy", scores.astype(np.float32, copy=False))
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
        "rows": _origin(rows),
        "gallery": None if gallery is None else _origin(gallery),
    }
    write_atomically(folder / "index.json", json.dumps(facts, indent=2) + "\n")
    # PyTorch is only there once something is searched.
    from noisyml.similarity.exact import kernels

    rate = len(rows) / seconds
    said = f"{k} neighbours of {len(rows):,} rows among {within:,} in {seconds:.1f} s"
    print(f"{said} ({rate:,.0f} rows/s)" + ("" if recall is None else f", recall {recall:.4f}"))
    if index == "exact" and device == "cpu" and not kernels.available():
        print("The search loops are not compiled here, so this took longer: see the README.")
    print(f"graph {folder}")
    return {"rows_per_second": rate} | ({} if recall is None else {"recall": recall})


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
) -> tuple[NDArray[Any], NDArray[np.int64], float | None, float]:
    """Scores, neighbours, of an approximate search the recall, and the seconds that it took.

    Rows are read in blocks from wherever they lie; nothing is copied whole.
    """
    import numpy as np

    from noisyml.runs.progress import bar
    from noisyml.similarity.approximate import approximate_topk
    from noisyml.similarity.search import self_topk, topk

    began = time.perf_counter()  # PyTorch has been loaded
    if index != "exact":
        own = np.arange(len(rows)) if gallery is None else None
        found = approximate_topk(
            rows,
            rows if gallery is None else gallery,
            k,
            metric=metric,
            exclude=own,
            index=index,
            recall_sample=recall_queries,
            device=device,
        )
        seconds = time.perf_counter() - began
        return found.scores.cpu().numpy(), found.index.cpu().numpy(), found.recall, seconds
    with bar("rows") as shown:
        task = shown.add_task("searching", total=len(rows), note="")
        settings: dict[str, Any] = {
            "metric": metric,
            "precision": precision,
            "memory_budget_bytes": memory_budget_bytes,
            "device": device,
            "progress": lambda done, total: shown.update(
                task, completed=len(rows) * done // max(total, 1)
            ),
        }
        if gallery is None:
            exact = self_topk(rows, k, **settings)
        else:
            exact = topk(rows, gallery, k, **settings)
    seconds = time.perf_counter() - began
    return exact.scores.cpu().numpy(), exact.index.cpu().numpy(), None, seconds


def _origin(rows: EmbeddedSplit | NDArray[np.floating[Any]]) -> dict[str, Any]:
    """Where rows come from, for ``index.json``."""
    import numpy as np

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
    import numpy as np

    with atomic(path, sole_writer=True) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _write_csv(
    path: Path,
    rows: EmbeddedSplit | NDArray[np.floating[Any]],
    gallery: EmbeddedSplit | NDArray[np.floating[Any]],
) -> None:
    """One line per neighbour: query, rank from 1, neighbour, score; names where there are any."""
    import numpy as np
    import pandas as pd

    neighbours = np.load(path.with_name("neighbours.npy"), mmap_mode="r", allow_pickle=False)
    scores = np.load(path.with_name("scores.npy"), mmap_mode="r", allow_pickle=False)
    queries, candidates = _names(rows), _names(gallery)
    n, k = neighbours.shape
    with atomic(path, sole_writer=True) as temporary, temporary.open("w", newline="") as file:
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
            table.to_csv(file, header=start == 0, index=False, float_format="%.6g")


def _called(names: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """The names of rows; None where an approximate search found none (-1)."""
    found = names.astype(object)[rows]
    found[rows < 0] = None
    return found


def _names(rows: EmbeddedSplit | NDArray[np.floating[Any]]) -> NDArray[Any]:
    """What the rows are called: names, or numbers where there are none."""
    import numpy as np

    return np.arange(len(rows)) if isinstance(rows, np.ndarray) else rows.names
