"""What a finished run leaves for the eye: a map of embeddings, and the samples trusted least."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from noisyml.data.base import BrokenImage
from noisyml.data.datamodule import DataModule
from noisyml.methods.base import Method
from noisyml.metrics.label_trust import class_selection
from noisyml.runs import RunFolder

#: How much is drawn: more would be a grey cloud, or a page nobody scrolls through.
MAP_CLASSES = 20
MAP_POINTS = 1500
THUMBNAILS = 48
THUMBNAIL_SIDE = 64


def describe_run(method: Method, data: DataModule, folder: RunFolder) -> None:
    """Write what a trained method leaves for the eye: a map, thumbnails, tables of trust."""
    embedding_map(method, data).to_parquet(folder.embedding_map_file, index=False)
    if folder.selection_file.is_file():
        least_trusted(data, folder.selection_file, folder.thumbnails_file)
        classes = class_table(data, folder.selection_file)
        classes.to_csv(folder.selection_classes_file, index=False, float_format="%.6g")
        table = suspects(data, folder.selection_file)
        if len(table):
            table.to_csv(folder.suspects_file, index=False, float_format="%.6g")


@torch.no_grad()
def embedding_map(method: Method, data: DataModule) -> pd.DataFrame:
    """The first two principal components of test embeddings.

    Returns:
        Columns ``x, y, label, label_name``: up to `MAP_POINTS` samples of up to `MAP_CLASSES`
        classes, chosen evenly.
    """
    name = "test" if "test" in data.splits else "query"
    split = data.splits[name]
    classes = np.unique(split.labels)
    chosen = classes[np.linspace(0, len(classes) - 1, min(MAP_CLASSES, len(classes))).astype(int)]
    positions = np.flatnonzero(np.isin(split.labels, chosen))
    step = max(1, -(-len(positions) // MAP_POINTS))
    loader = data.predict_dataloader(name, positions[::step])
    training = method.training
    method.eval()
    device = method.device
    embeddings, labels = [], []
    for batch in loader:
        on_device = {key: value.to(device) for key, value in batch.items()}
        embeddings.append(method.embed(on_device).cpu().double())
        labels.append(batch["label"])
    method.train(training)
    points = torch.cat(embeddings)
    points = points - points.mean(dim=0)
    _, _, axes = torch.linalg.svd(points, full_matrices=False)
    # The sign of an axis is arbitrary; fix it so that a picture does not flip between machines.
    axes = axes[:2]
    axes = axes * torch.sign(axes[torch.arange(len(axes)), axes.abs().argmax(dim=1)])[:, None]
    plane = torch.zeros(len(points), 2, dtype=points.dtype)
    plane[:, : len(axes)] = points @ axes.T
    label = torch.cat(labels).numpy()
    return pd.DataFrame(
        {
            "x": plane[:, 0].numpy(),
            "y": plane[:, 1].numpy(),
            "label": label,
            "label_name": [split.class_names[i] for i in label],
        }
    )


def least_trusted(data: DataModule, selection_file: Path, file: Path) -> None:
    """Write images and labels of the training samples with the lowest mean `p_clean`.

    The mean runs over the judgements of the last epoch. Arrays: ``images`` uint8 [n, s, s, 3],
    ``index``, ``p_clean``, ``observed_name``, ``clean_name`` (empty where unknown), ``key``.
    """
    judged = pd.read_parquet(selection_file, columns=["index", "p_clean", "epoch"])
    judged = judged[judged["epoch"] == judged["epoch"].max()].dropna()
    if judged.empty:
        return
    lowest = judged.groupby("index")["p_clean"].mean().nsmallest(THUMBNAILS)
    split, manifest = data.splits["train"], data.manifest
    index = lowest.index.to_numpy()
    names = np.asarray(data.class_names)
    clean_names = np.asarray([*split.class_names, ""])
    np.savez_compressed(
        file,
        images=np.stack([_thumbnail(split.images, int(i)) for i in index]),
        index=index,
        p_clean=lowest.to_numpy(dtype=np.float64),
        observed_name=names[manifest.observed[index]],
        clean_name=clean_names[manifest.clean[index]],
        key=np.asarray([split.keys[i] for i in index]),
    )


def _thumbnail(images: object, index: int) -> np.ndarray:
    try:
        picture = images.load(index).convert("RGB")  # type: ignore[attr-defined]
    except BrokenImage:
        picture = Image.new("RGB", (1, 1))
    scale = THUMBNAIL_SIDE / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    # Small pictures are enlarged pixel by pixel, large ones reduced smoothly.
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    picture = picture.resize((size[0], size[1]), way)
    canvas = Image.new("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    canvas.paste(
        picture, ((THUMBNAIL_SIDE - picture.width) // 2, (THUMBNAIL_SIDE - picture.height) // 2)
    )
    return np.asarray(canvas)


def class_table(data: DataModule, selection_file: Path) -> pd.DataFrame:
    """How the selector treated each observed class in the last epoch; shows classes that died out.

    Returns:
        Columns ``label`` (by name), ``samples`` and ``kept`` (their share); ``precision`` and
        ``recall`` where true labels are known.
    """
    judged = pd.read_parquet(selection_file, columns=["index", "kept", "epoch"])
    judged = judged[judged["epoch"] == judged["epoch"].max()]
    manifest, index = data.manifest, judged["index"].to_numpy()
    found = class_selection(
        torch.from_numpy(judged["kept"].to_numpy(copy=True)),
        torch.from_numpy(manifest.changed[index]),
        torch.from_numpy(manifest.observed[index]),
        data.num_classes,
    )
    columns = list(found) if manifest.truth_known else ["samples", "kept"]
    return pd.DataFrame(
        {"label": data.class_names, **{name: found[name].numpy() for name in columns}}
    )


def suspects(data: DataModule, selection_file: Path) -> pd.DataFrame:
    """Every judged training sample, the least trusted first.

    Returns:
        Columns ``key`` (path or id), ``label`` (observed, by name), ``p_clean`` (mean of the last
        epoch's judgements) and ``kept`` (share of them that kept the sample). True labels are left
        out: this is the list for someone who does not know them.
    """
    judged = pd.read_parquet(selection_file)
    judged = judged[judged["epoch"] == judged["epoch"].max()].dropna()
    means = judged.groupby("index")[["p_clean", "kept"]].mean().sort_values("p_clean")
    index = means.index.to_numpy()
    names = np.asarray(data.class_names)
    keys = data.splits["train"].keys
    return pd.DataFrame(
        {
            "key": [keys[i] for i in index],
            "label": names[data.manifest.observed[index]],
            "p_clean": means["p_clean"].to_numpy(),
            "kept": means["kept"].to_numpy(),
        }
    )
