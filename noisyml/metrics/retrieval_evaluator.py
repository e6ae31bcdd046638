"""Retrieval metrics of a whole split, streamed batch by batch and gathered from all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, get_args

import torch
from torch import Tensor

from noisyml.checks import Count, Ge, Seed
from noisyml.distributed import all_reduce_sum, collective_device, gather, rank
from noisyml.errors import UserError
from noisyml.metrics.base import Evaluator, SplitRole
from noisyml.metrics.clustering import ami, nmi
from noisyml.metrics.retrieval import (
    DEFAULT_MEMORY_BUDGET,
    DEFAULT_METRICS,
    Average,
    Distance,
    Lone,
    RankMetric,
    retrieval_metrics,
)
from noisyml.similarity.kmeans import kmeans

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass
class Collected:
    """Batches that this rank has taken in under one role: positions, labels and rows."""

    index: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)

    def add(self, index: Tensor, labels: Tensor, embeddings: Tensor) -> None:
        """Take in a batch.

        Raises:
            ValueError: parts of different lengths.
        """
        if not len(index) == len(labels) == len(embeddings):
            raise ValueError("index, labels and embeddings must have the same length")
        self.index.append(index.detach().to(torch.int64))
        self.labels.append(labels.detach().to(torch.int64))
        self.embeddings.append(embeddings.detach())

    def whole(self) -> tuple[Tensor, Tensor] | None:
        """Embeddings and labels of all ranks, ordered by index without repetitions.

        A collective call; None if no rank has any.
        """
        index, labels, embeddings = self._joined()
        if embeddings is None:
            return None
        index, labels, embeddings = gather(index), gather(labels), gather(embeddings)
        order = index.argsort(stable=True)
        index = index[order]
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        order = order[first]
        if torch.equal(order, torch.arange(len(labels), device=order.device)):
            return embeddings, labels
        return embeddings[order], labels[order]

    def _joined(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """This rank's shard in one piece; None embeddings if no rank has any.

        A rank without a batch learns the embeddings' width and type from the others.
        """
        device = self.index[0].device if self.index else collective_device()
        kind = [0, 0]
        if self.embeddings:
            kind = [self.embeddings[0].shape[1], _DTYPES.index(self.embeddings[0].dtype)]
            # One piece from here on, so that a second `whole` does not join again.
            self.index = [torch.cat(self.index)]
            self.labels = [torch.cat(self.labels)]
            self.embeddings = [torch.cat(self.embeddings)]
        kinds = gather(torch.tensor([kind], device=device))
        width = int(kinds[:, 0].max())
        if width == 0:
            empty = torch.empty(0, dtype=torch.int64, device=device)
            return empty, empty, None
        if self.embeddings:
            return self.index[0], self.labels[0], self.embeddings[0]
        empty = torch.empty(0, dtype=torch.int64, device=device)
        dtype = _DTYPES[int(kinds[:, 1].max())]
        return empty, empty, torch.empty((0, width), dtype=dtype, device=device)


#: Bytes, at least 1 MiB.
MemoryBudget = Annotated[int, Ge(2**20)]


class RetrievalEvaluator(Evaluator):
    """Retrieval (and clustering) metrics over the whole split, exact under DDP.

    Roles: ``pool`` alone: queries are their own gallery, each left out for itself. ``query`` and
    ``gallery``: two sets, nothing left out. ``pool`` and ``gallery``: the pool is searched together
    with a gallery of distractors.

    Args:
        metrics: names from the table in `noisyml.metrics.retrieval`.
        recall_at: every K here adds ``recall_at_K``.
        metric: ``cosine`` or ``l2``.
        average: ``micro`` (mean over queries) or ``macro`` (mean over classes of class means).
        lone: ``exclude`` queries without a relevant item, or count them as ``zero``.
        clustering: add ``nmi`` and ``ami`` of k-means with as many clusters as query labels.
        tie_bounds: add ``_optimistic`` and ``_pessimistic`` values.
        memory_budget_bytes: aim of the working memory beyond the embeddings.
        seed: of the k-means initialisation.
        headline: the metric that checkpoints and progress go by unless told otherwise; None:
            ``map_at_r`` if it is measured, else the first one of all.

    Raises:
        UserError: an unknown metric, or none.
    """

    metric_labels: ClassVar[Mapping[str, str]] = {
        "precision_at_1": "P@1",
        "r_precision": "R-Precision",
        "map_at_r": "MAP@R",
        "map": "mAP",
        "nmi": "NMI",
        "recall_at_K": "R@K",
        "precision_at_K": "P@K",
    }

    def __init__(
        self,
        metrics: Sequence[str] = DEFAULT_METRICS,
        recall_at: Sequence[Count] = (1, 2, 4, 8),
        metric: Distance = "cosine",
        average: Average = "micro",
        lone: Lone = "exclude",
        clustering: bool = False,
        tie_bounds: bool = False,
        memory_budget_bytes: MemoryBudget = DEFAULT_MEMORY_BUDGET,
        seed: Seed = 0,
        headline: str | None = None,
    ) -> None:
        self.metrics = list(metrics)
        self.recall_at = list(recall_at)
        names = [*self.metrics, *(f"recall_at_{k}" for k in self.recall_at)]
        for name in names:
            RankMetric.parse(name)
        if not names:
            raise UserError("The retrieval evaluator measures nothing: name metrics or recall_at.")
        preferred = "map_at_r" if "map_at_r" in names else names[0]
        self.headline = preferred if headline is None else headline
        self.metric: Distance = metric
        self.average: Average = average
        self.lone: Lone = lone
        self.clustering = clustering
        self.tie_bounds = tie_bounds
        self.memory_budget_bytes = memory_budget_bytes
        self.seed = seed
        self._shards: dict[SplitRole, Collected] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._shards = {role: Collected() for role in get_args(SplitRole)}

    def update(
        self,
        outputs: Mapping[str, Tensor],
        targets: Tensor,
        index: Tensor,
        role: SplitRole = "pool",
    ) -> None:
        """Take in one batch: ``embeddings`` [b, D], `targets` [b], `index` [b].

        Raises:
            UserError: no embeddings, or labels that are not one integer per sample.
        """
        embeddings, labels = self.needed(outputs, "embeddings"), targets
        if labels.ndim != 1 or labels.is_floating_point():
            raise UserError(
                f"The retrieval evaluator needs one integer label per sample, but got labels of "
                f"shape {list(labels.shape)} and type {labels.dtype}; choose another evaluator=…."
            )
        self._shards[role].add(index, labels, embeddings)

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """The metrics over all batches of all ranks, each sample counted once.

        Raises:
            UserError: nothing taken in, ``query`` without ``gallery`` or mixed with ``pool``, or
                NaN embeddings.
        """
        pool, query, gallery, distractors = (
            self._shards[role].whole() for role in get_args(SplitRole)
        )
        queries = query if pool is None else pool
        alone = pool is None and gallery is None
        if queries is None or alone or (pool is not None and query is not None):
            raise UserError(
                "The retrieval evaluator needs a pool, a pool and a gallery, or a query and a "
                f"gallery set, but has {self._present(pool, query, gallery, distractors)}; check "
                "the splits that the data set names."
            )
        if distractors is not None:
            joined = [distractors] if gallery is None else [gallery, distractors]
            gallery = (torch.cat([part[0] for part in joined]), torch.cat([p[1] for p in joined]))
        embeddings, labels = queries
        other, other_labels, own = None, None, None
        if gallery is not None:
            other, other_labels = gallery
            if pool is not None:
                own = torch.arange(len(labels), device=labels.device)
                other = torch.cat([embeddings, other])
                other_labels = torch.cat([labels, other_labels])
        result = retrieval_metrics(
            embeddings,
            labels,
            other,
            other_labels,
            metrics=self.metrics,
            recall_at=self.recall_at,
            metric=self.metric,
            query_index_in_gallery=own,
            lone=self.lone,
            average=self.average,
            tie_bounds=self.tie_bounds,
            memory_budget_bytes=self.memory_budget_bytes,
            share_over_ranks=True,
        )
        if self.clustering:
            result |= self._clustering(embeddings, labels)
        return result

    def _clustering(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        scores = embeddings.new_zeros(2, dtype=torch.float64)
        # On one rank only: k-means need not give the same clusters twice on different machines.
        if rank() == 0:
            # On a CPU sums have one order, and so the clusters are the same in every run.
            rows = embeddings.to("cpu", torch.float32)
            if self.metric == "cosine":
                rows = torch.nn.functional.normalize(rows, dim=1)
            n_clusters = len(labels.unique())
            clusters = kmeans(rows, n_clusters, max_iterations=20, seed=self.seed).labels
            scores[0] = nmi(labels, clusters)
            scores[1] = ami(labels, clusters)
        scores = all_reduce_sum(scores)
        return {"nmi": float(scores[0]), "ami": float(scores[1])}

    @staticmethod
    def _present(*sets: tuple[Tensor, Tensor] | None) -> str:
        roles = [r for r, s in zip(get_args(SplitRole), sets, strict=True) if s is not None]
        return " and ".join(roles) or "nothing"
