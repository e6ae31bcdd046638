"""Labels made by clustering the embeddings of the training split, refreshed on a schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import torch

from noisyml import distributed
from noisyml.checks import ArgumentError, Count, Hint, Seed, WholeNonNegative
from noisyml.data.views import Batch
from noisyml.methods.found import FoundInTraining
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


class PseudoLabels(FoundInTraining):
    """Cluster numbers that stand in for labels, in the sampler and in the loss.

    Spherical k-means on the unit-norm embeddings of the training images as evaluation sees them.

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
        super().__init__(every_n_epochs)
        check_clusters(num_clusters, num_samples)
        self.num_clusters = num_clusters
        self.iterations = iterations
        self.seed = seed
        self.register_buffer("labels", torch.full((num_samples,), -1, dtype=torch.int64))

    def find(self, method: Method, loader: Iterable[Batch]) -> None:
        """Embed this rank's share of the training split and cluster the whole."""
        from noisyml.similarity.kmeans import kmeans

        rows, positions = self.embedded(
            method, loader, lambda x: unit_norm(method.embed(x)), method.encoder.out_features
        )
        found = kmeans(
            rows,
            self.num_clusters,
            metric="cosine",
            max_iterations=self.iterations,
            seed=self.seed,
            sharded=True,
        )
        self.labels[positions] = distributed.gather(found.labels)
