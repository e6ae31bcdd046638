"""GCD: contrast of two views, with labels where there are any.

Vaze, Han, Vedaldi and Zisserman, "Generalized Category Discovery", CVPR 2022. The first stage of
PromptCAL (Zhang et al., CVPR 2023) is the same with prompts: their mean is contrasted beside the
class token, and early epochs may follow the features of the pretrained network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisyml.checks import NonNegative, Positive, Share, WholeNonNegative
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.losses.discovery.contrast import info_nce, masked_mean, supervised_contrast
from noisyml.methods.checkpoints import read_checkpoint
from noisyml.methods.discovery.anchors import Anchors, anchor_loss
from noisyml.methods.discovery.base import Discovery, TwoViews
from noisyml.methods.parts import Parts


class GCD(Discovery):
    """InfoNCE on all images and supervised contrast on the labelled ones, on a projection head.

    Args:
        parts: see `Discovery`.
        projection: head of the class token, and one of its own for the prompts; completed with
            ``in_features``.
        supervised_weight: share of the supervised loss.
        unsupervised_temperature: of InfoNCE; 1.0 in the released code.
        supervised_temperature: of the supervised contrast.
        prompt_weight: of the same losses on the prompts (PromptCAL's DPR); 0: no prompts.
        supervised_prompts: the first so many prompts, whose mean these look at.
        anchors: images on which the first epochs follow the pretrained network; None: none.

    Raises:
        UserError: see `Discovery`.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        projection: Any,
        supervised_weight: Share = 0.35,
        unsupervised_temperature: Positive = 1.0,
        supervised_temperature: Positive = 0.07,
        prompt_weight: NonNegative = 0.0,
        supervised_prompts: WholeNonNegative = 0,
        anchors: Any = None,
    ) -> None:
        super().__init__(parts, supervised_prompts=supervised_prompts if prompt_weight else 0)
        self.supervised_weight = supervised_weight
        self.unsupervised_temperature = unsupervised_temperature
        self.supervised_temperature = supervised_temperature
        if prompt_weight and not supervised_prompts:
            raise UserError(
                f"method.prompt_weight={prompt_weight} weighs prompts, and "
                "method.supervised_prompts=0 names none: raise it."
            )
        self.weights = {"class": 1.0} | ({"prompt": prompt_weight} if prompt_weight else {})
        widths = {"class": self.encoder.out_features, "prompt": self.encoder.backbone.out_features}
        self.projections = nn.ModuleDict(
            {side: projection(in_features=widths[side]) for side in self.weights}
        )
        self.anchors: Anchors | None = None if anchors is None else anchors(encoder=self.encoder)

    # -- the step ----------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: see two views, judge the labels, contrast."""
        seen = self.see(batch)
        projected = self.project(seen)
        self.watch(projected["class"])
        selection = self.judge(seen, self.supervised_rows(projected["class"], seen.labels))
        terms = self.contrasts(projected, projected, seen.trusting(selection))
        loss = self.weighed(terms)
        if self.anchors is not None:
            weight = self.anchors.weight(self.current_epoch)
            if weight:
                images = self.anchors.draw(self.current_epoch, self.global_step).to(self.device)
                tokens = self.tokens(images, self.encoder)["class"]
                terms["anchors"] = anchor_loss(tokens, self.anchors.features(images))
                loss = loss + weight * terms["anchors"]
        return self.outcome(loss, seen, selection, terms)

    def project(self, seen: TwoViews, heads: nn.ModuleDict | None = None) -> dict[str, Tensor]:
        """Projections [2B, K] of unit norm by side."""
        heads = self.projections if heads is None else heads
        return {side: heads[side](tokens) for side, tokens in seen.tokens.items()}

    def supervised_rows(
        self, rows: Tensor, labels: Tensor, columns: Tensor | None = None
    ) -> Tensor:
        """The supervised loss of each row [2B]; 0 without a label."""
        columns = rows if columns is None else columns
        return supervised_contrast(rows, columns, labels, self.supervised_temperature)

    def contrasts(
        self, rows: dict[str, Tensor], columns: dict[str, Tensor], seen: TwoViews
    ) -> dict[str, Tensor]:
        """Both losses of each side, scalars by name.

        Args:
            rows: projections that learn.
            columns: those they are compared with; the same, or a teacher's.
            seen: with the labels that are trusted.
        """
        terms = {}
        for side, own in rows.items():
            apart = info_nce(own, columns[side], self.unsupervised_temperature)
            together = self.supervised_rows(own, seen.labels, columns[side])
            terms[f"unsupervised_{side}"] = apart.mean()
            terms[f"supervised_{side}"] = masked_mean(together, seen.labels >= 0)
        return terms

    def weighed(self, terms: dict[str, Tensor]) -> Tensor:
        """The sum of the terms by their weights, scalar."""
        total = []
        for side, weight in self.weights.items():
            both = torch.stack([terms[f"unsupervised_{side}"], terms[f"supervised_{side}"]])
            shares = both.new_tensor([1 - self.supervised_weight, self.supervised_weight])
            total.append(weight * (shares * both).sum())
        return torch.stack(total).sum()

    # -- checkpoints -------------------------------------------------------------------------

    def load_encoder(self, file: Path) -> None:
        """Take the encoder and, where the checkpoint has one, the head of the class token.

        Raises:
            UserError: it belongs to another architecture.
        """
        super().load_encoder(file)
        self._load_projection(file, "class")

    def _load_projection(self, file: Path, side: str) -> None:
        prefix = f"projections.{side}."
        state = {
            name.removeprefix(prefix): tensor
            for name, tensor in read_checkpoint(file)["state_dict"].items()
            if name.startswith(prefix)
        }
        if not state:
            return
        try:
            self.projections[side].load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"{file} has another projection head than method.projection describes: keep it as "
                "it was trained."
            ) from error
