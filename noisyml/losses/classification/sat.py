"""Self-adaptive training with one label per sample."""

from __future__ import annotations

from noisyml.checks import Count, OpenShare, WholeNonNegative
from noisyml.losses.classification.base import ClassificationLoss
from noisyml.losses.links import SOFTMAX
from noisyml.losses.running_targets import SelfAdaptive


class SelfAdaptiveTraining(SelfAdaptive, ClassificationLoss):
    """Cross-entropy, after some epochs with targets that average the sample's predictions.

    Samples are weighted by their largest target.

    Args:
        num_samples: size of the training split.
        num_classes: C.
        momentum: alpha, share of the old target kept at each visit of a sample, in [0, 1).
        warmup_epochs: E_s, epochs of plain cross-entropy, in which targets stay the labels.

    Raises:
        ArgumentError: a value out of range.

    Example:
        >>> import torch
        >>> loss = SelfAdaptiveTraining(num_samples=2, num_classes=2, warmup_epochs=0)
        >>> logits, labels = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
        >>> loss(logits, labels, torch.tensor([0, 1]), epoch=0).shape
        torch.Size([2])
        >>> loss.targets.rows.numpy().round(2).tolist()  # 0.9 of the label, 0.1 of the prediction
        [[0.9900000095367432, 0.009999999776482582], [0.09000000357627869, 0.9100000262260437]]
    """

    link = SOFTMAX

    def __init__(
        self,
        num_samples: Count,
        num_classes: Count,
        momentum: OpenShare = 0.9,
        warmup_epochs: WholeNonNegative = 60,
    ) -> None:
        super().__init__(num_samples, num_classes, momentum, warmup_epochs)
