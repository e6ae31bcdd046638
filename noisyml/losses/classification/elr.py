"""Early-learning regularisation: what the network predicted early on keeps a say.

Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020
(arXiv 2007.00151), with one network and its temporal ensemble of targets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.errors import UserError
from noisyml.losses.classification.base import ClassificationLoss
from noisyml.losses.target_memory import TargetMemory

#: Probabilities are kept this far from 0 and 1; beyond, they carry no gradient.
_MARGIN = 1e-4


def clamped_softmax(logits: Tensor) -> Tensor:
    """Class probabilities [B, C] in ``[1e-4, 1 - 1e-4]``, no longer summing to 1 exactly."""
    return F.softmax(logits, dim=1).clamp(_MARGIN, 1.0 - _MARGIN)


def early_learning_regulariser(probabilities: Tensor, targets: Tensor) -> Tensor:
    """``log(1 - <t, p>)`` per sample (arXiv 2007.00151, eq. 6); smaller where the two agree.

    Args:
        probabilities: [B, C] with gradient.
        targets: [B, C], constants.

    Returns:
        [B], at most 0.
    """
    return torch.log1p(-(targets * probabilities).sum(dim=1))


class EarlyLearningRegularisation(ClassificationLoss):
    """Cross-entropy, pulled towards a running average of the sample's own predictions.

    Args:
        num_samples: size of the training split.
        num_classes: C.
        weight: lambda, factor of the regulariser, at least 0.
        momentum: beta, share of the old target kept at each visit of a sample, in [0, 1).

    Raises:
        UserError: a value out of range.
    """

    def __init__(
        self, num_samples: int, num_classes: int, weight: float = 3.0, momentum: float = 0.7
    ) -> None:
        super().__init__()
        if weight < 0:
            raise UserError(f"loss.weight={weight} must not be negative; 0 is cross-entropy.")
        if not 0 <= momentum < 1:
            raise UserError(f"loss.momentum={momentum} is a share: give 0 to below 1.")
        self.weight = weight
        self.momentum = momentum
        self.targets = TargetMemory(num_samples, num_classes)

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """[B], see `ClassificationLoss`; the targets are updated first."""
        probabilities = clamped_softmax(logits)
        shares = probabilities.detach() / probabilities.detach().sum(dim=1, keepdim=True)
        targets = self.targets.blend(index, shares, self.momentum)
        regulariser = early_learning_regulariser(probabilities, targets)
        return F.cross_entropy(logits, labels, reduction="none") + self.weight * regulariser
