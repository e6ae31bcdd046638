"""PRISM: probabilistic ranking-based instance selection with memory.

Liu et al., "Noise-resistant Deep Metric Learning with Ranking-based Instance Selection", CVPR 2021
(arXiv 2103.16047), and "Noise-Resistant Deep Metric Learning with Probabilistic Instance Filtering"
(arXiv 2108.01431). One step: score every sample of the batch against a memory of earlier
embeddings, drop those least likely to be labelled rightly, take any metric-learning loss on the
rest, and let only the rest into the memory.

With ``selector=keep_all`` the same step is the plain loss, and with ``loss=memory_contrastive`` the
cross-batch memory baseline (MCL).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.base import EmbeddingLoss
from noisyml.methods.metric_learning.base import MetricLearning
from noisyml.methods.metric_learning.pseudo_labels import PseudoLabels
from noisyml.metrics.base import Evaluator
from noisyml.models.encoder import Encoder
from noisyml.optim import OptimizerFactory, SchedulerFactory
from noisyml.selectors.base import Selector
from noisyml.similarity.memory_bank import MemoryBank


class Prism(MetricLearning):
    """Any metric-learning loss on the samples a selector trusts, with a memory of the trusted.

    Args:
        encoder: images or features to embeddings.
        loss: any loss on embeddings, perhaps reading the memory.
        selector: judges the global batch.
        memory: bank of earlier trusted embeddings.
        optimizer, scheduler, evaluator, param_groups, pseudo_labels: see `MetricLearning`.
        enqueue: the memory takes the batch ``after`` the loss has read it, or ``before`` (the
            released code of the baseline, whose samples then meet themselves).

    Raises:
        UserError: an unknown `enqueue`.
    """

    def __init__(
        self,
        encoder: Encoder,
        loss: EmbeddingLoss,
        selector: Selector,
        memory: MemoryBank,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        evaluator: Evaluator,
        enqueue: Literal["after", "before"] = "after",
        param_groups: Mapping[str, Mapping[str, Any]] | None = None,
        pseudo_labels: PseudoLabels | None = None,
    ) -> None:
        super().__init__(
            encoder,
            loss,
            selector,
            memory,
            optimizer,
            scheduler,
            evaluator,
            param_groups,
            pseudo_labels,
        )
        if enqueue not in ("after", "before"):
            raise UserError(f"method.enqueue={enqueue} is not known: use after or before.")
        self.enqueue = enqueue

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step of PRISM (arXiv 2103.16047, section 3)."""
        embeddings, labels, index = self.embed_globally(batch)
        selection = self.judge(embeddings, labels, index)
        if self.enqueue == "before":
            self.memory.enqueue(*self.trusted(embeddings, labels, index, selection))
        loss = self.loss(embeddings, labels, memory=self.memory, keep=selection.keep)
        if self.enqueue == "after":
            self.remember(embeddings, labels, index, selection)
        return self.outcome(loss, selection, index)
