"""ProxyNCA++: proxies, a low temperature, and a recipe around them.

Teh, DeVries and Taylor, "ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component
Analysis", ECCV 2020 (arXiv 2004.01113). The six enhancements over Proxy-NCA are settings of their
own and can each be switched off: the positive proxy in the denominator (``loss.denominator``), the
temperature (``loss.scale``), global max pooling (``backbone.pooling``), layer norm before the
embedding (``head.input_norm``), class-balanced batches (``sampler``) and fast proxies
(``param_groups.loss.lr``). This module adds the training procedure: epochs in which the backbone
stands still, a fresh optimiser after them, and gradients clipped by value except those of the
proxies. ``stages=development`` finds a schedule on held-out classes and replays it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noisyml.checks import Hint, Positive, WholeNonNegative
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.methods.metric_learning.base import MetricLearning
from noisyml.methods.metric_learning.pseudo_labels import PseudoLabels
from noisyml.methods.parts import Parts
from noisyml.models.heads import unit_norm
from noisyml.optim import Plateau


class ProxyNCAPP(MetricLearning):
    """A proxy loss, warmed up with a still backbone.

    Args:
        parts, pseudo_labels: see `MetricLearning`.
        warmup_epochs: first epochs in which the backbone's weights stand still (its batch norms
            follow the data) and after which the optimiser starts afresh.
        clip_value: largest absolute gradient of each weight of the encoder; None: no limit.
    """

    warmed_up: Tensor

    def __init__(
        self,
        parts: Parts,
        *,
        warmup_epochs: WholeNonNegative = 5,
        clip_value: Annotated[Positive | None, Hint("null sets no limit.")] = 10.0,
        pseudo_labels: Callable[..., PseudoLabels] | None = None,
    ) -> None:
        super().__init__(parts, pseudo_labels=pseudo_labels)
        self.warmup_epochs = warmup_epochs
        self.clip_value = clip_value
        self.register_buffer("warmed_up", torch.tensor(warmup_epochs == 0))

    # -- the step ----------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: embed, judge, the proxies' softmax on the trusted."""
        embeddings, labels, index = self.embed_globally(batch)
        unit = unit_norm(embeddings.detach())
        selection = self.judge(unit, labels, index)
        loss = self.loss(embeddings, labels, memory=self.memory, keep=selection.mask)
        self.remember(unit, labels, index, selection)
        return self.outcome(loss, selection, index)

    def on_train_epoch_start(self) -> None:
        """After the warm-up nothing of the optimiser's state is carried over."""
        super().on_train_epoch_start()
        if self.current_epoch >= self.warmup_epochs and not self.warmed_up:
            self.trainer.optimizers[0].state.clear()
            self.warmed_up.fill_(True)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Hold the backbone still during the warm-up; clip the encoder, not the proxies."""
        if self.current_epoch < self.warmup_epochs:
            # Without a gradient an optimiser passes a weight by, as with a rate of zero.
            for weight in self.encoder.backbone.parameters():
                weight.grad = None
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(self.encoder.parameters(), self.clip_value)

    # -- the schedule ------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The configured schedule; it must leave epochs after the warm-up."""
        epochs = self.trainer.max_epochs
        if epochs is not None and 0 < epochs <= self.warmup_epochs:
            raise UserError(
                f"method.warmup_epochs={self.warmup_epochs} leaves none of the "
                f"{epochs} epochs to train the backbone: raise trainer.max_epochs."
            )
        return super().configure_optimizers()

    def follow_plateau(self, plateau: Plateau, metrics: Mapping[str, float]) -> None:
        """The plateau rule does not look at epochs in which the backbone stood still."""
        if self.current_epoch >= self.warmup_epochs:
            super().follow_plateau(plateau, metrics)
