"""Early-learning regularisation with several labels per sample.

Class by class with sigmoids as in the studies of Burgert et al. (IEEE TGRS 2022, arXiv 2207.13975;
code of arXiv 2601.08446).
"""

from __future__ import annotations

from noisyml.checks import Count, NonNegative, OpenShare
from noisyml.losses.links import SIGMOID
from noisyml.losses.multilabel.base import MultiLabelLoss, Reduction
from noisyml.losses.running_targets import EarlyLearning


class MultiLabelELR(EarlyLearning, MultiLabelLoss):
    """Cross-entropy, and a pull towards a running average of the entry's own predictions.

    Args:
        num_samples: size of the training split.
        num_classes: C.
        weight: lambda, factor of the regulariser, at least 0.
        momentum: beta, share of the old target kept at each visit of a sample, in [0, 1).
        reduction: see `MultiLabelLoss`.

    Raises:
        ArgumentError: a value out of range.

    Example:
        >>> import torch
        >>> loss = MultiLabelELR(num_samples=1, num_classes=2)
        >>> logits, labels = torch.tensor([[0.0, 2.0]]), torch.tensor([[1, 0]])
        >>> loss(logits, labels, torch.tensor([0]), epoch=0)
        tensor([[0.4593, 1.3321]])
    """

    link = SIGMOID

    def __init__(
        self,
        num_samples: Count,
        num_classes: Count,
        weight: NonNegative = 3.0,
        momentum: OpenShare = 0.7,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(num_samples, num_classes, weight, momentum, reduction=reduction)
