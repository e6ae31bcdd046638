"""Artefacts of a finished run: those of its method and evaluators, an embedding map, trust."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from noisyml.audit.ranking import Over, rank_by_trust
from noisyml.audit.trust import trust_artefacts
from noisyml.data.datamodule import DataModule
from noisyml.methods.base import Method
from noisyml.methods.passes import batches_on, evaluation_mode
from noisyml.runs.artefacts import Artefact, save_artefacts
from noisyml.runs.folder import RunFolder

#: How much is drawn: more would be a grey cloud.
MAP_CLASSES = 20
MAP_POINTS = 1500


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
    if folder.selection_file.is_file():
        yield from trust_artefacts(data, folder.selection_file, ranking)


@torch.no_grad()
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
    loader = data.predict_dataloader(name, positions[::step])
    embeddings, shown = [], []
    with evaluation_mode(method):
        for batch in batches_on(method.device, loader):
            embeddings.append(method.embed(batch).cpu().double())
            shown.append(batch["index"].cpu())
    points = torch.cat(embeddings)
    points = points - points.mean(dim=0)
    _, _, axes = torch.linalg.svd(points, full_matrices=False)
    # The sign of an axis is arbitrary; fix it so that a picture does not flip between machines.
    axes = axes[:2]
    axes = axes * torch.sign(axes[torch.arange(len(axes)), axes.abs().argmax(dim=1)])[:, None]
    plane = torch.zeros(len(points), 2, dtype=points.dtype)
    plane[:, : len(axes)] = points @ axes.T
    label = numbers[torch.cat(shown).numpy()]
    return pd.DataFrame(
        {
            "x": plane[:, 0].numpy(),
            "y": plane[:, 1].numpy(),
            "label": label,
            "label_name": [names[i] for i in label],
        }
    )
