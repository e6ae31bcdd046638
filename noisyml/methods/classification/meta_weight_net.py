"""Meta-Weight-Net: a small network learns from trusted samples what a loss is worth.

Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting", NeurIPS 2019
(arXiv 1902.07379), algorithm 1: a virtual step of the classifier with the present weights, a step
of the weight network on the trusted loss behind it, then the real step with the new weights. The
weight network is small by default, and moves by SGD, as in the comparison of Patel and Sastry (WACV
2023).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from noisyml import distributed
from noisyml.checks import Count, OpenShare, Positive, Seed
from noisyml.data.views import Batch
from noisyml.methods.classification.meta_learning import MetaLearning, Parameters
from noisyml.methods.parts import Parts
from noisyml.selectors.base import Selection


class MetaWeightNet(MetaLearning):
    """A classifier whose samples are weighed by a network that sees their losses.

    A sample counts as kept if its weight, in [0, 1] and also its score, is positive.

    Args:
        parts, trusted_batch_size, seed: see `MetaLearning`.
        virtual_lr: size of the virtual step, above 0.
        weight_lr: learning rate of the weight network, above 0.
        momentum: of the weight network's updates, in [0, 1).
        hidden_features: width of its hidden layer.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        trusted_batch_size: Count | None = None,
        virtual_lr: Positive = 1e-4,
        weight_lr: Positive = 1e-3,
        momentum: OpenShare = 0.9,
        hidden_features: Count = 50,
        seed: Seed = 0,
    ) -> None:
        super().__init__(parts, trusted_batch_size=trusted_batch_size, seed=seed)
        self.virtual_lr = virtual_lr
        self.weight_lr = weight_lr
        self.momentum = momentum
        # The classifier's optimiser must not see it, hence no gradients of its own.
        self.weight_net = nn.Sequential(
            nn.Linear(1, hidden_features),
            nn.ReLU(),
            nn.Linear(hidden_features, 1),
            nn.Sigmoid(),
        ).requires_grad_(False)
        #: The running updates of its parameters: part of every checkpoint.
        self.velocity = copy.deepcopy(self.weight_net)
        for velocity in self.velocity.parameters():
            velocity.zero_()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step: classify, teach the weight network, learn by its new weights."""
        mine, seen = self.classify_twice_differentiably(batch)
        sample_loss = self.sample_loss(seen)
        values = sample_loss.detach()

        knobs = {n: p.detach().requires_grad_() for n, p in self.weight_net.named_parameters()}
        weights = self.weigh(values, knobs)
        direction = self.trusted_gradient(self.virtual_step(sample_loss, weights.detach()))
        agreement = self.agreement(mine, seen, sample_loss, direction)
        slope = -self.virtual_lr / len(values) * agreement
        self.move(torch.autograd.grad(weights, list(knobs.values()), slope))

        weights = self.weigh(values, dict(self.weight_net.named_parameters()))
        loss = (weights * sample_loss).mean()
        return self.outcome(loss, Selection(weights > 0, weights), seen.index)

    def weigh(self, sample_loss: Tensor, knobs: Parameters) -> Tensor:
        """Weights [B] of losses [B] by the weight network with parameters `knobs`."""
        with torch.autocast(sample_loss.device.type, enabled=False):
            weights: Tensor = functional_call(self.weight_net, dict(knobs), (sample_loss[:, None],))
        return weights[:, 0]

    def virtual_step(self, sample_loss: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The parameters after a step on the weighted losses [B]; the graph stays usable."""
        trained = self.trained()
        loss = (weights * sample_loss).mean()
        gradient = torch.autograd.grad(loss, list(trained.values()), retain_graph=True)
        # What DDP would do to the gradient: see `noisyml.distributed`.
        share = self.virtual_lr / distributed.world_size()
        return {
            name: (parameter - share * distributed.all_reduce_sum(g)).detach().requires_grad_()
            for (name, parameter), g in zip(trained.items(), gradient, strict=True)
        }

    @torch.no_grad()
    def move(self, gradient: Sequence[Tensor]) -> None:
        """One step of SGD with momentum by the weight network."""
        pairs = zip(self.weight_net.parameters(), self.velocity.parameters(), strict=True)
        for (parameter, velocity), g in zip(pairs, gradient, strict=True):
            velocity.mul_(self.momentum).add_(g)
            parameter.sub_(self.weight_lr * velocity)
