"""Selectors that watch a training: mixture of losses, area under the margin, learning of labels.

What they know of each sample lies in buffers that grow with the largest position seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from noisyml.checks import NonNegative, Share, WholeNonNegative
from noisyml.errors import UserError
from noisyml.selectors.base import Evidence, Selection, Selector
from noisyml.selectors.loss_mixture import small_loss_posterior
from noisyml.selectors.training_dynamics import logit_margin


class PerSample(Selector):
    """Base: one number per sample in each buffer of `blank`, and a warm-up.

    Args:
        warmup_epochs: epochs that keep everything.
    """

    #: Buffers and the value of a sample not seen yet.
    blank: ClassVar[Mapping[str, float]]

    def __init__(self, warmup_epochs: int) -> None:
        super().__init__()
        self.warmup_epochs = warmup_epochs
        for name in self.blank:
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))

    def begin(self, steps: int | None, epochs: int | None) -> None:
        """Refuse a warm-up as long as the run; see `Selector.begin`."""
        if epochs is not None and epochs <= self.warmup_epochs:
            raise UserError(
                f"selector.warmup_epochs={self.warmup_epochs} keeps everything for the whole run "
                f"of {epochs} epochs: lower it, or raise trainer.max_epochs."
            )

    def _grow(self, index: Tensor) -> None:
        """Make room for all positions of a batch."""
        first = getattr(self, next(iter(self.blank)))
        missing = int(index.max()) + 1 - len(first)
        if missing > 0:
            for name, value in self.blank.items():
                old = getattr(self, name).to(index.device)
                room = torch.full((missing + len(old) // 2,), value, device=index.device)
                setattr(self, name, torch.cat([old, room.double()]))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in self.blank:
            if prefix + name in state_dict:
                setattr(self, name, torch.zeros_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _answer(self, keep: Tensor, trust: Tensor, log_odds: Tensor, epoch: int) -> Selection:
        if epoch < self.warmup_epochs:
            keep = torch.ones_like(keep)
        return Selection(keep, trust.float(), log_odds=log_odds.float())


class LossMixture(PerSample):
    """Keeps samples whose loss belongs to the lower of two Gaussians (DivideMix's division).

    Li, Socher and Hoi, ICLR 2020 (arXiv 2002.07394), section 3.1: at the start of an epoch the
    mixture is fitted to the last loss of every sample. A sample without a loss is kept.

    Args:
        threshold: posterior of the lower component from which a sample is kept; 0.5, the release's.
        warmup_epochs: epochs that keep everything, 1 at least: the first has no losses to look at.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"sample_loss"})
    blank: ClassVar[Mapping[str, float]] = {"losses": torch.nan, "posterior": torch.nan}
    losses: Tensor
    posterior: Tensor
    fitted: Tensor

    def __init__(self, threshold: Share = 0.5, warmup_epochs: WholeNonNegative = 10) -> None:
        super().__init__(warmup_epochs)
        self.threshold = threshold
        self.register_buffer("fitted", torch.tensor(-1))

    @torch.no_grad()
    def select(self, evidence: Evidence) -> Selection:
        """Judge one global batch; `p_clean` is the posterior at the start of the epoch."""
        if evidence.sample_loss is None:
            raise ValueError("this selector needs losses")
        self._grow(evidence.index)
        if int(self.fitted) != evidence.epoch:
            self.posterior = small_loss_posterior(self.losses)
            self.fitted.fill_(evidence.epoch)
        self.losses[evidence.index] = evidence.sample_loss.double()
        trust = self.posterior[evidence.index]
        keep = trust.isnan() | (trust > self.threshold)
        # Posteriors are 0 or 1 to the last digit; losses tell samples apart.
        odds = torch.where(trust.isnan(), torch.nan, -self.losses[evidence.index])
        return self._answer(keep, trust, odds, evidence.epoch)


class MarginArea(PerSample):
    """Keeps samples whose mean logit margin over all visits is large enough (AUM).

    Pleiss et al., NeurIPS 2020 (arXiv 2001.10528). The paper finds the threshold with samples of a
    class of their own; here it is a setting.

    Args:
        threshold: area from which a sample is kept.
        warmup_epochs: epochs that keep everything.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    blank: ClassVar[Mapping[str, float]] = {"margins": 0.0, "visits": 0.0}
    margins: Tensor
    visits: Tensor

    def __init__(self, threshold: float = 0.0, warmup_epochs: WholeNonNegative = 5) -> None:
        super().__init__(warmup_epochs)
        self.threshold = threshold

    @torch.no_grad()
    def select(self, evidence: Evidence) -> Selection:
        """Judge one global batch; `p_clean` is the logistic function of the area."""
        if evidence.logits is None:
            raise ValueError("this selector needs logits")
        self._grow(evidence.index)
        at = evidence.index
        self.margins[at] += logit_margin(evidence.logits, evidence.labels).double()
        self.visits[at] += 1
        area = self.margins[at] / self.visits[at]
        return self._answer(area >= self.threshold, area.sigmoid(), area, evidence.epoch)


class Learnt(PerSample):
    """Keeps samples that the network gets right often enough: what it forgets or never learns goes.

    Toneva et al., ICLR 2019 (arXiv 1812.05159) count how often a sample is forgotten; wrong labels
    are forgotten most or never learnt. The score is the share of visits at which it was right.

    Args:
        threshold: share of right visits from which a sample is kept.
        forgets: a sample forgotten more often than this is left out too.
        warmup_epochs: epochs that keep everything.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    blank: ClassVar[Mapping[str, float]] = {
        "visits": 0.0,
        "hits": 0.0,
        "last": 0.0,
        "forgotten": 0.0,
    }
    visits: Tensor
    hits: Tensor
    last: Tensor
    forgotten: Tensor

    def __init__(
        self,
        threshold: Share = 0.5,
        forgets: NonNegative | None = None,
        warmup_epochs: WholeNonNegative = 5,
    ) -> None:
        super().__init__(warmup_epochs)
        self.threshold = threshold
        self.forgets = forgets

    @torch.no_grad()
    def select(self, evidence: Evidence) -> Selection:
        """Judge one global batch; `p_clean` is the share of visits with a right answer."""
        if evidence.logits is None:
            raise ValueError("this selector needs logits")
        self._grow(evidence.index)
        at = evidence.index
        margin = logit_margin(evidence.logits, evidence.labels).double()
        right = (margin > 0).double()
        self.forgotten[at] += self.last[at] * (1 - right)
        self.last[at] = right
        self.hits[at] += right
        self.visits[at] += 1
        share = self.hits[at] / self.visits[at]
        keep = share >= self.threshold
        if self.forgets is not None:
            keep &= self.forgotten[at] <= self.forgets
        smoothed = (self.hits[at] + 0.5) / (self.visits[at] + 1)
        # Of equal shares the larger margin first; it moves none past another share.
        odds = smoothed.logit() + 1e-3 * margin.tanh()
        return self._answer(keep, share, odds, evidence.epoch)
