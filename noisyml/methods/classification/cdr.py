"""CDR: only the parameters that matter for the clean labels follow the gradient.

Xia et al., "Robust Early-learning: Hindering the Memorization of Noisy Labels", ICLR 2021. In each
step the weights with the largest ``|g w|`` are critical, as many as there are clean labels; they
move by a gradient scaled down by the same share, the others only decay (``optimizer.weight_decay``)
and follow what momentum they have. Biases and normalisation layers are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.methods.classification.base import Classification, OnEmpty
from noisyml.methods.parts import Parts


@torch.no_grad()
def keep_critical_gradients(parameters: Iterable[Tensor], share: float) -> None:
    """Scale the gradients of the critical weights by `share` and zero those of the others.

    Args:
        parameters: with gradients; only tensors of two dimensions and more take part.
        share: of their weights that are critical, in (0, 1]; of equally critical ones all.
    """
    pairs = [(w, w.grad) for w in parameters if w.grad is not None and w.dim() >= 2]
    saliency = [(weight * gradient).abs() for weight, gradient in pairs]
    everything = torch.cat([s.flatten() for s in saliency])
    number = max(1, int(share * len(everything)))
    # The threshold stays on the device.
    threshold = everything.topk(number, sorted=False).values.min()
    for (_, gradient), own in zip(pairs, saliency, strict=True):
        gradient.mul_((own >= threshold) * share)


class CDR(Classification):
    """Classification in which only critical parameters follow the gradient.

    Args:
        parts, on_empty: see `Classification`.
        noise_rate: tau, share of wrong labels expected, in [0, 1).
        gradual_epochs: epochs in which the critical share falls linearly from 1 to 1 - tau; 0: it
            is 1 - tau from the start (released code).
    """

    def __init__(
        self,
        parts: Parts,
        *,
        noise_rate: OpenShare,
        gradual_epochs: WholeNonNegative = 0,
        on_empty: OnEmpty = "skip",
    ) -> None:
        super().__init__(parts, on_empty=on_empty)
        self.noise_rate = noise_rate
        self.gradual_epochs = gradual_epochs

    def critical_share(self, epoch: int) -> float:
        """Share of the weights that are critical in `epoch` (from 0)."""
        progress = min(1.0, epoch / self.gradual_epochs) if self.gradual_epochs else 1.0
        return 1.0 - self.noise_rate * progress

    def after_backward(self) -> None:
        """Reduce the gradients, which are those of the global batch on every rank."""
        super().after_backward()
        keep_critical_gradients(self.parameters(), self.critical_share(self.current_epoch))
