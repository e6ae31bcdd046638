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
from typing import Any, ClassVar, Literal

from torch import Tensor

from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.base import EmbeddingLoss
from noisyml.methods.base import Method
from noisyml.metrics.base import Evaluator
from noisyml.models.encoder import Encoder
from noisyml.optim import OptimizerFactory, SchedulerFactory
from noisyml.selectors.base import Evidence, Selection, Selector
from noisyml.similarity.memory_bank import MemoryBank


class Prism(Method):
    """Any metric-learning loss on the samples a selector trusts, with a memory of the trusted.

    Args:
        encoder: images or features to embeddings.
        loss: any loss on embeddings, perhaps reading the memory.
        selector: judges the global batch.
        memory: bank of earlier trusted embeddings.
        enqueue: ``after`` the loss (PRISM) or ``before`` it, so that the memory contains the batch
            itself (the released MCL baseline; only sensible with ``selector=keep_all``).
        optimizer: see `Method`.
        scheduler: see `Method`.
        evaluator: see `Method`.
        param_groups: see `Method`.

    Raises:
        UserError: an unknown `enqueue`.
    """

    #: Fields of `Evidence` this method fills (and proxies, where the loss has them).
    evidence: ClassVar[frozenset[str]] = frozenset({"embeddings", "memory"})

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
    ) -> None:
        super().__init__(encoder, optimizer, scheduler, evaluator, param_groups)
        if enqueue not in ("after", "before"):
            raise UserError(f"method.enqueue={enqueue} is not known: use after or before.")
        self.loss = loss
        self.selector = selector
        self.memory = memory
        self.enqueue = enqueue
        self._newcomers: tuple[Tensor, Tensor, Tensor] | None = None

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step of PRISM (arXiv 2103.16047, section 3)."""
        embeddings, labels, index = self.embed_globally(batch)

        evidence = Evidence(
            labels=labels,
            index=index,
            embeddings=embeddings.detach(),
            memory=self.memory,
            proxies=self.loss.proxies() if self.loss.has_proxies else None,
            step=self.global_step,
            epoch=self.current_epoch,
        )
        selection = self.selector.select(evidence)

        kept = selection.keep.nonzero().squeeze(1)  # the step's one wait for the device
        trusted = (embeddings.detach()[kept], labels[kept], index[kept])
        if self.enqueue == "before":
            self.memory.enqueue(*trusted)
        loss = self.loss(embeddings, labels, memory=self.memory, keep=selection.keep)
        self._newcomers = trusted if self.enqueue == "after" else None
        self._judged = (evidence, selection)
        return {"loss": loss, "selection": selection, "index": index}

    def after_backward(self) -> None:
        """The memory takes the trusted embeddings, after the loss has read it."""
        evidence: Evidence
        selection: Selection
        if self._newcomers is not None:
            self.memory.enqueue(*self._newcomers)
            self._newcomers = None
        evidence, selection = self._judged
        self.selector.update(evidence, selection)
