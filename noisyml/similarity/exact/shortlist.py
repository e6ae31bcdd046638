"""The best few candidates of every query while blocks of scores go by."""

from __future__ import annotations

import torch
from torch import Tensor

from noisyml.similarity.exact import kernels

#: Queries compacted together: bounds the temporaries.
_QUERIES_AT_ONCE = 8192
#: Candidates that may wait before they enter the lists.
_WAITING_AT_MOST = 2**14


class Shortlist:
    """Candidates of N queries, with a lower threshold that rises as better ones come.

    Scores are approximate, each within half of its query's margin of the truth. Whatever lies below
    the k-th best score by more than the margin can be forgotten: k others are truly better.

    Args:
        margins: [N] float32, twice the error of a score, per query.
        k: how many are wanted in the end.
        n_gallery: how many candidates a query can have.
        index_dtype: integer type of gallery numbers.

    On a CPU the compiled loops sort each candidate in at once; elsewhere they wait until there are
    many.

    Attributes:
        scores: [N, C] float32.
        index: [N, C] gallery numbers.
        threshold: [N] float32, a score that k candidates are known to reach.
        lost: bool [N]; more candidates were too close to tell apart than fit: the list of this
            query proves nothing.
    """

    def __init__(self, margins: Tensor, k: int, n_gallery: int, index_dtype: torch.dtype) -> None:
        device = margins.device
        self._compiled = device.type == "cpu" and index_dtype == torch.int32 and kernels.available()
        # Room for ties, and in batches for what waits to be sorted.
        capacity = min(2 * k + (8 if self._compiled else 24), max(k, n_gallery))
        shape = (len(margins), capacity)
        self.k = k
        # What a compaction of batches may keep: room for ties beyond k, and free slots to go on.
        self._keep = capacity if capacity >= n_gallery else capacity - (capacity - k) // 2
        self.margins = margins
        self.scores = torch.full(shape, -torch.inf, dtype=torch.float32, device=device)
        self.index = torch.full(shape, -1, dtype=index_dtype, device=device)
        self.threshold = torch.full_like(margins, -torch.inf)
        self.lost = torch.zeros(len(margins), dtype=torch.bool, device=device)
        self._count = torch.zeros(len(margins), dtype=torch.int64, device=device)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._n_waiting = 0
        # Counts at which thresholds are raised again, where this is not done at once.
        self._stale = torch.full(
            (0 if self._compiled else shape[0],), k + self._patience(), device=device
        )

    def floor(self, queries: slice | Tensor) -> Tensor:
        """[n] float32: candidates below it are of no interest; +inf for lost queries."""
        floor = self.threshold[queries] - self.margins[queries]
        floor = torch.nextafter(floor, torch.full_like(floor, -torch.inf))
        return floor.masked_fill_(self.lost[queries], torch.inf)

    def raise_threshold(self, queries: slice, reached: Tensor) -> None:
        """Tell that k gallery items of each of `queries` reach the score `reached` [n]."""
        part = self.threshold[queries]
        torch.maximum(part, reached, out=part)

    def add(
        self, queries: Tensor, index: Tensor, scores: Tensor, shift: tuple[int, int] = (0, 0)
    ) -> None:
        """Offer candidates.

        Args:
            queries, index: int32 or int64 [n], query and gallery numbers less `shift`.
            scores: float32 [n].
            shift: what to add to either.
        """
        if self._compiled:
            lists = kernels.Lists(
                self.scores, self.index, self._count, self.threshold, self.margins, self.lost,
                self.k,
            )  # fmt: skip
            kernels.enter(lists, queries.to(torch.int32), index.to(torch.int32), scores, shift)
            return
        queries, index = queries.to(torch.int64) + shift[0], index.to(torch.int64) + shift[1]
        self._waiting.append((queries, index.to(self.index.dtype), scores))
        self._n_waiting += len(queries)
        if self._n_waiting >= _WAITING_AT_MOST:
            self._enter()

    def _enter(self) -> None:
        """Put the candidates that wait into the lists: in large batches, because each costs."""
        if not self._waiting:
            return
        queries, index, scores = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._n_waiting = [], 0
        queries, order = queries.sort()
        index, scores = index[order], scores[order]
        capacity = self.scores.shape[1]
        while len(queries):
            owner, counts = queries.unique_consecutive(return_counts=True)
            count = self._count[owner]
            before = counts.cumsum(0) - counts
            slot = torch.arange(len(queries), device=queries.device)
            slot -= (before - count).repeat_interleave(counts)
            fits = slot < capacity
            full = not bool(fits.all())
            if full:
                rest = queries[~fits], index[~fits], scores[~fits]
                queries, index, scores, slot = queries[fits], index[fits], scores[fits], slot[fits]
            self.scores[queries, slot] = scores
            self.index[queries, slot] = index
            count = (count + counts).clamp_(max=capacity)
            self._count[owner] = count
            self._compact(owner[(count >= self._stale[owner]) | (count == capacity)])
            if not full:
                return
            queries, index, scores = rest
            left = scores >= self.floor(queries)
            queries, index, scores = queries[left], index[left], scores[left]

    def state(self) -> dict[str, Tensor]:
        """All that the lists hold now, by name: as long as nothing is offered, to be written to,
        so that lists of the same queries go on from where others were."""
        self._enter()
        return {
            "scores": self.scores,
            "index": self.index,
            "threshold": self.threshold,
            "lost": self.lost,
            "count": self._count,
            "stale": self._stale,
        }

    def numbers(self) -> Tensor:
        """The candidates' gallery numbers, [N, W]: no wider than the longest list, at least k wide;
        -1 in free slots and for lost queries. The lists are of no use any more after it."""
        self._enter()
        if not self._compiled:
            self._compact(torch.arange(len(self.scores), device=self.scores.device))
        free = self.scores < self.floor(slice(None))[:, None]  # true for lost queries
        slots = torch.arange(free.shape[1], device=free.device)
        free.logical_or_(slots >= self._count[:, None])
        longest = free.shape[1] - int(free.sum(1, dtype=torch.int32).min()) if len(free) else 0
        width = max(self.k, longest)
        return self.index.masked_fill_(free, -1)[:, :width].clone()

    def _patience(self) -> int:
        """Candidates that may come before a threshold is raised: few enough to keep it sharp."""
        return max(4, self.k // 2)

    def _compact(self, queries: Tensor) -> None:
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
            count = (scores > -torch.inf).sum(1)
            self._count[some] = count
            self._stale[some] = count.clamp_(min=self.k) + self._patience()
            self.scores[some] = scores
            self.index[some] = index.masked_fill_(scores == -torch.inf, -1)
