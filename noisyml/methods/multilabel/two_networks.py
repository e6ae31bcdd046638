"""Two networks on images with several labels: what their mean says."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.methods.two_networks import TwoNetworks
from noisyml.targets import TargetKind


def mean_probability_logits(first: Tensor, second: Tensor) -> Tensor:
    """Logits of the mean of two networks' probabilities, entry by entry.

    Args:
        first: logits [b, C].
        second: logits [b, C].

    Returns:
        [b, C], finite for finite logits of any size.
    """
    present = torch.logaddexp(F.logsigmoid(first), F.logsigmoid(second))
    return present - torch.logaddexp(F.logsigmoid(-first), F.logsigmoid(-second))


class MultiLabelTwoNetworks(TwoNetworks):
    """Two networks that give every class a probability of its own; see `TwoNetworks`."""

    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"multi"})

    def average(self, first: Tensor, second: Tensor) -> Tensor:
        """See `mean_probability_logits`."""
        return mean_probability_logits(first, second)
