"""Findings about all training images between epochs: their neighbours, or labels for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from noisyml import distributed
from noisyml.checks import Checked, WholeNonNegative
from noisyml.data.views import Batch
from noisyml.methods.passes import batches_on, evaluation_mode
from noisyml.similarity.pinned_buffers import PinnedBuffers

if TYPE_CHECKING:
    from noisyml.methods.base import Method


class FoundInTraining(Checked, PinnedBuffers, ABC):
    """Base of what embeddings of the training split say about it, found anew on a schedule.

    It lives in buffers, so that a checkpoint brings it back; a resumed run finds nothing again.

    Args:
        every_n_epochs: epochs between refreshes; 0: once, before the first.
    """

    def __init__(self, every_n_epochs: WholeNonNegative) -> None:
        super().__init__()
        self.every_n_epochs = every_n_epochs
        self.refreshed_at = -1

    @property
    def known(self) -> bool:
        """True once it was found."""
        return self.refreshed_at >= 0

    def due(self, epoch: int) -> bool:
        """True if `epoch` (from 0) must begin with a refresh that was not made yet."""
        if not self.known:
            return True
        step = self.every_n_epochs
        return step > 0 and epoch % step == 0 and epoch > self.refreshed_at

    @torch.no_grad()
    def refresh(self, method: Method, loader: Iterable[Batch]) -> None:
        """Find it from this rank's share of the training split.

        Args:
            method: whose encoder embeds.
            loader: batches of this rank's share.
        """
        self.find(method, loader)
        self.refreshed_at = method.current_epoch

    @abstractmethod
    def find(self, method: Method, loader: Iterable[Batch]) -> None:
        """Fill the buffers; see `refresh`."""

    @staticmethod
    def embedded(
        method: Method, loader: Iterable[Batch], embed: Callable[[Batch], Tensor], width: int
    ) -> tuple[Tensor, Tensor]:
        """Rows of this rank's share, the encoder in evaluation mode.

        Images that cannot be decoded have none, and never enter a batch.

        Args:
            method: of the encoder.
            loader: batches of this rank's share.
            embed: a batch to its rows [b, width].
            width: of a rank without images.

        Returns:
            Rows [n, width]; positions in the training split, int64 [n], of all ranks' rows.
        """
        rows = [torch.empty(0, width, device=method.device)]
        index = [torch.empty(0, dtype=torch.int64, device=method.device)]
        with evaluation_mode(method.encoder):
            for batch in batches_on(method.device, loader):
                rows.append(embed(batch))
                index.append(batch["index"])
        return torch.cat(rows), distributed.gather(torch.cat(index))

    def get_extra_state(self) -> dict[str, Any]:
        """Epoch of the last refresh, for the state dict."""
        return {"refreshed_at": self.refreshed_at}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the epoch of the last refresh."""
        self.refreshed_at = int(state["refreshed_at"])
