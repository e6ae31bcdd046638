"""Queries, their relevant items, and the negatives counted before each of these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from noisyml.similarity.exact import kernels
from noisyml.similarity.exact.kernels import Pairs
from noisyml.similarity.ranks.scores import PairScores

Ties = Literal["index", "optimistic", "pessimistic"]
#: Spacing of rows in the sort key that packs (row, score) into one float64; scores lie in [-2, 2].
_KEY_STRIDE = 8.0
#: Rows of which all counts are looked at together.
_ROWS_AT_ONCE = 256
#: Standard deviations by which a count must exceed its cap to be extrapolated from a sample.
_CAUTION = 3.0


@dataclass
class QueryBlock:
    """Consecutive queries (in class order) and what is known about their relevant items.

    Attributes:
        query_index: original query numbers [b].
        scores: scores of the relevant items, descending, -inf in the padding [b, R].
        score_error: how far they may be from the exact ones [b].
        gallery_index: their original gallery numbers; ascending among equal scores [b, R].
        n_relevant: [b].
        caps: how many negatives before the m-th relevant item leave it of interest, int32
            [b, R].
        counts: negatives by the number of relevant items that beat them, int32 [b, R + 1], under
            the tie rule that counts least; of the other rules what they count more or less.
        threshold: score of the lowest relevant item still of interest, +inf if none [b].
        alive: whether there is any.
        waiting: negatives to be counted: rows of this block, gallery numbers and filter scores.
    """

    query_index: Tensor
    scores: Tensor
    score_error: Tensor
    gallery_index: Tensor
    n_relevant: Tensor
    caps: Tensor
    counts: dict[Ties, Tensor]
    threshold: Tensor
    alive: bool = False
    waiting: list[Pairs] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = torch.arange(len(self.scores), device=self.scores.device)
        self._touched = torch.full_like(rows, self.scores.shape[1] > 0, dtype=torch.bool)
        self._kept = self.n_relevant.clone()
        self._useless: set[int] = set()
        self._compiled = rows.device.type == "cpu" and kernels.available()
        self._keys: Tensor | None = None
        # What its counts declare dead is dead under every rule.
        self._least: Ties = "optimistic" if "optimistic" in self.counts else next(iter(self.counts))
        self.update_thresholds()

    @staticmethod
    def _keys_of(rows: Tensor, scores: Tensor) -> Tensor:
        return rows[:, None] * _KEY_STRIDE - scores.clamp(min=-_KEY_STRIDE / 2)

    def negatives_before(self, ties: Ties, rows: Tensor) -> Tensor:
        """Negatives before the m-th relevant item of `rows` [n], int64 [n, R]; if more than its
        cap, some number above the cap."""
        counts = self.counts[self._least][:, :-1].index_select(0, rows)
        if ties != self._least:
            counts += self.counts[ties][:, :-1].index_select(0, rows)
        return counts.cumsum(1)

    def update_thresholds(self, seen: float = 1.0) -> None:
        """Drop relevant items that no requested metric can see any more.

        Args:
            seen: share of the gallery that the counts stand for. Below 1 what has been counted is
                taken for an even sample, and items that will very likely be dropped in the end are
                dropped already; `unsettled` tells for which queries that was wrong.
        """
        touched = self._touched.nonzero().flatten()
        if not len(touched):
            return
        self._touched.zero_()
        self._kept[touched] = torch.minimum(self._living(touched, seen), self._kept[touched])
        self._set_thresholds(touched)

    def keep_above(self, floor: Tensor) -> None:
        """Drop relevant items whose score may lie below `floor` [b] float64: negatives below it
        are not looked for. `unsettled` tells for which queries that was wrong."""
        if not self.scores.shape[1]:
            return
        # More than what a floor loses as a float32.
        slack = 2.0**-20 * (1 + floor.abs().masked_fill(floor.isinf(), 0))
        reached = self.scores >= (floor + self.score_error + slack)[:, None]
        self._kept = torch.minimum(self._kept, reached.sum(1))
        self._set_thresholds(torch.arange(len(floor), device=floor.device))

    def _living(self, rows: Tensor, seen: float) -> Tensor:
        """Number of relevant items of `rows` [n] that may still be of interest: int64 [n]."""
        if self._compiled:
            counts = self.counts[self._least]
            return kernels.within_caps(counts, self.caps, rows, seen, _CAUTION)
        before, caps = self._negatives_at_least(rows), self.caps[rows]
        living = (before <= caps).sum(1)
        if seen < 1.0:
            expected = before.to(torch.float32)
            expected = (expected - _CAUTION * expected.sqrt()) / seen
            living = torch.minimum(living, (expected <= caps).sum(1))
        return living

    def _set_thresholds(self, rows: Tensor) -> None:
        kept = self._kept[rows]
        last = self.scores[rows, (kept - 1).clamp(min=0)]
        self.threshold[rows] = last.masked_fill_(kept == 0, torch.inf)
        self.alive = bool((self.threshold < torch.inf).any())

    def unsettled(self) -> Tensor:
        """Queries of which an item was dropped that is of interest after all, bool [b].

        The counts of dropped items may lack negatives. If even so the first of them exceeds its
        cap, then all of them do, for caps fall and counts rise along a row.
        """
        if not self.scores.shape[1]:
            return torch.zeros_like(self.threshold, dtype=torch.bool)
        wrong = [
            self._living(rows, 1.0) > self._kept[rows]
            for rows in torch.arange(len(self.caps), device=self.caps.device).split(_ROWS_AT_ONCE)
        ]
        return torch.cat(wrong)

    def _negatives_at_least(self, rows: Tensor) -> Tensor:
        """The smallest of the counts before each relevant item of `rows` [n]: int32 [n, R]."""
        return self.counts[self._least][rows].cumsum(1, dtype=torch.int32)[:, :-1]

    def add(
        self,
        rows: Tensor,
        gallery_index: Tensor,
        approximate: Tensor,
        error: Tensor,
        scores: PairScores,
    ) -> None:
        """Count negatives; `update_thresholds` takes them into account.

        Args:
            rows: row of this block, int32 [n].
            gallery_index: gallery number of the negative [n].
            approximate: its filter score [n].
            error: how far the filter may be from the truth, float64 [b].
            scores: the judge of close cases.
        """
        open_cases = self._count(rows, approximate, error)
        judges = ((scores.near, scores.near_error), (scores.close, scores.close_error))
        for level, (judge, judge_error) in enumerate(judges):
            if level in self._useless or not len(open_cases):
                continue
            some, item = rows[open_cases], gallery_index[open_cases]
            closer = judge(self.query_index[some], item)
            still_open = self._count(some, closer, judge_error(self.query_index, item))
            if 2 * len(still_open) > len(open_cases):
                # Duplicates or collapsed embeddings: go to the exact scores at once from now on.
                self._useless.add(level)
            open_cases = open_cases[still_open]
        if len(open_cases):
            row, item = rows[open_cases].to(torch.int64), gallery_index[open_cases]
            self._make_exact(row.unique(), scores)
            score = scores.exact(self.query_index[row], item)
            # Only of these do the rules judge differently.
            least = self._beaten_by(row, item, score, self._least)
            self._increase(self._least, row, least)
            for rule in self.counts:
                if rule != self._least:
                    self._increase(rule, row, self._beaten_by(row, item, score, rule))
                    self._increase(rule, row, least, -1)

    def _count(self, rows: Tensor, scores: Tensor, error: Tensor) -> Tensor:
        """Count the negatives of `rows` [n] whose place the scores [n] tell, each within its row's
        `error` [b]; the numbers [u] of the others."""
        if self._compiled:
            given = self.scores, self.n_relevant, rows.contiguous(), scores.contiguous()
            margin = error + self.score_error
            return kernels.count_between(self.counts[self._least], *given, margin, self._touched)
        rows = rows.to(torch.int64)
        self._touched[rows] = True
        slots, open_cases = self._place(rows, scores.to(torch.float64), error[rows])
        clear = torch.ones_like(rows, dtype=torch.bool)
        clear[open_cases] = False
        self._increase(self._least, rows[clear], slots[clear])
        return open_cases

    def _increase(self, rule: Ties, rows: Tensor, slots: Tensor, by: int = 1) -> None:
        width = self.scores.shape[1] + 1
        some = torch.full_like(rows, by, dtype=torch.int32)
        self.counts[rule].view(-1).index_add_(0, rows * width + slots, some)

    def _place(self, rows: Tensor, scores: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Number of relevant items surely before each negative [n]; which of them are not sure."""
        width = self.scores.shape[1]
        if self._keys is None:
            everyone = torch.arange(len(self.scores), device=rows.device)
            self._keys = self._keys_of(everyone, self.scores).flatten()
        middle = rows * _KEY_STRIDE - scores
        key_slack = 4 * _KEY_STRIDE * max(1, len(self.scores)) * 2.0**-52
        margin = error + self.score_error[rows] + key_slack
        following = torch.searchsorted(self._keys, middle - margin)
        slots = following - rows * width
        # A case is open if the next relevant item is not surely worse.
        reached = self._keys[following.clamp_(max=len(self._keys) - 1)] <= middle + margin
        return slots, (reached & (slots < self.n_relevant[rows])).nonzero().flatten()

    def _make_exact(self, rows: Tensor, scores: PairScores) -> None:
        """Score the relevant items of `rows` [n] exactly and put them in order again.

        What has been counted stays valid: it was surely before or behind whatever moves.
        """
        rows = rows[self.score_error[rows] > 0]
        if not len(rows):
            return
        width = self.scores.shape[1]
        row, column = (
            torch.arange(width, device=rows.device) < self.n_relevant[rows, None]
        ).nonzero(as_tuple=True)
        found = torch.full_like(self.scores[rows], -torch.inf)
        items = self.gallery_index[rows]
        found[row, column] = scores.exact(self.query_index[rows[row]], items[row, column])
        items, order = items.sort(dim=1)
        found, by_score = found.gather(1, order).sort(dim=1, descending=True, stable=True)
        self.scores[rows], self.gallery_index[rows] = found, items.gather(1, by_score)
        if self._keys is not None:
            self._keys.view(-1, width)[rows] = self._keys_of(rows, found)
        self.score_error[rows] = 0.0
        self._set_thresholds(rows)

    def _beaten_by(self, row: Tensor, item: Tensor, score: Tensor, ties: Ties) -> Tensor:
        """Number of relevant items ranked before each negative: bisection over the block's rows."""
        low = torch.zeros_like(row)
        high = self.n_relevant[row]
        width = self.scores.shape[1]
        for _ in range(width.bit_length()):
            middle = ((low + high) // 2).clamp(max=width - 1)
            rival = self.scores[row, middle]
            if ties == "optimistic":
                wins = rival >= score
            elif ties == "pessimistic":
                wins = rival > score
            else:
                wins = (rival > score) | (
                    (rival == score) & (self.gallery_index[row, middle] < item)
                )
            searching = low < high
            low = torch.where(searching & wins, middle + 1, low)
            high = torch.where(searching & ~wins, middle, high)
        return low


def descending(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of float64 scores [n, R], which lie in [-2, 2] or are -inf, from the largest to the
    smallest, and the columns that they come from, equal ones as they stand: int64 [n, R].

    On a CPU the columns' numbers take the place of the scores' last bits, and whole numbers are
    sorted by NumPy, which is several times as fast; rows that lose their order by it are sorted
    again.
    """
    width = scores.shape[1]
    if scores.device.type != "cpu" or width < 2:
        in_order = scores.sort(dim=1, descending=True, stable=True)
        return in_order.values, in_order.indices
    mask = (1 << (width - 1).bit_length()) - 1
    # Bits of a positive float ascend like a whole number.
    keys = torch.rsub(scores, _KEY_STRIDE / 2).view(torch.int64)
    keys.bitwise_and_(~mask).bitwise_or_(torch.arange(width))
    keys.numpy().sort(axis=1)
    order = keys.bitwise_and_(mask)
    found = scores.gather(1, order)
    rises = found[:, 1:] > found[:, :-1]
    if rises.numpy().any():  # which takes a fraction of the time of a reduction by rows
        wrong = rises.any(1).nonzero().flatten()
        found[wrong], order[wrong] = scores[wrong].sort(dim=1, descending=True, stable=True)
    return found, order
