"""Cross-entropy of pixels, full or partial; pseudo-labels of pixels, hard or soft.

The mean is taken over the valid pixels of the whole batch, not image by image. With targets that
name a few pixels (scribbles) the same loss is partial cross-entropy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml import distributed
from noisyml.targets.masks import IGNORE


class PixelSum(NamedTuple):
    """A sum over valid pixels, and their number.

    Attributes:
        total: scalar with gradient.
        pixels: scalar, whole number as float.
    """

    total: Tensor
    pixels: Tensor

    def mean(self) -> Tensor:
        """The mean over the valid pixels here; 0 with a gradient of 0 if there are none."""
        return self.total / self.pixels.clamp(min=1)

    def global_mean(self) -> Tensor:
        """The mean over the valid pixels of all ranks.

        Its value is the same on every rank. Its gradient is this rank's part of the global one,
        times the number of ranks, which the averaging of gradients takes out again.
        """
        count = distributed.all_reduce_sum(self.pixels).clamp(min=1)
        mine = self.total * (distributed.world_size() / count)
        value = distributed.all_reduce_sum(self.total.detach()) / count
        return mine + (value - mine.detach())


def pixel_cross_entropy(logits: Tensor, target: Tensor, ignore: int = IGNORE) -> PixelSum:
    """Negative log-probabilities of the given classes, summed over the valid pixels.

    Args:
        logits: [B, C, H, W] float.
        target: [B, H, W] whole numbers; valid where in ``0 .. C - 1`` and not `ignore`.
        ignore: value of pixels without a class.

    Example:
        >>> logits = torch.zeros(1, 2, 1, 3)
        >>> target = torch.tensor([[[0, 1, 255]]])
        >>> pixel_cross_entropy(logits, target).mean()
        tensor(0.6931)
    """
    target = target.long()
    valid = (target >= 0) & (target < logits.shape[1]) & (target != ignore)
    each = F.cross_entropy(logits, target.masked_fill(~valid, 0), reduction="none")
    # Not a product: an infinite loss of a pixel that does not count must not become NaN.
    return PixelSum(torch.where(valid, each, 0).sum(), valid.sum().to(each.dtype))


def soft_pixel_cross_entropy(logits: Tensor, probabilities: Tensor, valid: Tensor) -> PixelSum:
    """Cross-entropy with a distribution for each pixel, summed over the valid ones.

    Args:
        logits: [B, C, H, W] float.
        probabilities: [B, C, H, W] float, of sum 1 where valid; no gradient flows into them.
        valid: [B, H, W] bool.
    """
    each = -(probabilities.detach() * F.log_softmax(logits, dim=1)).sum(dim=1)
    return PixelSum(torch.where(valid, each, 0).sum(), valid.sum().to(each.dtype))


def mixed(human: Tensor, pseudo: Tensor, alpha: float) -> Tensor:
    """Mixture of the losses of human and pseudo-labels: ``(1 - a) human + a pseudo`` (GIST)."""
    return (1 - alpha) * human + alpha * pseudo


class PseudoLabels(NamedTuple):
    """Labels that a model gives.

    Attributes:
        labels: [B, ...] int64, the most probable class, of equals the lowest; ``IGNORE`` (or what
            stands for it) where the confidence is below the threshold.
        confidence: [B, ...] float, its probability.
        probabilities: [B, C, ...] float.
    """

    labels: Tensor
    confidence: Tensor
    probabilities: Tensor


def upsampled(logits: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    """Class scores [B, C, h, w] brought to the size of the image, bilinear."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


@torch.no_grad()
def pseudo_labels(
    logits: Tensor, threshold: float | None = None, ignore: int = IGNORE
) -> PseudoLabels:
    """Pseudo-labels of pixels, or of whole samples, from class scores.

    Args:
        logits: [B, C, ...] float, of the size of the labels.
        threshold: least confidence of a label; None: all are kept.
        ignore: stands for labels below it.

    Example:
        >>> found = pseudo_labels(torch.tensor([[2.0, 2.0, 1.0]]))
        >>> found.labels.tolist(), round(float(found.confidence), 3)
        ([0], 0.422)
    """
    probabilities = logits.softmax(dim=1)
    # Of the scores, not of probabilities, in which rounding makes equals of others; the lowest
    # class wins, which `argmax` does not promise.
    best = logits.amax(dim=1, keepdim=True)
    classes = torch.arange(logits.shape[1], device=logits.device)
    classes = classes.view(1, -1, *[1] * (logits.ndim - 2))
    labels = torch.where(logits == best, classes, logits.shape[1]).amin(dim=1)
    confidence = probabilities.amax(dim=1)
    if threshold is not None:
        labels = labels.masked_fill(confidence < threshold, ignore)
    return PseudoLabels(labels, confidence, probabilities)
