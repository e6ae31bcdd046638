"""EAC: erasing attention consistency.

Zhang et al., "Learn From All: Erasing Attention Consistency for Noisy Label Facial Expression
Recognition", ECCV 2022 (arXiv 2207.10299). A network that memorises a wrong label looks at some
part of the image that the label may hang on. Two views, the image and its mirror image with boxes
erased, make such parts unreliable: the maps of where each class gets its score from must mirror
each other, while only the unmirrored view learns from the label. No sample is dropped, no noise
rate is asked for. Mirroring must not change the class: digits, letters and traffic signs break it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from noisyml import distributed
from noisyml.checks import NonNegative
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.classification.eac import attention_consistency
from noisyml.methods.classification.base import Classification, Classified, OnEmpty
from noisyml.methods.parts import Parts
from noisyml.models.backbones.base import LAST_MAP
from noisyml.models.class_maps import obstacle_to_class_maps


class EAC(Classification):
    """A loss on labels for view 1, and consistency of class activation maps between both views.

    The views go through the network one after the other, as in the released code: batch norm
    normalises each by itself and updates its statistics twice a step.

    Args:
        parts: the encoder has average pooling and nothing between it and the classifier; the
            selector chooses which labels teach; the consistency reads none and sees all samples.
        consistency_weight: lambda, not negative; 5 in the paper, on a network that was trained on
            faces before; with 0 and without `ce_on_both` view 2 is not computed.
        detach_classifier: keep the classifier out of reach of the consistency.
        ce_on_both: let view 2 learn from labels too, by the mean of both views' losses (ablation;
            the paper's supervision is imbalanced). What the loss remembers of a sample is what the
            network makes of view 1, and moves on once a step.
        on_empty: see `Classification`.

    Raises:
        UserError: an encoder without class activation maps.
    """

    n_views: ClassVar[int] = 2

    def __init__(
        self,
        parts: Parts,
        *,
        consistency_weight: NonNegative = 1.0,
        detach_classifier: bool = True,
        ce_on_both: bool = False,
        on_empty: OnEmpty = "skip",
    ) -> None:
        super().__init__(parts, on_empty=on_empty)
        if obstacle := obstacle_to_class_maps(parts.encoder):
            raise UserError(f"EAC compares class activation maps, and {obstacle}.")
        self.consistency_weight = consistency_weight
        self.detach_classifier = detach_classifier
        self.ce_on_both = ce_on_both

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: both views pass, the first learns from labels, their maps from each other."""
        first, second = batch["views"].unbind(dim=1)
        upright = self.encoder.encode({"image": first})
        seen = self.classify_globally(batch, upright.embeddings)
        if self.consistency_weight == 0 and not self.ce_on_both:
            sample_loss = self.sample_loss(seen)
            selection = self.judge(seen, sample_loss)
            loss = self.mean_loss(sample_loss, selection)
            return self.outcome(loss, selection, seen.index, {"classification": loss})

        mirrored = self.encoder.encode({"image": second})
        sample_loss = self.sample_loss_of_both(seen, mirrored.embeddings)
        selection = self.judge(seen, sample_loss)
        classification = self.mean_loss(sample_loss, selection)
        difference = attention_consistency(
            upright.maps[LAST_MAP],
            mirrored.maps[LAST_MAP],
            self.classifier.weight,
            detach_classifier=self.detach_classifier,
        )
        consistency = distributed.gather(difference).mean()
        loss = classification + self.consistency_weight * consistency
        terms = {"classification": classification, "consistency": consistency}
        return self.outcome(loss, selection, seen.index, terms)

    def sample_loss_of_both(self, seen: Classified, mirrored: Tensor) -> Tensor:
        """The loss [B] of each sample, by view 1 or by both views, see `ce_on_both`.

        Args:
            seen: view 1 of the global batch.
            mirrored: embeddings [b, D] of this rank's share of view 2.
        """
        if not self.ce_on_both:
            return self.sample_loss(seen)
        logits = distributed.gather(self.logits(mirrored))
        # One call, in which a sample occurs twice: a memory takes what comes last, view 1.
        losses: Tensor = self.loss(
            torch.cat([logits, seen.logits]),
            seen.labels.repeat(2),
            seen.index.repeat(2),
            self.current_epoch,
        )
        mean: Tensor = losses.unflatten(0, (2, -1)).mean(dim=0)
        self._facts = self.facts(seen, mean)
        return mean
