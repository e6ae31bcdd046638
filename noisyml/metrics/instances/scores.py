"""Instance retrieval by lists of judged images: revisited Oxford and Paris, INSTRE, landmarks.

Each query has lists of images that show its object (positives), perhaps by difficulty, and of
images that are neither right nor wrong (ignored, "junk"). A ranking of the whole gallery is scored
after the ignored images are taken out of it. Sources of the protocols: Radenović et al.,
"Revisiting Oxford and Paris", CVPR 2018 (average precision by trapezoids, three difficulties, mean
precision at K); Weyand et al., "Google Landmarks Dataset v2", CVPR 2020 (average precision at 100).

Only the judged images' places in the ranking matter, so these are found first (`places`), block by
block, with distractors counted and never sorted in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from noisyml.checks import Count, checked

#: Scores of queries against the gallery that are held at a time.
_SCORES_AT_ONCE = 2**25
#: Of the revisited protocol: the lists that count as right, and those that are taken out.
SETUPS = {
    "easy": (("easy",), ("hard", "junk")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("easy", "junk")),
}


class Judged(NamedTuple):
    """Images by query, one list after the other.

    Attributes:
        images: [E] int64, numbers of gallery images.
        query: [E] int64, the query that each belongs to, ascending.
        n_queries: Q.
    """

    images: Tensor
    query: Tensor
    n_queries: int

    @classmethod
    def of(cls, lists: Sequence[Sequence[int] | Tensor]) -> Judged:
        """From one list of images per query."""
        counts = torch.tensor([len(images) for images in lists], dtype=torch.int64)
        flat = [torch.as_tensor(images, dtype=torch.int64) for images in lists]
        numbers = torch.repeat_interleave(counts)
        return cls(torch.cat(flat) if flat else numbers, numbers, len(lists))

    @property
    def counts(self) -> Tensor:
        """Images per query [Q] int64."""
        return torch.bincount(self.query, minlength=self.n_queries)


class Ranked(NamedTuple):
    """Rankings of some queries.

    Attributes:
        order: [q, N] int64, gallery rows, the best first.
        scores: [q, N] by which they are ordered, by gallery row.
    """

    order: Tensor
    scores: Tensor


def ranked(queries: Tensor, gallery: Tensor) -> Iterator[Ranked]:
    """Rankings by inner product, of equal ones the first row first, some queries at a time.

    Args:
        queries: [Q, D].
        gallery: [N, D].
    """
    for part in queries.split(max(1, _SCORES_AT_ONCE // max(1, len(gallery)))):
        scores = part @ gallery.T
        yield Ranked(scores.argsort(dim=1, descending=True, stable=True), scores)


class Places(NamedTuple):
    """Places of judged images in the rankings, and what lies at the top.

    Attributes:
        place: [E] int64, counted from 0.
        scores: [E] of the judged images.
        top: [Q, K] int64, the first gallery rows of every ranking.
        top_scores: [Q, K].
    """

    place: Tensor
    scores: Tensor
    top: Tensor
    top_scores: Tensor


@torch.no_grad()
def places_in(rankings: Iterable[Ranked], judged: Judged, top: int = 1) -> Places:
    """Places of judged images in rankings.

    Args:
        rankings: of all queries, in their order.
        judged: images whose places are wanted.
        top: K, rows kept of every ranking.
    """
    place, scores_of = torch.empty_like(judged.images), None
    tops, first = [], 0
    for order, scores in rankings:
        mine = (judged.query >= first) & (judged.query < first + len(order))
        row, image = judged.query[mine] - first, judged.images[mine]
        inverse = torch.empty_like(order)
        numbers = torch.arange(order.shape[1], device=order.device).expand_as(order)
        inverse.scatter_(1, order, numbers)
        if scores_of is None:
            scores_of = scores.new_empty(len(place))
        place[mine] = inverse[row, image]
        scores_of[mine] = scores[row, image]
        best = order[:, :top]
        tops.append((best.clone(), scores.gather(1, best)))
        first += len(order)
    if scores_of is None:
        raise ValueError("no rankings")
    return Places(place, scores_of, *(torch.cat(part) for part in zip(*tops, strict=True)))


@torch.no_grad()
def count_larger(queries: Tensor, block: Tensor, judged: Judged, scores: Tensor) -> Tensor:
    """Rows of a block that come before each judged image [E] int64: those of a larger score.

    Args:
        queries: [Q, D].
        block: [m, D], more of the gallery, after the rest where scores are equal.
        judged: the images.
        scores: [E], theirs.
    """
    found = torch.zeros_like(judged.images)
    at_once = max(1, _SCORES_AT_ONCE // max(1, len(block)))
    for first in range(0, len(queries), at_once):
        mine = (judged.query >= first) & (judged.query < first + at_once)
        products = (queries[first : first + at_once] @ block.to(queries).T).sort(dim=1).values
        found[mine] = _larger(products, judged.query[mine] - first, scores[mine])
    return found


@checked
def places(
    queries: Tensor,
    gallery: Tensor,
    judged: Judged,
    distractors: Iterable[Tensor] = (),
) -> Tensor:
    """Places of judged images in the rankings by inner product; of equal ones the first is first.

    Args:
        queries: [Q, D].
        gallery: [N, D].
        judged: images whose places are wanted.
        distractors: further gallery rows in blocks [m, D], none of them judged; they come after the
            gallery where scores are equal.

    Returns:
        [E] int64, counted from 0.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
        >>> places(rows[:1], rows, Judged.of([[1, 2]])).tolist()
        [2, 1]
    """
    found = places_in(ranked(queries, gallery), judged)
    place = found.place
    for block in distractors:
        place = place + count_larger(queries, block, judged, found.scores)
    return place


def _larger(ascending: Tensor, row: Tensor, values: Tensor) -> Tensor:
    """Number of entries of its row [q, m], sorted, that are larger than each value [E]."""
    counts = torch.bincount(row, minlength=len(ascending))
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    wanted = values.new_full((len(ascending), int(counts.max()) if len(row) else 0), torch.inf)
    wanted[row, place] = values
    smaller = torch.searchsorted(ascending, wanted, right=True)
    return ascending.shape[1] - smaller[row, place]


def without_ignored(
    place: Tensor, judged: Judged, ignored_place: Tensor, ignored: Judged
) -> Tensor:
    """Places [E] after ignored images are taken out of every ranking.

    Args:
        place: [E] of the judged images.
        judged: their queries.
        ignored_place: [G] of the ignored images.
        ignored: their queries.
    """
    if not len(ignored_place) or not len(place):
        return place
    # One sorted key for query and place: how many ignored ones of the same query come before.
    width = int(torch.maximum(place.max(), ignored_place.max())) + 1
    keys = (ignored.query * width + ignored_place).sort().values
    before = torch.searchsorted(keys, judged.query * width + place)
    counts = ignored.counts
    return place - (before - (counts.cumsum(0) - counts)[judged.query])


def trapezoid_precision(place: Tensor, judged: Judged, depth: int | None = None) -> Tensor:
    """Average precision by trapezoids, as the benchmark of Oxford and Paris computes it.

    For positives at places ``r_0 < r_1 < ...``, counted from 0, and n positives in all: the sum
    over j of ``(j / r_j + (j + 1) / (r_j + 1)) / 2n``, the first quotient 1 where ``r_j = 0``.

    Args:
        place: [E] of the positives.
        judged: their queries.
        depth: places from here on were not ranked and add nothing; None: all were.

    Returns:
        [Q] float64, NaN for a query without positives.

    Example:
        >>> trapezoid_precision(torch.tensor([0, 2]), Judged.of([[5, 7]])).tolist()
        [0.7916666666666666]
    """
    query, place = _sorted(place, judged, depth)
    number = _number_in_query(query, judged.n_queries).double()
    at = place.double()
    left = torch.where(place == 0, 1.0, number / at.clamp(min=1))
    right = (number + 1) / (at + 1)
    total = at.new_zeros(judged.n_queries).index_add_(0, query, (left + right) / 2)
    return total / _positive(judged.counts)


def mean_precision_at(place: Tensor, judged: Judged, k: Count, depth: int | None = None) -> Tensor:
    """Precision among the first ``min(k, place of the last positive)`` images, counted from 1.

    Args:
        place: [E] of the positives, counted from 0.
        judged: their queries.
        k: see above.
        depth: see `trapezoid_precision`; a ranking without any positive gives 0.

    Returns:
        [Q] float64, NaN for a query without positives.
    """
    query, place = _sorted(place, judged, depth)
    last = place.new_zeros(judged.n_queries).scatter_reduce(0, query, place + 1, "amax")
    upto = last.clamp(max=k)
    hits = torch.zeros_like(last).index_add_(0, query, (place < upto[query]).long())
    return (hits.double() / upto.clamp(min=1)).masked_fill(judged.counts == 0, torch.nan)


def precision_at_depth(place: Tensor, judged: Judged, k: Count) -> Tensor:
    """Average precision at k of the landmark benchmark: divided by ``min(n, k)``.

    Args:
        place: [E] of the positives, counted from 0.
        judged: their queries; an image counts once however often it is named.
        k: ranks that count.

    Returns:
        [Q] float64, NaN for a query without positives.
    """
    query, place = _sorted(place, judged, k)
    number = _number_in_query(query, judged.n_queries).double()
    total = torch.zeros(judged.n_queries, dtype=torch.float64, device=place.device)
    total.index_add_(0, query, (number + 1) / (place + 1))
    return total / _positive(judged.counts).clamp(max=k)


def revisited_scores(
    place: dict[str, Tensor],
    judged: dict[str, Judged],
    kappas: Sequence[int] = (1, 5, 10),
    depth: int | None = None,
) -> dict[str, Tensor]:
    """Scores of every query under the revisited protocol.

    Args:
        place: places of the images of the lists ``easy``, ``hard`` and ``junk``.
        judged: the lists.
        kappas: K of the mean precisions.
        depth: see `trapezoid_precision`.

    Returns:
        ``map_easy``, ``map_medium``, ``map_hard`` and ``mp_easy_at_K``, ...: [Q] float64 each, NaN
        where a query has no positives; a metric is the mean of the others.
    """
    scores: dict[str, Tensor] = {}
    for setup, (right, out) in SETUPS.items():
        positives, at = _joined([(judged[name], place[name]) for name in right])
        ignored, ignored_at = _joined([(judged[name], place[name]) for name in out])
        if depth is not None:
            ignored, ignored_at = _cut(ignored, ignored_at, depth)
            # What was ranked is told by the places before anything is taken out.
            at = torch.where(at < depth, without_ignored(at, positives, ignored_at, ignored), depth)
        else:
            at = without_ignored(at, positives, ignored_at, ignored)
        scores[f"map_{setup}"] = trapezoid_precision(at, positives, depth)
        for k in kappas:
            scores[f"mp_{setup}_at_{k}"] = mean_precision_at(at, positives, k, depth)
    return scores


def _joined(parts: Sequence[tuple[Judged, Tensor]]) -> tuple[Judged, Tensor]:
    """Several lists of images and their places as one, by query."""
    query = torch.cat([judged.query for judged, _ in parts])
    order = query.argsort(stable=True)
    images = torch.cat([judged.images for judged, _ in parts])[order]
    at = torch.cat([at for _, at in parts])[order]
    return Judged(images, query[order], parts[0][0].n_queries), at


def _cut(judged: Judged, place: Tensor, depth: int) -> tuple[Judged, Tensor]:
    seen = place < depth
    return Judged(judged.images[seen], judged.query[seen], judged.n_queries), place[seen]


def _sorted(place: Tensor, judged: Judged, depth: int | None) -> tuple[Tensor, Tensor]:
    """Queries and places in the order of both, without places that were not ranked."""
    order = place.argsort(stable=True)
    order = order[judged.query[order].argsort(stable=True)]
    query, place = judged.query[order], place[order]
    if depth is None:
        return query, place
    return query[place < depth], place[place < depth]


def _number_in_query(query: Tensor, n_queries: int) -> Tensor:
    """[E] int64: 0, 1, ... within each query; `query` ascends."""
    counts = torch.bincount(query, minlength=n_queries)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(query), device=query.device) - starts[query]


def _positive(counts: Tensor) -> Tensor:
    """Counts as float64, NaN for 0."""
    return counts.double().masked_fill(counts == 0, torch.nan)
