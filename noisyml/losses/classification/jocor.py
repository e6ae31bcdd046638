"""JoCoR's loss of a sample in two networks: cross-entropy of both, and how far they are apart.

Wei et al., "Combating noisy labels by agreement: a joint training method with co-regularization",
CVPR 2020 (arXiv 2003.02752), equations 2 to 5.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(p_1 || p_2) + KL(p_2 || p_1) of softmax distributions, in nats.

    Args:
        first: class scores [B, C].
        second: class scores [B, C].

    Returns:
        [B], at least 0; gradients reach both.
    """
    first, second = first.log_softmax(dim=1), second.log_softmax(dim=1)
    return ((first.exp() - second.exp()) * (first - second)).sum(dim=1)


def joint_loss(first: Tensor, second: Tensor, labels: Tensor, co_lambda: float) -> Tensor:
    """(1 - lambda) (CE_1 + CE_2) + lambda (KL(p_1 || p_2) + KL(p_2 || p_1)) of each sample.

    Args:
        first: class scores [B, C] of the first network.
        second: of the second.
        labels: [B] int64.
        co_lambda: weight of the agreement, lambda, in [0, 1].

    Returns:
        [B], at least 0.
    """
    supervised = F.cross_entropy(first, labels, reduction="none") + F.cross_entropy(
        second, labels, reduction="none"
    )
    return (1 - co_lambda) * supervised + co_lambda * symmetric_kl(first, second)
