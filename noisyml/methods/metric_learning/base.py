"""Base of metric-learning methods: judge the batch, train on the trusted, remember them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from noisyml import distributed
from noisyml.checks import ArgumentError
from noisyml.data.views import Batch
from noisyml.losses.base import EmbeddingLoss
from noisyml.methods.base import Method
from noisyml.methods.metric_learning.pseudo_labels import PseudoLabels, check_clusters
from noisyml.methods.parts import Parts, Sizes
from noisyml.selectors.base import Evidence, Facts, Selection, Selector
from noisyml.selectors.keep_all import batch_margin
from noisyml.similarity.memory_bank import MemoryBank


def margin_facts(*, embeddings: Tensor, labels: Tensor, **others: Tensor) -> dict[str, Tensor]:
    """Columns of the ledger for k batches, see `Facts.by_batch`.

    Args:
        embeddings: unit-norm [k, B, D].
        labels: [k, B].
        **others: further columns [k, B], as they are.

    Returns:
        These, and ``margin`` [k, B]: mean similarity to the other samples of the own class in the
        batch, less that to the nearest other class in it, see `batch_margin`; a label counts as
        learnt where it is positive.
    """
    return {**others, "margin": batch_margin(embeddings, labels)}


def trust_by_margin(*, embeddings: Tensor, labels: Tensor, **others: Tensor) -> dict[str, Tensor]:
    """As `margin_facts`, where no selector scores: the margin is the log-odds of a label."""
    columns = margin_facts(embeddings=embeddings, labels=labels, **others)
    margin = columns["margin"]
    return {**columns, "p_clean": margin.sigmoid(), "log_odds": margin}


class MetricLearning(Method):
    """Base of methods that train a loss on embeddings of the samples a selector trusts.

    A subclass writes `training_step` from `embed_globally`, `judge`, `remember` and `outcome`.

    Args:
        parts: any loss on embeddings, perhaps reading the memory; the memory is filled only if loss
            or selector reads it.
        pseudo_labels: makes labels by clustering, from ``num_samples``, that take the place of the
            observed ones; None: the observed ones teach.
    """

    needs_parts: ClassVar[frozenset[str]] = frozenset({"loss", "selector", "memory"})
    #: Fields of `Evidence` such a method fills (and proxies, where the loss has them).
    evidence: ClassVar[frozenset[str]] = frozenset({"embeddings", "memory"})

    def __init__(
        self, parts: Parts, *, pseudo_labels: Callable[..., PseudoLabels] | None = None
    ) -> None:
        super().__init__(parts)
        self.loss = parts.need("loss", EmbeddingLoss)
        self.selector = parts.need("selector", Selector)
        self.memory = parts.need("memory", MemoryBank)
        self.pseudo_labels = (
            None if pseudo_labels is None else pseudo_labels(num_samples=parts.sizes.num_samples)
        )
        self._memory_is_read = "memory" in self.loss.needs | self.selector.needs
        self._judged: tuple[Evidence, Selection] | None = None
        self._newcomers: tuple[Tensor, Tensor, Tensor] | None = None
        self._facts: Facts | None = None

    @classmethod
    def adapt_sizes(cls, sizes: Sizes, settings: Mapping[str, Any]) -> Sizes:
        """As many classes as clusters, where clusters teach."""
        pseudo_labels = settings.get("pseudo_labels")
        if pseudo_labels is None:
            return sizes
        number = pseudo_labels["num_clusters"]
        try:
            check_clusters(number, sizes.num_samples)
        except ArgumentError as error:
            raise error.below("method.pseudo_labels") from None
        return replace(sizes, num_classes=number)

    # -- labels ------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Take up the pseudo-labels of a checkpoint, and tell the selector how long the run is."""
        if self.pseudo_labels is not None and self.pseudo_labels.known:
            self._replan()
        self.selector.begin(*self.run_length())

    def on_train_epoch_start(self) -> None:
        """Cluster the training split anew where the schedule says so."""
        labels = self.pseudo_labels
        due = labels is not None and labels.due(self.current_epoch)
        if labels is not None and due:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            labels.refresh(self, data.predict_dataloader("train"))
            self._replan()
        self.show_selector(changed=due)

    def _replan(self) -> None:
        assert self.pseudo_labels is not None
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        data.replan(self.pseudo_labels.labels.cpu().numpy())

    def labels_of(self, batch: Batch) -> Tensor:
        """The labels [b] that teach: observed, or those made by clustering."""
        if self.pseudo_labels is None:
            return batch["label"]
        return self.pseudo_labels.labels[batch["index"]]

    def embed_globally(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Encode this rank's share and gather the global batch in rank order.

        Returns:
            Embeddings [B, D] with gradient, labels that teach [B], positions [B].
        """
        embeddings = distributed.gather(self.encoder(batch))
        labels = distributed.gather(self.labels_of(batch))
        return embeddings, labels, distributed.gather(batch["index"])

    # -- trust -------------------------------------------------------------------------------

    def judge(self, embeddings: Tensor, labels: Tensor, index: Tensor) -> Selection:
        """The selector's answer for a global batch of unit-norm embeddings [B, D]."""
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
        self._judged = (evidence, selection)
        if self.pseudo_labels is not None:
            # Clusters are nobody's claim about a sample: there is no right or wrong to note.
            return selection
        # Suspects of a run without a selector that scores: what lies far from its class.
        then = margin_facts if self.selector.gives_scores else trust_by_margin
        rows = {"embeddings": embeddings.detach(), "labels": labels}
        self._facts = Facts(rows, then, by_batch=True)
        return selection

    def sample_losses(self, embeddings: Tensor, labels: Tensor) -> Tensor | None:
        """Losses [B] of a global batch for the ledger; None where the loss is one of pairs.

        Args:
            embeddings: unit-norm [B, D], detached.
            labels: [B].
        """
        last = self.loss.last_losses
        # Of a step that made further rows the loss saw more than the batch.
        if last is not None and len(last) == len(labels):
            return last
        return self.loss.per_sample(embeddings, labels)

    def trusted(
        self, embeddings: Tensor, labels: Tensor, index: Tensor, selection: Selection
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (detached), labels and positions of the samples the selector kept."""
        if selection.keeps_all:
            return embeddings.detach(), labels, index
        kept = selection.keep.nonzero().squeeze(1)  # the step's one wait for the device
        return embeddings.detach()[kept], labels[kept], index[kept]

    def remember(
        self, embeddings: Tensor, labels: Tensor, index: Tensor, selection: Selection
    ) -> None:
        """Let the kept into the memory once the gradients are computed, if anything reads it."""
        if self._memory_is_read:
            self._newcomers = self.trusted(embeddings, labels, index, selection)

    def outcome(
        self,
        loss: Tensor,
        selection: Selection,
        index: Tensor,
        terms: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """Result of `training_step`, which the log of judgements reads.

        With pseudo-labels there is nothing to log but the loss.

        Args:
            loss: scalar with gradient.
            selection: of the global batch.
            index: [B], its positions in the training split.
            terms: scalars that the loss is made of, by the name to log them under; those of a sum
                of losses join them.
        """
        terms = {**self.loss.last_terms, **(terms or {})}
        if self.pseudo_labels is not None:
            return {"loss": loss, "terms": terms}
        facts = self._facts
        if facts is not None and (losses := self.sample_losses(**facts.rows)) is not None:
            facts = replace(facts, rows={**facts.rows, "loss": losses.float()})
        return {
            "loss": loss,
            "selection": selection,
            "index": index,
            "terms": terms,
            "facts": facts,
        }

    def after_backward(self) -> None:
        """The memory takes the trusted embeddings, after the loss has read it."""
        if self._newcomers is not None:
            self.memory.enqueue(*self._newcomers)
            self._newcomers = None
        if self._judged is not None:
            self.selector.update(*self._judged)
            self._judged = None
