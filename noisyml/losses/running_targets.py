"""Losses whose targets are running averages of the predictions of each training sample.

Self-adaptive training: Huang, Zhang and Zhang, "Self-Adaptive Training: beyond Empirical Risk
Minimization", NeurIPS 2020 (arXiv 2002.10319). Early-learning regularisation: Liu et al.,
"Early-Learning Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020 (arXiv
2007.00151), with one network and its temporal ensemble of targets. Both exist with a softmax and,
class by class, with sigmoids: see `noisyml.losses.links`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from noisyml.checks import Count, NonNegative, OpenShare, WholeNonNegative
from noisyml.losses.base import ScoreLoss
from noisyml.losses.links import Link
from noisyml.losses.target_memory import TargetMemory


class SelfAdaptive(ScoreLoss):
    """Cross-entropy, after some epochs with targets that average the predictions so far.

    Goes before the kind of loss in the list of bases.

    Args:
        num_samples: size of the training split.
        num_classes: C.
        momentum: share of the old target kept at each visit of a sample, in [0, 1).
        warmup_epochs: epochs of plain cross-entropy, in which targets stay the labels.
        **base: arguments of the kind of loss.
    """

    link: ClassVar[Link]

    def __init__(
        self,
        num_samples: Count,
        num_classes: Count,
        momentum: OpenShare,
        warmup_epochs: WholeNonNegative,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.momentum = momentum
        self._warmup_epochs = warmup_epochs
        self.targets = TargetMemory(num_samples, num_classes)

    @property
    def warmup_epochs(self) -> int:
        """Epochs of plain cross-entropy."""
        return self._warmup_epochs

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """The loss of each sample or entry; the targets are updated first."""
        if epoch < self.warmup_epochs:
            return self.link.entropy(logits, labels)
        predicted = self.link.probabilities(logits.detach())
        start = self.link.targets(labels, logits.shape[1])
        targets = self.targets.blend(index, predicted, self.momentum, start)
        return self.link.soft_entropy(logits, targets)


class EarlyLearning(ScoreLoss):
    """Cross-entropy, pulled towards a running average of the sample's own predictions.

    The regulariser ``log(1 - overlap)`` (arXiv 2007.00151, eq. 6) is the smaller the more targets
    and predictions agree. With sigmoids it pushes probabilities up in proportion to the target: it
    protects labels that were removed and does nothing about labels that were added.

    Goes before the kind of loss in the list of bases.

    Args:
        num_samples: size of the training split.
        num_classes: C.
        weight: lambda, factor of the regulariser, at least 0.
        momentum: beta, share of the old target kept at each visit of a sample, in [0, 1).
        **base: arguments of the kind of loss.
    """

    link: ClassVar[Link]

    def __init__(
        self,
        num_samples: Count,
        num_classes: Count,
        weight: NonNegative,
        momentum: OpenShare,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.weight = weight
        self.momentum = momentum
        self.targets = TargetMemory(num_samples, num_classes)

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """The loss of each sample or entry; the targets are updated first."""
        probabilities = self.link.clamped(logits)
        shares = self.link.shares(probabilities)
        targets = self.targets.blend(index, shares, self.momentum).to(logits.dtype)
        regulariser = torch.log1p(-self.link.overlap(targets, probabilities))
        return self.link.entropy(logits, labels) + self.weight * regulariser
