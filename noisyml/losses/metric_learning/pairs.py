"""Pairs of anchors and columns: their cosines, their mining, and the interface of their losses.

The columns are the anchors themselves, or more than them: synthetic copies of the anchors, say. An
explicit instance number keeps a column that shows the anchor itself, or a copy of it, out of the
anchor's pairs, whatever the order of the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from noisyml.checks import Interval
from noisyml.losses.base import EmbeddingLoss
from noisyml.losses.gram import gram
from noisyml.losses.second_order import recorded_gradient

if TYPE_CHECKING:
    from noisyml.similarity.memory_bank import MemoryBank

#: Norms below this count as this much.
SMALLEST_NORM = 1e-12
#: A setting that is compared with cosines.
Cosine = Annotated[float, Interval(ge=-1, le=1)]


class Samples(NamedTuple):
    """Embeddings that pairs are made of, as anchors or as columns.

    Attributes:
        embeddings: [N, A] float, unit norm.
        labels: [N] int64.
        instance: [N] int64, number of what each row shows; a column with the anchor's number is no
            pair of it. None: pairs depend on the labels alone.

    Example:
        >>> batch = Samples.of_batch(torch.eye(3), torch.tensor([7, 7, 8]))
        >>> batch.rows(torch.tensor([2, 0])).instance
        tensor([2, 0])
    """

    embeddings: Tensor
    labels: Tensor
    instance: Tensor | None = None

    @classmethod
    def of_batch(cls, embeddings: Tensor, labels: Tensor, keep: Tensor | None = None) -> Samples:
        """Rows of a batch, each an instance of its own; those that `keep` [N] bool selects."""
        if keep is not None:
            kept = keep.nonzero().squeeze(1)
            embeddings, labels = embeddings[kept], labels[kept]
        return cls(embeddings, labels, torch.arange(len(labels), device=labels.device))

    def rows(self, at: Tensor | slice) -> Samples:
        """Those of the positions `at`, int64 or a slice."""
        instance = None if self.instance is None else self.instance[at]
        return Samples(self.embeddings[at], self.labels[at], instance)

    def blocks(self, size: int) -> Iterator[Samples]:
        """All rows in order, `size` or fewer at a time."""
        for start in range(0, len(self.labels), size):
            yield self.rows(slice(start, start + size))


class Pairs(NamedTuple):
    """Cosines of anchors and columns and which of them are pairs.

    Attributes:
        similarity: [B, N] float32 or float64, with gradient.
        positive: [B, N] bool, same label, another instance.
        negative: [B, N] bool, another label.
        anchors: number of anchors that count, the divisor of sums over pairs; an int, or a 0-d
            int64 tensor where it is not worth waiting for the device.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> pairs = cosine_pairs(Samples.of_batch(embeddings, torch.tensor([7, 7, 8])))
        >>> pairs.similarity
        tensor([[1.0000, 0.6000, 0.0000],
                [0.6000, 1.0000, 0.8000],
                [0.0000, 0.8000, 1.0000]])
        >>> pairs.positive
        tensor([[False,  True, False],
                [ True, False, False],
                [False, False, False]])
    """

    similarity: Tensor
    positive: Tensor
    negative: Tensor
    anchors: int | Tensor

    def below(self, cutoff: float) -> Pairs:
        """Without the positive pairs of a cosine of 1 minus `cutoff` or more (duplicates)."""
        below = self.similarity.detach() < 1 - cutoff
        return self._replace(positive=self.positive & below)

    def among(self, keep: Tensor) -> Pairs:
        """Only the pairs of a batch with itself whose two sides `keep` [B] bool selects."""
        both = keep[:, None] & keep
        return self._replace(
            positive=self.positive & both, negative=self.negative & both, anchors=keep.sum()
        )

    def mean(self, cost: Tensor) -> Tensor:
        """Sum of `cost` divided by the number of anchors, 0 where there are none."""
        if isinstance(self.anchors, Tensor):
            return cost.sum() / self.anchors.clamp(min=1)
        return cost.sum() / max(1, self.anchors)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [N, A] float brought to norm 1, in a third of the passes that autograd takes.

    As `torch.nn.functional.normalize`: norms below 1e-12 count as this much.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    unit: Tensor = _UnitRows.apply(rows)
    return unit


class _UnitRows(torch.autograd.Function):
    """`unit_rows`; its gradient projects each row's own direction out."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        norms = rows.norm(dim=1, keepdim=True).clamp_(min=SMALLEST_NORM)
        unit = rows / norms
        ctx.save_for_backward(rows, unit, norms)
        return unit

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor | None:
        rows, unit, norms = ctx.saved_tensors
        if torch.is_grad_enabled():

            def plain(x: Tensor) -> Tensor:
                return (functional.normalize(x, dim=1, eps=SMALLEST_NORM) * grads[0]).sum()

            return recorded_gradient(plain, [rows], rows.new_ones(()))[0]
        along = torch.linalg.vecdot(grads[0], unit)[:, None].masked_fill(norms <= SMALLEST_NORM, 0)
        return torch.addcmul(grads[0], along, unit, value=-1).div_(norms)


def cosine_pairs(anchors: Samples, columns: Samples | None = None) -> Pairs:
    """All pairs of anchors and columns, computed in float32 at least whatever the autocast.

    Args:
        anchors: B rows, with gradient.
        columns: N rows, with or without instance numbers as the anchors; None: the anchors.

    Raises:
        ValueError: only one side has instance numbers, or lengths that do not fit together.

    Example:
        >>> anchors = Samples(torch.tensor([[1.0, 0.0]]), torch.tensor([7]))
        >>> columns = Samples(torch.tensor([[0.6, 0.8], [0.0, 1.0]]), torch.tensor([7, 8]))
        >>> cosine_pairs(anchors, columns).negative
        tensor([[False,  True]])
    """
    columns = anchors if columns is None else columns
    for name, side in (("anchors", anchors), ("columns", columns)):
        if any(len(x) != len(side.embeddings) for x in side[1:] if x is not None):
            lengths = ", ".join(str(len(x)) for x in side[1:] if x is not None)
            raise ValueError(
                f"{len(side.embeddings)} {name}, but labels and instance numbers of {lengths}"
            )
    with torch.autocast(anchors.embeddings.device.type, enabled=False):
        dtype = torch.promote_types(anchors.embeddings.dtype, torch.float32)
        rows = anchors.embeddings.to(dtype)
        itself = columns.embeddings is anchors.embeddings
        similarity = gram(rows) if itself else rows @ columns.embeddings.to(dtype).T
    positive = same = anchors.labels[:, None] == columns.labels
    if anchors.instance is not None and columns.instance is not None:
        positive = same & (anchors.instance[:, None] != columns.instance)
    elif anchors.instance is not columns.instance:
        raise ValueError("instance numbers of anchors and of columns go together")
    return Pairs(similarity, positive, ~same, len(anchors.labels))


def mine_pairs(pairs: Pairs, margin: float) -> tuple[Tensor, Tensor]:
    """Positives below the hardest negative plus margin, negatives above the hardest positive less.

    Both tests are strict and see the extremes of all pairs, not the other test's result. This
    is the mining of Multi-Similarity (Wang et al., CVPR 2019).

    Args:
        pairs: as `cosine_pairs` gives them.
        margin: slack of the two comparisons, a cosine.

    Returns:
        Masks [B, N] of the positives and the negatives left.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> pairs = cosine_pairs(Samples.of_batch(embeddings, torch.tensor([7, 7, 8])))
        >>> positive, negative = mine_pairs(pairs, margin=0.1)
        >>> negative
        tensor([[False, False, False],
                [False, False,  True],
                [False, False, False]])
    """
    similarity = pairs.similarity.detach()
    hardest_positive = row_min(similarity, pairs.positive, torch.inf)
    hardest_negative = row_max(similarity, pairs.negative, -torch.inf)
    return (
        pairs.positive & (similarity - margin < hardest_negative[:, None]),
        pairs.negative & (similarity + margin > hardest_positive[:, None]),
    )


def row_min(x: Tensor, mask: Tensor, empty: float) -> Tensor:
    """Minimum [B] of `x` [B, N] over the mask of each row, `empty` where it selects nothing.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> mask = torch.tensor([[True, True], [False, False]])
        >>> row_min(x, mask, empty=0.0)
        tensor([1., 0.])
    """
    if x.shape[1] == 0:
        return x.new_full((len(x),), empty)
    least = x.masked_fill(~mask, torch.inf).amin(dim=1)
    return torch.where(mask.any(dim=1), least, empty)


def row_max(x: Tensor, mask: Tensor, empty: float) -> Tensor:
    """Maximum [B] of `x` [B, N] over the mask of each row, `empty` where it selects nothing.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> mask = torch.tensor([[True, True], [False, False]])
        >>> row_max(x, mask, empty=0.0)
        tensor([2., 0.])
    """
    return -row_min(-x, mask, -empty)


def row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean [B] of `x` [B, N] over the mask of each row, 0 where it selects nothing.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> mask = torch.tensor([[True, True], [False, False]])
        >>> row_mean(x, mask)
        tensor([1.5000, 0.0000])
    """
    return x.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def log1p_sum_exp(exponents: Tensor, mask: Tensor) -> Tensor:
    """``log(1 + sum exp)`` [B] of `exponents` [B, N] over each row's mask, free of overflow.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> mask = torch.tensor([[True, True], [False, False]])
        >>> log1p_sum_exp(x, mask)
        tensor([2.4076, 0.0000])
    """
    masked = exponents.masked_fill(~mask, -torch.inf)
    return functional.pad(masked, (1, 0)).logsumexp(dim=1)


class PairLoss(EmbeddingLoss):
    """A loss on anchor-column pairs; as an `EmbeddingLoss` the batch is compared with itself.

    Args:
        cost: the loss of pairs: scalar, divided by the number of anchors.
    """

    def __init__(self, cost: Callable[[Pairs], Tensor]) -> None:
        super().__init__()
        self._cost = cost

    def of(self, pairs: Pairs) -> Tensor:
        """The loss of pairs: a scalar, 0 with a gradient of 0 if there are no anchors."""
        return self._cost(pairs)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        memory: MemoryBank | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The loss as if the batch consisted of the kept samples alone; `memory` is not read.

        Samples not kept are neither anchors nor columns, and the divisor counts the kept ones.
        """
        return self.of(cosine_pairs(Samples.of_batch(embeddings, labels, keep)))
