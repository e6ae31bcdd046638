"""Nearest neighbours of embeddings, as a graph on disk.

``noisyml knn embeddings=DIR`` reads what ``noisyml embed`` wrote, or any ``.npy`` file [N, D]. Each
row's neighbours are the most similar other rows, or, with ``gallery=``, the most similar rows of
that. Exact by default; ``index=ivf|ivfpq|hnsw`` searches approximately and says how well. Killed at
any moment, the same command with the same ``hydra.run.dir`` goes on there: an exact search keeps
the blocks that are done.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from noisyml.apps._common.folder import is_made_by, recorded, refuse_foreign, write_inputs
from noisyml.apps._common.resumable import first_difference
from noisyml.apps._common.settings import KnnSettings, read_settings
from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder
from noisyml.storage.reading import read_npy

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from noisyml.embeddings.neighbours import StoredRows

log = logging.getLogger(__name__)

#: Settings that change no neighbour: a folder may be gone on with other values.
FREE = ("name", "paths", "memory_budget_bytes", "csv")


def main(arguments: list[str]) -> int:
    """Run ``noisyml knn embeddings=DIR_OR_NPY [overrides]``."""
    from noisyml.command.hydra import run_hydra

    return run_hydra(job, "knn", "knn", arguments)


def job(config: DictConfig) -> dict[str, float]:
    """One job of Hydra: a folder with the neighbours."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from noisyml.command.secrets import resolved
    from noisyml.command.words import words_of_job
    from noisyml.embeddings.neighbours import write_neighbours

    hydra = HydraConfig.get()
    folder = RunFolder(Path(hydra.runtime.output_dir))
    settings = OmegaConf.create(resolved(config))
    check_values(settings)
    if _is_done(settings, folder):
        log.info("%s is finished already; left as it is.", folder.path)
        return folder.metrics()
    rows = open_rows("embeddings", config.embeddings, "split", config.split)
    gallery = None
    if config.gallery is not None:
        gallery = open_rows("gallery", config.gallery, "gallery_split", config.gallery_split)
    elif config.gallery_split is not None:
        raise UserError("gallery_split=... needs gallery=..., the folder that has this split.")
    write_inputs(folder, settings, words_of_job(hydra), dict(hydra.runtime.choices))
    same = f"the same command with hydra.run.dir={folder.path}"
    with folder.claimed(), recorded(folder, same):
        metrics = write_neighbours(
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


def _is_done(config: DictConfig, folder: RunFolder) -> bool:
    """True if the same search has ended in a folder, False if it is to be done there, or again.

    Raises:
        UserError: the folder holds something else.
    """
    if not folder.is_run():
        refuse_foreign(folder)
        return False
    if not is_made_by(folder, "knn"):
        raise UserError(f"{folder.path} holds another kind of run; choose another hydra.run.dir.")
    if changed := first_difference(config, folder, FREE):
        raise UserError(
            f"{folder.path} holds neighbours found with another {changed}; choose another "
            f"hydra.run.dir, or remove that folder."
        )
    asked_more = config.csv and not folder.config().get("csv")
    return folder.status().get("state") == "finished" and not asked_more


def check_values(config: DictConfig) -> None:
    """Refuse values that no search can have, before anything is read or written.

    Raises:
        UserError: such a value.
    """
    from noisyml.checks import check_arguments
    from noisyml.embeddings.neighbours import write_neighbours

    read_settings(KnnSettings, config)
    check_arguments(write_neighbours, {str(key): value for key, value in config.items()})


def open_rows(key: str, path: str, split_key: str, split: str | None) -> StoredRows:
    """Embeddings [N, D] behind a path, nothing read yet.

    Args:
        key: the setting that named the path, for messages.
        path: a folder of `noisyml embed`, or a ``.npy`` file.
        split_key: the setting that named the split.
        split: which split of the folder; None: the only one.

    Raises:
        UserError: there is nothing of that kind.
    """

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
    rows = read_npy(place, "give a .npy file of numbers, or a folder of `noisyml embed`")
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise UserError(
            f"{place} does not hold one matrix [N, D] of floating-point numbers; write one with "
            f"numpy.save."
        )
    return rows
