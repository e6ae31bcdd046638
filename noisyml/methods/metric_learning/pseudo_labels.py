"""Labels made by clustering the embeddings of the training split, refreshed on a schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import nn

from noisyml import distributed
from noisyml.checks import ArgumentError, Checked, Count, Hint, Seed, WholeNonNegative
from noisyml.methods.passes import batches_on, evaluation_mode
from noisyml.models.heads import unit_norm

if TYPE_CHECKING:
    from noisyml.methods.base import Method


def check_clusters(number: int, num_samples: int) -> None:
    """Refuse numbers of clusters that a training split cannot have.

    Raises:
        ArgumentError: fewer than two, or more than samples.
    """
    if not 2 <= number <= num_samples:
        raise ArgumentError(
            "num_clusters",
            number,
            f"must lie between 2 and the {num_samples} training samples",
        )


class PseudoLabels(Checked, nn.Module):
    """Cluster numbers that stand in for labels, in the sampler and in the loss.

    Spherical k-means on the unit-norm embeddings of the training images as evaluation sees them.
    The numbers live in a buffer, so that a checkpoint brings them back.

    Args:
        num_samples: size of the training split.
        num_clusters: clusters, the number of classes that loss and memory see.
        every_n_epochs: epochs between refreshes; 0: cluster once and keep the labels.
        iterations: at most so many k-means steps.
        seed: of the initial centroids.

    Attributes:
        labels: [N] int64, -1 before the first refresh.

    Raises:
        UserError: more clusters than samples, or fewer than two.
    """

    labels: torch.Tensor

    def __init__(
        self,
        num_samples: int,
        num_clusters: int,
        every_n_epochs: Annotated[WholeNonNegative, Hint("0 clusters once.")] = 1,
        iterations: Count = 50,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        check_clusters(num_clusters, num_samples)
        self.num_clusters = num_clusters
        self.every_n_epochs = every_n_epochs
        self.iterations = iterations
        self.seed = seed
        self.register_buffer("labels", torch.full((num_samples,), -1, dtype=torch.int64))
        self.refreshed_at = -1

    @property
    def known(self) -> bool:
        """True once there are labels."""
        return self.refreshed_at >= 0

    def due(self, epoch: int) -> bool:
        """True if `epoch` (from 0) must begin with a refresh that was not made yet."""
        if not self.known:
            return True
        step = self.every_n_epochs
        return step > 0 and epoch % step == 0 and epoch > self.refreshed_at

    @torch.no_grad()
    def refresh(self, method: Method, loader: Iterable[dict[str, Any]]) -> None:
        """Embed this rank's share of the training split and cluster the whole.

        Args:
            method: whose encoder embeds, in evaluation mode.
            loader: batches of this rank's share.
        """
        from noisyml.similarity.kmeans import kmeans

        embeddings, index = [], []
        with evaluation_mode(method.encoder):
            for batch in batches_on(method.device, loader):
                embeddings.append(unit_norm(method.embed(batch)))
                index.append(batch["index"])
        width = method.encoder.out_features
        rows = torch.cat([torch.empty(0, width, device=method.device), *embeddings])
        found = kmeans(
            rows,
            self.num_clusters,
            metric="cosine",
            max_iterations=self.iterations,
            seed=self.seed,
            sharded=True,
        )
        positions = torch.cat([torch.empty(0, dtype=torch.int64, device=method.device), *index])
        self.labels[distributed.gather(positions)] = distributed.gather(found.labels)
        # Images that cannot be decoded have no embedding and never enter a batch.
        self.refreshed_at = method.current_epoch

    def get_extra_state(self) -> dict[str, int]:
        """Epoch in which the labels were made, for the state dict."""
        return {"refreshed_at": self.refreshed_at}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take over the epoch in which the labels were made."""
        self.refreshed_at = int(state["refreshed_at"])
