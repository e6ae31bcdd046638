"""Early-learning regularisation with one label per sample."""

from __future__ import annotations

from noisyml.checks import Count, NonNegative, OpenShare
from noisyml.losses.classification.base import ClassificationLoss
from noisyml.losses.links import SOFTMAX
from noisyml.losses.running_targets import EarlyLearning


class EarlyLearningRegularisation(EarlyLearning, ClassificationLoss):
    """Cross-entropy, pulled towards a running average of the sample's own predictions.

    Args:
        num_samples: size of the training split.
        num_classes: C.
        weight: lambda, factor of the regulariser, at least 0.
        momentum: beta, share of the old target kept at each visit of a sample, in [0, 1).

    Raises:
        ArgumentError: a value out of range.

    Example:
        >>> import torch
        >>> loss = EarlyLearningRegularisation(num_samples=1, num_classes=2)
        >>> logits, labels, index = torch.tensor([[2.0, 0.0]]), torch.tensor([1]), torch.tensor([0])
        >>> round(loss(logits, labels, index, epoch=0).item(), 3)
        1.315
    """

    link = SOFTMAX

    def __init__(
        self,
        num_samples: Count,
        num_classes: Count,
        weight: NonNegative = 3.0,
        momentum: OpenShare = 0.7,
    ) -> None:
        super().__init__(num_samples, num_classes, weight, momentum)
