"""A bank with one row per training image, and the mining of positives and negatives in it.

InsCLR (Deng et al., "Improving Instance Retrieval with Self-Supervision", AAAI 2022) covers a whole
training set by it. Its first stages take negatives alone from the bank (`far_images`); the last one
also mines positives (`mine_bank`), from the nearest neighbours that were stored for every image:
those more similar than one threshold are positives, those below another negatives, and of what lies
between the ones that agree with a growing set of trusted images are chosen (`MiningRule`). What the
text of the paper leaves open follows the released code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from noisyml.checks import Count, checked
from noisyml.errors import UserError
from noisyml.similarity.pinned_buffers import PinnedBuffers

#: Similarities held at a time while candidates are judged.
_JUDGED_AT_ONCE = 2**24
_MODE = re.compile(
    r"(?P<start>b\+0|b\+i|a\+i)_tr(?P<rounds>[1-9]\d*)"
    r"_(?P<scores>(?:(?:avg|max)\d\.\d\d)+)_(?P<picks>(?:k\d\d|t\d\.\d\d)+)"
)
_STARTS: dict[str, Literal["batch", "batch_positives", "anchor_positives"]] = {
    "b+0": "batch",
    "b+i": "batch_positives",
    "a+i": "anchor_positives",
}


@checked
class InstanceBank(PinnedBuffers):
    """The last embedding of every training image.

    Args:
        size: N, images of the training split.
        dim: D.
        plain: also keep embeddings of the images as they are, without augmentation.
        dtype: number format of the stored embeddings.

    Attributes:
        embeddings: [N, D], zero where nothing was written.
        plain: [N, D] or None.
        written: [N] int64, how often each row was written.

    Example:
        >>> bank = InstanceBank(size=3, dim=1)
        >>> bank.write(torch.tensor([2, 2]), torch.tensor([[0.5], [1.0]]))
        >>> bank.embeddings.flatten().tolist(), bank.written.tolist()
        ([0.0, 0.0, 1.0], [0, 0, 1])
    """

    embeddings: Tensor
    plain: Tensor | None
    written: Tensor

    def __init__(
        self,
        size: Count,
        dim: Count,
        plain: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("plain", torch.zeros(size, dim, dtype=dtype) if plain else None)
        self.register_buffer("written", torch.zeros(size, dtype=torch.int64))

    @torch.no_grad()
    def write(self, index: Tensor, embeddings: Tensor, plain: Tensor | None = None) -> None:
        """Overwrite rows; of an image that comes twice the last row stays, and counts once.

        Args:
            index: [B] int64, positions in the training split.
            embeddings: [B, D].
            plain: [B, D] of the images without augmentation, if the bank keeps those.
        """
        images, place = torch.unique(index, return_inverse=True)
        rows = torch.arange(len(index), device=index.device)
        last = torch.zeros_like(images).scatter_reduce(0, place, rows, "amax", include_self=False)
        self.embeddings[images] = embeddings[last].to(self.embeddings)
        if self.plain is not None:
            if plain is None:
                raise TypeError("the bank keeps plain embeddings too: give them")
            self.plain[images] = plain[last].to(self.plain)
        self.written[images] += 1


@dataclass(frozen=True)
class MiningRule:
    """Rule by which candidates become positives: those that agree with the trusted ones, in rounds.

    In each round a candidate's similarities to the trusted images are looked at where they reach a
    threshold; its score is their mean (``avg``) or the largest (``max``). The best candidates are
    chosen and are trusted themselves in the next round.

    Attributes:
        start: trusted images at first: ``batch`` (the label's rows of the batch),
            ``batch_positives`` (and its initial positives), ``anchor_positives`` (its first row and
            the initial positives of that).
        rounds: number of rounds.
        scores: per round ``avg`` or ``max`` and the threshold; the last one serves further rounds.
        picks: per round ``top`` and the number of candidates, or ``above`` and the least score.
    """

    start: Literal["batch", "batch_positives", "anchor_positives"]
    rounds: int
    scores: tuple[tuple[Literal["avg", "max"], float], ...]
    picks: tuple[tuple[Literal["top", "above"], float], ...]

    @classmethod
    def parse(cls, mode: str) -> MiningRule:
        """The rule from the released notation ``<start>_tr<rounds>_<scores>_<picks>``.

        Args:
            mode: e.g. ``b+i_tr4_avg0.60_k05``: start from batch and initial positives, four rounds,
                mean over similarities from .60, five candidates a round.

        Raises:
            UserError: another notation.

        Example:
            >>> MiningRule.parse("a+i_tr2_avg0.60max0.50_k05t0.70").picks
            (('top', 5.0), ('above', 0.7))
        """
        match = _MODE.fullmatch(mode)
        if match is None:
            raise UserError(
                f"mining={mode} is no rule of candidates: write start, rounds, score and choice as "
                f"in b+i_tr4_avg0.60_k05 (start b+0, b+i or a+i; score avg or max with a threshold "
                f"of two decimals; choice k and two digits, or t and two decimals)."
            )
        scores = re.findall(r"(avg|max)(\d\.\d\d)", match["scores"])
        picks = re.findall(r"([kt])([\d.]+?)(?=[kt]|$)", match["picks"])
        return cls(
            _STARTS[match["start"]],
            int(match["rounds"]),
            tuple((kind, float(threshold)) for kind, threshold in scores),
            tuple(("top" if kind == "k" else "above", float(value)) for kind, value in picks),
        )

    def score_of(self, number: int) -> tuple[Literal["avg", "max"], float]:
        """Score and threshold of a round, counted from 0."""
        return self.scores[min(number, len(self.scores) - 1)]

    def pick_of(self, number: int) -> tuple[Literal["top", "above"], float]:
        """Choice of a round, counted from 0."""
        return self.picks[min(number, len(self.picks) - 1)]


class Mined(NamedTuple):
    """Rows of the bank that a batch is compared with.

    Attributes:
        index: [M] int64, rows of the bank.
        labels: [M] int64: the batch's label of a positive, `negative_label` of a negative.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    labels: Tensor


@checked
def neighbour_boundaries(
    similarities: Tensor, positive_threshold: float, negative_threshold: float
) -> tuple[Tensor, Tensor]:
    """Numbers of stored neighbours that reach two thresholds, per image.

    Args:
        similarities: [N, T], descending in every row.
        positive_threshold: neighbours from here on are positives.
        negative_threshold: neighbours below are negatives; those between are candidates.

    Returns:
        [N] and [N] int64.

    Example:
        >>> neighbour_boundaries(torch.tensor([[0.9, 0.6, 0.2]]), 0.75, 0.5)
        (tensor([1]), tensor([2]))
    """
    positive = (similarities >= positive_threshold).sum(dim=1)
    return positive, (similarities >= negative_threshold).sum(dim=1)


@checked
def far_images(
    written: Tensor,
    neighbours: Tensor,
    index: Tensor,
    *,
    excluded_neighbours: Count = 50,
    exclude_batch: bool = False,
) -> Tensor:
    """Images that are safe negatives for a whole batch: near none of its images.

    Args:
        written: [N] int64, see `InstanceBank.written`; rows never written are left out.
        neighbours: [N, T] int64, the nearest first.
        index: [B] int64, images of the batch.
        excluded_neighbours: P, as many neighbours of every image of the batch are left out.
        exclude_batch: leave the batch's own images out as well; the released code does not, so that
            an image can meet its own fresh copy as a negative.

    Returns:
        [M] int64, ascending.

    Example:
        >>> written = torch.tensor([1, 1, 1, 0])
        >>> far_images(written, torch.tensor([[1], [0], [3], [2]]), torch.tensor([0]))
        tensor([0, 2])
    """
    usable = written > 0
    usable[neighbours[index, :excluded_neighbours].flatten()] = False
    if exclude_batch:
        usable[index] = False
    return usable.nonzero().flatten()


def drawn(rows: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` of the rows [M] at random without replacement, all of them if there are no more."""
    if count >= len(rows):
        return rows
    places = torch.randperm(len(rows), generator=generator)[: max(0, count)]
    return rows[places.to(rows.device)]


@checked
def grow_positives(
    candidates: Tensor,
    present: Tensor,
    trusted: Tensor,
    trusted_present: Tensor,
    rule: MiningRule,
) -> Tensor:
    """Candidates that become positives, for several labels at once.

    Args:
        candidates: [L, C, D], unit norm.
        present: [L, C] bool, False where a list is padded.
        trusted: [L, Q, D], unit norm.
        trusted_present: [L, Q] bool.
        rule: `MiningRule.start` does not matter here.

    Returns:
        [L, C] bool.

    Example:
        >>> rows = torch.tensor([[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]])
        >>> rule = MiningRule.parse("b+0_tr2_avg0.50_k01")
        >>> there = torch.ones(1, 3, dtype=torch.bool)
        >>> grow_positives(rows, there, rows[:, :1], there[:, :1], rule).tolist()
        [[True, True, False]]
    """
    chosen = torch.zeros_like(present)
    if not candidates.shape[1]:
        return chosen
    to_trusted = candidates @ trusted.transpose(1, 2)
    to_others = candidates @ candidates.transpose(1, 2)
    for number in range(rule.rounds):
        kind, threshold = rule.score_of(number)
        seen = (to_trusted >= threshold) & trusted_present[:, None]
        seen_others = (to_others >= threshold) & chosen[:, None]
        open_ = present & ~chosen
        counts = (seen.sum(dim=2) + seen_others.sum(dim=2)) * open_
        if kind == "avg":
            total = (to_trusted * seen).sum(dim=2) + (to_others * seen_others).sum(dim=2)
            scores = total / (counts + 1e-6)
        else:
            scores = torch.maximum(
                (to_trusted * seen).amax(dim=2), (to_others * seen_others).amax(dim=2)
            )
        scores = scores * open_
        pick, value = rule.pick_of(number)
        if pick == "above":
            chosen = chosen | (open_ & (scores >= value))
            continue
        # A stable order settles equal scores by position, the same on every rank.
        order = scores.masked_fill(~open_, -torch.inf).argsort(dim=1, descending=True, stable=True)
        wanted = (counts > 0).sum(dim=1, keepdim=True).clamp(max=int(value))
        first = torch.arange(scores.shape[1], device=scores.device) < wanted
        chosen = chosen | torch.zeros_like(chosen).scatter(1, order, first)
    return chosen & present


@dataclass(frozen=True)
class NeighbourLists:
    """Nearest neighbours of every training image, cut into positives, candidates and negatives.

    Attributes:
        neighbours: [N, T] int64, the nearest first, without the image itself.
        positives: [N] int64, so many of the first ones are positives.
        candidates: [N] int64, those up to here are candidates, and the rest negatives.
    """

    neighbours: Tensor
    positives: Tensor
    candidates: Tensor

    @classmethod
    def cut(
        cls,
        neighbours: Tensor,
        similarities: Tensor,
        positive_threshold: float,
        negative_threshold: float,
    ) -> NeighbourLists:
        """Lists cut by similarity, see `neighbour_boundaries`.

        Raises:
            UserError: the first threshold lies below the second.
        """
        if positive_threshold < negative_threshold:
            raise UserError(
                f"positive_threshold={positive_threshold} lies below negative_threshold="
                f"{negative_threshold}: positives are the more similar neighbours."
            )
        bounds = neighbour_boundaries(similarities, positive_threshold, negative_threshold)
        return cls(neighbours, *bounds)

    def between(self, index: Tensor, start: Tensor | None, stop: Tensor | None) -> Tensor:
        """[B, T] bool: places from `start` [N] (None: the first) to `stop` [N] (None: the end)."""
        place = torch.arange(self.neighbours.shape[1], device=index.device)
        inside = torch.ones(len(index), len(place), dtype=torch.bool, device=index.device)
        if start is not None:
            inside &= place >= start[index][:, None]
        return inside if stop is None else inside & (place < stop[index][:, None])


class _Pairs(NamedTuple):
    """Labels by number [E] and images [E], distinct, sorted by label and image."""

    number: Tensor
    image: Tensor

    @classmethod
    def of(cls, number: Tensor, image: Tensor, n_images: int) -> _Pairs:
        key = torch.unique(number * n_images + image)
        return cls(key // n_images, key % n_images)

    def where(self, keep: Tensor) -> _Pairs:
        return _Pairs(self.number[keep], self.image[keep])

    def key(self, n_images: int) -> Tensor:
        return self.number * n_images + self.image

    def padded(self, labels: int) -> tuple[Tensor, Tensor]:
        """Images of each label [L, C], filled up with 0, and which places are taken."""
        counts = torch.bincount(self.number, minlength=labels)
        width = int(counts.max()) if len(self.number) else 0
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(self.number), device=counts.device) - starts[self.number]
        images = self.image.new_zeros(labels, width)
        images[self.number, place] = self.image
        taken = torch.arange(width, device=counts.device) < counts[:, None]
        return images, taken


@torch.no_grad()
def mine_bank(
    bank: InstanceBank,
    lists: NeighbourLists,
    index: Tensor,
    labels: Tensor,
    rule: MiningRule,
    *,
    negative_label: int,
    size: int | None = None,
    negatives: bool = True,
    exclude_batch: bool = False,
    only_written: bool = False,
    generator: torch.Generator | None = None,
) -> Mined:
    """Rows of the bank to compare a batch with: mined positives, far and random negatives.

    Initial positives of a label are the positive neighbours of its rows; candidates that lie
    between both thresholds join them by `grow_positives`, judged by plain embeddings. Negatives are
    the far neighbours of all rows, filled up at random from what else was written. An image claimed
    by several labels goes to the largest, as in the released code.

    Args:
        bank: with plain embeddings.
        lists: stored neighbours.
        index: [B] int64, images of the batch; the first row of a label is its anchor.
        labels: [B] int64; rows with a label of 0 or less take no part.
        rule: how candidates become positives.
        negative_label: a number that is no row's label.
        size: rows wanted; positives and far negatives are never cut, random ones fill up to it.
            None: everything that was written.
        negatives: False: positives alone.
        exclude_batch: leave the batch's own images out everywhere; the released code does not.
        only_written: leave initial positives out that were never written (and are zero); the
            released code does not.
        generator: draws the random negatives; must agree on all ranks.

    Example:
        >>> bank = InstanceBank(size=4, dim=1, plain=True)
        >>> bank.write(torch.arange(4), torch.ones(4, 1), torch.ones(4, 1))
        >>> near = torch.tensor([[1, 2, 3], [0, 2, 3], [3, 0, 1], [2, 0, 1]])
        >>> lists = NeighbourLists.cut(near, torch.tensor([[0.9, 0.3, 0.1]] * 4), 0.8, 0.2)
        >>> rule = MiningRule.parse("b+i_tr1_avg0.50_k01")
        >>> mined = mine_bank(
        ...     bank, lists, torch.tensor([0]), torch.tensor([1]), rule, negative_label=5
        ... )
        >>> mined.index.tolist(), mined.labels.tolist()
        ([1, 2, 3, 0], [1, 1, 5, 5])
    """
    n = len(bank.written)
    written = bank.written > 0
    mine = labels > 0
    index, labels = index[mine], labels[mine]
    values, number = torch.unique(labels, return_inverse=True)
    own = _Pairs.of(number, index, n)
    in_batch = torch.zeros_like(written)
    in_batch[index] = True

    claimed = _neighbours(lists, index, number, lists.between(index, None, lists.positives), n)
    claimed = claimed.where(~torch.isin(claimed.key(n), own.key(n)))
    if only_written:
        claimed = claimed.where(written[claimed.image])
    if exclude_batch:
        claimed = claimed.where(~in_batch[claimed.image])
    owner = torch.full((n,), -1, dtype=torch.int64, device=index.device)
    owner.scatter_reduce_(0, claimed.image, claimed.number, "amax")
    initial = owner >= 0

    middle = lists.between(index, lists.positives, lists.candidates)
    candidates = _neighbours(lists, index, number, middle, n)
    candidates = candidates.where(~initial[candidates.image])
    if exclude_batch:
        candidates = candidates.where(~in_batch[candidates.image])
    selected = _selected(bank, lists, index, number, own, claimed, candidates, rule, len(values))
    owner.scatter_reduce_(0, selected.image, selected.number, "amax")

    positive = owner >= 0
    found = positive.nonzero().flatten()
    if not negatives:
        return Mined(found, values[owner[found]])
    far = torch.zeros_like(written)
    far[lists.neighbours[index][lists.between(index, lists.candidates, None)]] = True
    far &= written & ~positive
    other = written & ~positive & ~far
    if exclude_batch:
        far &= ~in_batch
        other &= ~in_batch
    rest = other.nonzero().flatten()
    kept = far.nonzero().flatten()
    if size is not None:
        rest = drawn(rest, size - len(found) - len(kept), generator)
    others = torch.cat([kept, rest])
    return Mined(
        torch.cat([found, others]),
        torch.cat([values[owner[found]], torch.full_like(others, negative_label)]),
    )


def _neighbours(
    lists: NeighbourLists, index: Tensor, number: Tensor, inside: Tensor, n_images: int
) -> _Pairs:
    """Stored neighbours of the rows of each label, at some places [B, T] of the lists."""
    near = lists.neighbours[index]
    return _Pairs.of(number[:, None].expand_as(near)[inside], near[inside], n_images)


def _selected(
    bank: InstanceBank,
    lists: NeighbourLists,
    index: Tensor,
    number: Tensor,
    own: _Pairs,
    claimed: _Pairs,
    candidates: _Pairs,
    rule: MiningRule,
    n_labels: int,
) -> _Pairs:
    """The candidates that the rule takes, by label."""
    if bank.plain is None:
        raise TypeError("mining judges by plain embeddings: build the bank with plain=True")
    if not len(candidates.image):
        return candidates
    n = len(bank.written)
    if rule.start == "anchor_positives":
        rows = torch.arange(len(index), device=index.device)
        first = torch.full((n_labels,), len(index), device=index.device)
        first.scatter_reduce_(0, number, rows, "amin")
        anchors = torch.arange(n_labels, device=index.device)
        near = lists.between(index[first], None, lists.positives)
        mine = _neighbours(lists, index[first], anchors, near, n)
        trusted = _Pairs(torch.cat([anchors, mine.number]), torch.cat([index[first], mine.image]))
    elif rule.start == "batch_positives":
        trusted = _Pairs(
            torch.cat([own.number, claimed.number]), torch.cat([own.image, claimed.image])
        )
    else:
        trusted = own
    trusted = _Pairs.of(*trusted, n)
    images, present = candidates.padded(n_labels)
    queries, trusted_present = trusted.padded(n_labels)
    width = images.shape[1]
    at_once = max(1, _JUDGED_AT_ONCE // (width * (width + queries.shape[1])))
    taken = torch.cat(
        [
            grow_positives(
                bank.plain[images[part]],
                present[part],
                bank.plain[queries[part]],
                trusted_present[part],
                rule,
            )
            for part in torch.arange(n_labels, device=index.device).split(at_once)
        ]
    )
    return candidates.where(taken[present])
