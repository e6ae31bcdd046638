"""Self-distillation of a parametric classifier between two views (SimGCD).

Wen, Zhao and Qi, "Parametric Classification for Generalized Category Discovery: A Baseline Study",
ICCV 2023, eq. 3 to 5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.checks import Positive, WholeNonNegative, checked
from noisyml.losses.discovery.contrast import other_view


@checked
def self_distillation(
    logits: Tensor, teacher_temperature: Positive, temperature: Positive = 0.1
) -> Tensor:
    """Cross-entropy of each view with the sharper distribution of the other view.

    Args:
        logits: class scores [2B, K], view by view; the targets carry no gradient.
        teacher_temperature: of the targets.
        temperature: of the predictions.

    Returns:
        [2B], row by row.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> [round(float(loss), 3) for loss in self_distillation(scores, 0.04)]
        [0.0, 0.0]
    """
    targets = other_view((logits.detach() / teacher_temperature).softmax(dim=1))
    return -(targets * F.log_softmax(logits / temperature, dim=1)).sum(dim=1)


@checked
def entropy_gap(logits: Tensor, temperature: Positive = 0.1) -> Tensor:
    """Entropy that the mean prediction lacks to the uniform one, in nats; 0 is the best.

    Args:
        logits: class scores [2B, K].
        temperature: of the predictions.

    Example:
        >>> import torch
        >>> round(float(entropy_gap(torch.eye(2), 0.01)), 3)
        0.0
    """
    mean = (logits / temperature).softmax(dim=1).mean(dim=0)
    return torch.special.xlogy(mean, mean).sum() + mean.new_tensor(len(mean)).log()


def sharpening(
    epoch: WholeNonNegative,
    warmup_epochs: WholeNonNegative = 30,
    start: float = 0.07,
    end: float = 0.04,
) -> float:
    """Temperature of the teacher: from `start` to `end` over the warm-up, with both ends in it.

    Args:
        epoch: from 0.
        warmup_epochs: of the line.
        start: in the first epoch.
        end: in the last one of the warm-up, and from then on.

    Example:
        >>> [round(sharpening(epoch, 4), 3) for epoch in (0, 1, 3, 9)]
        [0.07, 0.06, 0.04, 0.04]
    """
    if epoch >= warmup_epochs:
        return end
    return start + (end - start) * epoch / max(warmup_epochs - 1, 1)
