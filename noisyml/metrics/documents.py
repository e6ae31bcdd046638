"""Document retrieval: nDCG and recall by graded judgements, and files that other tools read.

Definitions are those of TREC's and BEIR's tools (Thakur et al., NeurIPS 2021): gains are grades,
the discount of rank r is 1 / log2(r + 1), the ideal ranking is that of all judged documents, and
means run over the judged queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyml.checks import Count, checked
from noisyml.distributed import gather
from noisyml.errors import UserError
from noisyml.metrics.base import Evaluator, SplitRole
from noisyml.runs.artefacts import Artefact
from noisyml.similarity.search import TopK, topk
from noisyml.targets import TARGETS, TargetKind
from noisyml.targets.judgements import Judgements


@checked
def graded_metrics(
    ranking: NDArray[np.int64],
    judgements: Judgements,
    ndcg_at: Sequence[Count] = (10,),
    recall_at: Sequence[Count] = (100,),
) -> dict[str, float]:
    """Means over queries of nDCG@K and recall@K.

    Args:
        ranking: [Q, K] int64, document numbers by query, the best first; -1 for none.
        judgements: of these queries; those without a relevant document count as 0.
        ndcg_at: numbers K, each adds ``ndcg_at_K``.
        recall_at: likewise ``recall_at_K``: share of the relevant documents among the first K.

    Example:
        >>> of = np.array
        >>> known = Judgements(["q"], ["a", "b"], of([0, 0]), of([0, 1]), of([2, 1]))
        >>> found = graded_metrics(of([[1, 0]]), known, ndcg_at=[2], recall_at=[1])
        >>> round(found["ndcg_at_2"], 4), found["recall_at_1"]
        (0.8597, 0.5)
    """
    queries, documents = len(ranking), len(judgements.document_ids)
    there = judgements.document >= 0
    keys = judgements.query[there] * documents + judgements.document[there]
    order = np.argsort(keys, kind="stable")
    keys, grades = keys[order], judgements.grade[there][order]
    asked = np.arange(queries)[:, None] * documents + ranking
    place = np.minimum(np.searchsorted(keys, asked), max(len(keys) - 1, 0))
    hit = (ranking >= 0) & (len(keys) > 0)
    if len(keys):
        hit &= keys[place] == asked
    gains = np.where(hit, np.maximum(grades[place] if len(keys) else 0, 0), 0).astype(float)
    relevant = np.bincount(judgements.query[judgements.grade > 0], minlength=queries)
    found = {}
    for k in ndcg_at:
        ideal = _ideal(judgements, queries, k)
        reached = (gains[:, :k] / np.log2(np.arange(gains[:, :k].shape[1]) + 2)).sum(axis=1)
        found[f"ndcg_at_{k}"] = float(np.mean(reached / np.where(ideal > 0, ideal, 1)))
    for k in recall_at:
        hits = (gains[:, :k] > 0).sum(axis=1)
        found[f"recall_at_{k}"] = float(np.mean(hits / np.maximum(relevant, 1)))
    return found


def _ideal(judgements: Judgements, queries: int, k: int) -> NDArray[np.float64]:
    """Discounted gain [Q] of the best ranking of k documents."""
    positive = judgements.grade > 0
    query, grade = judgements.query[positive], judgements.grade[positive]
    order = np.lexsort((-grade, query))
    query, grade = query[order], grade[order]
    counts = np.bincount(query, minlength=queries)
    rank = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    inside = rank < k
    gains = grade[inside] / np.log2(rank[inside] + 2)
    return np.bincount(query[inside], weights=gains, minlength=queries).astype(np.float64)


def trec_run(
    ranking: NDArray[np.int64], scores: NDArray[np.floating], judgements: Judgements, tag: str
) -> str:
    """A ranking as TREC's tools read it: ``query Q0 document rank score tag``, ranks from 1."""
    return "".join(
        f"{judgements.query_ids[q]} Q0 {judgements.document_ids[d]} {rank} {score:.8g} {tag}\n"
        for q, (row, values) in enumerate(zip(ranking.tolist(), scores.tolist(), strict=True))
        for rank, (d, score) in enumerate(zip(row, values, strict=True), start=1)
        if d >= 0
    )


def trec_qrels(judgements: Judgements) -> str:
    """Judgements as TREC's tools read them: ``query 0 document grade``; of documents there are."""
    rows = zip(judgements.query, judgements.document, judgements.grade, strict=True)
    return "".join(
        f"{judgements.query_ids[q]} 0 {judgements.document_ids[d]} {grade}\n"
        for q, d, grade in rows
        if d >= 0
    )


class DocumentEvaluator(Evaluator):
    """Judged queries search a collection by their embeddings.

    Args:
        ndcg_at: numbers K, each adds ``ndcg_at_K``.
        recall_at: likewise ``recall_at_K``.
        metric: ``cosine`` or ``ip`` (inner product).
        ignore_same_id: a document that is called like the query is no answer (ArguAna's queries are
            documents).
        headline: the metric that checkpoints and progress go by unless told otherwise.
    """

    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset(TARGETS)
    reads_labels: ClassVar[bool] = False

    def __init__(
        self,
        ndcg_at: Sequence[Count] = (10,),
        recall_at: Sequence[Count] = (10, 100),
        metric: Literal["cosine", "ip"] = "cosine",
        ignore_same_id: bool = True,
        headline: str = "ndcg_at_10",
    ) -> None:
        if not [*ndcg_at, *recall_at]:
            raise UserError("The evaluator of documents measures nothing: name ndcg_at, recall_at.")
        self.ndcg_at = list(ndcg_at)
        self.recall_at = list(recall_at)
        self.metric: Literal["cosine", "ip"] = metric
        self.ignore_same_id = ignore_same_id
        self.headline = headline
        self._found: TopK | None = None
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._parts: dict[str, list[tuple[Tensor, Tensor]]] = {"query": [], "gallery": []}

    def update(
        self,
        outputs: Mapping[str, Tensor],
        targets: Tensor,
        index: Tensor,
        role: SplitRole = "pool",
    ) -> None:
        """Take in one batch of queries or of documents (``gallery``).

        Raises:
            UserError: a pool, whose samples nobody judged for each other.
        """
        if role not in self._parts:
            raise UserError(
                "The evaluator of documents needs queries and a collection: choose "
                "dataset=beir, or another evaluator=..."
            )
        rows = self.needed(outputs, "embeddings").detach()
        self._parts[role].append((index.detach(), rows))

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """The metrics over all judged queries; a collective call.

        Raises:
            UserError: a data set without judgements.
        """
        if self.judgements is None:
            raise UserError(
                "The evaluator of documents needs judgements, which the data set has not: choose "
                "dataset=beir, or evaluator=retrieval."
            )
        query, gallery = self._whole("query"), self._whole("gallery")
        k = min(max([*self.ndcg_at, *self.recall_at]), len(gallery))
        own = None
        if self.ignore_same_id:
            place = {name: row for row, name in enumerate(self.judgements.document_ids)}
            numbers = [place.get(name, -1) for name in self.judgements.query_ids]
            own = torch.tensor(numbers, dtype=torch.int64, device=query.device)
        self._found = topk(query, gallery, k, metric=self.metric, exclude=own)
        ranking = self._found.index.cpu().numpy()
        return graded_metrics(ranking, self.judgements, self.ndcg_at, self.recall_at)

    def artefacts(self) -> Iterable[Artefact]:
        """The ranking and the judgements in TREC's formats."""
        if self._found is None or self.judgements is None:
            return
        index, scores = (x.cpu().numpy() for x in (self._found.index, self._found.scores))
        run = trec_run(index, scores, self.judgements, "noisyml")
        yield Artefact("run.trec.txt", run)
        yield Artefact("qrels.trec.txt", trec_qrels(self.judgements))

    def _whole(self, role: str) -> Tensor:
        """Embeddings of all ranks, in the order of their positions, each once."""
        parts = self._parts[role]
        # A rank without a batch asks the others how wide theirs are.
        mine = torch.tensor([rows.shape[1] for _, rows in parts[:1]], dtype=torch.int64)
        widths = gather(mine)
        if not len(widths):
            raise UserError(f"The evaluator of documents has seen no {role}.")
        none = (torch.empty(0, dtype=torch.int64), torch.empty(0, int(widths[0])))
        index, rows = (gather(torch.cat(part)) for part in zip(*(parts or [none]), strict=True))
        order = index.argsort(stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = index[order][1:] != index[order][:-1]
        return rows[order[first]]
