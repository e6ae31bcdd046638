"""Class activation maps of a few training samples: the places a classifier looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from noisyml.data.datamodule import DataModule
from noisyml.losses.classification.eac import class_activation_maps
from noisyml.methods.passes import batches_on, evaluation_mode
from noisyml.models.backbones.base import LAST_MAP

if TYPE_CHECKING:
    from noisyml.methods.classification.base import Classification

#: Samples of each kind that are shown, and the longer side of their pictures in pixels.
SAMPLES_OF_A_KIND = 5
LARGEST_SIDE = 160


@torch.no_grad()
def class_map_samples(
    method: Classification, data: DataModule, trust: pd.Series | None
) -> dict[str, NDArray]:
    """Images and class activation maps of samples of one label each.

    Shown are samples with right and with wrong labels where the truth is known, otherwise those
    trusted most and least, otherwise any.

    Args:
        method: whose encoder has such maps, see `obstacle_to_class_maps`.
        data: with one label per sample.
        trust: see `Method.artefacts`.

    Returns:
        Arrays ``images`` uint8 [n, h, w] or [n, h, w, 3], as evaluation shows them to the network;
        ``given_maps`` and ``answer_maps`` float32 [n, H, W], of the observed label and of the
        network's answer, less the mean over all classes, which cancels in their probabilities;
        ``given_name``, ``answer_name``, ``true_name`` (empty where unknown), ``kind``, ``key``.
    """
    kinds = _chosen(data, trust)
    kind_of = {int(i): kind for kind, positions in kinds.items() for i in positions}
    loader = data.predict_dataloader("train", np.fromiter(kind_of, dtype=np.int64))
    found: dict[str, list[NDArray]] = {"index": [], "images": [], "given": [], "answer": []}
    answers: list[NDArray] = []
    with evaluation_mode(method):
        for batch in batches_on(method.device, loader):
            encoding = method.encoder.encode({"image": batch["image"]})
            maps = class_activation_maps(encoding.maps[LAST_MAP], method.classifier.weight)
            maps = maps - maps.mean(dim=1, keepdim=True)
            answer = method.logits(encoding.embeddings).argmax(dim=1)
            rows = torch.arange(len(maps), device=maps.device)
            found["index"].append(batch["index"].cpu().numpy())
            found["images"] += [_picture(image.cpu().numpy()) for image in batch["image"]]
            found["given"].append(maps[rows, batch["label"]].float().cpu().numpy())
            found["answer"].append(maps[rows, answer].float().cpu().numpy())
            answers.append(answer.cpu().numpy())
    if not found["index"]:
        return {}
    index = np.concatenate(found["index"])
    split, manifest = data.splits["train"], data.manifest
    names = np.asarray(data.class_names)
    return {
        "images": np.stack(found["images"]),
        "given_maps": np.concatenate(found["given"]),
        "answer_maps": np.concatenate(found["answer"]),
        "given_name": names[manifest.observed[index]],
        "answer_name": names[np.concatenate(answers)],
        "true_name": np.asarray(manifest.target.texts(manifest.clean[index], split.class_names)),
        "kind": np.asarray([kind_of[int(i)] for i in index]),
        "key": np.asarray([split.keys[i] for i in index]),
    }


def _chosen(data: DataModule, trust: pd.Series | None) -> dict[str, NDArray[np.int64]]:
    """Positions to show by kind; the same in every run on the same labels."""
    manifest = data.manifest
    order = np.random.default_rng(0).permutation(len(manifest.observed))
    if manifest.truth_known and manifest.changed.any():
        wrong = manifest.changed[order]
        return {
            "label right": order[~wrong][:SAMPLES_OF_A_KIND],
            "label wrong": order[wrong][:SAMPLES_OF_A_KIND],
        }
    if trust is not None and len(trust) >= 2 * SAMPLES_OF_A_KIND and trust.nunique() > 1:
        by_trust = trust.index.to_numpy(dtype=np.int64)
        return {
            "trusted most": by_trust[-SAMPLES_OF_A_KIND:],
            "trusted least": by_trust[:SAMPLES_OF_A_KIND],
        }
    return {"": order[: 2 * SAMPLES_OF_A_KIND]}


def _picture(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [C, H, W] as [h, w] or (the first three bands) [h, w, 3], reduced if it is large."""
    pixels = image[0] if len(image) < 3 else np.moveaxis(image[:3], 0, 2)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)
