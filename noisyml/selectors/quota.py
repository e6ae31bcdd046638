"""Selectors that leave a fixed share of every batch out, by one score of each sample or pair."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.selectors.base import Evidence, Selection, Selector
from noisyml.selectors.small_loss import quota, small_loss
from noisyml.targets import TargetKind


class QuotaSelector(Selector):
    """Keeps the share of the global batch that has the highest scores.

    Args:
        noise_rate: share of a batch to leave out; 0 keeps all and only scores.
        warmup_steps: first steps, which keep everything.
    """

    def __init__(self, noise_rate: OpenShare, warmup_steps: WholeNonNegative = 0) -> None:
        super().__init__()
        self.noise_rate = noise_rate
        self.warmup_steps = warmup_steps

    @abstractmethod
    def scores(self, evidence: Evidence) -> Tensor:
        """Trust [B] in [0, 1]."""

    @torch.no_grad()
    def select(self, evidence: Evidence) -> Selection:
        """Keep the most trusted; equal scores in the order of the batch."""
        scores = self.scores(evidence)
        share = 0.0 if evidence.step < self.warmup_steps else self.noise_rate
        return Selection(small_loss(-scores, quota(len(scores), share)), scores)


class SmallLoss(QuotaSelector):
    """Trusts samples, or pairs of image and caption, of small loss.

    The score is exp(-loss): of a cross-entropy, the probability of the label.

    Args:
        noise_rate: share of a batch to leave out; 0 keeps all and only scores.
        warmup_steps: first steps, which keep everything.

    Example:
        >>> import torch
        >>> from noisyml.selectors.base import Evidence
        >>> index = torch.arange(3)
        >>> evidence = Evidence(index, index, sample_loss=torch.tensor([0.1, 2.0, 0.3]))
        >>> SmallLoss(noise_rate=0.3).select(evidence).keep.tolist()
        [True, False, True]
    """

    needs: ClassVar[frozenset[str]] = frozenset({"sample_loss"})
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"single", "pairs"})

    def scores(self, evidence: Evidence) -> Tensor:
        """exp(-loss) [B]."""
        assert evidence.sample_loss is not None
        return (-evidence.sample_loss).exp()


class PlanMass(QuotaSelector):
    """Trusts pairs on which a transport plan of the batch leaves much of its mass.

    Args:
        noise_rate: share of a batch to leave out; 0 keeps all and only scores.
        warmup_steps: first steps, which keep everything.

    Example:
        >>> import torch
        >>> from noisyml.selectors.base import Evidence
        >>> index = torch.arange(2)
        >>> evidence = Evidence(index, index, pair_mass=torch.tensor([0.1, 0.8]))
        >>> PlanMass(noise_rate=0.5).select(evidence).keep.tolist()
        [False, True]
    """

    needs: ClassVar[frozenset[str]] = frozenset({"pair_mass"})
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"pairs"})

    def scores(self, evidence: Evidence) -> Tensor:
        """The mass [B] on each given pair."""
        assert evidence.pair_mass is not None
        return evidence.pair_mass
