"""Artefacts of a finished run: those of its method and evaluators, an embedding map, trust."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyml.audit.ranking import Over, rank_by_trust
from noisyml.audit.trust import thumbnail, trust_artefacts
from noisyml.data.datamodule import DataModule
from noisyml.data.partial import LABELLED, UNLABELLED
from noisyml.methods.base import Method
from noisyml.methods.passes import batches_on, evaluation_mode
from noisyml.metrics.discovery.evaluator import CLUSTERS_FILE
from noisyml.runs.artefacts import Artefact, save_artefacts
from noisyml.runs.folder import RunFolder

#: How much is drawn: more would be a grey cloud.
MAP_CLASSES = 20
MAP_POINTS = 1500
#: Groups whose pictures are shown, and pictures of each.
GROUPS_SHOWN, PICTURES_OF_GROUP = 10, 4


def describe_run(
    method: Method, data: DataModule, folder: RunFolder, ranking: Over = "all_epochs"
) -> None:
    """Write the artefacts of a trained method.

    Args:
        method: trained.
        data: of the run.
        folder: of the run.
        ranking: judgements that the list of suspects goes by.
    """
    save_artefacts(folder, offered_artefacts(method, data, folder, ranking))


def offered_artefacts(
    method: Method, data: DataModule, folder: RunFolder, ranking: Over = "all_epochs"
) -> Iterator[Artefact]:
    """Artefacts of a trained method, of its evaluators, and of what its selector judged."""
    if "embeddings" in method.gives:
        caption = "Test embeddings on their two principal axes."
        table = embedding_map(method, data)
        yield Artefact("embedding_map.parquet", table, "Embedding map", caption)
    trust = None
    if folder.selection_file.is_file():
        judged = rank_by_trust(folder.selection_file, ranking)
        trust = None if judged.classes else judged.table["p_clean"]
    yield from method.artefacts(data, trust)
    yield from method.evaluation_artefacts
    if UNLABELLED in getattr(data, "splits", {}):
        yield from discovery_artefacts(method, data)
    if folder.selection_file.is_file():
        yield from trust_artefacts(data, folder.selection_file, ranking)


def discovery_artefacts(method: Method, data: DataModule) -> Iterator[Artefact]:
    """Pictures of discovered groups, and a map of what was labelled, known and new."""
    found = next((a for a in method.evaluation_artefacts if a.file == CLUSTERS_FILE), None)
    if found is not None and data.splits[UNLABELLED].inputs.kind == "images":
        assert isinstance(found.content, pd.DataFrame)
        yield Artefact(
            "discovered_pictures.npz",
            group_pictures(found.content, data),
            "Pictures of discovered groups",
            f"Unlabelled images of the largest groups, up to {PICTURES_OF_GROUP} of each.",
        )
    yield Artefact("discovery_map.parquet", discovery_map(method, data), "Old and new classes")


def group_pictures(clusters: pd.DataFrame, data: DataModule) -> dict[str, NDArray[Any]]:
    """Images of the largest groups and a line of text for each.

    Args:
        clusters: columns ``index_in_split cluster matched``, of the unlabelled split.
        data: of the run.
    """
    split, names = data.splits[UNLABELLED], data.class_names
    sizes = clusters["cluster"].value_counts(sort=True)
    images, texts = [], []
    for cluster in sizes.index[:GROUPS_SHOWN]:
        members = clusters[clusters["cluster"] == cluster]
        for row in (
            members.iloc[:: max(1, len(members) // PICTURES_OF_GROUP)]
            .head(PICTURES_OF_GROUP)
            .itertuples()
        ):
            images.append(thumbnail(split.images, int(row.index_in_split)))
            matched = "none" if row.matched < 0 else names[row.matched]
            texts.append(f"group {cluster} ({matched}): {names[split.labels[row.index_in_split]]}")
    return {"images": np.stack(images), "text": np.asarray(texts)}


def discovery_map(method: Method, data: DataModule) -> pd.DataFrame:
    """Embeddings of training images on two axes, by what is known of them.

    Returns:
        Columns ``x, y, label, label_name``; labels are 0 (old class, labelled), 1 (old class) and
        2 (new class).
    """
    parts, rows = [], []
    for name in (LABELLED, UNLABELLED):
        split = data.splits[name]
        step = max(1, -(-2 * len(split) // MAP_POINTS))
        points, index = _embedded(method, data, name, np.arange(0, len(split), step))
        old = np.isin(split.labels[index], data.known_classes)
        rows.append(torch.nn.functional.normalize(points, dim=1))
        parts.append(np.where(old, 0 if name == LABELLED else 1, 2))
    label = np.concatenate(parts)
    names = ("old class, labelled", "old class, unlabelled", "new class")
    return _map_table(torch.cat(rows), label, names)


@torch.no_grad()
def _embedded(
    method: Method, data: DataModule, name: str, positions: NDArray[np.int64]
) -> tuple[Tensor, NDArray[np.int64]]:
    """Embeddings [n, D] float64 of samples of a split, and their positions."""
    loader = data.predict_dataloader(name, positions)
    embeddings, shown = [], []
    with evaluation_mode(method):
        for batch in batches_on(method.device, loader):
            embeddings.append(method.embed(batch).cpu().double())
            shown.append(batch["index"].cpu())
    return torch.cat(embeddings), torch.cat(shown).numpy()


def _map_table(points: Tensor, label: NDArray[Any], names: Sequence[str]) -> pd.DataFrame:
    """Points [n, D] on their two principal axes, with the name of each one's label."""
    points = points - points.mean(dim=0)
    _, _, axes = torch.linalg.svd(points, full_matrices=False)
    # The sign of an axis is arbitrary; fix it so that a picture does not flip between machines.
    axes = axes[:2]
    axes = axes * torch.sign(axes[torch.arange(len(axes)), axes.abs().argmax(dim=1)])[:, None]
    plane = torch.zeros(len(points), 2, dtype=points.dtype)
    plane[:, : len(axes)] = points @ axes.T
    return pd.DataFrame(
        {
            "x": plane[:, 0].numpy(),
            "y": plane[:, 1].numpy(),
            "label": label,
            "label_name": [names[i] for i in label],
        }
    )


def embedding_map(method: Method, data: DataModule) -> pd.DataFrame:
    """The first two principal components of test embeddings.

    Returns:
        Columns ``x, y, label, label_name``: up to `MAP_POINTS` samples of up to `MAP_CLASSES`
        classes, chosen evenly; multi-label: of the most frequent sets of labels.
    """
    name = "test" if "test" in data.splits else "query"
    split = data.splits[name]
    numbers, names, chosen = split.target.groups(split.labels, split.class_names, MAP_CLASSES)
    positions = np.flatnonzero(np.isin(numbers, chosen))
    step = max(1, -(-len(positions) // MAP_POINTS))
    points, index = _embedded(method, data, name, positions[::step])
    return _map_table(points, numbers[index], names)
