"""Base of methods that discover classes: two views of labelled and unlabelled images.

Views stand one after the other: of a global batch of B images, rows 0 to B-1 are the first view of
all of them, in rank order, and rows B to 2B-1 the second. A label of -1 is none. A selector judges
the labelled images alone; one that it does not trust is an unlabelled image from there on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from noisyml import distributed
from noisyml.data.labelled import Pool
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.methods.base import Method
from noisyml.methods.parts import Parts
from noisyml.models.backbones.prompted import PromptedBackbone
from noisyml.models.encoder import Encoder
from noisyml.models.heads import unit_norm
from noisyml.models.projection import supervised_prompt
from noisyml.selectors.base import Evidence, Facts, Selection
from noisyml.selectors.keep_all import KeepAll, batch_margin
from noisyml.selectors.training_dynamics import training_facts
from noisyml.targets import TargetKind, labels_of
from noisyml.targets.partial import NO_LABEL

log = logging.getLogger(__name__)

#: One minus the mean cosine of projections, below which a head has collapsed.
ALIKE = 1e-3


@dataclass(frozen=True)
class TwoViews:
    """A global batch of B images, in rank order on every rank.

    Attributes:
        tokens: [2B, D] by side, with gradient, not normalised: ``class`` and, of transformers with
            prompts, ``prompt``.
        labels: observed [2B] int64, -1 for none.
        index: positions in the training split [B] int64.
    """

    tokens: dict[str, Tensor]
    labels: Tensor
    index: Tensor

    @property
    def images(self) -> int:
        """B."""
        return len(self.index)

    def trusting(self, selection: Selection) -> TwoViews:
        """The same without the labels that a selector does not keep.

        Args:
            selection: of the labelled images, in their order.
        """
        known = self.labels[: self.images] >= 0
        trusted = torch.zeros_like(known)
        trusted[known] = selection.keep
        return replace(self, labels=torch.where(trusted.repeat(2), self.labels, NO_LABEL))


class Discovery(Method):
    """Learns from two views of images of which some have a label.

    A subclass writes `training_step` from `see`, `judge` and `outcome`.

    Args:
        parts: the selector judges labelled images by their embeddings and losses.
        supervised_prompts: so many of the first prompts make the side ``prompt``; 0: none.

    Raises:
        UserError: a frozen network, or prompts where the backbone has none.
    """

    needs_parts: ClassVar[frozenset[str]] = frozenset({"selector"})
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"partial"})
    judged_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"single"})
    n_views: ClassVar[int] = 2
    evidence: ClassVar[frozenset[str]] = frozenset({"embeddings", "sample_loss"})

    @classmethod
    def pool(cls, settings: Mapping[str, Any]) -> Pool:
        """All samples: those without a label teach too."""
        return "all"

    def __init__(self, parts: Parts, *, supervised_prompts: int = 0) -> None:
        super().__init__(parts)
        self.selector = KeepAll() if parts.selector is None else parts.selector
        self.supervised_prompts = supervised_prompts
        self._judged: tuple[Evidence, Selection] | None = None
        self._facts: Facts | None = None
        self._apart: Tensor | None = None
        backbone = self.encoder.backbone
        if backbone.takes != "images" or backbone.frozen:
            raise UserError(
                f"{type(self).__name__} trains on two views of each image: choose a backbone=... "
                "for images, with backbone.frozen=false."
            )
        prompts = backbone.num_prompts if isinstance(backbone, PromptedBackbone) else 0
        if supervised_prompts > prompts:
            raise UserError(
                f"method.supervised_prompts={supervised_prompts} asks for more prompts than the "
                f"{prompts} of the backbone: choose backbone=prompted_vit or backbone=tiny_vit, or "
                "set method.prompt_weight=0 to train without."
            )

    # -- the step ----------------------------------------------------------------------------

    def see(self, batch: Batch, encoder: Encoder | None = None) -> TwoViews:
        """Encode both views of this rank's share, and gather the global batch.

        Args:
            batch: this rank's share.
            encoder: the network that looks; None: the one that learns.
        """
        encoder = self.encoder if encoder is None else encoder
        views = batch["views"]
        tokens = self.tokens(views.flatten(0, 1), encoder)
        gathered = {
            side: _view_by_view(distributed.gather(rows.unflatten(0, (len(views), 2))))
            for side, rows in tokens.items()
        }
        labels = distributed.gather(labels_of(batch))
        return TwoViews(gathered, labels.repeat(2), distributed.gather(batch["index"]))

    def tokens(self, images: Tensor, encoder: Encoder) -> dict[str, Tensor]:
        """The sides [n, D] of uint8 images [n, C, H, W], see `TwoViews`."""
        backbone = encoder.backbone
        if not self.supervised_prompts:
            return {"class": encoder.raw({"image": images})}
        assert isinstance(backbone, PromptedBackbone)
        class_token, prompts = backbone.tokens(images)
        return {
            "class": encoder.head.project(class_token),
            "prompt": supervised_prompt(prompts, self.supervised_prompts),
        }

    @torch.no_grad()
    def judge(self, seen: TwoViews, row_loss: Tensor, logits: Tensor | None = None) -> Selection:
        """The selector's answer for the labelled images of a global batch.

        Their losses enter the ledger, with their margins: by the class scores of the first view or,
        where there are none, by its embeddings, see `batch_margin`.

        Args:
            seen: the batch.
            row_loss: supervised loss [2B] of each view.
            logits: class scores [2B, K], where there are any.
        """
        known = (seen.labels[: seen.images] >= 0).nonzero().flatten()
        labels = seen.labels[known]
        embeddings = unit_norm(seen.tokens["class"].detach()[: seen.images])[known]
        sample_loss = row_loss.detach().unflatten(0, (2, seen.images)).mean(dim=0)[known]
        scores = None if logits is None else logits.detach()[: seen.images][known]
        if scores is None:
            margin = batch_margin(embeddings, labels)
            self._facts = Facts({"loss": sample_loss.float(), "margin": margin})
        else:
            rows = {"logits": scores, "labels": labels, "sample_loss": sample_loss}
            self._facts = Facts(rows, training_facts)
        evidence = Evidence(
            labels=labels,
            index=seen.index[known],
            embeddings=embeddings,
            sample_loss=sample_loss,
            logits=scores,
            step=self.global_step,
            epoch=self.current_epoch,
        )
        if not len(known):
            return Selection.keep_everything(evidence.labels)
        selection = self.selector.select(evidence)
        self._judged = (evidence, selection)
        return selection

    def outcome(
        self, loss: Tensor, seen: TwoViews, selection: Selection, terms: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Result of `training_step`, which the logs read.

        Args:
            loss: scalar with gradient.
            seen: the batch as it was judged.
            selection: of its labelled images.
            terms: scalars to log by name.
        """
        index = seen.index[seen.labels[: seen.images] >= 0]
        return {
            "loss": loss,
            "selection": selection,
            "index": index,
            "terms": {name: term.detach() for name, term in terms.items()},
            "facts": self._facts,
        }

    def watch(self, projected: Tensor) -> None:
        """Keep how far apart the projections [2B, K] of a step lie, unit norm."""
        self._apart = 1 - projected.detach().mean(dim=0).square().sum()

    def on_train_end(self) -> None:
        """Say so if nothing was learnt."""
        if self._apart is not None and float(self._apart) < ALIKE and distributed.rank() == 0:
            log.warning(
                "the projections of all images are all alike at the end of training, so nothing "
                "was learnt from views: lower optimizer.lr, train longer, or give the projection "
                "head fewer layers"
            )

    def after_backward(self) -> None:
        """The selector learns from what it has judged."""
        if self._judged is not None:
            self.selector.update(*self._judged)
            self._judged = None

    def on_fit_start(self) -> None:
        """Tell the selector how long the run is."""
        self.selector.begin(*self.run_length())


def _view_by_view(rows: Tensor) -> Tensor:
    """[B, 2, ...] to [2B, ...]: the first view of all, then the second."""
    return rows.transpose(0, 1).flatten(0, 1)
