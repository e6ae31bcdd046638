"""The nearest neighbours of every training image, found before training and kept through it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from noisyml import distributed
from noisyml.checks import Count, Positive, Seed, Share, WholeNonNegative
from noisyml.data.views import Batch
from noisyml.errors import UserError
from noisyml.methods.base import Method
from noisyml.methods.found import FoundInTraining
from noisyml.methods.vectors.pairs import Pairs, supported_edges, with_random_edges
from noisyml.models.multi_scale import multi_scale

#: Place of an image without neighbours, which cannot be decoded and never enters a batch.
NOBODY = -1


class NeighbourGraph(FoundInTraining):
    """The `stored` nearest neighbours of every training image by cosine, itself left out.

    Args:
        num_samples: N, images of the training split.
        stored: neighbours kept per image, fewer where there are fewer images (paper: 500).
        source: what is compared: ``features`` of the backbone (of a first stage, whose head is not
            trained yet) or ``embeddings``.
        scales: of the images, see `multi_scale`.
        file: a folder that ``noisyml knn`` wrote for the same images in place of all that.
        random_edges: share of the neighbours that are exchanged for random images, to study wrong
            pairs; similarities stay.
        min_shared: of the nearest `shared_among` neighbours, those come first whose own lists have
            so many members in common with the image's, beyond the neighbour itself; 0: as found.
            Stored similarities stay in their places.
        shared_among: see above.
        seed: of random neighbours.
        every_n_epochs: epochs between searches within a run; 0: once, before the first (paper).

    Attributes:
        neighbours: [N, T] int32, the nearest first; `NOBODY` for images that cannot be decoded.
        similarities: [N, T] float32, descending.
    """

    neighbours: Tensor
    similarities: Tensor

    def __init__(
        self,
        num_samples: Count,
        stored: Count = 500,
        source: Literal["features", "embeddings"] = "features",
        scales: Sequence[Positive] = (1.0,),
        file: str | None = None,
        random_edges: Share = 0.0,
        min_shared: WholeNonNegative = 0,
        shared_among: Count = 10,
        seed: Seed = 0,
        every_n_epochs: WholeNonNegative = 0,
    ) -> None:
        super().__init__(every_n_epochs)
        self.random_edges = random_edges
        self.min_shared = min_shared
        self.shared_among = shared_among
        self.seed = seed
        self.stored = min(stored, max(1, num_samples - 1))
        self.source = source
        self.scales = scales
        self.file = file
        empty = torch.full((num_samples, self.stored), NOBODY, dtype=torch.int32)
        self.register_buffer("neighbours", empty)
        self.register_buffer("similarities", torch.zeros(num_samples, self.stored))

    def find(self, method: Method, loader: Iterable[Batch]) -> None:
        """Read the neighbours from the file, or find them from this rank's share of the images.

        Args:
            method: whose encoder embeds, in evaluation mode.
            loader: batches of this rank's share.

        Raises:
            UserError: a file of other images, or with fewer neighbours.
        """
        if self.file is not None:
            self._read(self.file)
        else:
            self._search(method, loader)
        if self.random_edges or self.min_shared:
            self._rearrange()

    def _rearrange(self) -> None:
        """Exchange some neighbours for random images, then let supported ones come first."""
        pairs = Pairs(self.neighbours.cpu().numpy().astype(np.int64))
        if self.random_edges:
            pairs, _ = with_random_edges(pairs, self.random_edges, self.seed)
        if self.min_shared:
            near = pairs.index[:, : self.shared_among]
            keep = supported_edges(Pairs(near), self.min_shared)
            order = np.argsort(~keep, axis=1, kind="stable")
            index = np.array(pairs.index)
            index[:, : near.shape[1]] = np.take_along_axis(near, order, axis=1)
            pairs = Pairs(index)
        self.neighbours.copy_(torch.from_numpy(pairs.index))

    def check(self, needed: int) -> None:
        """Refuse to give more neighbours than there are.

        Raises:
            UserError: there are fewer than `needed`.
        """
        if needed > self.stored:
            raise UserError(
                f"method.num_neighbours={needed} asks for more than the {self.stored} neighbours "
                f"that are stored: raise method.graph.stored, or give more images."
            )

    def _search(self, method: Method, loader: Iterable[Batch]) -> None:
        from noisyml.similarity.sharded import sharded_self_topk

        encoder = method.encoder
        of_features = self.source == "features"
        embed = encoder.features if of_features else encoder
        width = encoder.backbone.out_features if of_features else encoder.out_features
        local, everybody = self.embedded(
            method, loader, lambda batch: multi_scale(embed, batch, self.scales), width
        )
        if len(everybody) <= self.stored:
            raise UserError(
                f"{len(everybody)} training images have no {self.stored} neighbours each: lower "
                f"method.graph.stored, or give more images."
            )
        found = sharded_self_topk(local, self.stored)
        self.neighbours[everybody] = distributed.gather(everybody[found.index]).to(torch.int32)
        self.similarities[everybody] = distributed.gather(found.scores).to(torch.float32)

    def _read(self, file: str) -> None:
        from noisyml.embeddings.neighbours import read_neighbours

        given = read_neighbours(file)
        n, k = given.index.shape
        if n != len(self.neighbours) or k < self.stored:
            raise UserError(
                f"{file} has {k} neighbours of {n} images, and the run needs {self.stored} of "
                f"{len(self.neighbours)}: search them again, or change method.graph.stored."
            )
        near = np.ascontiguousarray(given.index[:, : self.stored])
        self.neighbours.copy_(torch.from_numpy(near))
        scores = np.ascontiguousarray(given.scores[:, : self.stored])
        self.similarities.copy_(torch.from_numpy(scores))
