"""Early-learning regularisation for several labels: what was believed early is held on to.

Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020
(arXiv 2007.00151), class by class with sigmoids as in the studies of Burgert et al. (IEEE TGRS
2022, arXiv 2207.13975; code of arXiv 2601.08446).
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisyml.errors import UserError
from noisyml.losses.multilabel.base import MultiLabelLoss, Reduction, bce_entries
from noisyml.losses.target_memory import TargetMemory

#: Probabilities are kept this far from 0 and 1; beyond, they carry no gradient.
_MARGIN = 1e-4


def clamped_sigmoid(logits: Tensor) -> Tensor:
    """Class probabilities [B, C] in ``[1e-4, 1 - 1e-4]``."""
    return logits.sigmoid().clamp(_MARGIN, 1 - _MARGIN)


def early_learning_entries(probabilities: Tensor, targets: Tensor) -> Tensor:
    """``log(1 - t p)`` of each entry; pushes probabilities up in proportion to the target.

    It protects labels that were removed and does nothing about labels that were added.

    Args:
        probabilities: [B, C] with gradient, below 1.
        targets: [B, C], constants below 1.

    Returns:
        [B, C], at most 0.
    """
    return torch.log1p(-targets * probabilities)


class MultiLabelELR(MultiLabelLoss):
    """Cross-entropy, and a pull towards a running average of the entry's own predictions.

    Args:
        num_samples: size of the training split.
        num_classes: C.
        weight: lambda, factor of the regulariser, at least 0.
        momentum: beta, share of the old target kept at each visit of a sample, in [0, 1).
        reduction: see `MultiLabelLoss`.

    Raises:
        UserError: a value out of range.
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        weight: float = 3.0,
        momentum: float = 0.7,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        if weight < 0:
            raise UserError(f"loss.weight={weight} must not be negative; 0 is cross-entropy.")
        if not 0 <= momentum < 1:
            raise UserError(f"loss.momentum={momentum} is a share: give 0 to below 1.")
        self.weight = weight
        self.momentum = momentum
        self.targets = TargetMemory(num_samples, num_classes)

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """[B, C], see `MultiLabelLoss`; the targets are updated first."""
        probabilities = clamped_sigmoid(logits)
        targets = self.targets.blend(index, probabilities, self.momentum).to(logits.dtype)
        entropy = bce_entries(logits, labels)
        return entropy + self.weight * early_learning_entries(probabilities, targets)
