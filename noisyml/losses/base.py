"""Interfaces of the losses: what they need and give, and the two kinds on scores and embeddings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from noisyml.checks import Checked
from noisyml.errors import UserError

if TYPE_CHECKING:
    from noisyml.similarity.memory_bank import MemoryBank


class Declared(NamedTuple):
    """Needs and gifts of a loss, as words; see `Loss`."""

    needs: frozenset[str]
    gives: frozenset[str]


class Loss(Checked, nn.Module):
    """Base of the kinds of losses; a method names the one it takes in `Method.takes_loss`."""

    #: Input of the loss, in words for a user.
    kind: ClassVar[str]
    #: Inputs of `forward` beside the batch: ``memory``; of a distillation ``maps`` and ``logits``.
    needs: frozenset[str] = frozenset()
    #: Outputs for selectors: ``proxies``, one vector per class.
    gives: frozenset[str] = frozenset()

    @classmethod
    def declares(cls, settings: Mapping[str, Any]) -> Declared:
        """Needs and gifts of a loss with these settings, before it is built.

        Args:
            settings: constructor arguments as a configuration has them; arguments that are losses
                themselves are mappings with ``_target_``.
        """
        return Declared(cls.needs, cls.gives)

    @property
    def last_terms(self) -> dict[str, Tensor]:
        """Terms of the last call by name, 0-d and detached, for the log; none for most losses."""
        return {}


class ScoreLoss(Loss):
    """A loss on class scores; what it remembers of samples lives in buffers.

    Under DDP every rank calls it with the same gathered batch, so all hold the same state. It runs
    in training only.
    """

    @property
    def warmup_epochs(self) -> int:
        """First epochs in which the loss is still a plain one."""
        return 0

    def check_length(self, epochs: int | None) -> None:
        """Refuse a run of `epochs` in which the warm-up would never end.

        Raises:
            UserError: such a run.
        """
        if epochs is not None and 0 < epochs <= self.warmup_epochs:
            raise UserError(
                f"{type(self).__name__} is a plain loss for {self.warmup_epochs} epochs, and the "
                f"run has {epochs}: shorten that (see conf/loss) or raise trainer.max_epochs."
            )

    def wants_predictions(self, epoch: int) -> bool:
        """True if `epoch` (from 0) must begin with `learn`."""
        return False

    @torch.no_grad()
    def learn(self, probabilities: Tensor) -> None:
        """Learn from the class probabilities [N, C] of all training samples, in any order."""
        raise TypeError(f"{type(self).__name__} learns from no predictions")


class EmbeddingLoss(Loss):
    """A loss on unit-norm embeddings; parameters it owns (proxies, class weights) are trained.

    Under DDP every rank calls it with the same gathered batch.
    """

    kind: ClassVar[str] = "a loss on embeddings"

    @abstractmethod
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        memory: MemoryBank | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The loss of the kept samples.

        Args:
            embeddings: [B, D] float, unit norm, with gradient.
            labels: [B] int64, observed.
            memory: the bank read before this batch entered, if the method keeps one.
            keep: [B] bool; None keeps all. If nothing is kept the loss is 0 with a gradient of 0.

        Returns:
            Scalar tensor attached to the graph.
        """

    @torch.no_grad()
    def per_sample(self, embeddings: Tensor, labels: Tensor) -> Tensor | None:
        """Loss of each sample [B]; None where a sample has none, as with a loss on pairs.

        Args:
            embeddings: [B, D] float, unit norm.
            labels: [B] int64, observed.
        """
        return None

    @property
    def last_losses(self) -> Tensor | None:
        """`per_sample` [B] of the last call, detached, where it came out on the way; else None."""
        return None

    @property
    def has_proxies(self) -> bool:
        """True if `proxies` gives one vector per class."""
        return "proxies" in self.gives

    def proxies(self) -> Tensor:
        """Class proxies [C, D], unit norm, detached; only where `has_proxies`."""
        raise TypeError(f"{type(self).__name__} keeps no class proxies")
