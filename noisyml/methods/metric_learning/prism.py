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

from collections.abc import Callable
from typing import Any, Literal

from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.methods.metric_learning.base import MetricLearning
from noisyml.methods.metric_learning.pseudo_labels import PseudoLabels
from noisyml.methods.parts import Parts


class Prism(MetricLearning):
    """Any metric-learning loss on the samples a selector trusts, with a memory of the trusted.

    Args:
        parts, pseudo_labels: see `MetricLearning`.
        enqueue: the memory takes the batch ``after`` the loss has read it, or ``before`` (the
            released code of the baseline, whose samples then meet themselves).

    Raises:
        UserError: samples in the memory before a selector judges them by it.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        enqueue: Literal["after", "before"] = "after",
        pseudo_labels: Callable[..., PseudoLabels] | None = None,
    ) -> None:
        super().__init__(parts, pseudo_labels=pseudo_labels)
        if enqueue == "before" and self.selector.needs:
            raise UserError(
                f"method.enqueue=before puts the batch into the memory before "
                f"{type(self.selector).__name__} judges it, so that every sample vouches for "
                f"itself: use selector=keep_all."
            )
        self.enqueue = enqueue

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step of PRISM (arXiv 2103.16047, section 3)."""
        embeddings, labels, index = self.embed_globally(batch)
        selection = self.judge(embeddings, labels, index)
        if self.enqueue == "before":
            self.memory.enqueue(*self.trusted(embeddings, labels, index, selection))
        loss = self.loss(embeddings, labels, memory=self.memory, keep=selection.mask)
        if self.enqueue == "after":
            self.remember(embeddings, labels, index, selection)
        return self.outcome(loss, selection, index)
