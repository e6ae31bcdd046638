"""Meta re-weighting: a sample weighs as much as its gradient agrees with that of trusted samples.

Ren et al., "Learning to Reweight Examples for Robust Deep Learning", ICML 2018 (arXiv 1803.09050),
algorithm 1. The virtual step starts with zero weights and so does not move the parameters; the
size of the step scales all weights alike and drops out when they are normalised.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noisyml.data.views import Batch
from noisyml.methods.classification.meta_learning import MetaLearning
from noisyml.selectors.base import Selection


def positive_shares(agreement: Tensor) -> Tensor:
    """Weights [B] that sum to 1, in proportion to what is positive of `agreement` [B] (eq. 7-8).

    If nothing is positive, all weights are 0.
    """
    positive = agreement.clamp(min=0)
    total = positive.sum()
    return positive / torch.where(total > 0, total, torch.ones_like(total))


class MetaReweighting(MetaLearning):
    """A classifier whose samples weigh by their agreement with trusted ones in this very step.

    A sample counts as kept if its weight is positive; its score is the weight as a share of the
    batch's largest. Arguments and errors are those of `MetaLearning`.
    """

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: classify, weigh, learn; a batch without any weight has loss 0."""
        mine, seen = self.classify_twice_differentiably(batch)
        sample_loss = self.sample_loss(seen)
        direction = self.trusted_gradient(self.trained())
        weights = positive_shares(self.agreement(mine, seen, sample_loss, direction))
        largest = weights.max()
        scores = weights / torch.where(largest > 0, largest, torch.ones_like(largest))
        loss = (weights * sample_loss).sum()
        return self.outcome(loss, Selection(weights > 0, scores), seen.index)
