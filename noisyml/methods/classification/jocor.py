"""JoCoR: two networks learn as one from the samples of small joint loss.

Wei et al., "Combating noisy labels by agreement: a joint training method with co-regularization",
CVPR 2020 (arXiv 2003.02752). Where co-teaching+ learns from disagreement, JoCoR makes the networks
agree: agreement between differently initialised networks is rare on a wrong label.
"""

from __future__ import annotations

from typing import Any

from noisyml.checks import Count, OpenShare, Positive, Share
from noisyml.data.views import Batch
from noisyml.losses.links import joint_loss
from noisyml.methods.classification.base import kept_mean
from noisyml.methods.classification.small_loss import SmallLoss
from noisyml.methods.parts import Parts
from noisyml.methods.two_networks import Predict
from noisyml.selectors.small_loss import quota, small_loss


class JoCoR(SmallLoss):
    """Both networks learn from the same samples, by one loss that rewards agreement.

    Args:
        parts, predict, best_by: see `TwoNetworks`.
        noise_rate, num_gradual, exponent: see `SmallLoss`.
        co_lambda: weight of the agreement, lambda, in [0, 1].
    """

    def __init__(
        self,
        parts: Parts,
        *,
        noise_rate: OpenShare | None,
        num_gradual: Count = 10,
        exponent: Positive = 1.0,
        co_lambda: Share = 0.9,
        predict: Predict = "first",
        best_by: str | None = None,
    ) -> None:
        super().__init__(
            parts,
            noise_rate=noise_rate,
            num_gradual=num_gradual,
            exponent=exponent,
            predict=predict,
            best_by=best_by,
        )
        self.co_lambda = co_lambda

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: the samples on which both networks do well and agree teach both."""
        seen = self.see(batch)
        joint = joint_loss(seen.first.logits, seen.second.logits, seen.labels, self.co_lambda)
        keep = small_loss(joint, quota(len(joint), self.forget))
        return self.outcome(kept_mean(joint, keep), keep, joint, seen)
