"""Self-training of a classifier: human labels, pseudo-labels or a mixture, in stages (GIST, RIST).

The stages and what decides about them are those of segmentation; here whole samples have labels
(Teh et al., CRV 2022, arXiv 2103.17105).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from noisyml import distributed
from noisyml.checks import Share
from noisyml.data.views import Batch
from noisyml.losses.segmentation.pixels import PseudoLabels, mixed, pseudo_labels
from noisyml.methods.classification.base import (
    Classification,
    Classified,
    OnEmpty,
    kept_mean,
)
from noisyml.methods.parts import Parts
from noisyml.methods.pseudo_label_files import StoredLabels
from noisyml.methods.self_training import PseudoLabelling, SelfTraining
from noisyml.runs.artefacts import Artefact
from noisyml.targets.partial import NO_LABEL

if TYPE_CHECKING:
    import pandas as pd

    from noisyml.data.datamodule import DataModule


class SelfTrainedClassifier(SelfTraining, Classification):
    """``(1 - alpha)`` times the loss of human labels plus ``alpha`` times that of pseudo-labels.

    Args:
        parts: the loss is one per sample, by default cross-entropy; the selector judges the samples
            with a human label.
        on_empty: a global batch of which nothing is kept teaches nothing (``skip``), or as a whole
            (``keep_all``).
        alpha: weight of pseudo-labels; 0: human labels alone, 1: pseudo-labels alone.
        pseudo: settings of the pseudo-labels.
    """

    taught: ClassVar[tuple[str, ...]] = ("encoder.", "classifier.")
    #: Probabilities [N, C] of the unlabelled samples, if they teach.
    _probabilities: Tensor | None = None

    def __init__(
        self,
        parts: Parts,
        *,
        on_empty: OnEmpty = "skip",
        alpha: Share = 0.0,
        pseudo: PseudoLabelling | None = None,
    ) -> None:
        super().__init__(parts, on_empty=on_empty)
        self.alpha = alpha
        self.pseudo = PseudoLabelling() if pseudo is None else pseudo

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step on human labels, pseudo-labels or both."""
        seen = self.classify_globally(batch)
        human = torch.ones_like(seen.index, dtype=torch.bool)
        if "labelled" in batch:
            human = distributed.gather(batch["labelled"])
        terms: dict[str, Tensor] = {}
        judged: dict[str, Any] = {}
        if self.alpha < 1:
            given = _rows(seen, human)
            losses = self.sample_loss(given)
            selection = self.judge(given, losses)
            judged = {"selection": selection, "index": given.index, "facts": self._facts}
            terms["human"] = self.mean_loss(losses, selection)
        if self.alpha > 0:
            terms["pseudo"] = self._pseudo_loss(_rows(seen, ~human))
        if self.alpha in (0, 1):
            (loss,) = terms.values()
        else:
            loss = mixed(terms["human"], terms["pseudo"], self.alpha)
        parts = {name: term.detach() for name, term in terms.items()}
        return {"loss": loss, "terms": parts, **judged}

    def _pseudo_loss(self, seen: Classified) -> Tensor:
        """Mean loss of the samples that have a pseudo-label."""
        has = seen.labels >= 0
        if self._probabilities is None:
            labels = replace(seen, labels=seen.labels.clamp(min=0))
            return kept_mean(self.sample_loss(labels), has)
        shares = self._probabilities.to(seen.logits)[seen.index]
        return kept_mean(-(shares * seen.logits.log_softmax(dim=1)).sum(dim=1), has)

    # -- pseudo-labels -----------------------------------------------------------------------

    def pseudo_labels_of(self, batch: Batch, threshold: float | None) -> PseudoLabels:
        """Labels of the samples of a batch, [b]."""
        return pseudo_labels(self.logits(self.encoder(batch)), threshold, NO_LABEL)

    def stored_labels(self, data: DataModule, found: PseudoLabels, index: Tensor) -> StoredLabels:
        """Class numbers with their probability, and those of all classes if they teach."""
        probabilities = found.probabilities.float().cpu().numpy()
        return StoredLabels(
            index.cpu().numpy(),
            found.labels.cpu().numpy(),
            found.confidence.double().cpu().numpy(),
            probabilities if self.pseudo.soft else None,
        )

    def take_probabilities(
        self, positions: np.ndarray, probabilities: np.ndarray | None, samples: int
    ) -> None:
        """Keep the probabilities of the unlabelled samples, in the order of the split."""
        if probabilities is None:
            return
        table = torch.zeros(samples, probabilities.shape[1], device=self.device)
        table[torch.from_numpy(positions)] = torch.from_numpy(probabilities).to(self.device)
        self._probabilities = table

    def artefacts(self, data: DataModule, trust: pd.Series | None) -> Iterable[Artefact]:
        """The classes of human labels and pseudo-labels, beside what every classifier shows."""
        yield from super().artefacts(data, trust)
        yield from self.pseudo_artefacts(data)

    def load_trained(self, file: Path) -> None:
        """Take the encoder and the classifier, after comparing the classes."""
        super().load_trained(file)
        self.load_whole(file)


def _rows(seen: Classified, rows: Tensor) -> Classified:
    """Some rows of a global batch, `rows` [B] bool."""
    return Classified(seen.embeddings[rows], seen.logits[rows], seen.labels[rows], seen.index[rows])
