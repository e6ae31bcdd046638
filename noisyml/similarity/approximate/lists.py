"""Inverted lists without faiss, for many queries at once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyml.similarity.approximate.rows import ListPlan, Rows
from noisyml.similarity.kmeans import kmeans

#: Iterations by which centroids are learnt.
_ITERATIONS = 10
#: Rows that are read at once, and scores that are held.
_READ, _SCORES = 2**14, 2**22


class RowLists:
    """Rows in the lists of their nearest centroids; a query looks into those of its nearest few.

    Jégou, Douze and Schmid, TPAMI 2011, section IV, without codes. All queries of a block that look
    into a list do so at once, by one product of matrices, so that its rows are read once a block
    and not once a query. Nothing is copied: rows are read from wherever they lie.

    Args:
        gallery: [Ng, D].
        metric: ``cosine``, ``ip`` or ``l2``; centroids of the first two have unit norm (spherical
            k-means).
        plan: sizes.
        seed: of the rows from which centroids are learnt, and of these.
    """

    def __init__(self, gallery: Rows, metric: str, plan: ListPlan, seed: int) -> None:
        self._gallery, self._metric, self._plan = gallery, metric, plan
        self._centroids = kmeans(
            plan.training_rows(gallery, seed),
            plan.n_lists,
            metric="l2" if metric == "l2" else "cosine",
            init="random",
            max_iterations=_ITERATIONS,
            seed=seed,
            backend="torch",
        ).centroids
        lists = np.empty(len(gallery), dtype=np.int64)
        for start in range(0, len(gallery), _READ):
            stop = min(start + _READ, len(gallery))
            lists[start:stop] = self._nearest_lists(gallery.block(start, stop), 1)[:, 0].numpy()
        self._members = np.argsort(lists, kind="stable")
        self._ends = np.cumsum(np.bincount(lists, minlength=plan.n_lists))

    def search(self, queries: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Scores, larger for nearer, and gallery rows [Nq, n], -inf and -1 where fewer were found.

        Args:
            queries: [Nq, D] float32, as `Rows` prepares them.
            n: candidates wanted.
        """
        best = torch.full((len(queries), n), -torch.inf)
        found = torch.full((len(queries), n), -1, dtype=torch.int64)
        looked_into = torch.cat(
            [self._nearest_lists(part, self._plan.n_probes) for part in queries.split(_READ)]
        ).flatten()
        by_list = looked_into.argsort(stable=True) // self._plan.n_probes
        asking = by_list.split(looked_into.bincount(minlength=self._plan.n_lists).tolist())
        for number in range(self._plan.n_lists):
            members = self._members_of(number)
            if not len(asking[number]) or not len(members):
                continue
            for some in torch.from_numpy(members).split(_READ):
                theirs = self._gallery.take(some)
                for rows in asking[number].split(max(1, min(_READ, _SCORES // len(some)))):
                    scores = self._scores(queries[rows], theirs, self._centroids[number])
                    near, at = scores.topk(min(n, len(some)), dim=1)
                    best[rows], order = torch.cat([best[rows], near], dim=1).topk(n, dim=1)
                    found[rows] = torch.cat([found[rows], some[at]], dim=1).gather(1, order)
        return best, found

    def _members_of(self, number: int) -> NDArray[np.int64]:
        """Gallery rows of a list, in rising order."""
        return self._members[self._ends[number - 1] if number else 0 : self._ends[number]]

    def _nearest_lists(self, rows: Tensor, n: int) -> Tensor:
        """Numbers of the nearest lists [rows, n]."""
        near = rows @ self._centroids.T
        if self._metric == "l2":
            near -= self._centroids.square().sum(1) / 2
        return near.topk(n, dim=1).indices

    def _scores(self, queries: Tensor, rows: Tensor, centroid: Tensor) -> Tensor:
        """Scores [queries, rows]."""
        if self._metric != "l2":
            return queries @ rows.T
        # Near their centroid both are small, and so are the squares that cancel.
        queries, rows = queries - centroid, rows - centroid
        lengths = queries.square().sum(1)[:, None] + rows.square().sum(1)
        return lengths.addmm_(queries, rows.T, alpha=-2).clamp_(min=0).neg_()
