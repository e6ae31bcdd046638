"""Batches of anchors, each with the images that belong to it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noisyml.data.samplers.plans import EMPTY, BatchPlan
from noisyml.errors import UserError


class WithNeighbours:
    """A plan of anchors, each batch followed by the neighbours of its anchors.

    A batch holds its A anchors first, then the K neighbours of the first anchor, those of the
    second, and so on.

    Args:
        plan: of the anchors, with full batches.
        neighbours: [N, K] int64, positions in the split.
    """

    def __init__(self, plan: BatchPlan, neighbours: NDArray[np.int64]) -> None:
        self._plan = plan
        self._neighbours = neighbours

    @property
    def batch_size(self) -> int:
        """Global batch size, anchors and neighbours."""
        return self._plan.batch_size * (1 + self._neighbours.shape[1])

    def __len__(self) -> int:
        return len(self._plan)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions [number of batches, batch_size].

        Raises:
            UserError: a batch that is not full.
        """
        anchors = self._plan.epoch(epoch)
        if (anchors == EMPTY).any():
            raise UserError(
                "Anchors with neighbours need full batches: set sampler.drop_last=true."
            )
        near = self._neighbours[anchors].reshape(len(anchors), -1)
        return np.concatenate([anchors, near], axis=1)
