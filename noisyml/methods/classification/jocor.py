"""JoCoR: two networks learn as one from the samples of small joint loss.

Wei et al., "Combating noisy labels by agreement: a joint training method with co-regularization",
CVPR 2020 (arXiv 2003.02752). Where co-teaching+ learns from disagreement, JoCoR makes the networks
agree: agreement between differently initialised networks is rare on a wrong label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.links import joint_loss
from noisyml.methods.classification.base import kept_mean
from noisyml.methods.classification.small_loss import SmallLoss
from noisyml.methods.two_networks import Predict
from noisyml.metrics.base import Evaluator
from noisyml.models.encoder import Encoder
from noisyml.optim import OptimizerFactory, SchedulerFactory
from noisyml.selectors.small_loss import quota, small_loss


class JoCoR(SmallLoss):
    """Both networks learn from the same samples, by one loss that rewards agreement.

    Args:
        encoder, peer, optimizer, scheduler, evaluator, class_names: see `TwoNetworks`.
        noise_rate, num_gradual, exponent: see `SmallLoss`.
        co_lambda: weight of the agreement, lambda, in [0, 1].
        predict, best_by, param_groups: see `TwoNetworks`.

    Raises:
        UserError: no noise rate, or a value that cannot be.
    """

    def __init__(
        self,
        encoder: Encoder,
        peer: Encoder,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        evaluator: Evaluator,
        class_names: Sequence[str],
        noise_rate: float | None,
        num_gradual: int = 10,
        exponent: float = 1.0,
        co_lambda: float = 0.9,
        predict: Predict = "first",
        best_by: str = "accuracy",
        param_groups: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            encoder,
            peer,
            optimizer,
            scheduler,
            evaluator,
            class_names,
            noise_rate,
            num_gradual,
            exponent,
            predict,
            best_by,
            param_groups,
        )
        if not 0 <= co_lambda <= 1:
            raise UserError(f"method.co_lambda={co_lambda} is not a weight from 0 to 1.")
        self.co_lambda = co_lambda

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: the samples on which both networks do well and agree teach both."""
        seen = self.see(batch)
        joint = joint_loss(seen.first.logits, seen.second.logits, seen.labels, self.co_lambda)
        keep = small_loss(joint, quota(len(joint), self.forget))
        return self.outcome(kept_mean(joint, keep), keep, joint, seen)
