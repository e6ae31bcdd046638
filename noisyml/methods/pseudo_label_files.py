"""Pseudo-labels on disk: a file for each mask or batch, and a manifest that says what made them.

The manifest is written last: a folder that has one is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import noisyml
from noisyml.storage.files import atomic, write_atomically
from noisyml.storage.reading import read_json, reading
from noisyml.targets import Labels, Target
from noisyml.targets.masks import IGNORE, as_labels, decode_mask, encode_mask
from noisyml.targets.partial import NO_LABEL

MANIFEST = "manifest.json"
ADVICE = "remove the folder, and they are made anew"


@dataclass(frozen=True)
class StoredLabels:
    """Pseudo-labels of some samples.

    Attributes:
        index: positions in the training split [n].
        labels: [n], of the data set's kind of labels.
        confidence: of each sample [n] float, of masks the mean over pixels.
        probabilities: of whole samples [n, C] float32; None for masks.
        confidence_masks: of masks, uint8 [H, W] each in steps of 1/255; empty for whole samples.
        soft_masks: of soft masks, the PNG file of their planes by position.
    """

    index: NDArray[np.int64]
    labels: Labels
    confidence: NDArray[np.floating[Any]]
    probabilities: NDArray[np.float32] | None = None
    confidence_masks: Sequence[NDArray[np.uint8]] = ()
    soft_masks: Mapping[int, bytes] = field(default_factory=dict)


class PseudoLabelFolder:
    """The folder of the pseudo-labels of one stage.

    Masks lie in ``labels/NNNNNN.png`` (8 bits, class numbers, 255 for none), the confidence of
    their pixels in ``confidence/``, the planes of soft ones in ``soft/``; labels of whole samples,
    a batch each, in ``labels/NNNNNN.npz``. ``NNNNNN`` is the position of the (first) sample in the
    training split.

    Args:
        path: of the folder.
        target: the kind of labels.
        classes: number of classes C.
    """

    def __init__(self, path: Path, target: Target, classes: int) -> None:
        self.path = path
        self.target = target
        self.classes = classes

    @property
    def complete(self) -> bool:
        """True if all samples have their labels here."""
        return (self.path / MANIFEST).is_file()

    def holds(self, index: Sequence[int], soft: bool) -> bool:
        """True if the labels of a whole batch lie here."""
        if not self.target.beside_image:
            return self._file("labels", index[0], "npz").is_file()
        parts = ["labels", "confidence", *(["soft"] if soft else [])]
        return all(self._file(part, at, "png").is_file() for at in index for part in parts)

    def write(self, found: StoredLabels, soft: bool) -> None:
        """Write the labels of a batch, each file whole or not at all."""
        index = found.index.tolist()
        if not self.target.beside_image:
            content = {"index": found.index, "label": found.labels, "confidence": found.confidence}
            if found.probabilities is not None:
                content["probabilities"] = found.probabilities
            self._write(self._file("labels", index[0], "npz"), _npz(content))
            return
        for row, at in enumerate(index):
            if soft:
                self._write(self._file("soft", at, "png"), found.soft_masks[at])
            confidence = encode_mask(found.confidence_masks[row])
            self._write(self._file("confidence", at, "png"), confidence)
            self._write(self._file("labels", at, "png"), found.labels[row])

    def finish(
        self,
        checkpoint: Path,
        settings: Mapping[str, Any],
        index: NDArray[np.int64],
        keys: Sequence[str],
    ) -> None:
        """Write the manifest: what made the labels, of which samples, and their hash.

        Args:
            checkpoint: of the model.
            settings: of the labelling.
            index: positions of the samples.
            keys: their names.
        """
        with checkpoint.open("rb") as file:
            model = hashlib.file_digest(file, "sha256").hexdigest()
        found = self.read(index, checked=False)
        content = {
            "checkpoint": str(checkpoint),
            "checkpoint_sha256": model,
            "settings": dict(settings),
            "samples": len(index),
            "index": index.tolist(),
            "keys_sha256": hashlib.sha256("\0".join(keys).encode()).hexdigest(),
            "labels_sha256": self._digest(found),
            "noisyml": noisyml.__version__,
        }
        write_atomically(self.path / MANIFEST, json.dumps(content, indent=2) + "\n")

    def read(self, index: NDArray[np.int64], checked: bool = True) -> StoredLabels:
        """The labels of the samples at `index`.

        Args:
            index: positions in the training split, ascending.
            checked: compare with the hash in the manifest.

        Raises:
            UserError: files are missing, damaged or changed.
        """
        found = self._masks(index) if self.target.beside_image else self._samples(index)
        if checked:
            manifest = read_json(self.path / MANIFEST, ADVICE)
            with reading(self.path / MANIFEST, ADVICE):
                if manifest["index"] != index.tolist():
                    raise ValueError("it is of other samples than those without a label")
                if manifest["labels_sha256"] != self._digest(found):
                    raise ValueError("the labels beside it are not what the manifest says")
        return found

    def most_confident(self, found: StoredLabels, share: float) -> StoredLabels:
        """The labels of which each class has lost its least confident ones.

        A class of n labels (of masks: pixels) keeps ``share * n``, rounded up, and what is as
        confident as the last of them; confidence of pixels is known in steps of 1/255. One
        threshold for all classes would keep those that are easy, e.g. the ground. Source:
        class-balanced self-training, Zou et al., ECCV 2018 (arXiv 1810.07911).

        Args:
            found: labels that were read from here.
            share: of the labels of each class, above 0, at most 1.
        """
        if not self.target.beside_image:
            labels = found.labels.copy()
            for own in (found.labels == label for label in range(self.classes)):
                if own.any():
                    ordered = np.sort(found.confidence[own])[::-1]
                    least = ordered[math.ceil(share * len(ordered)) - 1]
                    labels[own & (found.confidence < least)] = NO_LABEL
            return replace(found, labels=labels)
        counts = np.zeros((self.classes, 256), dtype=np.int64)
        for mask, levels in map(self._mask, found.index.tolist()):
            has = mask != IGNORE
            np.add.at(counts, (mask[has], levels[has]), 1)
        at_least = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
        least = (at_least >= share * at_least[:, :1]).sum(axis=1) - 1
        least = np.append(least, np.zeros(IGNORE + 1 - self.classes, dtype=np.int64))
        masks = [
            encode_mask(np.where(levels < least[mask], np.uint8(IGNORE), mask))
            for mask, levels in map(self._mask, found.index.tolist())
        ]
        return replace(found, labels=as_labels(masks))

    def _mask(self, at: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The pseudo-labels of a mask and their confidence, uint8 [H, W]."""
        mask, levels = (decode_mask(self._content(part, at)) for part in ("labels", "confidence"))
        return mask, levels

    def _samples(self, index: NDArray[np.int64]) -> StoredLabels:
        parts = []
        for file in sorted((self.path / "labels").glob("*.npz")):
            with reading(file, ADVICE), np.load(file) as arrays:
                parts.append(dict(arrays))
        with reading(self.path / MANIFEST, ADVICE):
            whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            order = np.argsort(whole["index"])
            if not np.array_equal(whole["index"][order], index):
                raise ValueError("the labels are of other samples than those without a label")
        ordered = {name: values[order] for name, values in whole.items()}
        return StoredLabels(
            index, ordered["label"], ordered["confidence"], ordered.get("probabilities")
        )

    def _masks(self, index: NDArray[np.int64]) -> StoredLabels:
        soft = (self.path / "soft").is_dir()
        labels, confidence, planes = [], [], {}
        for at in index.tolist():
            labels.append(self._content("labels", at))
            confidence.append(float(decode_mask(self._content("confidence", at)).mean()) / 255)
            if soft:
                planes[at] = self._content("soft", at)
        return StoredLabels(index, as_labels(labels), np.array(confidence), soft_masks=planes)

    def _content(self, part: str, at: int) -> bytes:
        file = self._file(part, at, "png")
        with reading(file, ADVICE):
            return file.read_bytes()

    def _digest(self, found: StoredLabels) -> str:
        digest = hashlib.sha256(self.target.content(found.labels))
        if found.probabilities is not None:
            digest.update(found.probabilities.astype("<f4").tobytes())
        for content in found.soft_masks.values():
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()

    def _file(self, part: str, at: int, suffix: str) -> Path:
        return self.path / part / f"{at:06d}.{suffix}"

    @staticmethod
    def _write(file: Path, content: bytes) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary:
            temporary.write_bytes(content)


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
