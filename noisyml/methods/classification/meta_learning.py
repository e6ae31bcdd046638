"""Weights of training samples learnt from a few trusted ones: what meta-learning methods share.

The trusted samples are those of the validation split, which the data set itself must bring clean.
They are training data then: nothing measured on that split may choose a model.

How much sample i's weight matters to the trusted loss L after a virtual step of size a is exactly
``dL/dw_i = -a <grad L, grad l_i>``, because the step is linear in the weights: L's gradient belongs
to where the step leads, that of the sample's loss l_i to where it starts. The inner products with
all samples come from one derivative of the class scores along grad L, by double backward through
the graph of the step's own forward pass (same batch statistics, same dropout).

Passes over trusted samples normalise by the statistics of their own batch, as training does, and
leave no trace in running statistics: they update copies of the buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from noisyml import distributed
from noisyml.checks import Count, Hint, Seed
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.methods.classification.base import Classification, Classified
from noisyml.methods.parts import Parts
from noisyml.models.norm import GlobalBatchNorm1d
from noisyml.targets import labels_of

#: Parameters by name.
Parameters = Mapping[str, Tensor]


def derivative_along(
    logits: Tensor, parameters: Sequence[Tensor], direction: Sequence[Tensor]
) -> Tensor:
    """Derivative [b, C] of class scores along a direction in the space of the parameters.

    Args:
        logits: [b, C], attached to a graph that can be differentiated twice; it stays usable.
        parameters: that the graph begins with.
        direction: shaped like them.
    """
    # The pull-back of `pull` is linear in it: its derivative by `pull` is the push-forward.
    pull = torch.zeros_like(logits, requires_grad=True)
    pulled = torch.autograd.grad(logits, parameters, pull, create_graph=True)
    (pushed,) = torch.autograd.grad(pulled, pull, direction)
    return pushed


class MetaLearning(Classification):
    """A classifier with trusted samples at hand; a subclass writes `training_step`.

    Under DDP every rank computes the gradient of the whole trusted batch.

    Args:
        parts: see `Classification`; trusted samples have cross-entropy whatever the loss.
        trusted_batch_size: trusted samples drawn for each step; None: all of them, each step.
        seed: of the run, draws the trusted samples.
    """

    needs_parts: ClassVar[frozenset[str]] = frozenset({"loss"})

    trains_on_val: ClassVar[bool] = True

    def __init__(
        self,
        parts: Parts,
        *,
        trusted_batch_size: Annotated[Count | None, Hint("null takes all trusted samples.")] = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__(parts)
        self.trusted_batch_size = trusted_batch_size
        self.seed = seed
        #: All trusted samples, in main memory.
        self.trusted: Batch = {}

    def on_fit_start(self) -> None:
        """Read the trusted samples.

        Raises:
            UserError: fewer of them than a step draws, or a layer that couples processes.
        """
        synchronised = (GlobalBatchNorm1d, nn.SyncBatchNorm)
        if distributed.is_distributed() and any(
            isinstance(module, synchronised) for module in self.encoder.modules()
        ):
            raise UserError(
                f"{type(self).__name__} differentiates twice, which batch norm across processes "
                f"does not allow: choose head=identity, or train in one process."
            )
        super().on_fit_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        everything = np.arange(len(data.splits["val"]))
        batches = list(data.predict_dataloader("val", everything))
        kept = [key for key in batches[0] if key != "broken"]
        self.trusted = {key: torch.cat([batch[key] for batch in batches]) for key in kept}
        number = len(self.trusted["index"])
        if self.trusted_batch_size is not None and self.trusted_batch_size > number:
            raise UserError(
                f"method.trusted_batch_size={self.trusted_batch_size}, but there are {number} "
                f"trusted samples (the validation split): lower it, or set it to null for all."
            )

    def trusted_batch(self) -> Batch:
        """The trusted samples of this step, the same on every rank."""
        if self.trusted_batch_size is None:
            return {key: rows.to(self.device) for key, rows in self.trusted.items()}
        draw = distributed.agreed_generator(self.seed, self.current_epoch, self.global_step)
        order = torch.randperm(len(self.trusted["index"]), generator=draw)
        chosen = order[: self.trusted_batch_size]
        return {key: rows[chosen].to(self.device) for key, rows in self.trusted.items()}

    def trained(self) -> dict[str, Tensor]:
        """The trainable parameters of encoder and classifier by name."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and name.startswith(("encoder.", "classifier."))
        }

    def classify_twice_differentiably(self, batch: Batch) -> tuple[Tensor, Classified]:
        """This rank's class scores [b, C] and the global batch they belong to."""
        # The fused kernels of attention have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            embeddings = self.encoder(batch)
        return self.logits(embeddings), self.classify_globally(batch, embeddings)

    def trusted_gradient(self, parameters: Parameters) -> tuple[Tensor, ...]:
        """Gradient of the mean loss of this step's trusted samples.

        Args:
            parameters: named as in `trained`, where to evaluate it; all require gradients.
        """
        batch = self.trusted_batch()
        embeddings = _call(self.encoder, "encoder.", parameters, batch)
        logits = _call(self.classifier, "classifier.", parameters, embeddings)
        precision = torch.promote_types(logits.dtype, torch.float32)
        loss = F.cross_entropy(logits.to(precision), labels_of(batch))
        return torch.autograd.grad(loss, list(parameters.values()))

    def agreement(
        self, mine: Tensor, seen: Classified, sample_loss: Tensor, direction: Sequence[Tensor]
    ) -> Tensor:
        """Inner products [B] of each sample's gradient with a direction in parameter space.

        Args:
            mine: this rank's class scores [b, C].
            seen: the global batch.
            sample_loss: its losses [B], each of the sample's own class scores.
            direction: shaped like `trained`, the same on every rank.
        """
        slope = torch.autograd.grad(sample_loss.sum(), seen.logits, retain_graph=True)[0]
        pushed = derivative_along(mine, list(self.trained().values()), direction)
        return (slope * distributed.gather(pushed)).sum(dim=1)


def _call(module: nn.Module, prefix: str, parameters: Parameters, given: Any) -> Tensor:
    """Call a module with other parameters and with copies of its buffers."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    own = {
        name.removeprefix(prefix): parameter
        for name, parameter in parameters.items()
        if name.startswith(prefix)
    }
    result: Tensor = functional_call(module, buffers | own, (given,))
    return result
