"""Classification: a loss per sample, averaged over the samples a selector trusts.

A linear classifier reads the encoder's embedding, by default (``head=identity``) the pooled
features of the backbone. With cross-entropy and ``selector=keep_all`` this is the baseline of the
noisy-label literature; methods that weigh, correct or exchange samples start from it. With
``selector=bare`` and ``on_empty=keep_all`` it is BARE (Patel and Sastry, WACV 2023).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisyml import distributed
from noisyml.data.views import Batch
from noisyml.losses.base import Loss, ScoreLoss
from noisyml.losses.classification.base import ClassificationLoss, CrossEntropy
from noisyml.methods.base import Method
from noisyml.methods.checkpoints import load_classifier
from noisyml.methods.classification.class_maps import class_map_samples
from noisyml.methods.parts import Parts
from noisyml.methods.passes import batches_on, evaluation_mode
from noisyml.models.class_maps import obstacle_to_class_maps
from noisyml.models.heads import class_scores, unit_norm
from noisyml.runs.artefacts import Artefact
from noisyml.selectors.base import Evidence, Facts, Selection
from noisyml.selectors.keep_all import KeepAll
from noisyml.selectors.training_dynamics import scored_facts, training_facts
from noisyml.targets import labels_of

if TYPE_CHECKING:
    import pandas as pd

    from noisyml.data.datamodule import DataModule

OnEmpty = Literal["skip", "keep_all"]


@dataclass(frozen=True)
class Classified:
    """A global batch, in rank order on every rank.

    Attributes:
        embeddings: [B, D] with gradient, as the classifier reads them.
        logits: class scores [B, C] with gradient, float32 or better.
        labels: observed [B] int64, or several per sample [B, C] float.
        index: positions in the training split [B] int64.
    """

    embeddings: Tensor
    logits: Tensor
    labels: Tensor
    index: Tensor


def kept_mean(sample_loss: Tensor, keep: Tensor) -> Tensor:
    """Mean of the losses [B] where `keep` [B] is true; 0 with a gradient of 0 if nothing is."""
    kept = torch.where(keep, sample_loss, torch.zeros_like(sample_loss))
    total: Tensor = kept.sum() / keep.sum().clamp(min=1)
    return total


class Classification(Method):
    """A loss on the samples a selector keeps; the base of methods that classify.

    A subclass writes `training_step` from `classify_globally`, `sample_loss`, `judge`,
    `mean_loss` and `outcome`.

    Args:
        parts: the loss is one per sample, by default cross-entropy; the selector judges the global
            batch by embeddings, class scores or losses, and without one everything is kept.
        on_empty: a global batch of which nothing is kept teaches nothing (``skip``), or as a
            whole (``keep_all``); either way it counts as not kept.
    """

    needs_parts: ClassVar[frozenset[str]] = frozenset({"loss", "selector"})
    takes_loss: ClassVar[type[Loss]] = ClassificationLoss

    #: ``proxies`` are the rows of the classifier's weight: its directions without length and bias.
    evidence: ClassVar[frozenset[str]] = frozenset(
        {"embeddings", "logits", "sample_loss", "proxies"}
    )
    gives: ClassVar[frozenset[str]] = frozenset({"embeddings", "logits"})
    loss: ScoreLoss

    #: Make the ledger's columns, see `Facts.then`; the second where a selector gives no scores.
    noted = staticmethod(training_facts)
    noted_with_scores = staticmethod(scored_facts)

    def __init__(self, parts: Parts, *, on_empty: OnEmpty = "skip") -> None:
        super().__init__(parts)
        self.loss = CrossEntropy() if parts.loss is None else parts.need("loss", ScoreLoss)
        self.selector = KeepAll() if parts.selector is None else parts.selector
        self.on_empty = on_empty
        self.class_names = list(parts.sizes.class_names)
        self.classifier = nn.Linear(self.encoder.out_features, len(self.class_names))
        self._judged: tuple[Evidence, Selection] | None = None
        self._facts: Facts | None = None

    # -- the step ----------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: classify, judge, learn from the trusted."""
        seen = self.classify_globally(batch)
        sample_loss = self.sample_loss(seen)
        selection = self.judge(seen, sample_loss)
        return self.outcome(self.mean_loss(sample_loss, selection), selection, seen.index)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Class scores [b, C] of embeddings [b, D], float32 or better whatever the precision."""
        return class_scores(self.classifier, embeddings)

    def classify_globally(self, batch: Batch, embeddings: Tensor | None = None) -> Classified:
        """Classify this rank's share and gather the global batch.

        Args:
            batch: this rank's share.
            embeddings: of it, [b, D], if they are known already.
        """
        if embeddings is None:
            embeddings = self.encoder(batch)
        return Classified(
            distributed.gather(embeddings),
            distributed.gather(self.logits(embeddings)),
            distributed.gather(labels_of(batch)),
            distributed.gather(batch["index"]),
        )

    def sample_loss(self, seen: Classified) -> Tensor:
        """The loss [B] of each sample of a global batch."""
        losses: Tensor = self.loss(seen.logits, seen.labels, seen.index, self.current_epoch)
        self._facts = self.facts(seen, losses)
        return losses

    def facts(self, seen: Classified, sample_loss: Tensor) -> Facts:
        """Entries of the ledger for a global batch with losses [B]."""
        rows = {
            "logits": seen.logits.detach(),
            "labels": seen.labels,
            "sample_loss": sample_loss.detach(),
        }
        return Facts(rows, self.noted)

    def mean_loss(self, sample_loss: Tensor, selection: Selection) -> Tensor:
        """Mean of the losses [B] over what teaches: what is kept, or see `on_empty`."""
        teaches = selection.keep
        if self.on_empty == "keep_all":
            teaches = teaches | ~teaches.any()
        return kept_mean(sample_loss, teaches)

    def judge(
        self, seen: Classified, sample_loss: Tensor, entry_loss: Tensor | None = None
    ) -> Selection:
        """The selector's answer for a global batch with losses [B] and, multi-label, [B, C].

        Where it gives no scores, the ledger has those of the classifier itself.
        """
        if self._facts is not None and not self.selector.gives_scores:
            self._facts = replace(self._facts, then=self.noted_with_scores)
        evidence = Evidence(
            labels=seen.labels,
            index=seen.index,
            embeddings=unit_norm(seen.embeddings.detach()),
            proxies=unit_norm(self.classifier.weight.detach()),
            logits=seen.logits.detach(),
            sample_loss=sample_loss.detach(),
            entry_loss=None if entry_loss is None else entry_loss.detach(),
            step=self.global_step,
            epoch=self.current_epoch,
        )
        selection = self.selector.select(evidence)
        self._judged = (evidence, selection)
        return selection

    def outcome(
        self,
        loss: Tensor,
        selection: Selection,
        index: Tensor,
        terms: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """Result of `training_step`, which the logs read.

        Args:
            loss: scalar with gradient.
            selection: of the global batch.
            index: [B], its positions in the training split.
            terms: scalars that the loss is made of, by the name to log them under; those of a sum
                of losses join them.
        """
        terms = {**self.loss.last_terms, **(terms or {})}
        parts = {name: term.detach() for name, term in terms.items()}
        facts, self._facts = self._facts, None
        return {
            "loss": loss,
            "selection": selection,
            "index": index,
            "terms": parts,
            "facts": facts,
        }

    def after_backward(self) -> None:
        """The selector learns from what it has judged."""
        if self._judged is not None:
            self.selector.update(*self._judged)
            self._judged = None

    # -- losses that learn from predictions --------------------------------------------------

    def on_fit_start(self) -> None:
        """Refuse a warm-up of loss or selector that never ends."""
        self.loss.check_length(self.trainer.max_epochs)
        self.selector.begin(*self.run_length())

    def on_train_epoch_start(self) -> None:
        """Let selector and loss see all training samples where they ask for it."""
        super().on_train_epoch_start()
        if self.loss.wants_predictions(self.current_epoch):
            self.loss.learn(self.predictions())

    @torch.no_grad()
    def predictions(self) -> Tensor:
        """Class probabilities [N, C] of the training samples in evaluation mode, of all ranks."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        found = [torch.empty(0, len(self.class_names), device=self.device)]
        with evaluation_mode(self.encoder):
            batches = batches_on(self.device, data.predict_dataloader("train"))
            found += [F.softmax(self.logits(self.encoder(batch)), dim=1) for batch in batches]
        return distributed.gather(torch.cat(found))

    # -- evaluation and checkpoints ----------------------------------------------------------

    def artefacts(self, data: DataModule, trust: pd.Series | None) -> Iterable[Artefact]:
        """Class activation maps, if the classifier reads averages of the network's last map."""
        if not data.target.exclusive or obstacle_to_class_maps(self.encoder):
            return
        if arrays := class_map_samples(self, data, trust):
            yield Artefact("class_maps.npz", arrays, "Class activation maps")

    def outputs(self, batch: Batch, wanted: Collection[str]) -> dict[str, Tensor]:
        """Embeddings and, if wanted, class scores of this rank's batch."""
        outputs = {"embeddings": self.encoder(batch)}
        if "logits" in wanted:
            outputs["logits"] = self.logits(outputs["embeddings"])
        return outputs

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down what the classes are called: a classifier is no use without."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["class_names"] = self.class_names

    def load_trained(self, file: Path) -> None:
        """Take the encoder and, if class scores are evaluated, the classifier.

        Raises:
            UserError: the checkpoint belongs to another architecture or to other classes.
        """
        super().load_trained(file)
        if "logits" in self.wanted_outputs:
            self.classifier = load_classifier(file, self.class_names)
