"""Ways to rank a gallery: whitened descriptors, expanded queries, diffusion on neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyml.checks import Count, NonNegative, OpenShare, checked
from noisyml.errors import UserError
from noisyml.metrics.instances.scores import Ranked, ranked
from noisyml.similarity.diffusion import personalised_diffusion
from noisyml.similarity.graph import knn_graph, mutual
from noisyml.similarity.search import self_topk, topk

#: Queries that walk at a time.
_WALKS_AT_ONCE = 64


@checked
def pca_whitening(rows: NDArray[np.floating], dims: Count | None = None) -> Callable[..., Tensor]:
    """PCA learnt on some descriptors, every component brought to variance 1.

    Args:
        rows: [M, D], e.g. of a set that is not evaluated.
        dims: components kept; None: all there are.

    Returns:
        A function from [n, D] to [n, dims].

    Raises:
        UserError: fewer rows or columns than components.

    Source: Jégou and Chum, "Negative evidences and co-occurrences in image retrieval", ECCV 2012.
    """
    from sklearn.decomposition import PCA

    most = min(rows.shape)
    if dims is not None and dims > most:
        raise UserError(
            f"A whitening of {dims} dimensions needs as many descriptors and columns, and there "
            f"are {rows.shape[0]} of {rows.shape[1]} columns: lower it."
        )
    pca = PCA(dims, whiten=True).fit(rows)

    def whiten(descriptors: Tensor) -> Tensor:
        found = pca.transform(descriptors.cpu().numpy())
        return torch.from_numpy(found).to(descriptors)

    return whiten


@checked
def expanded_queries(
    queries: Tensor, gallery: Tensor, count: Count, alpha: NonNegative = 3.0
) -> Tensor:
    """Queries joined by their first answers: ``q + sum_i max(s_i, 0)^alpha x_i``, unit norm.

    Args:
        queries: [Q, D], unit norm.
        gallery: [N, D], unit norm; s_i is the similarity of its row x_i to q.
        count: answers that join, at most N.
        alpha: 0: all equally (average query expansion).

    Returns:
        [Q, D].

    Source: Radenović, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation",
    TPAMI 2019, section 3.5; with alpha 0 Chum et al., "Total Recall", ICCV 2007.

    Example:
        >>> rows = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> query = torch.tensor([[0.6, 0.8]])
        >>> expanded_queries(query, rows, 1, alpha=0.0).round(decimals=3)
        tensor([[0.3160, 0.9490]])
    """
    found = topk(queries, gallery, min(count, len(gallery)), metric="ip")
    weights = found.scores.clamp(min=0).pow(alpha).to(queries)
    answers = gallery[found.index.to(gallery.device)]
    return torch.nn.functional.normalize(queries + torch.einsum("qk,qkd->qd", weights, answers))


@checked
def diffused(
    queries: Tensor,
    gallery: Tensor,
    neighbours: Count = 50,
    start: Count = 10,
    gamma: NonNegative = 3.0,
    alpha: OpenShare = 0.99,
) -> Iterator[Ranked]:
    """Rankings by a random walk that starts from the first answers of a query.

    The graph joins gallery rows that are each other's neighbours, with weights ``s^gamma``; images
    that the walk does not reach follow by their similarity to the query. A query itself is no node.

    Args:
        queries: [Q, D], unit norm.
        gallery: [N, D], unit norm.
        neighbours: k of the graph.
        start: answers of the query that the walk starts from, with weights ``s^gamma``.
        gamma: see above; similarities below 0 count as 0.
        alpha: share that walks on.

    Returns:
        Rankings, some queries at a time; scores are similarities.

    Source: Iscen, Tolias, Avrithis, Furon, Chum, "Efficient Diffusion on Region Manifolds", CVPR
    2017, sections 3 and 4 (global descriptors, the query outside of the graph).
    """
    near = self_topk(gallery, min(neighbours, len(gallery) - 1), metric="ip")
    graph = mutual(knn_graph(near.index, near.scores.clamp(min=0).pow(gamma)))
    for order, scores in ranked(queries, gallery):
        parts = []
        for some in scores.split(_WALKS_AT_ONCE):
            best = some.topk(min(start, len(gallery)), dim=1)
            seeds = torch.zeros(len(gallery), len(some), dtype=torch.float64, device=some.device)
            seeds.scatter_(0, best.indices.T, best.values.T.double().clamp(min=0).pow(gamma))
            parts.append(personalised_diffusion(graph, seeds, alpha=alpha).T)
        reached = torch.cat(parts).gather(1, order)
        again = reached.argsort(dim=1, descending=True, stable=True)
        yield Ranked(order.gather(1, again), scores)
