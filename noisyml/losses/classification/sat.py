"""Self-adaptive training: targets move from the labels towards the network's own predictions.

Huang, Zhang and Zhang, "Self-Adaptive Training: beyond Empirical Risk Minimization", NeurIPS 2020
(arXiv 2002.10319).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from noisyml.errors import UserError
from noisyml.losses.classification.base import ClassificationLoss
from noisyml.losses.target_memory import TargetMemory


def weighted_soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with soft targets, samples weighted by their largest target.

    Args:
        logits: [B, C] with gradient.
        targets: [B, C], constants.

    Returns:
        [B]; the weights have a mean of 1 over the batch (arXiv 2002.10319, algorithm 1).
    """
    weight = targets.amax(dim=1)
    weight = weight / weight.mean()
    return -weight * (targets * F.log_softmax(logits, dim=1)).sum(dim=1)


class SelfAdaptiveTraining(ClassificationLoss):
    """Cross-entropy, after some epochs with targets that average the sample's predictions.

    Args:
        num_samples: size of the training split.
        num_classes: C.
        momentum: alpha, share of the old target kept at each visit of a sample, in [0, 1).
        warmup_epochs: E_s, epochs of plain cross-entropy, in which targets stay the labels.

    Raises:
        UserError: a value out of range.
    """

    def __init__(
        self, num_samples: int, num_classes: int, momentum: float = 0.9, warmup_epochs: int = 60
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise UserError(f"loss.momentum={momentum} is a share: give 0 to below 1.")
        if warmup_epochs < 0:
            raise UserError(f"loss.warmup_epochs={warmup_epochs} must not be negative.")
        self.momentum = momentum
        self._warmup_epochs = warmup_epochs
        self.targets = TargetMemory(num_samples, num_classes)

    @property
    def warmup_epochs(self) -> int:
        """Epochs of plain cross-entropy."""
        return self._warmup_epochs

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """[B], see `ClassificationLoss`; the targets are updated first."""
        if epoch < self.warmup_epochs:
            return F.cross_entropy(logits, labels, reduction="none")
        probabilities = F.softmax(logits.detach(), dim=1)
        start = F.one_hot(labels, logits.shape[1])
        targets = self.targets.blend(index, probabilities, self.momentum, start)
        return weighted_soft_cross_entropy(logits, targets)
