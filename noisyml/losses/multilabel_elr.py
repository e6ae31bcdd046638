"""Early-learning regularisation for several labels: what was believed early is held on to.

Liu et al., "Early-Learning Regularization Prevents Memorization of Noisy Labels", NeurIPS 2020
(arXiv 2007.00151), class by class with sigmoids as in the studies of Burgert et al. (IEEE TGRS
2022, arXiv 2207.13975; code of arXiv 2601.08446).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Probabilities enter memory and regulariser within these bounds; outside there is no gradient.
CLAMP = 1e-4


def clamped_probabilities(logits: Tensor) -> Tensor:
    """q [B, C] of logits [B, C], within the bounds."""
    return logits.sigmoid().clamp(CLAMP, 1 - CLAMP)


def elr_entries(logits: Tensor, labels: Tensor, targets: Tensor, elr_lambda: float = 3.0) -> Tensor:
    """Cross-entropy plus lambda log(1 - T q), entry by entry.

    The second term pushes probabilities up, in proportion to what is remembered: it protects labels
    that were removed and does nothing about labels that were added.

    Args:
        logits: [B, C], float32 or better.
        labels: [B, C] in [0, 1].
        targets: T [B, C], the memory's rows after this step's update; no gradient.
        elr_lambda: lambda, not negative.

    Returns:
        [B, C].
    """
    entropies = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return entropies + elr_lambda * torch.log1p(-targets * clamped_probabilities(logits))
