"""Curriculum loss: keep the longest run of smallest losses that a bound allows.

Lyu and Tsang, "Curriculum Loss: Robust Learning and Generalization against Label Corruption",
ICLR 2020 (arXiv 1905.10045), with the threshold for a known noise rate, as Patel and Sastry
(WACV 2023) released it as a baseline.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.errors import UserError
from noisyml.selectors.base import Evidence, Selection, Selector
from noisyml.selectors.small_loss import trust_of_losses


def curriculum_keep(sample_loss: Tensor, noise_rate: float) -> Tensor:
    """The longest prefix of ascending losses with ``l_0 + ... + l_i <= (1 - R) B + 1 - i``.

    Args:
        sample_loss: [B] float.
        noise_rate: R in [0, 1).

    Returns:
        [B] bool; of equal losses the lower batch index counts first.

    Example:
        >>> import torch
        >>> curriculum_keep(torch.tensor([0.1, 3.0, 0.2, 2.0]), noise_rate=0.5).tolist()
        [True, False, True, False]
    """
    ordered, place = sample_loss.double().sort(stable=True)
    position = torch.arange(len(ordered), device=ordered.device)
    bound = (1 - noise_rate) * len(ordered) + 1 - position
    within = (ordered.cumsum(dim=0) <= bound).to(torch.int64).cumprod(dim=0).bool()
    return torch.zeros_like(within).scatter(0, place, within)


class Curriculum(Selector):
    """Keeps everything for some epochs, then the small losses of each global batch.

    Args:
        noise_rate: R, share of wrong labels expected.
        warmup_epochs: epochs that keep everything.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"sample_loss"})

    def __init__(self, noise_rate: OpenShare, warmup_epochs: WholeNonNegative = 5) -> None:
        super().__init__()
        self.noise_rate = noise_rate
        self.warmup_epochs = warmup_epochs

    def begin(self, steps: int | None, epochs: int | None) -> None:
        """Refuse a warm-up as long as the run; see `Selector.begin`."""
        if epochs is not None and epochs <= self.warmup_epochs:
            raise UserError(
                f"selector.warmup_epochs={self.warmup_epochs} keeps everything for the whole run "
                f"of {epochs} epochs: lower it, or raise trainer.max_epochs."
            )

    @torch.no_grad()
    def select(self, evidence: Evidence) -> Selection:
        """Judge one global batch; `p_clean` is ``exp(-loss)``, for cross-entropy the posterior."""
        if evidence.sample_loss is None:
            raise ValueError("this selector needs losses")
        p_clean, log_odds = trust_of_losses(evidence.sample_loss)
        if evidence.epoch < self.warmup_epochs:
            keep = torch.ones_like(evidence.labels, dtype=torch.bool)
        else:
            keep = curriculum_keep(evidence.sample_loss, self.noise_rate)
        return Selection(keep, p_clean, log_odds=log_odds)
