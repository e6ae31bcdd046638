"""Co-teaching and co-teaching+: two networks hand each other the samples of small loss.

Han et al., "Co-teaching: Robust training of deep neural networks with extremely noisy labels",
NeurIPS 2018 (arXiv 1804.06872): the two networks err differently, so that what one of them takes
for clean filters the errors of the other. Yu et al., "How does disagreement help generalization
against label corruption?", ICML 2019 (arXiv 1901.04215): in time the networks become alike;
co-teaching+ keeps them apart by learning only where their predictions differ.

Points in which released codes of co-teaching+ differ from this module, as defects: a sample whose
position in the data set is 0 is never learnt from, and probabilities instead of class scores enter
the cross-entropy, which applies a softmax again. Where a quota rounds to no sample they take all
candidates; here it is one.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from noisyml.checks import Count, OpenShare, Positive, WholeNonNegative
from noisyml.data.views import Batch
from noisyml.methods.classification.base import kept_mean
from noisyml.methods.classification.small_loss import SmallLoss
from noisyml.methods.parts import Parts
from noisyml.methods.two_networks import Predict, Seen
from noisyml.selectors.small_loss import exchange, quota


def disagreement(first: Tensor, second: Tensor) -> Tensor:
    """Samples for which two networks predict different classes, [B] bool from scores [B, C] each.

    Where they differ nowhere in the batch all samples count: the step is one of co-teaching.
    (The release takes plain cross-entropy on such a batch at first and skips it later.)
    """
    differ = first.argmax(dim=1) != second.argmax(dim=1)
    return differ | ~differ.any()


class CoTeaching(SmallLoss):
    """Each network learns from the samples that have a small loss in the other."""

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: both networks see the batch, rank it, exchange, and learn."""
        seen = self.see(batch)
        first = F.cross_entropy(seen.first.logits, seen.labels, reduction="none")
        second = F.cross_entropy(seen.second.logits, seen.labels, reduction="none")
        for_first, for_second = self.exchange(seen, first.detach(), second.detach())
        loss = kept_mean(first, for_first) + kept_mean(second, for_second)
        return self.outcome(loss, for_first, second, seen)

    def exchange(self, seen: Seen, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Samples that each network is to learn from, [B] bool each, by the losses [B] of both."""
        return exchange(first, second, quota(len(seen.labels), self.forget))


class CoTeachingPlus(CoTeaching):
    """Co-teaching among the samples on which the two networks disagree.

    Args:
        parts, predict, best_by: see `TwoNetworks`.
        noise_rate, num_gradual, exponent: see `SmallLoss`; the quota is a share of the samples in
            disagreement.
        warmup_epochs: epochs of plain co-teaching, before disagreement counts.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        noise_rate: OpenShare | None,
        num_gradual: Count = 10,
        exponent: Positive = 1.0,
        warmup_epochs: WholeNonNegative = 20,
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
        self.warmup_epochs = warmup_epochs

    def exchange(self, seen: Seen, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """See `CoTeaching`; after the warm-up only samples in disagreement are handed over."""
        if self.current_epoch < self.warmup_epochs:
            return super().exchange(seen, first, second)
        among = disagreement(seen.first.logits, seen.second.logits)
        return exchange(first, second, quota(among.sum(), self.forget), among)
