"""The graph that a run draws its pairs from: searched or given, and what is done to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from noisyml import distributed
from noisyml.checks import Checked, Count, Seed, Share, WholeNonNegative
from noisyml.embeddings.neighbours import Device
from noisyml.errors import UserError
from noisyml.methods.vectors.pairs import (
    Approximation,
    GraphMetric,
    Pairs,
    given_pairs,
    knn_pairs,
    supported_edges,
    with_random_edges,
    without,
)


class PairGraph(Checked):
    """Neighbours of the training vectors.

    Args:
        n_neighbors: k, neighbours of each row.
        metric: ``cosine``, ``inner_product`` or ``l2``, a row being left out by its number; or
            ``inner_product_raw``: the first of k + 1 hits is dropped, whoever that is, as released.
        knn_approximation: None: exact; ``low``, ``medium``, ``high``: product quantisation with 32,
            16 or 8 sub-quantisers, whose recall is reported.
        path: a graph that is there: a folder of ``noisyml knn``, or a ``.npy`` file of row numbers
            [N, k]; None: it is searched.
        random_edges: share of the edges that are made to lead to random rows, to study wrong pairs.
        min_shared: edges are used only if the neighbourhoods of both ends have so many members in
            common, beyond the ends themselves; 0: all are.
        seed: of random edges and of approximations.
    """

    def __init__(
        self,
        n_neighbors: Count = 5,
        metric: GraphMetric = "cosine",
        knn_approximation: Approximation | None = None,
        path: str | None = None,
        random_edges: Share = 0.0,
        min_shared: WholeNonNegative = 0,
        seed: Seed = 0,
    ) -> None:
        if path is not None and knn_approximation is not None:
            raise UserError(
                f"method.graph.path={path} gives a graph and "
                f"method.graph.knn_approximation={knn_approximation} searches one: leave out one "
                f"of them."
            )
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.knn_approximation = knn_approximation
        self.path = path
        self.random_edges = random_edges
        self.min_shared = min_shared
        self.seed = seed

    def of(self, rows: Any, device: Device = "cpu") -> tuple[Pairs, list[str]]:
        """The pairs of rows [N, D], the same on every rank, and remarks on them.

        Args:
            rows: read in blocks.
            device: where to search.

        Raises:
            UserError: rows or a graph that do not fit, or a selection that leaves no pair.
        """
        said = []
        if self.path is not None:
            pairs = given_pairs(self.path, len(rows), self.n_neighbors)
        else:
            pairs = self._searched(rows, device)
        if pairs.recall is not None:
            said.append(f"the approximate graph holds {pairs.recall:.1%} of the true neighbours")
        if self.random_edges:
            pairs, _ = with_random_edges(pairs, self.random_edges, self.seed)
        if self.min_shared:
            keep = supported_edges(pairs, self.min_shared)
            if not keep.any():
                raise UserError(
                    f"method.graph.min_shared={self.min_shared} leaves no pair: lower it."
                )
            said.append(
                f"{keep.mean():.1%} of the edges share {self.min_shared} neighbours or more"
            )
            pairs = without(pairs, keep)
        return pairs, said

    def _searched(self, rows: Any, device: Device) -> Pairs:
        """Neighbours that the first rank finds, and tells the others."""
        if not distributed.is_distributed():
            return self._search(rows, device)
        import torch

        here = distributed.collective_device()
        recall = torch.full((1,), torch.nan, dtype=torch.float64, device=here)
        index = torch.zeros(len(rows), self.n_neighbors, dtype=torch.int64, device=here)
        if distributed.rank() == 0:
            found = self._search(rows, device)
            index = torch.from_numpy(np.ascontiguousarray(found.index)).to(here)
            recall.fill_(torch.nan if found.recall is None else found.recall)
        for told in (index, recall):
            distributed.from_first(told)
        known = None if self.knn_approximation is None else float(recall)
        return Pairs(index.cpu().numpy(), known)

    def _search(self, rows: Any, device: Device) -> Pairs:
        return knn_pairs(
            rows,
            self.n_neighbors,
            metric=self.metric,
            knn_approximation=self.knn_approximation,
            seed=self.seed,
            device=device,
        )
