"""The best few candidates of every query while blocks of scores go by."""

from __future__ import annotations

import torch
from torch import Tensor

#: Queries compacted together: bounds the temporaries.
_QUERIES_AT_ONCE = 8192


class Shortlist:
    """Candidates of N queries, with a lower threshold that rises as better ones come.

    Scores are approximate, each within half of its query's margin of the truth. Whatever lies below
    the k-th best score by more than the margin can be forgotten: k others are truly better.

    Args:
        margins: [N] float32, twice the error of a score, per query.
        k: how many are wanted in the end.
        n_gallery: how many candidates a query can have.
        index_dtype: integer type of gallery numbers.

    Attributes:
        scores: [N, C] float32, -inf in free slots.
        index: [N, C] gallery numbers, -1 in free slots.
        threshold: [N] float32, a score that k candidates are known to reach.
        lost: bool [N]; more candidates were too close to tell apart than fit: the list of this
            query proves nothing.
    """

    def __init__(self, margins: Tensor, k: int, n_gallery: int, index_dtype: torch.dtype) -> None:
        device = margins.device
        capacity = min(2 * k + 24, max(k, n_gallery))
        shape = (len(margins), capacity)
        self.k = k
        # What a compaction may keep: room for ties beyond k, and free slots to go on with.
        self._keep = capacity if capacity >= n_gallery else capacity - (capacity - k) // 2
        self.margins = margins
        self.scores = torch.full(shape, -torch.inf, dtype=torch.float32, device=device)
        self.index = torch.full(shape, -1, dtype=index_dtype, device=device)
        self.threshold = torch.full_like(margins, -torch.inf)
        self.lost = torch.zeros(len(margins), dtype=torch.bool, device=device)
        self._count = torch.zeros(len(margins), dtype=torch.int64, device=device)

    def floor(self, queries: slice | Tensor) -> Tensor:
        """[n] float32: candidates below it are of no interest; +inf for lost queries."""
        floor = self.threshold[queries] - self.margins[queries]
        floor = torch.nextafter(floor, torch.full_like(floor, -torch.inf))
        return floor.masked_fill_(self.lost[queries], torch.inf)

    def raise_threshold(self, queries: slice, reached: Tensor) -> None:
        """Tell that k gallery items of each of `queries` reach the score `reached` [n]."""
        part = self.threshold[queries]
        torch.maximum(part, reached, out=part)

    def add(self, queries: Tensor, index: Tensor, scores: Tensor) -> None:
        """Offer candidates: query numbers (ascending), gallery numbers and scores, [n] each."""
        capacity = self.scores.shape[1]
        while len(queries):
            owner, counts = queries.unique_consecutive(return_counts=True)
            before = counts.cumsum(0) - counts
            rank = torch.arange(len(queries), device=queries.device)
            slot = rank - (before - self._count[owner]).repeat_interleave(counts)
            fits = slot < capacity
            if bool(fits.all()):
                self.scores[queries, slot] = scores
                self.index[queries, slot] = index.to(self.index.dtype)
                self._count[owner] += counts
                return
            self.scores[queries[fits], slot[fits]] = scores[fits]
            self.index[queries[fits], slot[fits]] = index[fits].to(self.index.dtype)
            self._count[owner] = (self._count[owner] + counts).clamp_(max=capacity)
            self.compact(queries[~fits].unique_consecutive())
            left = ~fits & (scores >= self.floor(queries))
            queries, index, scores = queries[left], index[left], scores[left]

    def compact(self, queries: Tensor | None = None) -> None:
        """Sort the candidates of `queries` (None: of all), raise thresholds, forget what is out."""
        if queries is None:
            queries = torch.arange(len(self.scores), device=self.scores.device)
        for some in queries.split(_QUERIES_AT_ONCE):
            scores, order = self.scores[some].sort(dim=1, descending=True)
            index = self.index[some].gather(1, order)
            self.threshold[some] = torch.maximum(self.threshold[some], scores[:, self.k - 1])
            floor = self.floor(some)
            if self._keep < scores.shape[1]:
                # Thresholds only rise, but whoever has this many ties now is given up at once.
                self.lost[some] |= scores[:, self._keep] >= floor
                floor = self.floor(some)
                scores[:, self._keep :] = -torch.inf
            scores.masked_fill_(scores < floor[:, None], -torch.inf)
            self._count[some] = (scores > -torch.inf).sum(1)
            self.scores[some] = scores
            self.index[some] = index.masked_fill_(scores == -torch.inf, -1)
