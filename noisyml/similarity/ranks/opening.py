"""Blocks of queries as they begin: relevant items scored and sorted, no negative counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from noisyml.similarity.exact import kernels
from noisyml.similarity.ranks.block import QueryBlock, Ties, descending
from noisyml.similarity.ranks.scores import COMPILED_PAIR_COST, EXACT_PAIR_COST
from noisyml.similarity.ranks.task import RankingTask

#: Queries whose relevant items are scored together.
_RUN = 64
#: The same where classes are large.
_LONG_RUN = 512
#: Items of a class whose scores with one another are kept, at most.
_WHOLE_CLASS = 1024
#: Relevant items, padding included, that are found and sorted at once, in a dozen copies.
_ENTRIES_AT_ONCE = 2**18


class _Candidates(NamedTuple):
    """Places in the gallery's order that hold the relevant items of queries, and perhaps others.

    Attributes:
        relevant: which of the candidates are, bool [b, W].
        places: of the candidates, int64 [b, W]; None: one after the other from `low` on.
        low, high: the stretch that holds them all, int64 [b].
    """

    relevant: Tensor
    places: Tensor | None
    low: Tensor
    high: Tensor

    def at(self, rows: Tensor | slice, columns: Tensor) -> Tensor:
        """Places of the candidates in these columns: [n] each, or a part of the rows and [W]."""
        if self.places is not None:
            return self.places[rows, columns]
        low = self.low[rows]
        return (low[:, None] if isinstance(rows, slice) else low) + columns


class Opening:
    """Opens blocks of the queries of a task.

    Args:
        task, caps, ties: as of `noisyml.similarity.ranks.walk.Ranking`.

    Attributes:
        order: gallery numbers in class order.
    """

    def __init__(
        self,
        task: RankingTask,
        caps: Callable[[Tensor, Tensor], Tensor],
        ties: Sequence[Ties],
    ) -> None:
        self.task = task
        self._caps, self._ties = caps, list(ties)
        self.order = task.gallery_class.argsort(stable=True)
        self._classes = task.gallery_class[self.order]
        self._place = inverse(self.order)
        self._held = (0, 0)
        self._scores: Tensor | None = None

    def open(self, query_index: Tensor) -> QueryBlock:
        """A block with the scores of its relevant items and no negatives counted."""
        task = self.task
        n_relevant = task.n_relevant[query_index]
        width = int(n_relevant.max()) if len(n_relevant) else 0
        shape, device = (len(query_index), width), query_index.device
        scores = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        items = torch.zeros(shape, dtype=torch.int64, device=device)
        error = torch.zeros(len(query_index), dtype=torch.float64, device=device)
        runs = task.query_class[query_index].unique_consecutive(
            return_inverse=True, return_counts=True
        )
        fellows = runs[2][runs[1]]
        # Finding and sorting takes several times what is kept.
        at_once = max(_RUN, _ENTRIES_AT_ONCE // max(1, width) // _RUN * _RUN)
        for part in task.parts_of(query_index, at_once, _LONG_RUN):
            into = scores[part], items[part], error[part]
            self._put_in_order(query_index[part], fellows[part], into)
        # Queries with as many relevant items have the same caps.
        numbers, which = n_relevant.unique(return_inverse=True)
        position = torch.arange(width, device=device)
        caps = self._caps(position, numbers[:, None]).clamp_(max=torch.iinfo(torch.int32).max)
        caps = caps.masked_fill_(position >= numbers[:, None], -1).to(torch.int32)[which]
        counts: dict[Ties, Tensor] = {
            ties: torch.zeros((len(query_index), width + 1), dtype=torch.int32, device=device)
            for ties in self._ties
        }
        threshold = torch.full_like(error, torch.inf)
        return QueryBlock(query_index, scores, error, items, n_relevant, caps, counts, threshold)

    def _put_in_order(
        self, query_index: Tensor, fellows: Tensor, into: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Write the relevant items of some queries to the beginning of rows.

        Args:
            query_index: their numbers [b].
            fellows: how many of each one's class the whole block holds [b].
            into: scores, descending, float64 [b, R], the items' gallery numbers [b, R], and how far
                a query's scores may be from the exact ones, float64 [b].
        """
        by_lists = self.task.listed is not None
        found = self._of_lists(query_index) if by_lists else self._of_class(query_index)
        scores = self._scored(query_index, fellows, found, into[2])
        relevant = found.relevant
        if relevant.device.type == "cpu" and kernels.available():
            places = found.low if found.places is None else found.places
            kernels.put_in_order(scores, relevant, places, self.order, into[:2])
            return
        scores, columns = descending(scores.masked_fill_(relevant.logical_not_(), -torch.inf))
        width = min(into[0].shape[1], scores.shape[1])
        rows = torch.arange(len(columns), device=columns.device)
        places = found.at(rows.repeat_interleave(width), columns[:, :width].flatten())
        into[0][:, :width] = scores[:, :width]
        last = max(0, len(self.order) - 1)
        into[1][:, :width] = self.order[places.clamp_(max=last)].view(len(columns), width)

    def _scored(
        self, query_index: Tensor, fellows: Tensor, found: _Candidates, error: Tensor
    ) -> Tensor:
        """Scores of the relevant ones of the candidates [b, W], and in `error` how far they may be
        from the exact ones."""
        task = self.task
        relevant, _, low, high = found
        n_relevant = task.n_relevant[query_index]
        scores = torch.empty(relevant.shape, dtype=torch.float64, device=relevant.device)
        width = relevant.shape[1]
        run = min(len(query_index), max(_RUN, min(_LONG_RUN, width)))
        compiled = task.scores.compiled
        pair_cost = COMPILED_PAIR_COST if compiled else EXACT_PAIR_COST
        for top in range(0, len(query_index), run):
            part = slice(top, top + run)
            first, last = int(low[part].min()), int(high[part].max())
            if run * (last - first) <= pair_cost * int(n_relevant[part].sum()):
                # The run's whole stretch of the gallery is little more than its pairs.
                pairs = query_index[part], self.order[first:last]
                one_class = task.listed is None and int(low[part].max()) == first
                # Column by column it is the class. (Lists may begin alike and leave gaps.)
                out = scores[part] if one_class and last - first == width else None
                if one_class and self._pays(first, last, int(fellows[top])):
                    own = self._place[pairs[0]] - first
                    stretch = torch.index_select(self._of_one_another(first, last), 0, own, out=out)
                    if int(own.max()) == last - first - 1:
                        self._held, self._scores = (0, 0), None
                else:
                    stretch = task.scores.close_block(*pairs, out=out)
                error[part] = task.scores.close_error(*pairs)
                if out is None:
                    columns = torch.arange(width, device=low.device)
                    near = (found.at(part, columns) - first).clamp_(max=last - first - 1)
                    torch.gather(stretch, 1, near, out=scores[part])
                continue
            rows, columns = relevant[part].nonzero(as_tuple=True)
            rows += top
            pairs = query_index[rows], self.order[found.at(rows, columns)]
            scores[rows, columns] = (task.scores.close if compiled else task.scores.exact)(*pairs)
            if compiled:
                error[part] = task.scores.close_error(query_index[part], self.order)
        return scores

    def _pays(self, first: int, last: int, fellows: int) -> bool:
        """True if all scores of a class with itself, a stretch of the order, are to be found: they
        are there, or of its items so many are queries of the block."""
        if not self.task.symmetric or last - first > _WHOLE_CLASS:
            return False
        return (first, last) == self._held or 2 * fellows >= last - first

    def _of_one_another(self, first: int, last: int) -> Tensor:
        """Scores of the items of a class, a stretch of the order, with one another: each product
        serves both sides. Blocks follow one another in class order, so the last one is kept."""
        if (first, last) != self._held:
            self._scores = None
            self._scores = self.task.scores.close_to_one_another(self.order[first:last])
            self._held = first, last
        assert self._scores is not None
        return self._scores

    def _of_class(self, query_index: Tensor) -> _Candidates:
        """The candidates of each query: its class."""
        classes = self.task.query_class[query_index]
        start = torch.searchsorted(self._classes, classes)
        size = torch.searchsorted(self._classes, classes, right=True) - start
        # The whole class, though some of it may have to be left out.
        offset = torch.arange(int(size.max()) if len(size) else 0, device=classes.device)
        relevant = offset < size[:, None]
        rows, out = self.task.left_out_of(query_index)
        column = self._place[out] - start[rows]
        in_class = (column >= 0) & (column < size[rows])
        relevant[rows[in_class], column[in_class]] = False
        return _Candidates(relevant, None, start, start + size)

    def _of_lists(self, query_index: Tensor) -> _Candidates:
        """The candidates of each query: its list; all queries have one."""
        items, relevant = self.task.listed_of(query_index)
        place = self._place[items]
        low = place.masked_fill(~relevant, len(self._place)).amin(1)
        high = place.masked_fill(~relevant, -1).amax(1) + 1
        return _Candidates(relevant, torch.where(relevant, place, low[:, None]), low, high)


def inverse(permutation: Tensor) -> Tensor:
    """The place of each number in a permutation [n]."""
    place = torch.empty_like(permutation)
    place[permutation] = torch.arange(len(permutation), device=permutation.device)
    return place
