"""Scores of an audit as selectors: all training labels judged at once, between two epochs.

`knn_vote`, `prism_vmf` and their like judge a batch against a memory of old embeddings. These pass
the whole training split through the network first, so that every label is judged by the same
features: once before training (frozen or pretrained features), or anew on a schedule.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyml import distributed
from noisyml.audit.judging import judge_labels
from noisyml.audit.scores.confident import Rule, confident_issues
from noisyml.audit.scores.density import density_log_odds
from noisyml.audit.scores.folds import (
    chosen_strength,
    out_of_fold_probabilities,
    projected_rows,
)
from noisyml.audit.scores.labels import label_margin, own_share
from noisyml.audit.scores.neighbours import neighbour_votes, simifeat, wann_votes
from noisyml.checks import Count, Ge, OpenShare, Seed, Share, WholeNonNegative
from noisyml.errors import UserError
from noisyml.selectors.base import Evidence, Selection, Source, SplitRows
from noisyml.selectors.watching import PerSample
from noisyml.similarity.sharded import sharded_self_topk


@dataclass(frozen=True)
class Verdicts:
    """Judgements of N labels.

    Attributes:
        keep: bool [N].
        p_clean: [N] in [0, 1], NaN where the score says nothing.
        order: [N], larger for labels believed right, and telling apart what `p_clean` does not.
    """

    keep: NDArray[np.bool_]
    p_clean: NDArray[np.floating]
    order: NDArray[np.floating]


class SplitSelector(PerSample):
    """Base: judges the whole training split between epochs; a subclass writes `judge`.

    Labels that were not judged (of images that cannot be decoded) are kept. On several processes
    the first one judges the rows of all, and tells the others.

    Args:
        source: what rows are made of: ``features`` of the backbone, or the head's ``embeddings``.
        every_n_epochs: epochs between two judgements; 0: once, before the first epoch that selects.
        warmup_epochs: epochs that keep everything; labels are judged at their end.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    blank: ClassVar[Mapping[str, float]] = {"kept": 1.0, "trust": torch.nan, "order": torch.nan}
    #: Neighbours of each row that `judge` looks at; 0: it looks at the rows.
    neighbours: int = 0
    kept: Tensor
    trust: Tensor
    order: Tensor
    judged_at: Tensor

    def __init__(
        self,
        source: Source = "features",
        every_n_epochs: WholeNonNegative = 0,
        warmup_epochs: WholeNonNegative = 0,
    ) -> None:
        super().__init__(warmup_epochs)
        self.source: Source = source
        self.every_n_epochs = every_n_epochs
        self.register_buffer("judged_at", torch.tensor(-1))

    def due(self, epoch: int) -> bool:
        """True if `epoch` (from 0) begins with a judgement that was not made yet."""
        since, last = epoch - self.warmup_epochs, int(self.judged_at)
        if since < 0 or epoch <= last:
            return False
        step = self.every_n_epochs
        return last < 0 or (step > 0 and since % step == 0)

    @torch.no_grad()
    def begin_epoch(self, epoch: int, see: Callable[[Source], SplitRows], changed: bool) -> None:
        """Judge all labels where the schedule says so, or where they are others than before."""
        stale = changed and int(self.judged_at) >= 0 and epoch > int(self.judged_at)
        if not (stale or self.due(epoch)):
            return
        split = see(self.source)
        classes = self._check(split)
        found = torch.full((len(split.labels), len(self.blank)), torch.nan, dtype=torch.float64)
        rows = self._evidence(split)
        if distributed.rank() == 0:
            labels = split.labels.cpu().numpy()
            said = self.judge(rows.cpu().numpy(), labels, classes)
            columns = (said.keep, said.p_clean, said.order)
            found = torch.from_numpy(np.stack([np.asarray(c, np.float64) for c in columns], 1))
        found = distributed.from_first(found.to(split.labels.device))
        self._grow(split.index)
        for name, column in zip(self.blank, found.unbind(dim=1), strict=True):
            buffer: Tensor = getattr(self, name)
            buffer[split.index.to(buffer.device)] = column.to(buffer.device)
        self.judged_at.fill_(epoch)

    @torch.no_grad()
    def select(self, evidence: Evidence) -> Selection:
        """The judgements of the labels of one global batch."""
        self._grow(evidence.index)
        at = evidence.index
        keep = self.kept[at] > 0
        return self._answer(keep, self.trust[at], self.order[at], evidence.epoch)

    @abstractmethod
    def judge(self, rows: NDArray[Any], labels: NDArray[np.int64], classes: int) -> Verdicts:
        """Judge N labels.

        Args:
            rows: [N, D]; where `neighbours` asks for some: those of each row [N, k] int64.
            labels: observed [N].
            classes: C.
        """

    def _check(self, split: SplitRows) -> int:
        """Number of classes of the labels; a sentence where they cannot be judged."""
        n = len(split.labels)
        classes = int(split.labels.max()) + 1 if n else 0
        if n < 4 or classes < 2:
            raise UserError(
                f"{type(self).__name__} judges labels by those of other rows, and there are {n} "
                f"labelled rows of {classes} classes: choose another selector=..."
            )
        return classes

    def _evidence(self, split: SplitRows) -> Tensor:
        if not self.neighbours:
            return distributed.gather(split.rows)
        found = sharded_self_topk(split.rows, min(self.neighbours, len(split.labels) - 1))
        return distributed.gather(found.index)


class WeightedNeighbours(SplitSelector):
    """Keeps labels with most of the votes of a neighbourhood as large as is needed (WANN).

    Di Salvo et al., "An Embedding is Worth a Thousand Noisy Labels", TMLR 2025 (arXiv 2408.14358):
    neighbours vote with the reliability of their own labels, see `wann_votes`. The paper classifies
    by these votes; here they judge the labels that are there.

    Args:
        k_min: smallest neighbourhood.
        k_max: largest one, fewer where there are fewer rows.
        threshold: share of the votes from which a label is kept; None: it must have the most.
        source, every_n_epochs, warmup_epochs: see `SplitSelector`.
    """

    def __init__(
        self,
        k_min: Count = 11,
        k_max: Count = 51,
        threshold: Share | None = None,
        source: Source = "features",
        every_n_epochs: WholeNonNegative = 0,
        warmup_epochs: WholeNonNegative = 0,
    ) -> None:
        super().__init__(source, every_n_epochs, warmup_epochs)
        if k_min > k_max:
            raise UserError(f"selector.k_min={k_min} must not be above selector.k_max={k_max}.")
        self.k_min, self.k_max = k_min, k_max
        self.neighbours = k_max
        self.threshold = threshold

    def judge(self, rows: NDArray[Any], labels: NDArray[np.int64], classes: int) -> Verdicts:
        """See `SplitSelector.judge`; `p_clean` is the label's share of the votes."""
        votes = wann_votes(rows, labels, classes, self.k_min, self.k_max)
        own, margin = own_share(votes, labels), label_margin(votes, labels)
        return Verdicts(
            margin >= 0 if self.threshold is None else own >= self.threshold, own, margin
        )


class SimiFeat(SplitSelector):
    """Leaves out labels that the soft label of the nearest rows contradicts (SimiFeat).

    Zhu, Dong and Liu, ICML 2022 (arXiv 2110.06283), algorithm 1, see `simifeat`.

    Args:
        rule: ``vote``: a label is kept where it is the class with most votes; ``rank``: of each
            class the labels whose neighbourhood is least like them are left out, as many as
            `noise_rate` expects.
        noise_rate: expected share of wrong labels in each class; of ``rank`` alone.
        k: votes of each row (paper: 10).
        source, every_n_epochs, warmup_epochs: see `SplitSelector`.
    """

    def __init__(
        self,
        rule: Literal["vote", "rank"] = "vote",
        noise_rate: OpenShare = 0.5,
        k: Count = 10,
        source: Source = "features",
        every_n_epochs: WholeNonNegative = 0,
        warmup_epochs: WholeNonNegative = 0,
    ) -> None:
        super().__init__(source, every_n_epochs, warmup_epochs)
        self.rule: Literal["vote", "rank"] = rule
        self.noise_rate = noise_rate
        self.k = k
        self.neighbours = k

    def judge(self, rows: NDArray[Any], labels: NDArray[np.int64], classes: int) -> Verdicts:
        """See `SplitSelector.judge`; `p_clean` is the cosine of soft label and label."""
        votes = neighbour_votes(rows, labels, classes)
        share = np.full(classes, self.noise_rate)
        score, corrupted = simifeat(votes, labels, self.rule, share)
        return Verdicts(~corrupted, score, score + 1e-3 * label_margin(votes, labels))


class ConfidentLearning(SplitSelector):
    """Leaves out labels that confident learning finds wrong by out-of-fold probabilities.

    Northcutt, Jiang and Chuang, JAIR 2021 (arXiv 1911.00068), by the rules of cleanlab, see
    `confident_issues`. Probabilities are those of a logistic regression on the rows, whose penalty
    is chosen by labels held out.

    Args:
        rule: ``confident_learning``, ``noise_rate``, ``class`` or ``both``.
        folds: of the probabilities, fewer where there are fewer rows.
        seed: of the folds.
        source, every_n_epochs, warmup_epochs: see `SplitSelector`.
    """

    def __init__(
        self,
        rule: Rule = "confident_learning",
        folds: Annotated[int, Ge(2)] = 5,
        seed: Seed = 0,
        source: Source = "features",
        every_n_epochs: WholeNonNegative = 0,
        warmup_epochs: WholeNonNegative = 0,
    ) -> None:
        super().__init__(source, every_n_epochs, warmup_epochs)
        self.rule: Rule = rule
        self.folds = folds
        self.seed = seed

    def judge(self, rows: NDArray[Any], labels: NDArray[np.int64], classes: int) -> Verdicts:
        """See `SplitSelector.judge`; `p_clean` is the probability of the label."""
        short = projected_rows(rows, seed=self.seed)
        targets = np.eye(classes, dtype=np.float32)[labels]
        probabilities = out_of_fold_probabilities(
            short,
            labels,
            classes,
            folds=min(self.folds, len(labels)),
            strength=chosen_strength(short, targets, seed=self.seed),
            seed=self.seed,
        )
        keep = ~confident_issues(probabilities, labels, self.rule)
        return Verdicts(keep, own_share(probabilities, labels), label_margin(probabilities, labels))


class ClassDensity(SplitSelector):
    """Keeps labels that are likely under one von Mises-Fisher density per class.

    The density of PRISM's vMF-Sim (Liu et al., arXiv 2108.01431) on all rows at once, see
    `density_log_odds`.

    Args:
        threshold: probability of the label from which it is kept.
        source, every_n_epochs, warmup_epochs: see `SplitSelector`.
    """

    def __init__(
        self,
        threshold: Share = 0.5,
        source: Source = "features",
        every_n_epochs: WholeNonNegative = 0,
        warmup_epochs: WholeNonNegative = 0,
    ) -> None:
        super().__init__(source, every_n_epochs, warmup_epochs)
        self.threshold = threshold

    def judge(self, rows: NDArray[Any], labels: NDArray[np.int64], classes: int) -> Verdicts:
        """See `SplitSelector.judge`; the only row of a class is kept, unjudged."""
        odds = density_log_odds(rows, labels, classes)
        share = 1 / (1 + np.exp(-odds))
        return Verdicts(np.isnan(share) | (share >= self.threshold), share, odds)


class Audit(SplitSelector):
    """Keeps labels that `noisyml clean` believes right: several views weighed by a noise channel.

    See `noisyml.audit.judging.judge_labels`.

    Args:
        threshold: probability of being right from which a label is kept.
        k: neighbours that vote for each row.
        folds: of the out-of-fold probabilities.
        rounds: fits of the views.
        seed: of folds and draws.
        source, every_n_epochs, warmup_epochs: see `SplitSelector`.
    """

    def __init__(
        self,
        threshold: Share = 0.5,
        k: Count = 30,
        folds: Annotated[int, Ge(2)] = 10,
        rounds: Count = 2,
        seed: Seed = 0,
        source: Source = "features",
        every_n_epochs: WholeNonNegative = 0,
        warmup_epochs: WholeNonNegative = 0,
    ) -> None:
        super().__init__(source, every_n_epochs, warmup_epochs)
        self.threshold = threshold
        self.k, self.folds, self.rounds, self.seed = k, folds, rounds, seed

    def judge(self, rows: NDArray[Any], labels: NDArray[np.int64], classes: int) -> Verdicts:
        """See `SplitSelector.judge`; `p_clean` is one less the probability of being wrong."""
        judged = judge_labels(
            rows,
            labels,
            classes,
            neighbours=self.k,
            folds=self.folds,
            rounds=self.rounds,
            seed=self.seed,
            replicates=1,  # the interval of the noise rate, which nobody reads here
        )
        right = 1 - judged.p_wrong
        return Verdicts(right >= self.threshold, right, right)
