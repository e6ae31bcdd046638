"""Scores of labels by how training goes: area under the margin, forgetting, memorisation.

Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020
(arXiv 2001.10528); Toneva et al., "An Empirical Study of Example Forgetting", ICLR 2019 (arXiv
1812.05159). Both watch the logits of every sample at every visit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of each label less the largest other one [B] (arXiv 2001.10528, eq. 1).

    Args:
        logits: [B, C], C at least 2.
        labels: [B] int64.

    Example:
        >>> logit_margin(torch.tensor([[2.0, 0.0], [5.0, 1.0]]), torch.tensor([0, 1])).tolist()
        [2.0, -4.0]
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def training_facts(logits: Tensor, labels: Tensor, sample_loss: Tensor) -> dict[str, Tensor]:
    """The entry of each sample in the ledger of a run that classifies, see `Facts`.

    Args:
        logits: [B, C].
        labels: [B] int64, below 0 where there is none.
        sample_loss: [B].

    Returns:
        ``loss`` [B] float32, ``margin`` [B] float32 (NaN without a label, or of one class),
        ``prediction`` [B] int32.
    """
    return _compared(logits, labels, sample_loss)[0]


def scored_facts(logits: Tensor, labels: Tensor, sample_loss: Tensor) -> dict[str, Tensor]:
    """The same where no selector scores: what the classifier itself says of the given labels.

    Suspects are then the labels with the smallest soft margin, as `label_log_odds` has it.

    Returns:
        ``p_clean`` and ``log_odds`` [B] float32 beside those of `training_facts`.
    """
    found, own, rest = _compared(logits, labels, sample_loss)
    odds = own - rest.logsumexp(dim=1)
    return {**found, "p_clean": odds.sigmoid(), "log_odds": odds}


def _compared(
    logits: Tensor, labels: Tensor, sample_loss: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """See `training_facts`; with them each own logit [B], and all others [B, C] with -inf for it.

    Each logit is looked at as seldom as can be: this is most of the ledger's work.
    """
    scores, at = logits.float(), labels.clamp(min=0)
    own = scores.gather(1, at[:, None]).squeeze(1)
    rest = scores.scatter(1, at[:, None], -torch.inf)
    largest, rival = rest.max(dim=1)
    margin = own - largest
    columns = {
        "loss": sample_loss.float(),
        "margin": torch.where((labels >= 0) & largest.isfinite(), margin, torch.nan),
        "prediction": torch.where(margin >= 0, at, rival).to(torch.int32),
    }
    return columns, own, rest


def entry_margin(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The least margin among the entries of each multi-label sample [B], and its class [B] int64.

    The margin of an entry is the logit of its class where that is present, else the negative one:
    all entries are right where the least margin is positive.

    Args:
        logits: [B, C].
        labels: [B, C], above 0 where a class is present.

    Example:
        >>> margin, entry = entry_margin(torch.tensor([[2.0, 1.0]]), torch.tensor([[1, 0]]))
        >>> margin.tolist(), entry.tolist()
        ([-1.0], [1])
    """
    found = torch.where(labels > 0, logits, -logits).min(dim=1)
    return found.values, found.indices


def entry_facts(logits: Tensor, labels: Tensor, sample_loss: Tensor) -> dict[str, Tensor]:
    """The entry of each multi-label sample in the ledger of a run, see `Facts`.

    Args:
        logits: [B, C].
        labels: [B, C], above 0 where a class is present.
        sample_loss: [B].

    Returns:
        ``loss`` [B] float32, ``margin`` [B] float32, see `entry_margin`. A set of classes is no
        number, so there is no ``prediction``.
    """
    margin, _ = entry_margin(logits.float(), labels)
    return {"loss": sample_loss.float(), "margin": margin}


def scored_entry_facts(logits: Tensor, labels: Tensor, sample_loss: Tensor) -> dict[str, Tensor]:
    """The same where no selector scores: a sample counts by its entry of the smallest margin.

    Returns:
        ``p_clean`` and ``log_odds`` [B] float32 and ``suspected`` [B] int64, the class of that
        entry, beside those of `entry_facts`.
    """
    margin, suspected = entry_margin(logits.float(), labels)
    scores = {"p_clean": margin.sigmoid(), "log_odds": margin, "suspected": suspected}
    return {"loss": sample_loss.float(), "margin": margin, **scores}


@dataclass
class Dynamics:
    """Running counts of every sample of a training split.

    Attributes:
        visits: times each sample was seen [N] int64.
        margins: sum of its logit margins [N] float64.
        correct: whether it was right at its last visit [N] bool.
        forgotten: times it was right and then wrong [N] int64.
        learnt: visit of its first right answer, from 1, 0 while there is none [N] int64.
        hits: times it was right [N] int64.
    """

    visits: Tensor
    margins: Tensor
    correct: Tensor
    forgotten: Tensor
    learnt: Tensor
    hits: Tensor

    @classmethod
    def begin(cls, samples: int) -> Dynamics:
        """Nothing seen yet of N samples."""
        whole = [torch.zeros(samples, dtype=torch.int64) for _ in range(4)]
        return cls(
            visits=whole[0],
            margins=torch.zeros(samples, dtype=torch.float64),
            correct=torch.zeros(samples, dtype=torch.bool),
            forgotten=whole[1],
            learnt=whole[2],
            hits=whole[3],
        )

    @torch.no_grad()
    def update(self, index: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            index: positions [B] int64, each at most once.
            logits: [B, C].
            labels: [B] int64, observed.
        """
        margin = logit_margin(logits, labels).double()
        right = margin > 0
        self.visits[index] += 1
        self.margins[index] += margin
        self.forgotten[index] += self.correct[index] & ~right
        first = right & (self.learnt[index] == 0)
        self.learnt[index] = torch.where(first, self.visits[index], self.learnt[index])
        self.hits[index] += right
        self.correct[index] = right

    @property
    def area_under_margin(self) -> Tensor:
        """Mean logit margin over all visits [N] float64; NaN for samples never seen.

        Example:
            >>> seen = Dynamics.begin(2)
            >>> for logits in ([[2.0, 0.0]], [[0.0, 1.0]]):
            ...     seen.update(torch.tensor([0]), torch.tensor(logits), torch.tensor([0]))
            >>> seen.area_under_margin.tolist(), seen.forgetting.tolist()
            ([0.5, nan], [1.0, nan])
        """
        return self.margins / torch.where(self.visits > 0, self.visits, torch.nan)

    @property
    def forgetting(self) -> Tensor:
        """Times each sample was forgotten [N] float64 (arXiv 1812.05159, definition 1).

        One that was never right counts as infinitely often, as the paper orders them; NaN for those
        never seen.
        """
        count = self.forgotten.double()
        count = torch.where(self.hits == 0, torch.inf, count)
        return torch.where(self.visits > 0, count, torch.nan)

    @property
    def hit_share(self) -> Tensor:
        """Share of the visits at which each sample was right [N] float64: wrong labels stay low.

        Labels that are learnt late or never are often wrong (Maini et al., "Characterizing
        Datapoints via Second-Split Forgetting", NeurIPS 2022, arXiv 2210.15031).
        """
        return self.hits / torch.where(self.visits > 0, self.visits, torch.nan)


def area_under_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Area under the margin [N] of a history of logits.

    Args:
        logits: [E, N, C], of E epochs.
        labels: [N] int64.

    Example:
        >>> history = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])
        >>> area_under_margin(history, torch.tensor([0])).tolist()
        [0.5]
    """
    epochs, samples, classes = logits.shape
    flat = logit_margin(logits.reshape(-1, classes), labels.repeat(epochs))
    return flat.reshape(epochs, samples).mean(dim=0)


def mislabelled_by_threshold_samples(
    area: Tensor, threshold_samples: Tensor, percentile: float = 99.0
) -> Tensor:
    """Samples whose area lies below that of samples known to be mislabelled [N] bool.

    arXiv 2001.10528, section 3.2: some samples are given a class of their own, which no other has;
    what has a smaller area than their 99th percentile is taken for mislabelled.

    Args:
        area: [N] of all samples.
        threshold_samples: [N] bool, those with the class of their own.
        percentile: of their areas.

    Example:
        >>> area = torch.tensor([-1.0, 3.0, 0.0, 0.5])
        >>> mislabelled_by_threshold_samples(area, torch.tensor([0, 0, 1, 1]).bool()).tolist()
        [True, False, False, False]
    """
    bound = torch.quantile(area[threshold_samples].double(), percentile / 100)
    return (area <= bound) & ~threshold_samples
