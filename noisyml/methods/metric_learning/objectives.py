"""Instance discrimination as SimCLR and MoCo do it, in place of InsCLR's loss on a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from noisyml import distributed
from noisyml.checks import Checked, Count, OpenShare, Positive, Seed
from noisyml.data.views import Batch
from noisyml.losses.self_supervised.info_nce import nt_xent, queue_info_nce
from noisyml.models.ema import EMATeacher
from noisyml.models.encoder import Encoder
from noisyml.models.heads import unit_norm
from noisyml.similarity.pinned_buffers import PinnedBuffers


class Objective(Checked, PinnedBuffers, ABC):
    """Base of losses on the global batch of anchors and their positives."""

    @abstractmethod
    def begin(self) -> None:
        """Called before a fit, resumed or not, once the encoder has its weights."""

    @abstractmethod
    def loss(self, batch: Batch, embeddings: Tensor, labels: Tensor, anchors: int) -> Tensor:
        """The loss of a step.

        Args:
            batch: this rank's share, as the encoder reads it.
            embeddings: [B, D] of the global batch, with gradient, unit norm.
            labels: [B] int64, positive numbers of the anchors; their positives follow them.
            anchors: A, rows at the front.
        """

    def after_backward(self) -> None:
        """Change what outlives a step, once the gradients are computed; here nothing."""


class SimCLR(Objective):
    """Rows of a batch told apart from all others of it.

    Args:
        encoder: of the run; not needed.
        temperature: divides the similarities (Chen et al.: 0.5 on CIFAR-10, 0.1 on ImageNet).
    """

    def __init__(self, encoder: Encoder, temperature: Positive = 0.5) -> None:
        super().__init__()
        self.temperature = temperature

    def begin(self) -> None:
        """Nothing to begin with."""

    def loss(self, batch: Batch, embeddings: Tensor, labels: Tensor, anchors: int) -> Tensor:
        """NT-Xent, see `nt_xent`."""
        return nt_xent(embeddings, labels, self.temperature)


class MoCo(Objective):
    """Anchors told apart from a queue of keys that a slowly moving encoder made.

    Batch norm of the two encoders sees the whole batch of a process; its shuffling over processes,
    which the released code needs, is left out.

    Args:
        encoder: of the run, copied as the key encoder.
        seed: of the random unit rows that the queue holds at first, as in the released code.
        temperature: divides the similarities (He et al.: 0.07).
        queue: rows kept (65536).
        momentum: share that the key encoder keeps at a step (0.999).
    """

    queue: Tensor
    place: Tensor
    begun: Tensor

    def __init__(
        self,
        encoder: Encoder,
        seed: Seed = 0,
        temperature: Positive = 0.07,
        queue: Count = 65_536,
        momentum: OpenShare = 0.999,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(queue, encoder.out_features, generator=generator)
        self.register_buffer("queue", unit_norm(rows))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        # Not a module of this one: it belongs to the method.
        self._student: Callable[[], nn.ModuleDict] = lambda: nn.ModuleDict({"encoder": encoder})
        self._made: Tensor | None = None
        self.teacher = EMATeacher(self._student(), decay=momentum, warmup=False)

    @torch.no_grad()
    def begin(self) -> None:
        """Start from the encoder as it is when training begins; a resumed run has its own."""
        if not self.begun:
            self.teacher.module.load_state_dict(self._student().state_dict())
            self.begun.fill_(True)

    def loss(self, batch: Batch, embeddings: Tensor, labels: Tensor, anchors: int) -> Tensor:
        """InfoNCE against the queue, see `queue_info_nce`."""
        with torch.no_grad():
            self.teacher.update_parameters(self._student())
            made = distributed.gather(self.teacher.averages["encoder"](batch))
            keys = unit_norm(made[anchors:]).unflatten(0, (anchors, -1))
            queue = self.queue.to(embeddings)
        self._made = keys.flatten(0, 1)
        return queue_info_nce(embeddings[:anchors], keys, queue, self.temperature)

    @torch.no_grad()
    def after_backward(self) -> None:
        """Let the keys of the step overwrite the oldest rows of the queue."""
        if self._made is None:
            return
        keys, self._made = self._made[-len(self.queue) :], None
        rows = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[rows] = keys.to(self.queue)
        self.place.copy_((self.place + len(keys)) % len(self.queue))


#: Makes an objective from the encoder and the seed.
MakeObjective = Callable[..., Objective]


def terms_of(loss: Tensor) -> dict[str, Any]:
    """The loss as it is logged beside the sum."""
    return {"batch_loss": loss.detach()}
