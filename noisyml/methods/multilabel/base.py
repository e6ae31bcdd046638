"""Plain multi-label classification: a sigmoid per class, on what a selector trusts.

The baseline of studies of label noise in multi-label images (Burgert, Ravanbakhsh, Demir, IEEE TGRS
2022, arXiv 2207.13975): with ``selector=keep_all``, binary cross-entropy averaged over all entries.
Methods that weigh, correct or exchange samples or entries start from it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from noisyml.data.views import Batch
from noisyml.losses.base import Loss
from noisyml.losses.multilabel.base import MultiLabelLoss
from noisyml.methods.classification.base import Classification
from noisyml.methods.parts import Parts
from noisyml.selectors.training_dynamics import entry_facts, scored_entry_facts
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
    noted = staticmethod(entry_facts)
    noted_with_scores = staticmethod(scored_entry_facts)

    def __init__(self, parts: Parts) -> None:
        parts.need("loss", MultiLabelLoss)
        super().__init__(parts)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: classify, judge, learn from the trusted."""
        seen = self.classify_globally(batch)
        entry_loss = self.loss(seen.logits, seen.labels, seen.index, self.current_epoch)
        sample_loss = self.loss.per_sample(entry_loss)
        self._facts = self.facts(seen, sample_loss)
        selection = self.judge(seen, sample_loss, entry_loss)
        loss = self.loss.reduce(entry_loss, selection.keep)
        return self.outcome(loss, selection, seen.index)
