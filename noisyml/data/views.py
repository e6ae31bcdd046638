"""Map-style views that PyTorch's DataLoader reads: one call fetches one whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from noisyml.data.base import Split
from noisyml.data.inputs import BrokenImage, sentence_of
from noisyml.data.labelled import SoftMasks
from noisyml.data.samplers.plans import DrawnBatch
from noisyml.data.transforms.image import ViewMaker
from noisyml.data.transforms.paired import paired
from noisyml.errors import UserError
from noisyml.targets import Labels, Target, label_fields, target_of

OnBroken = Literal["error", "skip"]

#: ``index`` [b] int64, ``label`` [b] int64 or (several labels) ``labels`` [b, C] float32 of zeros
#: and ones or (a mask per image) ``mask`` uint8 [b, H, W], ``image`` uint8 [b, C, H, W] or
#: ``features`` [b, F] (in training, of a transform that makes V > 1 views, ``views`` uint8
#: [b, V, C, H, W] instead), ``labelled`` [b] bool where a split has samples whose label training
#: must not use, ``soft`` uint8 [b, C, H, W] where some of these have soft masks, ``vector`` float32
#: [b, D] of sets of vectors; where training draws a partner of each row, its index, vector or
#: features, with `PARTNER` before the name,
#: ``broken`` [k] int64: positions that could not be decoded and are absent from the batch.
Batch = dict[str, Tensor]


#: Stands before the names of the rows' partners in a batch.
PARTNER = "partner_"
#: Numbers of the partners [b] int64 of rows [b] int64, by a random number [b] uint64 for each.
DrawPartners = Callable[[NDArray[np.int64], NDArray[np.uint64]], NDArray[np.int64]]


def whole(batch: Any) -> Any:
    """The collate function of all loaders: a view already returns a whole batch."""
    return batch


class UnusableBatch(UserError):
    """Images that cannot be put into one batch; its sentence survives a worker process."""

    def __init__(self, message: str) -> None:
        super().__init__(sentence_of(UnusableBatch, message))


def stack(images: Sequence[Tensor]) -> Tensor:
    """Images uint8 [C, H, W] as one uint8 [b, C, H, W]; empty if there are none.

    Raises:
        UnusableBatch: they differ in height or width.
    """
    if not images:
        return torch.empty(0)
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) == 1:
        return torch.stack(list(images))
    # A folder may mix grey and colour images; colour wins.
    colour = [image.expand(3, -1, -1) if image.shape[0] == 1 else image for image in images]
    sizes = {tuple(image.shape[1:]) for image in colour}
    if len(sizes) > 1:
        (height, width), (other_height, other_width) = sorted(sizes)[:2]
        raise UnusableBatch(
            f"The images differ in size ({width}x{height} and {other_width}x{other_height} pixels "
            "in one batch): set transform=square transform.size=64 or transform=photo."
        )
    return torch.stack(colour)


def _labelled_field(labelled: NDArray[np.bool_] | None, index: NDArray[np.int64]) -> Batch:
    """``labelled`` [b] bool of a split where some samples are not; nothing elsewhere."""
    if labelled is None:
        return {}
    return {"labelled": torch.from_numpy(np.ascontiguousarray(labelled[index]))}


def _batch(
    positions: NDArray[np.int64],
    labels: Labels,
    images: list[Tensor],
    broken: list[int],
    labelled: NDArray[np.bool_] | None = None,
    masks: list[Tensor] | None = None,
) -> Batch:
    gone = np.isin(positions, np.asarray(broken, dtype=np.int64))
    index = positions[~gone]
    target = target_of(labels)
    fields = label_fields(labels, index) if masks is None else _mask_fields(target, masks)
    return {
        "index": torch.from_numpy(np.ascontiguousarray(index)),
        **fields,
        **_labelled_field(labelled, index),
        "image": stack(images),
        "broken": torch.tensor(broken, dtype=torch.int64),
    }


def _mask_fields(target: Target, masks: list[Tensor]) -> Batch:
    """Masks [b, H, W] and, where they have planes behind them, those as ``soft`` [b, C, H, W]."""
    stacked = torch.stack(masks) if len({mask.shape for mask in masks}) == 1 else stack(masks)
    fields = {target.field: stacked[:, 0]} if len(masks) else {target.field: stacked}
    return fields | ({"soft": stacked[:, 1:]} if masks and stacked.shape[1] > 1 else {})


def _pixels(target: Target, label: Any) -> Tensor:
    """The mask of one sample as an image of one channel, uint8 [1, H, W]."""
    return torch.from_numpy(np.array(target.pixels(label)))[None]


class TrainingView(Dataset[Any]):
    """Randomly transformed training images with observed labels.

    Labels that are pictures are transformed together with their images.

    Args:
        split: the images.
        labels: observed labels, [N] int64 or [N, C] uint8.
        transform: its random form is used.
        on_broken: what an undecodable image does: ``error`` or ``skip``.
        soft_masks: of some samples; a batch then has ``soft`` uint8 [b, C, H, W] beside masks.
    """

    def __init__(
        self,
        split: Split,
        labels: Labels,
        transform: ViewMaker,
        on_broken: OnBroken = "error",
        soft_masks: SoftMasks | None = None,
    ) -> None:
        self._split, self._labels, self._transform = split, labels, transform
        self._on_broken = on_broken
        self._target = target_of(labels)
        self._soft = SoftMasks() if soft_masks is None else soft_masks

    def __len__(self) -> int:
        return len(self._split)

    def __getitems__(self, drawn: DrawnBatch) -> Batch:
        if not len(drawn.index):
            return self._nothing()
        images: list[Tensor] = []
        masks: list[Tensor] | None = [] if self._target.beside_image else None
        broken: list[int] = []
        for position, seed in zip(drawn.index.tolist(), drawn.seed.tolist(), strict=True):
            try:
                images += self._views(position, seed, masks)
            except BrokenImage:
                if self._on_broken == "error":
                    raise
                broken.append(position)
        if not images:
            raise UnusableBatch(
                f"None of the {len(broken)} images of a training batch can be decoded (one of "
                f"them: {self._split.keys[broken[0]]}); `noisyml data check` lists them all."
            )
        return self._by_views(
            _batch(drawn.index, self._labels, images, broken, self._split.labelled, masks)
        )

    def _views(self, position: int, seed: int, masks: list[Tensor] | None) -> list[Tensor]:
        """The views of an image; its mask, cut and turned alike, joins `masks`."""
        picture = self._split.images.load(position)
        if masks is None:
            return self._transform.views(picture, seed)
        mask = _pixels(self._target, self._labels[position])
        if self._soft.classes:
            # Its planes lie behind the mask, and are cut and turned with it.
            planes = self._soft.planes(position, mask.shape[1:])
            mask = torch.cat([mask, torch.from_numpy(planes)])
        image, moved = paired(self._transform).train_pair(picture, mask, seed)
        masks.append(moved)
        return [image]

    def _nothing(self) -> Batch:
        """Share of a process in a last batch of fewer images than processes: tensors of length 0.

        They have the shape of other images, so that the network is passed as by everybody else.
        """
        for position in range(len(self._split)):
            masks: list[Tensor] | None = [] if self._target.beside_image else None
            try:
                like = self._views(position, 0, masks)
            except BrokenImage:
                if self._on_broken == "error":
                    raise
            else:
                none = np.empty(0, dtype=np.int64)
                batch = _batch(none, self._labels, like, [], self._split.labelled, masks)
                batch = self._by_views(batch)
                return {key: rows[:0] for key, rows in batch.items()}
        raise UnusableBatch(f"None of the {len(self._split)} training images can be decoded.")

    def _by_views(self, batch: Batch) -> Batch:
        """The batch, its images grouped by sample where each has several views."""
        if self._transform.n_views > 1:
            batch["views"] = batch.pop("image").unflatten(0, (-1, self._transform.n_views))
        return batch


class EvaluationView(Dataset[Any]):
    """Deterministically transformed images with given labels.

    Args:
        split: the images.
        transform: its deterministic form is used.
        labels: labels to report, [N] int64 or [N, C] uint8; the split's own if not given.
        on_broken: what an undecodable image does: ``error`` or ``skip``.
    """

    def __init__(
        self,
        split: Split,
        transform: ViewMaker,
        labels: Labels | None = None,
        on_broken: OnBroken = "error",
    ) -> None:
        self._split, self._transform = split, transform
        self._labels = split.labels if labels is None else labels
        self._on_broken = on_broken
        self._target = target_of(self._labels)

    def __len__(self) -> int:
        return len(self._split)

    def __getitems__(self, positions: Sequence[int] | NDArray[np.int64]) -> Batch:
        asked = np.asarray(positions, dtype=np.int64)
        images: list[Tensor] = []
        masks: list[Tensor] | None = [] if self._target.beside_image else None
        broken = []
        for position in asked.tolist():
            try:
                picture = self._split.images.load(position)
                if masks is None:
                    images.append(self._transform.evaluate(picture))
                    continue
                mask = _pixels(self._target, self._labels[position])
                image, mask = paired(self._transform).evaluate_pair(picture, mask)
                images.append(image)
                masks.append(mask)
            except BrokenImage:
                if self._on_broken == "error":
                    raise
                broken.append(position)
        return _batch(asked, self._labels, images, broken, self._split.labelled, masks)


class FeatureView(Dataset[Any]):
    """Cached features or vectors with labels, for training and evaluation alike.

    Args:
        features: raw backbone features, or vectors, [N, F] float32, memory-mapped.
        labels: [N] int64 or [N, C] uint8.
        labelled: [N] bool, see `Split.labelled`; None: all are.
        name: of the rows in a batch: ``features`` or ``vector``.
        partners: draws a partner of each row of a training batch; None: there are none.
    """

    def __init__(
        self,
        features: Any,
        labels: Labels,
        labelled: NDArray[np.bool_] | None = None,
        name: Literal["features", "vector"] = "features",
        partners: DrawPartners | None = None,
    ) -> None:
        self._features, self._labels, self._labelled = features, labels, labelled
        self._target = target_of(labels)
        self._name, self._partners = name, partners

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, asked: DrawnBatch | Sequence[int] | NDArray[np.int64]) -> Batch:
        index = asked.index if isinstance(asked, DrawnBatch) else np.asarray(asked, dtype=np.int64)
        return {
            "index": torch.from_numpy(np.ascontiguousarray(index)),
            **label_fields(self._labels, index, self._target),
            **_labelled_field(self._labelled, index),
            self._name: self._rows(index),
            **self._drawn(asked),
            "broken": torch.empty(0, dtype=torch.int64),
        }

    def _rows(self, index: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._features[index]))

    def _drawn(self, asked: Any) -> Batch:
        """The partners of a training batch, where they are drawn; by the seed of each sample."""
        if self._partners is None or not isinstance(asked, DrawnBatch):
            return {}
        index = self._partners(asked.index, asked.seed)
        return {
            f"{PARTNER}index": torch.from_numpy(np.ascontiguousarray(index)),
            f"{PARTNER}{self._name}": self._rows(index),
        }
