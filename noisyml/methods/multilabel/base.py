"""Plain multi-label classification: a sigmoid per class, on what a selector trusts.

The baseline of studies of label noise in multi-label images (Burgert, Ravanbakhsh, Demir, IEEE TGRS
2022, arXiv 2207.13975): with ``selector=keep_all``, binary cross-entropy averaged over all entries.
Methods that weigh, correct or exchange samples or entries start from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from noisyml.data.views import Batch
from noisyml.losses.base import Loss
from noisyml.losses.multilabel.base import MultiLabelLoss
from noisyml.methods.classification.base import Classification, Classified
from noisyml.methods.parts import Parts
from noisyml.selectors.base import Selection
from noisyml.selectors.training_dynamics import entry_facts, entry_margin
from noisyml.targets import TargetKind


class MultiLabel(Classification):
    """A linear classifier with sigmoids, trained on the entries or samples a selector keeps.

    A subclass writes `training_step` from `classify_globally`, `loss`, `judge` and `outcome`. All
    that belongs to the kind of labels is in `loss` (a batch's labels become a loss per entry, per
    sample and in all), so that it also fits methods with two networks.

    Args:
        parts: the loss is of each entry, and has a reduction; the selector judges the global batch:
            samples [B], or entries [B, C].
    """

    takes_loss: ClassVar[type[Loss]] = MultiLabelLoss
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"multi"})
    evidence: ClassVar[frozenset[str]] = Classification.evidence | {"entry_loss"}
    loss: MultiLabelLoss

    def __init__(self, parts: Parts) -> None:
        parts.need("loss", MultiLabelLoss)
        super().__init__(parts)

    @torch.no_grad()
    def own_trust(self, seen: Classified, selection: Selection) -> Selection:
        """See `Classification.own_trust`; a sample counts by its entry of the smallest margin."""
        margin, suspected = entry_margin(seen.logits, seen.labels)
        return Selection(
            selection.keep, margin.sigmoid(), {"suspected": suspected}, log_odds=margin
        )

    def facts(self, seen: Classified, sample_loss: Tensor) -> Mapping[str, Tensor]:
        """See `Classification.facts`; the margin is that of the entry that has the least."""
        return entry_facts(seen.logits.detach(), seen.labels, sample_loss.detach())

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: classify, judge, learn from the trusted."""
        seen = self.classify_globally(batch)
        entry_loss = self.loss(seen.logits, seen.labels, seen.index, self.current_epoch)
        sample_loss = self.loss.per_sample(entry_loss)
        self._facts = self.facts(seen, sample_loss)
        selection = self.judge(seen, sample_loss, entry_loss)
        loss = self.loss.reduce(entry_loss, selection.keep)
        return self.outcome(loss, selection, seen.index)
