"""Indexes of faiss."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from noisyml.errors import UserError
from noisyml.similarity.approximate.rows import Find, ListPlan, Rows

#: Rows handed to faiss at once.
_ROWS_AT_ONCE = 2**16


def has_faiss() -> bool:
    """True if faiss is installed."""
    return importlib.util.find_spec("faiss") is not None


def require_faiss(what: str, otherwise: str) -> None:
    """Refuse what faiss is needed for where it is not installed.

    Args:
        what: needs it, as the beginning of a sentence.
        otherwise: to be done without it.

    Raises:
        UserError: it is not installed.
    """
    if not has_faiss():
        raise UserError(
            f"{what} needs faiss, which is not installed: pip install 'noisyml[faiss-cpu]' (or, "
            f"with a CUDA of its own, 'noisyml[faiss-gpu]'); {otherwise}."
        )


def _faiss_metric(metric: str) -> int:
    import faiss

    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)


def inverted_lists(
    gallery: Rows,
    metric: str,
    plan: ListPlan,
    quantised: bool,
    n_subquantisers: int | None,
    n_bits: int,
    seed: int,
) -> Any:
    """A trained, empty IVF index, or IVF-PQ where rows are `quantised`."""
    import faiss

    dim = gallery.dim
    index: Any
    quantiser = faiss.IndexFlat(dim, _faiss_metric(metric))
    if not quantised:
        index = faiss.IndexIVFFlat(quantiser, dim, plan.n_lists, _faiss_metric(metric))
    else:
        divisors = [part for part in range(1, dim + 1) if dim % part == 0]
        parts = n_subquantisers or max(d for d in divisors if d <= max(dim // 4, 1))
        if parts not in divisors:
            raise UserError(
                f"{parts} subquantisers do not divide {dim} dimensions: use one of "
                f"{', '.join(map(str, divisors))}."
            )
        if plan.n_train < 2**n_bits:
            raise UserError(
                f"{plan.n_train} training rows cannot fill {2**n_bits} codes of {n_bits} bits: "
                "lower n_bits, raise train_size or search exactly."
            )
        index = faiss.IndexIVFPQ(quantiser, dim, plan.n_lists, parts, n_bits, _faiss_metric(metric))
        index.pq.cp.seed = seed
        index.pq.cp.min_points_per_centroid = 1
    index.cp.seed = seed
    # The number of rows is ours to judge; faiss would print its opinion.
    index.cp.min_points_per_centroid = 1
    index.nprobe = plan.n_probes
    index.train(plan.training_rows(gallery, seed).numpy())
    return index


def small_world(
    gallery: Rows, metric: str, n_links: int, ef_construction: int, ef_search: int
) -> Any:
    """An empty HNSW index."""
    import faiss

    index = faiss.IndexHNSWFlat(gallery.dim, n_links, _faiss_metric(metric))
    index.hnsw.efConstruction = ef_construction
    index.hnsw.efSearch = ef_search
    return index


@contextlib.contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    """faiss uses a single thread inside."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def filled(index: Any, gallery: Rows, metric: str, device: str) -> Find:
    """The search of the index with all gallery rows in it, on the GPU if that is wanted."""
    import faiss

    n_gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    small_world = isinstance(index, faiss.IndexHNSW)
    if device == "cuda" and (small_world or n_gpus == 0):
        why = "faiss has no hnsw index for GPUs" if small_world else "faiss sees no GPU here"
        raise UserError(f"The approximate search cannot run on cuda: {why}; use device=cpu.")
    resources = None
    if device != "cpu" and not small_world and n_gpus > 0:
        resources = faiss.StandardGpuResources()
        index = faiss.index_cpu_to_gpu(resources, 0, index)
    with _one_thread(small_world):
        for start in range(0, len(gallery), _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, len(gallery))
            index.add(gallery.block(start, stop).numpy())

    # The GPU's scratch memory must live as long as the index that works in it.
    def find(queries: Tensor, n: int, held: Any = resources) -> tuple[Tensor, Tensor]:
        near, items = (torch.from_numpy(part) for part in index.search(queries.numpy(), n))
        return (-near if metric == "l2" else near), items

    return find
