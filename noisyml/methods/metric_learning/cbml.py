"""CBML: contrastive Bayesian analysis for deep metric learning.

Kan et al., "Contrastive Bayesian Analysis for Deep Metric Learning", IEEE TPAMI 2023
(arXiv 2210.04402). The method is its loss, a function of the batch's similarity matrix: the
negative log posterior of "same class" over mined pairs, and a constraint on the spread of the
similarities of negatives. The paper's second scenario trains on pseudo-labels
(``pseudo_labels=kmeans``); its recipe was not published, so clustering here is generic.
"""

from __future__ import annotations

from typing import Any

from noisyml.data.views import Batch
from noisyml.methods.metric_learning.base import MetricLearning


class CBML(MetricLearning):
    """A loss on the similarities of a batch of P classes x K samples; see `MetricLearning`."""

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: embed, judge, train on the trusted."""
        embeddings, labels, index = self.embed_globally(batch)
        selection = self.judge(embeddings, labels, index)
        loss = self.loss(embeddings, labels, memory=self.memory, keep=selection.mask)
        self.remember(embeddings, labels, index, selection)
        return self.outcome(loss, selection, index)
