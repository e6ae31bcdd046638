"""Semantic segmentation: cross-entropy of pixels, and stages of self-training (GIST, RIST).

Teh et al., "The GIST and RIST of Iterative Self-Training for Semi-Supervised Segmentation", CRV
2022 (arXiv 2103.17105), for the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from noisyml.checks import Share
from noisyml.data.transforms.paired import SegmentationTransform
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.segmentation.pixels import (
    PseudoLabels,
    mixed,
    pixel_cross_entropy,
    pseudo_labels,
    soft_pixel_cross_entropy,
    upsampled,
)
from noisyml.methods.checkpoints import read_checkpoint
from noisyml.methods.parts import Parts
from noisyml.methods.passes import batches_on, evaluation_mode
from noisyml.methods.pseudo_label_files import StoredLabels
from noisyml.methods.segmentation.overlays import overlay
from noisyml.methods.self_training import PseudoLabelling, SelfTraining
from noisyml.models.backbones.base import LAST_MAP
from noisyml.runs.artefacts import Artefact
from noisyml.targets import TargetKind
from noisyml.targets.masks import IGNORE, as_labels, encode_mask, mask_size

if TYPE_CHECKING:
    import pandas as pd

    from noisyml.data.datamodule import DataModule


#: Images of the test that a run shows.
SHOWN = 8


class Segmentation(SelfTraining):
    """A head that classifies the pixels of the backbone's last map, brought to the image's size.

    The loss is ``(1 - alpha)`` times the mean over the pixels with a human label plus ``alpha``
    times that over the pixels with a pseudo-label, each over the whole global batch.

    Args:
        parts: the encoder's backbone must have feature maps.
        segmenter: makes the head, from ``in_features`` and ``num_classes``.
        align_corners: of the bilinear step from the map to the image; true: the corners of both
            meet, as in the released code of ClassMix and S4GAN.
        freeze_affine: scale and shift of the backbone's batch norms are not trained, while their
            statistics go on (as in the same code).
        alpha: weight of pseudo-labels; 0: human labels alone, 1: pseudo-labels alone.
        pseudo: settings of the pseudo-labels.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"embeddings", "class_map"})
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"masks"})
    taught: ClassVar[tuple[str, ...]] = ("encoder.", "segmenter.")

    def __init__(
        self,
        parts: Parts,
        *,
        segmenter: Callable[..., nn.Module],
        align_corners: bool = True,
        freeze_affine: bool = False,
        alpha: Share = 0.0,
        pseudo: PseudoLabelling | None = None,
    ) -> None:
        super().__init__(parts)
        backbone = self.encoder.backbone
        if not backbone.has_maps:
            raise UserError(
                f"{type(backbone.body).__name__} has no feature maps, which method=segmentation "
                "reads: choose a convolutional backbone=..., e.g. small_cnn or resnet50."
            )
        self.class_names = list(parts.sizes.class_names)
        self.segmenter = segmenter(
            in_features=backbone.out_features, num_classes=len(self.class_names)
        )
        self.align_corners = align_corners
        self.alpha = alpha
        self.pseudo = PseudoLabelling() if pseudo is None else pseudo
        if freeze_affine:
            for module in backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    for parameter in module.parameters():
                        parameter.requires_grad_(False)

    # -- the step ----------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step on human labels, pseudo-labels or both."""
        logits, mask = self.logits(batch), batch["mask"]
        labelled = batch.get("labelled")
        if labelled is None:
            labelled = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
        terms: dict[str, Tensor] = {}
        if self.alpha < 1:
            human = mask.masked_fill(~labelled[:, None, None], IGNORE)
            terms["human"] = pixel_cross_entropy(logits, human).global_mean()
        if self.alpha > 0:
            given = mask.masked_fill(labelled[:, None, None], IGNORE)
            if "soft" in batch:
                planes = batch["soft"].to(logits.dtype)
                shares = planes / planes.sum(dim=1, keepdim=True).clamp(min=1)
                summed = soft_pixel_cross_entropy(logits, shares, given != IGNORE)
            else:
                summed = pixel_cross_entropy(logits, given)
            terms["pseudo"] = summed.global_mean()
        if self.alpha in (0, 1):
            (loss,) = terms.values()
        else:
            loss = mixed(terms["human"], terms["pseudo"], self.alpha)
        return {"loss": loss, "terms": {name: term.detach() for name, term in terms.items()}}

    def logits(self, batch: Batch) -> Tensor:
        """Class scores [b, C, H, W] of the pixels of ``image``, float32 or better."""
        image = batch["image"]
        maps = self.encoder.backbone.activations(image, [LAST_MAP]).maps[LAST_MAP]
        scores: Tensor = self.segmenter(maps)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        height, width = image.shape[-2:]
        return upsampled(scores, (height, width), self.align_corners)

    # -- pseudo-labels -----------------------------------------------------------------------

    def pseudo_labels_of(self, batch: Batch, threshold: float | None) -> PseudoLabels:
        """Labels of the pixels of a batch, [b, H, W]."""
        return pseudo_labels(self.logits(batch), threshold)

    def stored_labels(self, data: DataModule, found: PseudoLabels, index: Tensor) -> StoredLabels:
        """Masks at the sizes of their images, with the confidence of each pixel."""
        transform = data.transform
        if not isinstance(transform, SegmentationTransform):
            raise UserError(
                f"{type(transform).__name__} does not say where the pixels of an image are: use "
                f"transform=segmentation."
            )
        labels = found.labels.to(torch.uint8).cpu()
        confidence = (found.confidence * 255).round().to(torch.uint8).cpu()
        planes = (found.probabilities * 255).round().to(torch.uint8).cpu()
        positions = index.cpu().numpy()
        masks, certain, soft = [], [], {}
        # Files of images that may differ in size; made once per stage.
        for row, at in enumerate(positions.tolist()):
            size = mask_size(data.manifest.observed[at])
            masks.append(encode_mask(transform.native(labels[row][None], size)[0].numpy()))
            certain.append(transform.native(confidence[row][None], size)[0].numpy())
            if self.pseudo.soft:
                native = transform.native(planes[row], size)
                soft[at] = encode_mask(native.reshape(-1, native.shape[-1]).numpy())
        shares = np.array([float(part.mean()) / 255 for part in certain])
        return StoredLabels(
            positions,
            as_labels(masks),
            shares,
            confidence_masks=certain,
            soft_masks=soft,
        )

    # -- evaluation and checkpoints ----------------------------------------------------------

    def outputs(self, batch: Batch, wanted: Collection[str]) -> dict[str, Tensor]:
        """Embeddings and predicted masks of this rank's batch, those that are wanted."""
        outputs = {}
        if "embeddings" in wanted:
            outputs["embeddings"] = self.encoder(batch)
        if "class_map" in wanted:
            outputs["class_map"] = pseudo_labels(self.logits(batch)).labels
        return outputs

    def artefacts(self, data: DataModule, trust: pd.Series | None) -> Iterable[Artefact]:
        """Test images with masks, predictions and differences; the classes of pseudo-labels."""
        yield from self.pseudo_artefacts(data)
        if "test" in data.splits:
            yield self._overlays(data)

    @torch.no_grad()
    def _overlays(self, data: DataModule) -> Artefact:
        """A few test images, evenly chosen, with the masks of data and model."""
        split, classes = data.splits["test"], len(self.class_names)
        chosen = np.unique(np.linspace(0, len(split) - 1, SHOWN).round().astype(np.int64))
        pictures, text = [], []
        with evaluation_mode(self):
            for batch in batches_on(self.device, data.predict_dataloader("test", chosen)):
                found = pseudo_labels(self.logits(batch)).labels.cpu().numpy().astype(np.uint8)
                given, image = batch["mask"].cpu().numpy(), batch["image"].cpu().numpy()
                shape = (len(image), 3, *image.shape[2:])
                image = np.moveaxis(np.broadcast_to(image[:, :3], shape), 1, 3)
                for row, at in enumerate(batch["index"].tolist()):
                    pictures.append(overlay(image[row], found[row], given[row], classes))
                    known = given[row] != IGNORE
                    share = (found[row] == given[row])[known].mean() if known.any() else 1.0
                    text.append(f"{split.keys[at]}: {share:.0%} of the pixels right")
        arrays = {"images": np.stack(pictures), "text": np.array(text)}
        caption = (
            "Test images, evenly chosen: the image, the mask in the data, the model's, and (red) "
            "the pixels in which they differ."
        )
        return Artefact("masks.npz", arrays, "Masks", caption)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down what the classes are called."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["class_names"] = self.class_names

    def load_trained(self, file: Path) -> None:
        """Take the encoder and the head.

        Raises:
            UserError: the checkpoint belongs to another architecture or to other classes.
        """
        names = read_checkpoint(file).get("class_names")
        if names is not None and list(names) != self.class_names:
            raise UserError(
                f"{file} tells {len(names)} classes apart, which are not the "
                f"{len(self.class_names)} of this data set: evaluate it on the data that it was "
                f"trained on."
            )
        self.load_whole(file)
