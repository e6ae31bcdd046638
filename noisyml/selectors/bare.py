"""BARE: keep the samples whose label is likelier than usual for its class in the batch.

Patel and Sastry, "Adaptive Sample Selection for Robust Learning under Label Noise", WACV 2023
(arXiv 2106.15292). No noise rate, no warm-up, no memory. The paper takes the statistics of a class
over the samples that carry its label, the released code over the whole batch; the latter can
starve a class for good, see ``selection/recall_min_class``.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.checks import NonNegative
from noisyml.selectors.base import Evidence, Selection, Selector

StatsScope = Literal["label", "batch"]
Std = Literal["population", "unbiased"]

#: Posteriors are clamped to [this, 1 - this]; in single precision the upper end is 1.
_SMALLEST = 1e-8
#: Relative error that sums and roots of a batch in double precision stay below.
_ROUNDING = 1e-12


def posteriors(logits: Tensor) -> Tensor:
    """Clamped softmax [B, C] of class scores [B, C], in single precision or better.

    Example:
        >>> import torch
        >>> posteriors(torch.tensor([[0.0, 0.0]])).tolist()
        [[0.5, 0.5]]
    """
    with torch.autocast(logits.device.type, enabled=False):
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.softmax(scores, dim=1).clamp(_SMALLEST, 1.0 - _SMALLEST)


@torch.no_grad()
def label_log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-odds of each label against all other classes: its soft margin, which never saturates.

    Args:
        logits: class scores [B, C].
        labels: [B] int64.

    Returns:
        [B] float32 or better: own score less the logsumexp of the others; infinite for one class.

    Example:
        >>> import torch
        >>> label_log_odds(torch.tensor([[2.0, 0.0], [900.0, 0.0]]), torch.tensor([0, 1])).tolist()
        [2.0, -900.0]
    """
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = scores.gather(1, labels[:, None])
    others = scores.scatter(1, labels[:, None], -torch.inf)
    return own.squeeze(1) - others.logsumexp(dim=1)


def bare_statistics(
    posterior: Tensor, labels: Tensor, scope: StatsScope = "label", std: Std = "population"
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each class's posterior (arXiv 2106.15292, eq. 7).

    Args:
        posterior: [B, C] float.
        labels: [B] int64, observed.
        scope: over the samples with that ``label``, or over the whole ``batch``.
        std: ``population`` divides by the number of samples, ``unbiased`` by one less.

    Returns:
        Two tensors [C] float64. NaN where there is nothing to average, and for the unbiased
        deviation of a batch of one; a class with one sample has a deviation of 0.

    Example:
        >>> import torch
        >>> posterior = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
        >>> mean, std = bare_statistics(posterior, torch.tensor([0, 0, 1]))
        >>> [round(x, 3) for x in mean.tolist()], [round(x, 3) for x in std.tolist()]
        ([0.7, 0.8], [0.2, 0.0])
    """
    # In double precision the mean of equal single-precision values is that value, so that ties
    # stay ties; and a sum in a fixed order is the same on every rank.
    values = posterior.double()
    member = torch.ones_like(values, dtype=torch.bool)
    if scope == "label":
        member = F.one_hot(labels, posterior.shape[1]).bool()
    count = member.sum(dim=0)
    mean = torch.where(member, values, 0.0).sum(dim=0) / count
    squares = torch.where(member, values - mean, 0.0).square().sum(dim=0)
    divisor = count - 1 if std == "unbiased" else count
    if scope == "label":
        divisor = divisor.clamp(min=1) * (count > 0)
    return mean, (squares / divisor).sqrt()


class Bare(Selector):
    """Keeps a sample if its label's posterior exceeds the class's mean by `kappa` deviations.

    Args:
        stats_scope: statistics of a class over the samples with its ``label`` (paper) or over the
            whole ``batch`` (released code).
        std: ``population`` (paper) or ``unbiased`` (released code).
        kappa: deviations above the mean.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})

    def __init__(
        self, stats_scope: StatsScope = "label", std: Std = "population", kappa: NonNegative = 1.0
    ) -> None:
        super().__init__()
        self.stats_scope: StatsScope = stats_scope
        self.std: Std = std
        self.kappa = kappa

    @torch.no_grad()
    def select(self, evidence: Evidence) -> Selection:
        """Judge one global batch; `p_clean` is the posterior of the observed label."""
        if evidence.logits is None:
            raise ValueError("this selector needs logits")
        labels = evidence.labels
        posterior = posteriors(evidence.logits)
        mean, std = bare_statistics(posterior, labels, self.stats_scope, self.std)
        own = posterior.gather(1, labels[:, None]).squeeze(1)
        # Inclusive: where all posteriors of a class are equal, all are kept. NaN keeps nothing. Of
        # two samples the better lies one deviation above their mean, whatever they are: the slack
        # keeps rounding from deciding about it.
        slack = _ROUNDING * own.double()
        keep = own.double() - mean[labels] >= self.kappa * std[labels] - slack
        return Selection(keep, own, log_odds=label_log_odds(evidence.logits, labels))
