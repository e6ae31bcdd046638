"""JoCoR for several labels: two networks learn as one from the entries of small joint loss.

Wei et al., "Combating noisy labels by agreement: a joint training method with co-regularization",
CVPR 2020 (arXiv 2003.02752), with a probability for every class as in the study of Burgert et al.,
IEEE TGRS 2022 (arXiv 2207.13975). Where few entries are positive, those have the largest losses at
first: a share left out that is as large as the share of positives teaches the networks that nothing
is ever there.
"""

from __future__ import annotations

from typing import Any

from noisyml.checks import OpenShare, Share, WholeNonNegative
from noisyml.data.views import Batch
from noisyml.losses.multilabel.jocor import (
    Divergence,
    Unit,
    jocor_loss,
    joint_losses,
    keep_rate,
    small_losses,
)
from noisyml.methods.multilabel.two_networks import MultiLabelTwoNetworks
from noisyml.methods.parts import Parts
from noisyml.methods.two_networks import Predict
from noisyml.selectors.base import Facts, Selection
from noisyml.selectors.small_loss import trust_of_losses
from noisyml.selectors.training_dynamics import entry_facts


class JoCoRMultiLabel(MultiLabelTwoNetworks):
    """Both networks learn from the same entries, by one loss that rewards agreement.

    The share that is kept is one of the global batch.

    Args:
        parts, predict, best_by: see `TwoNetworks`.
        tau: share left out in the end, in [0, 1); for noise of a rate r relative to the positives,
            r times the share of positive entries (additive or subtractive), or twice that (mixed).
        gradual_epochs: T_k, epochs over which that share rises from 0.
        co_lambda: lambda, weight of the agreement, in [0, 1].
        unit: what is left out: each ``entry``, whole samples (``sample``), or of every ``class``
            equally many entries.
        divergence: ``symmetric_kl``, or ``released`` by a re-implementation, see `joint_losses`.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        tau: OpenShare = 0.05,
        gradual_epochs: WholeNonNegative = 10,
        co_lambda: Share = 0.6,
        unit: Unit = "entry",
        divergence: Divergence = "symmetric_kl",
        predict: Predict = "best",
        best_by: str | None = None,
    ) -> None:
        super().__init__(parts, predict=predict, best_by=best_by)
        self.tau = tau
        self.gradual_epochs = gradual_epochs
        self.co_lambda = co_lambda
        self.unit: Unit = unit
        self.divergence: Divergence = divergence

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: the entries on which both networks do well and agree teach both."""
        seen = self.see(batch)
        losses = joint_losses(
            seen.first.logits, seen.second.logits, seen.labels, self.co_lambda, self.divergence
        )
        rate = keep_rate(self.current_epoch, self.tau, self.gradual_epochs)
        keep = small_losses(losses, rate, self.unit)
        judged, kept = losses, keep
        if self.unit == "sample":
            judged, kept = losses.mean(dim=1), keep[:, 0]
        p_clean, log_odds = trust_of_losses(judged)
        selection = Selection(kept, p_clean, log_odds=log_odds)
        rows = {
            "logits": seen.first.logits.detach(),
            "labels": seen.labels,
            "sample_loss": losses.detach().mean(dim=1),
        }
        facts = Facts(rows, entry_facts)
        loss = jocor_loss(losses, keep)
        return {"loss": loss, "selection": selection, "index": seen.index, "facts": facts}
