"""PRISM: keep the samples whose label agrees with the features of earlier iterations.

Liu et al., "Noise-resistant Deep Metric Learning with Ranking-based Instance Selection", CVPR 2021
(arXiv 2103.16047): AvgSim and the smooth top-R threshold. Liu et al., "Noise-Resistant Deep Metric
Learning with Probabilistic Instance Filtering", 2021 (arXiv 2108.01431): ProxySim (version 1) and
vMF-Sim. The second paper's formulas for vMF-Sim were not at hand: it is built here from the
abstract's definition and standard theory (see `von_mises_fisher`).
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from noisyml import distributed
from noisyml.checks import (
    Count,
    Hint,
    Interval,
    NonNegative,
    OpenShare,
    Positive,
    WholeNonNegative,
)
from noisyml.errors import UserError
from noisyml.selectors.base import Evidence, Selection, Selector
from noisyml.selectors.von_mises_fisher import (
    Absent,
    Prior,
    kappa_from_resultant,
    log_vmf_ratio,
    resultant_statistics,
    vmf_concentrations,
    vmf_log_density,
    vmf_log_odds,
    vmf_log_posterior,
    vmf_log_prior,
)
from noisyml.similarity.memory_bank import MemoryBank
from noisyml.similarity.pinned_buffers import PinnedBuffers

log = logging.getLogger(__name__)

ThresholdSpace = Literal["prob", "logprob"]
ColdStart = Literal["keep_all", "released"]
NoiseRate = Annotated[float, Interval(ge=0, lt=1), Hint("Best is the noise rate you expect.")]


class Scores(NamedTuple):
    """Scores of a batch.

    Attributes:
        p_clean: [B] float in [0, 1]; 1 where not scored.
        order_by: [B] float, increasing with P_clean: P_clean itself, or its logarithm, which still
            tells samples apart where P_clean saturates.
        scored: [B] bool, False for samples whose class is unknown so far.
        log_odds: [B] of P_clean, see `Selection`; None where P_clean does not saturate.
    """

    p_clean: Tensor
    order_by: Tensor
    scored: Tensor
    log_odds: Tensor | None = None


class TopR(NamedTuple):
    """Outcome of `smooth_top_r`.

    Attributes:
        keep: [B] bool.
        window: [tau] float64, the cut values to pass on.
        threshold: scalar float64; the mean of the window, or the batch's own cut value where the
            window decided nothing; NaN where nothing is removed.
    """

    keep: Tensor
    window: Tensor
    threshold: Tensor


def prism_avg_scores(
    embeddings: Tensor, labels: Tensor, centres: Tensor, filled: Tensor, eps: float = 0.0
) -> Tensor:
    """P_clean of AvgSim: a softmax over the mean cosine to each class (CVPR 2021, eq. 1 and 5).

    Args:
        embeddings: [B, D] float, unit norm.
        labels: [B] int64.
        centres: [C, D], same dtype: mean of the stored unit vectors of each class (not normalised),
            or the class's proxy; 0 where unknown, which adds exp(0) to the denominator.
        filled: [C] bool, False where the class is unknown.
        eps: added to the denominator; 1e-6 in the released stand-alone selector, 0 in the released
            loss.

    Returns:
        [B], in (0, 1]; exactly 1 for samples of a class that is not filled.

    Example:
        >>> import torch
        >>> centres = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> filled = torch.tensor([True, True])
        >>> p = prism_avg_scores(torch.eye(2), torch.tensor([0, 0]), centres, filled)
        >>> [round(x, 3) for x in p.tolist()]
        [0.731, 0.269]
    """
    affinity = torch.exp(embeddings @ centres.T)
    own = affinity.gather(1, labels[:, None]).squeeze(1)
    return torch.where(filled[labels], own / (affinity.sum(dim=1) + eps), 1.0)


def number_removed(noise_rate: float, batch_size: int) -> int:
    """``r = floor(R B)``, the number of samples of a batch that top-R removes.

    Example:
        >>> number_removed(0.3, 8)
        2
    """
    return math.floor(noise_rate * batch_size)


def smooth_top_r(
    p: Tensor,
    window: Tensor,
    r: int,
    *,
    certain: float = 1.0,
    order_by: Tensor | None = None,
    scored: Tensor | None = None,
) -> TopR:
    """Keep samples above the mean of the last cut values (sTRM; TRM with a window of 1).

    The batch's own r-th smallest value enters the window first, unless it equals `certain` or is
    NaN. Where no sample lies above the mean, or the window is empty, the r smallest are removed
    instead, of equal ones the lower batch index first; in the former case only the newest cut
    value stays in the window. Nothing here waits for the device.

    Args:
        p: [B] float, P_clean or its logarithm.
        window: [tau] float64, newest last, NaN where empty (empty entries come first).
        r: samples to remove, 0 <= r < B; 0 keeps all and leaves the window.
        certain: the value of `p` that says nothing (1 for probabilities, 0 for logarithms).
        order_by: [B], decides which are the r smallest; default `p`.
        scored: [B] bool; where given, an empty window removes nothing if one of the r smallest
            was not scored: too little is known yet (the released code removes it at random).

    Returns:
        The mask, the new window and the threshold.

    Example:
        >>> import torch
        >>> p = torch.tensor([0.9, 0.2, 0.8, 0.3])
        >>> found = smooth_top_r(p, torch.tensor([torch.nan, 0.6], dtype=torch.float64), r=1)
        >>> found.keep.tolist(), round(float(found.threshold), 3)
        ([True, False, True, False], 0.4)
    """
    if r == 0:
        keep = torch.ones_like(p, dtype=torch.bool)
        return TopR(keep, window, window.new_tensor(torch.nan))
    values = p.to(torch.float64)
    order = torch.argsort(p if order_by is None else order_by, stable=True)
    # A slice: indexing with a scalar tensor would wait for the device to read it.
    cut = values[order[r - 1 : r]].squeeze(0)

    informative = ~torch.isnan(cut) & (cut != certain)
    window = torch.where(informative, torch.cat([window[1:], cut[None]]), window)
    present = ~torch.isnan(window)
    started = present.any()
    mean = torch.nan_to_num(window).sum() / present.sum()

    above = values > mean
    by_window = started & above.any()
    smallest = order[:r]
    remainder = torch.ones_like(above).index_fill(0, smallest, False)
    if scored is not None:
        remainder = remainder | ~(started | scored[smallest].all())
    newest_only = torch.full_like(window, torch.nan)
    newest_only[-1] = window[-1]
    return TopR(
        keep=torch.where(by_window, above, remainder),
        window=torch.where(by_window | ~started, window, newest_only),
        threshold=torch.where(by_window, mean, cut),
    )


class PrismSelector(PinnedBuffers, Selector):
    """The part common to all PRISM scores: warm-up, top-R, and the window of cut values.

    Args:
        noise_rate: R, the share of a batch to remove; 0 removes nothing.
        window: tau, over how many steps the cut value is averaged; 1 is plain top-R.
        warmup_steps: calls of `select` that keep everything and score nothing.
        warmup_share: the same as a share of the whole run; give one of the two.
        cold_start: what happens before a first cut value exists, while samples of classes never
            seen (P = 1) are among the r lowest. ``keep_all``: everything is kept; ``released``: r
            samples are dropped, for want of better the first of the batch.
    """

    recent_cuts: Tensor

    def __init__(
        self,
        noise_rate: NoiseRate,
        window: Count = 30,
        warmup_steps: WholeNonNegative = 0,
        cold_start: ColdStart = "keep_all",
        warmup_share: OpenShare = 0.0,
    ) -> None:
        super().__init__()
        if warmup_steps and warmup_share:
            raise UserError(
                f"selection.warmup_steps={warmup_steps} and selection.warmup_share={warmup_share} "
                f"set the same thing: give one of them."
            )
        self.noise_rate = float(noise_rate)
        self.warmup_steps = warmup_steps
        self.warmup_share = warmup_share
        self._warmup = warmup_steps
        #: True for scores so sharp that what is learnt before the first epochs may rule the run.
        self.trusts_early = False
        self.cold_start = cold_start
        self.certain = 1.0
        self._steps = 0
        self.register_buffer("recent_cuts", torch.full((window,), torch.nan, dtype=torch.float64))

    def begin(self, steps: int | None, epochs: int | None) -> None:
        """Make steps of a share of the run; see `Selector.begin`.

        Raises:
            UserError: the warm-up is as long as the run, or a share of a run without an end.
        """
        if self.warmup_share and steps is None:
            raise UserError(
                f"selection.warmup_share={self.warmup_share} is a share of the run, and the run "
                f"has no end: set trainer.max_epochs, or selection.warmup_steps."
            )
        if self.warmup_share and steps is not None:
            self._warmup = min(math.ceil(self.warmup_share * steps), steps - 1)
        if self.trusts_early and not self._warmup and self.noise_rate and distributed.rank() == 0:
            log.warning(
                "%s judges from the first step on. Where a network starts from random weights it "
                "may give up whole classes then: say selection.warmup_share=0.2, or "
                "selector.threshold_space=logprob, unless its weights come from elsewhere.",
                type(self).__name__,
            )
        if steps is not None and self._warmup >= steps:
            raise UserError(
                f"selection.warmup_steps={self._warmup} keeps everything for the whole run of "
                f"{steps} steps, so that no label is judged: lower it, raise trainer.max_epochs, "
                f"or say it as a share of the run, selection.warmup_share=0.2."
            )

    @torch.no_grad()
    def select(self, evidence: Evidence) -> Selection:
        """Score the batch against what is known so far and keep what lies above the threshold."""
        warming_up = self._steps < self._warmup
        self._steps += 1
        if not self._can_score(evidence):
            return Selection.keep_everything(evidence.labels)
        if warming_up:
            selection = Selection.keep_everything(evidence.labels)
        else:
            # Reduced precision would reorder samples: P of AvgSim differs in the fourth digit.
            with torch.autocast(evidence.labels.device.type, enabled=False):
                scores = self._score(evidence)
            selection = self._decide(scores)
        self._remember(evidence, selection.keep)
        return selection

    def get_extra_state(self) -> dict[str, int]:
        """Number of calls so far, for the state dict."""
        return {"steps": self._steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take over the number of calls from a state dict."""
        self._steps = int(state["steps"])

    @abstractmethod
    def _can_score(self, evidence: Evidence) -> bool:
        """False while there is nothing to compare with."""

    @abstractmethod
    def _score(self, evidence: Evidence) -> Scores:
        """P_clean of every sample."""

    def _remember(self, evidence: Evidence, keep: Tensor) -> None:
        """Take note of a decision (warm-up included); default: nothing to note."""

    def _threshold_values(self, scores: Scores) -> Tensor:
        return scores.p_clean

    def _decide(self, scores: Scores) -> Selection:
        keep, window, _ = smooth_top_r(
            self._threshold_values(scores),
            self.recent_cuts,
            number_removed(self.noise_rate, len(scores.p_clean)),
            certain=self.certain,
            order_by=scores.order_by,
            scored=scores.scored if self.cold_start == "keep_all" else None,
        )
        self.recent_cuts.copy_(window)
        return Selection(keep, scores.p_clean, log_odds=scores.log_odds)


class PrismAverage(PrismSelector):
    """AvgSim: P_clean from the mean cosine to the stored rows of each class.

    Args:
        noise_rate: see `PrismSelector`.
        window: see `PrismSelector`.
        warmup_steps: see `PrismSelector`.
        cold_start: see `PrismSelector`.
        warmup_share: see `PrismSelector`.
        centres: ``exact``: the class means of the bank as it is. ``lazy``: as released; only
            classes kept in the previous step are brought up to date, the others stay as they were,
            even after their rows left the bank.
        eps: added to the denominator of P_clean; released: 1e-6 (selector), 0 (loss with filter).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"embeddings", "memory"})
    class_centres: Tensor
    filled: Tensor
    kept_classes: Tensor

    def __init__(
        self,
        noise_rate: NoiseRate,
        window: Count = 30,
        warmup_steps: WholeNonNegative = 0,
        cold_start: ColdStart = "keep_all",
        centres: Literal["exact", "lazy"] = "exact",
        eps: NonNegative = 0.0,
        warmup_share: OpenShare = 0.0,
    ) -> None:
        super().__init__(noise_rate, window, warmup_steps, cold_start, warmup_share)
        self.centres = centres
        self.eps = eps
        # Exact centres follow from the bank; only stale ones are worth a place in a checkpoint.
        lazy = centres == "lazy"
        self.register_buffer("class_centres", torch.zeros(0, 0), persistent=lazy)
        self.register_buffer("filled", torch.zeros(0, dtype=torch.bool), persistent=lazy)
        self.register_buffer("kept_classes", torch.zeros(0, dtype=torch.bool), persistent=lazy)
        self._read: tuple[MemoryBank, int] | None = None

    def _can_score(self, evidence: Evidence) -> bool:
        return len(_memory(evidence)) > 0

    def _score(self, evidence: Evidence) -> Scores:
        memory = _memory(evidence)
        self._allocate(memory)
        if self.centres == "lazy":
            classes = self.kept_classes.nonzero().squeeze(1)
            classes = classes[memory.class_counts[classes] > 0]
            self._refresh(memory, classes)
            self.filled[classes] = True
        else:
            self._refresh(memory, _stale_classes(memory, self._read))
            self._read = (memory, memory.version)
            self.filled.copy_(memory.class_counts > 0)
        p = prism_avg_scores(
            _embeddings(evidence).to(self.class_centres.dtype),
            evidence.labels,
            self.class_centres,
            self.filled,
            self.eps,
        )
        scored = self.filled[evidence.labels]
        return Scores(p, p, scored, torch.where(scored, torch.logit(p), torch.nan))

    def _remember(self, evidence: Evidence, keep: Tensor) -> None:
        if self.centres == "lazy":
            self._allocate(_memory(evidence))
            votes = torch.zeros_like(self.kept_classes, dtype=torch.int64)
            votes.index_add_(0, evidence.labels, keep.to(torch.int64))
            self.kept_classes.copy_(votes > 0)

    def _refresh(self, memory: MemoryBank, classes: Tensor) -> None:
        count = memory.class_counts[classes].clamp(min=1)
        means = memory.class_sums[classes] / count[:, None]
        self.class_centres[classes] = means.to(self.class_centres.dtype)

    def _allocate(self, memory: MemoryBank) -> None:
        if len(self.class_centres) != memory.num_classes:
            dtype = torch.promote_types(memory.embeddings.dtype, torch.float32)
            self.class_centres = torch.zeros_like(memory.class_sums, dtype=dtype)
            self.filled = torch.zeros_like(memory.class_counts, dtype=torch.bool)
            self.kept_classes = torch.zeros_like(self.filled)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The buffers take the size of the bank when they first see it, or that of a checkpoint.
        for name in ("class_centres", "filled", "kept_classes"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=self.recent_cuts.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class PrismProxy(PrismSelector):
    """ProxySim: AvgSim with the loss's learnt class proxies in the place of the class means.

    Args:
        noise_rate: see `PrismSelector`.
        window: see `PrismSelector`.
        warmup_steps: see `PrismSelector`.
        eps: added to the denominator of P_clean.
        warmup_share: see `PrismSelector`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"embeddings", "proxies"})

    def __init__(
        self,
        noise_rate: NoiseRate,
        window: Count = 30,
        warmup_steps: WholeNonNegative = 0,
        eps: NonNegative = 0.0,
        warmup_share: OpenShare = 0.0,
    ) -> None:
        super().__init__(noise_rate, window, warmup_steps, warmup_share=warmup_share)
        self.eps = eps

    def _can_score(self, evidence: Evidence) -> bool:
        if evidence.proxies is None:
            raise ValueError("ProxySim needs the loss's proxies")
        return True

    def _score(self, evidence: Evidence) -> Scores:
        assert evidence.proxies is not None
        dtype = torch.promote_types(evidence.proxies.dtype, torch.float32)
        proxies = evidence.proxies.to(dtype)
        known = torch.ones(len(proxies), dtype=torch.bool, device=proxies.device)
        p = prism_avg_scores(
            _embeddings(evidence).to(dtype), evidence.labels, proxies, known, self.eps
        )
        return Scores(p, p, known[evidence.labels])


class PrismVonMisesFisher(PrismSelector):
    """vMF-Sim: P_clean from one von Mises-Fisher density per class, so spread counts too.

    Args:
        noise_rate: see `PrismSelector`.
        window: see `PrismSelector`.
        warmup_steps: see `PrismSelector`.
        cold_start: see `PrismSelector`.
        warmup_share: see `PrismSelector`.
        threshold_space: where cut values are averaged: ``prob``, or ``logprob`` (P saturates at
            0 and 1 for D >= 64; the mean of probabilities is ruled by its largest entries, that of
            logarithms by the smallest).
        absent: a class without rows is left out and its samples get P = 1 (``exclude``), or counts
            as the uniform density, which also catches outliers (``uniform``); while no class has
            `min_count` rows all samples get P = 1 either way.
        prior: of the classes: ``uniform``, or ``empirical`` (share of the bank's rows).
        min_count: classes with fewer rows share the pooled concentration of the others.
        kappa_max: upper bound of the concentration.
        bias_correction: correct the mean resultant length for the number of rows.
        newton_steps: 0 takes the closed form of the concentration, n improves it by n steps.

    Raises:
        UserError: a prior that makes `absent` meaningless.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"embeddings", "memory"})
    directions: Tensor
    r_bar: Tensor
    own_kappa: Tensor
    own_log_ratio: Tensor

    def __init__(
        self,
        noise_rate: NoiseRate,
        window: Count = 30,
        warmup_steps: WholeNonNegative = 0,
        cold_start: ColdStart = "keep_all",
        threshold_space: ThresholdSpace = "prob",
        absent: Absent = "exclude",
        prior: Prior = "uniform",
        min_count: Count = 2,
        kappa_max: Positive = 1e4,
        bias_correction: bool = False,
        newton_steps: WholeNonNegative = 0,
        warmup_share: OpenShare = 0.0,
    ) -> None:
        super().__init__(noise_rate, window, warmup_steps, cold_start, warmup_share)
        if absent == "uniform" and prior == "empirical":
            raise UserError(
                "selector.prior=empirical gives a class without rows no weight, so "
                "selector.absent=uniform can have no effect: use absent=exclude or prior=uniform."
            )
        self.threshold_space = threshold_space
        self.certain = 1.0 if threshold_space == "prob" else 0.0
        self.absent = absent
        self.prior = prior
        self.min_count = min_count
        self.kappa_max = kappa_max
        self.bias_correction = bias_correction
        self.newton_steps = newton_steps
        self.trusts_early = threshold_space == "prob"
        # All of this follows from the bank and is rebuilt after a restart.
        self.register_buffer("directions", torch.zeros(0, 0), persistent=False)
        for name in ("r_bar", "own_kappa", "own_log_ratio"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64), persistent=False)
        self._read: tuple[MemoryBank, int] | None = None

    def concentrations(self, class_counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Concentration of every class as of the last score, the pooled one where rows are few.

        Args:
            class_counts: [C] int64, rows of each class.

        Returns:
            kappa [C] float64, its log normaliser [C] float64, and known [C] bool: False for
            classes without rows, and for all with few rows while no class has enough.
        """
        return vmf_concentrations(
            self.r_bar,
            class_counts,
            self.directions.shape[1],
            own=(self.own_kappa, self.own_log_ratio),
            min_count=self.min_count,
            newton_steps=self.newton_steps,
            kappa_max=self.kappa_max,
        )

    def _can_score(self, evidence: Evidence) -> bool:
        return len(_memory(evidence)) > 0

    def _score(self, evidence: Evidence) -> Scores:
        memory = _memory(evidence)
        if memory.dim < 2:
            raise UserError(
                f"The von Mises-Fisher selector compares directions, and an embedding of "
                f"{memory.dim} dimension has none: set head.out_features to 2 or more, or "
                f"choose another selector=..."
            )
        self._refresh(memory, _stale_classes(memory, self._read))
        self._read = (memory, memory.version)
        kappa, log_ratio, known = self.concentrations(memory.class_counts)
        log_density = vmf_log_density(
            _embeddings(evidence).to(self.directions.dtype), self.directions, kappa, log_ratio
        )
        log_prior = vmf_log_prior(memory.class_counts, known, self.absent, self.prior)
        log_p, scored = vmf_log_posterior(log_density, evidence.labels, log_prior)
        log_odds = vmf_log_odds(log_density, evidence.labels, log_prior)
        return Scores(log_p.exp(), log_p, scored, log_odds)

    def _threshold_values(self, scores: Scores) -> Tensor:
        return scores.p_clean if self.threshold_space == "prob" else scores.order_by

    def _refresh(self, memory: MemoryBank, classes: Tensor) -> None:
        if len(self.directions) != memory.num_classes:
            dtype = torch.promote_types(memory.embeddings.dtype, torch.float32)
            self.directions = torch.zeros_like(memory.class_sums, dtype=dtype)
            self.r_bar = torch.zeros_like(memory.class_sums[:, 0])
            self.own_kappa = torch.zeros_like(self.r_bar)
            self.own_log_ratio = torch.zeros_like(self.r_bar)
        directions, r_bar = resultant_statistics(
            memory.class_sums[classes], memory.class_counts[classes], self.bias_correction
        )
        kappa = kappa_from_resultant(r_bar, memory.dim, self.newton_steps, self.kappa_max)
        self.directions[classes] = directions.to(self.directions.dtype)
        self.r_bar[classes] = r_bar
        self.own_kappa[classes] = kappa
        self.own_log_ratio[classes] = log_vmf_ratio(kappa, memory.dim)


def _stale_classes(memory: MemoryBank, read: tuple[MemoryBank, int] | None) -> Tensor:
    """Classes to recompute: those changed since `read`, all of them where that is not known."""
    changed = memory.changed_since(read[1]) if read is not None and read[0] is memory else None
    if changed is None:
        changed = torch.arange(memory.num_classes, device=memory.labels.device)
    return changed


def _memory(evidence: Evidence) -> MemoryBank:
    if evidence.memory is None:
        raise ValueError("this selector needs a memory bank")
    return evidence.memory


def _embeddings(evidence: Evidence) -> Tensor:
    if evidence.embeddings is None:
        raise ValueError("this selector needs embeddings")
    return evidence.embeddings
