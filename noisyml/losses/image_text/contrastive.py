"""Contrastive and distillation losses between the two sides of a batch of pairs.

Rows are samples of this rank, columns the global batch, so every function takes rectangular logits
[m, n]. Losses come one per row; the two directions (image to text, text to image) are added by the
caller. InfoNCE with a learnable temperature is that of CLIP (Radford et al., ICML 2021); smoothing
and distillation are those of OTTER (Wu et al., ICLR 2022, arXiv 2112.09445).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from noisyml.checks import Checked, OpenShare, checked

#: Log-temperature at the start: logits are scaled by exp(3.9) = 49.4.
INITIAL_LOG_TEMPERATURE = 3.9
#: Bounds of the scale of the logits.
LEAST_SCALE, GREATEST_SCALE = 1.0, 100.0


def logit_scale(log_temperature: Tensor) -> Tensor:
    """The factor of the logits: exp(T), clamped to [1, 100]; outside the gradient of T is zero.

    Args:
        log_temperature: T [], float.

    Example:
        >>> import torch
        >>> [round(float(logit_scale(torch.tensor(t))), 2) for t in (-1.0, 3.9, 6.0)]
        [1.0, 49.4, 100.0]
    """
    return log_temperature.exp().clamp(LEAST_SCALE, GREATEST_SCALE)


class LogTemperature(Checked, nn.Module):
    """A learnable temperature, kept as its logarithm.

    A value that leaves [0, ln 100] has no gradient any more and stays there.

    Args:
        initial: log-temperature at the start.
    """

    def __init__(self, initial: float = INITIAL_LOG_TEMPERATURE) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(initial)))

    def forward(self, logits: Tensor) -> Tensor:
        """Scaled logits, in single precision or better."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(wide) * logit_scale(self.value.to(wide))


@checked
def contrastive_losses(logits: Tensor, own: Tensor, smoothing: OpenShare = 0.0) -> Tensor:
    """Cross-entropy of each row with its own column as target, perhaps smoothed (InfoNCE).

    Args:
        logits: [m, n], scaled.
        own: [m] int64, the column of each row's pair.
        smoothing: share of the target spread evenly over the n - 1 other columns.

    Returns:
        [m].

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).double()
        >>> contrastive_losses(logits, torch.arange(2)).round(decimals=4).tolist()
        [0.1269, 0.1269]
        >>> contrastive_losses(logits, torch.arange(2), smoothing=0.1).round(decimals=4).tolist()
        [0.3269, 0.3269]
    """
    given = logits.gather(1, own[:, None])[:, 0]
    total = logits.logsumexp(1)
    others = logits.shape[1] - 1
    if smoothing == 0 or others == 0:
        return total - given
    other_mean = (logits.sum(1) - given) / others
    return total - (1 - smoothing) * given - smoothing * other_mean


def distillation_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each row's softmax from its target; 0 log 0 counts as 0.

    Args:
        logits: [m, n], scaled.
        target: [m, n], rows of sum 1, without gradient.

    Returns:
        [m], at least 0.

    Example:
        >>> import torch
        >>> target = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
        >>> distillation_losses(torch.zeros(2, 2).double(), target).round(decimals=4).tolist()
        [0.6931, 0.0]
    """
    target = target.to(logits.dtype)
    return (torch.xlogy(target, target) - target * logits.log_softmax(1)).sum(1)
