"""Self-adaptive training with several labels per sample.

Class by class with sigmoids and without the original's weights of samples, as in the studies of
Burgert et al. (IEEE TGRS 2022, arXiv 2207.13975; code of arXiv 2601.08446).
"""

from __future__ import annotations

from noisyml.checks import Count, OpenShare, WholeNonNegative
from noisyml.losses.links import SIGMOID
from noisyml.losses.multilabel.base import MultiLabelLoss, Reduction
from noisyml.losses.running_targets import SelfAdaptive


class MultiLabelSAT(SelfAdaptive, MultiLabelLoss):
    """Cross-entropy, after some epochs with targets that average the entry's own predictions.

    Args:
        num_samples: size of the training split.
        num_classes: C.
        momentum: m, share of the old target kept at each visit of a sample, in [0, 1).
        warmup_epochs: epochs of plain cross-entropy, in which targets stay the labels; counted
            exactly (the code of arXiv 2601.08446 has one more than it is told).
        reduction: see `MultiLabelLoss`.

    Raises:
        ArgumentError: a value out of range.

    Example:
        >>> import torch
        >>> loss = MultiLabelSAT(num_samples=1, num_classes=2, warmup_epochs=0)
        >>> logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]])
        >>> loss(logits, labels, torch.tensor([0]), epoch=0)
        tensor([[0.6931, 1.9508]])
        >>> loss.targets.rows
        tensor([[0.9500, 0.0881]])
    """

    link = SIGMOID

    def __init__(
        self,
        num_samples: Count,
        num_classes: Count,
        momentum: OpenShare = 0.9,
        warmup_epochs: WholeNonNegative = 6,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(num_samples, num_classes, momentum, warmup_epochs, reduction=reduction)
