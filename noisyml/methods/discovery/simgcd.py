"""SimGCD: a classifier over old and new classes that teaches itself across views.

Wen, Zhao and Qi, "Parametric Classification for Generalized Category Discovery: A Baseline Study",
ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.checks import Count, NonNegative, Positive, Share, WholeNonNegative
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.discovery.contrast import info_nce, masked_mean, supervised_contrast
from noisyml.losses.discovery.self_distillation import entropy_gap, self_distillation, sharpening
from noisyml.methods.checkpoints import read_checkpoint
from noisyml.methods.discovery.base import Discovery
from noisyml.methods.parts import Parts
from noisyml.models.heads import unit_norm
from noisyml.models.projection import UnitRows, perceptron, usual_layers


class SimGCD(Discovery):
    """Prototypes of all classes by cosine: labels, self-distillation and an even use of classes.

    Args:
        parts: see `Discovery`.
        num_classes: prototypes K; None: the number of classes.
        supervised_weight: share of the two supervised losses.
        entropy_weight: of the entropy of the mean prediction; 1 on coarse or long-tailed sets.
        temperature: of the predictions.
        teacher_start: temperature of the targets in the first epoch.
        teacher_end: and after the warm-up.
        teacher_warmup: epochs from one to the other.
        unsupervised_temperature: of the contrast of views.
        supervised_temperature: of the supervised contrast.
        projection_hidden: width of the projection head's hidden layers.
        projection_size: width of its output.
        projection_layers: its linear layers; None: see `usual_layers`.

    Raises:
        UserError: see `Discovery`.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"embeddings", "logits"})
    evidence: ClassVar[frozenset[str]] = frozenset({"embeddings", "logits", "sample_loss"})

    def __init__(
        self,
        parts: Parts,
        *,
        num_classes: Count | None = None,
        supervised_weight: Share = 0.35,
        entropy_weight: NonNegative = 2.0,
        temperature: Positive = 0.1,
        teacher_start: Positive = 0.07,
        teacher_end: Positive = 0.04,
        teacher_warmup: WholeNonNegative = 30,
        unsupervised_temperature: Positive = 1.0,
        supervised_temperature: Positive = 0.07,
        projection_hidden: Count = 2048,
        projection_size: Count = 256,
        projection_layers: Count | None = None,
    ) -> None:
        super().__init__(parts)
        width, known = self.encoder.out_features, len(parts.sizes.class_names)
        self.num_classes = known if num_classes is None else num_classes
        self.supervised_weight, self.entropy_weight = supervised_weight, entropy_weight
        self.temperature = temperature
        self.teacher_start, self.teacher_end = teacher_start, teacher_end
        self.teacher_warmup = teacher_warmup
        self.unsupervised_temperature = unsupervised_temperature
        self.supervised_temperature = supervised_temperature
        self.prototypes = UnitRows(width, self.num_classes)
        layers = usual_layers(width) if projection_layers is None else projection_layers
        self.projector = perceptron(width, projection_hidden, projection_size, layers)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: classify and project two views, judge the labels, learn from both."""
        seen = self.see(batch)
        tokens = seen.tokens["class"]
        cosines = self.cosines(tokens)
        projected = unit_norm(self.projector(tokens))
        self.watch(projected)
        logits = cosines / self.temperature
        losses = F.cross_entropy(logits, seen.labels.clamp(min=0), reduction="none")
        selection = self.judge(seen, losses, logits)
        labels = seen.trusting(selection).labels
        known = labels >= 0
        sharp = sharpening(
            self.current_epoch, self.teacher_warmup, self.teacher_start, self.teacher_end
        )
        contrast = supervised_contrast(projected, projected, labels, self.supervised_temperature)
        terms = {
            "classified": masked_mean(losses, known),
            "supervised": masked_mean(contrast, known),
            "distilled": self_distillation(cosines, sharp, self.temperature).mean(),
            "entropy_gap": entropy_gap(cosines, self.temperature),
            "unsupervised": info_nce(projected, projected, self.unsupervised_temperature).mean(),
        }
        with_labels = terms["classified"] + terms["supervised"]
        without = (
            terms["distilled"] + self.entropy_weight * terms["entropy_gap"] + terms["unsupervised"]
        )
        share = self.supervised_weight
        return self.outcome(share * with_labels + (1 - share) * without, seen, selection, terms)

    def cosines(self, tokens: Tensor) -> Tensor:
        """Cosines [n, K] of tokens [n, D] with the prototypes."""
        scores: Tensor = self.prototypes(unit_norm(tokens))
        return scores

    # -- evaluation and checkpoints ----------------------------------------------------------

    def outputs(self, batch: Batch, wanted: Collection[str]) -> dict[str, Tensor]:
        """Embeddings and, if wanted, class scores of this rank's batch."""
        outputs = {"embeddings": self.encoder(batch)}
        if "logits" in wanted:
            outputs["logits"] = self.cosines(self.encoder.raw(batch)) / self.temperature
        return outputs

    def load_trained(self, file: Path) -> None:
        """Take encoder and prototypes.

        Raises:
            UserError: the checkpoint belongs to another architecture or number of classes.
        """
        super().load_trained(file)
        weight = read_checkpoint(file)["state_dict"].get("prototypes.weight", torch.empty(0))
        if weight.shape != self.prototypes.weight.shape:
            raise UserError(
                f"{file} holds prototypes {list(weight.shape)}, and {self.num_classes} classes of "
                f"{self.encoder.out_features} dimensions are configured: keep method.num_classes "
                "and the data as they were."
            )
        self.prototypes.load_state_dict({"weight": weight})
