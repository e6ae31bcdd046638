"""Intra-class adaptive augmentation: synthetic embeddings from the covariance of their class.

Fu et al., "Intra-class Adaptive Augmentation with Neighbor Correction for Deep Metric Learning",
IEEE TMM 2022 (arXiv 2211.16264). Everything here lives in the space of *raw* embeddings, before
they are normalised. How the parts work together in a training loop::

    schedule = AugmentationSchedule(strength=0.8, epochs=100)
    statistics = ClassCovariance(num_classes, embedding_size)

    if statistics.needs_pass and schedule.updates_at(epoch):     # epochs count from 1
        ...                          # one pass over the training set: count, mean, variance
        statistics.update(count, mean, variance)
    for raw, labels in batches:      # the global batch
        shifts = None
        if schedule.synthesises_at(epoch):
            shifts = statistics.shifts(
                raw, labels, copies=3, strength=schedule.strength_at(epoch), generator=generator
            )
        loss = augmented_loss(pair_loss, raw, labels, shifts=shifts)

Under DDP every rank gives `update` the moments of all ranks and draws the noise of the gathered
batch from a generator seeded alike, so that all hold the same state and the same copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from noisyml.checks import Count, NonNegative, WholeNonNegative, check_fields
from noisyml.losses.base import EmbeddingLoss
from noisyml.losses.metric_learning.pairs import (
    SMALLEST_NORM,
    PairLoss,
    Pairs,
    Samples,
    cosine_pairs,
    unit_rows,
)
from noisyml.losses.second_order import recorded_gradient

if TYPE_CHECKING:
    from noisyml.similarity.memory_bank import MemoryBank


@dataclass(frozen=True)
class AugmentationSchedule:
    """Epochs in which classes are measured and copies are made, and the strength of their noise.

    Epochs count from 1. The fall of the strength is in the released code, not in the paper.

    Attributes:
        strength: lambda, the share of a class's covariance that the noise has; not negative.
        epochs: length of the training.
        start_epoch: last epoch without statistics.
        warmup_epochs: epochs after `start_epoch` with statistics but without copies.
        update_every: epochs between two passes over the training set (2 in the code, 4 in the
            paper).
        decay: let the strength fall to 0.9, 0.75 and 0.6 of itself after 0.4, 0.6 and 0.8 of the
            epochs.

    Raises:
        ArgumentError: a value out of range.

    Example:
        >>> schedule = AugmentationSchedule(strength=0.8, epochs=100)
        >>> [epoch for epoch in range(29, 36) if schedule.updates_at(epoch)]
        [31, 33, 35]
        >>> schedule.strength_at(31), schedule.strength_at(90)
        (0.8, 0.48)
    """

    strength: NonNegative
    epochs: Count
    start_epoch: WholeNonNegative = 30
    warmup_epochs: WholeNonNegative = 0
    update_every: Count = 2
    decay: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def updates_at(self, epoch: int) -> bool:
        """True if `epoch` begins with a pass over the training set."""
        since = epoch - self.start_epoch - 1
        return since >= 0 and since % self.update_every == 0

    def synthesises_at(self, epoch: int) -> bool:
        """True if the batches of `epoch` are augmented."""
        return epoch > self.start_epoch + self.warmup_epochs

    def strength_at(self, epoch: int) -> float:
        """The strength in `epoch`; a boundary belongs to the piece before it."""
        if not self.decay:
            return self.strength
        # In whole fifths of the training, so that rounding cannot move a boundary.
        for fifths, factor in ((2, 1.0), (3, 0.9), (4, 0.75)):
            if 5 * epoch <= fifths * self.epochs:
                return self.strength * factor
        return self.strength * 0.6


def augmented_loss(
    loss: EmbeddingLoss,
    raw: Tensor,
    labels: Tensor,
    copies: Tensor | None = None,
    *,
    shifts: Tensor | None = None,
    memory: MemoryBank | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """The loss on normalised embeddings and their copies.

    Pair losses take the originals as anchors and originals and copies as columns; the copies of a
    sample are neither its positives nor its negatives. To any other loss the copies are further
    samples.

    Args:
        loss: a `PairLoss` or another loss on embeddings.
        raw: [B, A] float, before normalisation, with gradient.
        labels: [B] int64.
        copies: [M, B, A] from `ClassCovariance.synthesise`; None without `shifts`: the plain loss.
        shifts: [M, B, A] from `ClassCovariance.shifts`, constants that make copies of the
            embeddings, in place of `copies`; faster with a `PairLoss`.
        memory: handed on to losses other than pair losses.
        keep: [B] bool; samples not kept and their copies take no part. None keeps all.

    Returns:
        Scalar, attached to the graph.

    Raises:
        ValueError: both copies and shifts.

    Example:
        >>> from noisyml.losses.metric_learning.pair_losses import TwoMarginContrastiveLoss
        >>> raw, labels = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])
        >>> copies = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
        >>> augmented_loss(TwoMarginContrastiveLoss(), raw, labels, copies).round(decimals=4)
        tensor(0.1036)
    """
    if copies is not None and shifts is not None:
        raise ValueError("copies are given, or shifts that make them, not both")
    raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
    if copies is None:
        shifts = raw.new_empty(0, *raw.shape) if shifts is None else shifts.to(raw)
        if isinstance(loss, PairLoss):
            return _loss_of_shifted(loss, raw, labels, shifts, keep)
        copies = raw + shifts
    repeats = 1 + len(copies)
    columns = unit_rows(torch.cat([raw, copies.flatten(0, 1)]))
    column_labels = labels.repeat(repeats)
    column_keep = None if keep is None else keep.repeat(repeats)
    if not isinstance(loss, PairLoss):
        value: Tensor = loss(columns, column_labels, memory=memory, keep=column_keep)
        return value
    number = torch.arange(len(labels), device=labels.device)
    anchors = Samples(columns[: len(raw)], labels, number)
    everyone = Samples(columns, column_labels, number.repeat(repeats))
    if keep is not None and column_keep is not None:
        anchors = anchors.rows(keep.nonzero().squeeze(1))
        everyone = everyone.rows(column_keep.nonzero().squeeze(1))
    return loss.of(cosine_pairs(anchors, everyone))


def _loss_of_shifted(
    loss: PairLoss, raw: Tensor, labels: Tensor, shifts: Tensor, keep: Tensor | None
) -> Tensor:
    """See `augmented_loss`."""
    repeats = 1 + len(shifts)
    if keep is not None:
        kept = keep.nonzero().squeeze(1)
        raw, labels, shifts = raw[kept], labels[kept], shifts[:, kept]
    with torch.autocast(raw.device.type, enabled=False):
        similarity: Tensor = _CosinesWithCopies.apply(raw, shifts)
    same = labels[:, None] == labels
    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive, negative = (mask.repeat(1, repeats) for mask in (others, ~same))
    return loss.of(Pairs(similarity, positive, negative, len(labels)))


class _CosinesWithCopies(torch.autograd.Function):
    """Cosines [B, (1 + M) B] of rows with themselves and with their shifted copies.

    The copies' gradients end in the rows that they are copies of, so they are summed before they
    are multiplied: a third of the products, and no gradient [M, B, A].
    """

    @staticmethod
    def forward(ctx: Any, raw: Tensor, shifts: Tensor) -> Tensor:
        columns = raw.new_empty(1 + len(shifts), *raw.shape)
        columns[0] = raw
        torch.add(raw, shifts, out=columns[1:])
        columns = columns.flatten(0, 1)
        norms = columns.norm(dim=1).clamp_(min=SMALLEST_NORM)
        cosines = raw @ columns.T
        cosines.div_(norms).div_(norms[: len(raw), None])
        ctx.save_for_backward(raw, shifts, columns, norms, cosines)
        return cosines

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        raw, shifts, columns, norms, cosines = ctx.saved_tensors
        if torch.is_grad_enabled():

            def plain(rows: Tensor) -> Tensor:
                both = torch.cat([rows, (rows + shifts).flatten(0, 1)])
                unit = functional.normalize(both, dim=1, eps=SMALLEST_NORM)
                return (unit[: len(rows)] @ unit.T * grads[0]).sum()

            return recorded_gradient(plain, [raw], raw.new_ones(()))[0], None
        b = len(raw)
        # What a row's own direction gains is taken out, a norm below the least being a constant.
        along = grads[0] * cosines
        out = along.sum(dim=0)
        out[:b] += along.sum(dim=1)
        out.div_(norms.square()).masked_fill_(norms <= SMALLEST_NORM, 0.0)
        slope = grads[0] / norms
        slope /= norms[:b, None]
        # [B, 1 + M, B], of anchors, sets of columns and places in them.
        by_set = slope.view(b, -1, b)
        gathered = by_set.sum(dim=1).T
        by_set.diagonal(dim1=0, dim2=2).sub_(out.view(-1, b))
        with torch.autocast(raw.device.type, enabled=False):
            return torch.addmm(slope @ columns, gathered, raw), None
