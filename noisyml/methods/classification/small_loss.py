"""Base of co-teaching, co-teaching+ and JoCoR: two classifiers, and a quota of small losses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from noisyml.checks import Count, OpenShare, Positive
from noisyml.errors import UserError
from noisyml.methods.parts import Parts
from noisyml.methods.two_networks import Predict, Seen, TwoNetworks
from noisyml.selectors.base import Facts, Selection
from noisyml.selectors.small_loss import forget_rate, trust_of_losses
from noisyml.selectors.training_dynamics import training_facts


def mean_log_probability(first: Tensor, second: Tensor) -> Tensor:
    """Logarithm of the mean of two softmax distributions, [B, C] from class scores [B, C] each."""
    pair = torch.stack([first.log_softmax(dim=1), second.log_softmax(dim=1)])
    return pair.logsumexp(dim=0) - math.log(2)


class SmallLoss(TwoNetworks):
    """Two classifiers that learn from a share of each global batch, the samples of small loss.

    Args:
        parts, predict, best_by: see `TwoNetworks`.
        noise_rate: share of wrong labels that the user believes there is, in [0, 1); in the end
            that share of each batch is left out.
        num_gradual: epochs over which that share rises from 0, T_k.
        exponent: c of the rise, see `noisyml.selectors.small_loss.forget_rate`.

    Raises:
        UserError: no noise rate.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        noise_rate: OpenShare | None,
        num_gradual: Count = 10,
        exponent: Positive = 1.0,
        predict: Predict = "first",
        best_by: str | None = None,
    ) -> None:
        super().__init__(parts, predict=predict, best_by=best_by)
        if noise_rate is None:
            raise UserError(
                f"{type(self).__name__} leaves out as many samples as have wrong labels: set "
                f"method.noise_rate to the share that you believe there is, e.g. 0.2."
            )
        self.noise_rate = noise_rate
        self.num_gradual = num_gradual
        self.exponent = exponent

    @property
    def forget(self) -> float:
        """The share of a batch that this epoch leaves out, f_t."""
        return forget_rate(self.current_epoch, self.noise_rate, self.num_gradual, self.exponent)

    def average(self, first: Tensor, second: Tensor) -> Tensor:
        """Logarithm [b, C] of the mean of both softmax distributions."""
        return mean_log_probability(first, second)

    def outcome(self, loss: Tensor, keep: Tensor, judged_by: Tensor, seen: Seen) -> dict[str, Any]:
        """Result of `training_step`, which the log of judgements reads.

        Args:
            loss: [] with gradient.
            keep: [B] bool, what the first network learns from.
            judged_by: losses [B] that decided it, at least 0; logged as exp(-loss).
            seen: the global batch.
        """
        p_clean, log_odds = trust_of_losses(judged_by)
        selection = Selection(keep, p_clean, log_odds=log_odds)
        rows = {
            "logits": seen.first.logits.detach(),
            "labels": seen.labels,
            "sample_loss": judged_by.detach(),
        }
        facts = Facts(rows, training_facts)
        return {"loss": loss, "selection": selection, "index": seen.index, "facts": facts}
