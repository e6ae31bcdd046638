"""Quality of a selection: agreement of what a selector trusts with what is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyml.targets.entries import entry_classes

#: Figures of a search for wrong labels.
FINDING = ("average_precision", "fnr_at_budget", "precision_at_100")


class _Ranking(NamedTuple):
    """Samples by rising trust, equals together: all that the figures of a search need.

    Attributes:
        size: samples of each distinct value [G] int64.
        wrong: those of them with a wrong label [G] int64.
        unscored: samples whose trust is NaN, and those of them with a wrong label.
        ends_at_inf: whether the last value is infinite.
    """

    size: NDArray[np.int64]
    wrong: NDArray[np.int64]
    unscored: tuple[int, int]
    ends_at_inf: bool

    @classmethod
    def of(cls, trust: Tensor, wrong: Tensor) -> _Ranking:
        """One sort of trust [N] float with labels that are wrong or not [N] bool."""
        # Not every type of number that tensors have is one of NumPy's.
        values = (trust if trust.dtype == torch.float64 else trust.float()).cpu().numpy()
        order = np.argsort(values)  # NaN comes last
        values, hits = values[order], wrong.to(torch.bool).cpu().numpy()[order]
        scored = len(values) - int(np.isnan(values).sum())
        values = values[:scored]
        starts = np.flatnonzero(np.append(scored > 0, values[1:] != values[:-1])[:scored])
        ends = np.append(starts[1:], scored)[: len(starts)]
        before = np.append(0, hits.cumsum(dtype=np.int64))
        return cls(
            size=ends - starts,
            wrong=before[ends] - before[starts],
            unscored=(len(hits) - scored, int(before[-1] - before[scored])),
            ends_at_inf=bool(np.isposinf(values[-1:]).any()),
        )

    def auroc(self) -> float:
        """See `auroc`; right labels are the positives."""
        right = self.size - self.wrong
        pairs = int(right.sum()) * int(self.wrong.sum())
        below = self.wrong.cumsum() - self.wrong
        return float((right * (below + self.wrong / 2)).sum()) / pairs if pairs else float("nan")

    def average_precision(self) -> float:
        """See `average_precision`."""
        total = int(self.wrong.sum())
        if not total:
            return float("nan")
        precision = self.wrong.cumsum() / self.size.cumsum()
        return float((precision * self.wrong).sum()) / total

    def precision_at_k(self, k: int) -> float:
        """See `precision_at_k`."""
        size, wrong = self.size, self.wrong
        if self.unscored[0] and self.ends_at_inf:
            size, wrong = size.copy(), wrong.copy()
            size[-1] += self.unscored[0]
            wrong[-1] += self.unscored[1]
        elif self.unscored[0]:
            size, wrong = np.append(size, self.unscored[0]), np.append(wrong, self.unscored[1])
        reached = size.cumsum()
        k = min(k, int(reached[-1])) if len(reached) else 0
        if k < 1:
            return float("nan")
        border = int(np.searchsorted(reached, k))
        room = k - int(reached[border] - size[border])
        return (int(wrong[:border].sum()) + room * float(wrong[border] / size[border])) / k

    def finding(self) -> dict[str, float]:
        """See `finding`."""
        if not len(self.size):
            return dict.fromkeys(FINDING, float("nan"))
        budget = int(self.wrong.sum()) + self.unscored[1]
        return {
            "average_precision": self.average_precision(),
            "fnr_at_budget": 1 - self.precision_at_k(budget),
            "precision_at_100": self.precision_at_k(100),
        }


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive scores above a negative, ties counting one half.

    The Mann-Whitney statistic from mid-ranks. NaN scores are left out.

    Args:
        scores: [N] float.
        positive: [N] bool.

    Returns:
        In [0, 1]; NaN without a scored positive or a scored negative.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> import torch
        >>> auroc(torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([True, True, False, False]))
        0.875
    """
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(
            f"scores {tuple(scores.shape)} and positive {tuple(positive.shape)} must both be [N]"
        )
    return _Ranking.of(scores, ~positive).auroc()


def fnr_at_budget(trust: Tensor, wrong: Tensor) -> float:
    """Share of the wrong labels missed when as many rows are looked at as labels are wrong.

    Rows are looked at from the least trusted on; of equals each is as likely to be looked at. What
    was not scored (NaN) comes last. One less the precision at that many rows.

    Args:
        trust: [N] float, larger for labels believed right.
        wrong: [N] bool.

    Returns:
        In [0, 1]; NaN without a wrong label.

    Example:
        >>> import torch
        >>> wrong = torch.tensor([True, True, False, False])
        >>> fnr_at_budget(torch.tensor([0.1, 0.9, 0.2, 0.8]), wrong)
        0.5
    """
    return 1 - precision_at_k(trust, wrong, int(wrong.sum()))


def precision_at_k(trust: Tensor, wrong: Tensor, k: int) -> float:
    """Share of wrong labels among the k least trusted; equals at the border count by their share.

    Args:
        trust, wrong: as for `fnr_at_budget`.
        k: rows; NaN is returned for 0.

    Example:
        >>> import torch
        >>> trust, wrong = torch.tensor([0.1, 0.5, 0.5]), torch.tensor([True, True, False])
        >>> precision_at_k(trust, wrong, 2)
        0.75
    """
    return _Ranking.of(trust, wrong).precision_at_k(k)


def average_precision(trust: Tensor, wrong: Tensor) -> float:
    """Area under precision over recall of wrong labels, the least trusted first.

    The sum over thresholds of precision times what recall gains, as scikit-learn's
    ``average_precision_score``; equals are one threshold. NaN scores are left out.

    Args:
        trust, wrong: as for `fnr_at_budget`.

    Returns:
        In [0, 1]; NaN without a scored wrong label.

    Example:
        >>> import torch
        >>> trust = torch.tensor([0.1, 0.2, 0.3])
        >>> round(average_precision(trust, torch.tensor([True, False, True])), 4)
        0.8333
    """
    return _Ranking.of(trust, wrong).average_precision()


def class_selection(
    keep: Tensor, wrong: Tensor, labels: Tensor, num_classes: int
) -> dict[str, Tensor]:
    """Shares of a selection in each class, by observed label.

    Args:
        keep: [N] bool, True for the samples kept.
        wrong: [N] bool, True where the label is wrong.
        labels: [N] int64 in ``0 .. num_classes - 1``, observed.
        num_classes: C.

    Returns:
        ``samples``: number [C] int64; ``kept``: share of them kept; ``precision``: share of the
        kept that are clean; ``recall``: share of the clean that are kept. Shares are [C] float64,
        NaN where undefined.

    Example:
        >>> import torch
        >>> keep, wrong = torch.tensor([True, True, False]), torch.tensor([False, True, False])
        >>> found = class_selection(keep, wrong, torch.tensor([0, 0, 1]), num_classes=2)
        >>> found["precision"].tolist(), found["recall"].tolist()
        ([0.5, nan], [1.0, 0.0])
    """
    keep, clean = keep.to(torch.int64), 1 - wrong.to(torch.int64)
    # Cells of one table of classes: left out or kept, wrong or clean.
    cells = torch.bincount(labels * 4 + keep * 2 + clean, minlength=4 * num_classes)
    table = cells.view(num_classes, 2, 2)
    samples, kept, right = table.sum(dim=(1, 2)), table[:, 1].sum(dim=1), table[:, 1, 1]
    return {
        "samples": samples,
        "kept": kept.double() / samples,
        "precision": right.double() / kept,
        "recall": right.double() / table[:, :, 1].sum(dim=1),
    }


def selection_by_class(keep: Tensor, p_clean: Tensor, wrong: Tensor) -> dict[str, list[float]]:
    """`selection_metrics` of the entries of each class.

    Args:
        keep, p_clean, wrong: as for `selection_metrics`, but [N, C].

    Returns:
        By name of the metric, C values.

    Example:
        >>> import torch
        >>> keep = torch.tensor([[True, False], [True, True]])
        >>> wrong = torch.tensor([[False, True], [True, False]])
        >>> selection_by_class(keep, torch.full((2, 2), torch.nan), wrong)["precision"]
        [0.5, 1.0]
    """
    each = [
        selection_metrics(*columns)
        for columns in zip(keep.unbind(1), p_clean.unbind(1), wrong.unbind(1), strict=True)
    ]
    return {name: [scores[name] for scores in each] for name in each[0]}


def entry_selection_metrics(keep: Tensor, p_clean: Tensor, wrong: Tensor) -> dict[str, float]:
    """Quality of a selection of the entries of multi-label samples.

    Args:
        keep, p_clean, wrong: as for `selection_metrics`, but [N, C].

    Returns:
        `selection_metrics` over all entries, and ``precision_macro``, ``recall_macro`` and
        ``auroc_macro``: means over the classes where they are defined.

    Example:
        >>> import torch
        >>> keep = torch.tensor([[True, False], [True, True]])
        >>> wrong = torch.tensor([[False, True], [True, False]])
        >>> scores = entry_selection_metrics(keep, torch.full((2, 2), torch.nan), wrong)
        >>> round(scores["precision"], 3), scores["precision_macro"]
        (0.667, 0.75)
    """
    scores = selection_metrics(keep.flatten(), p_clean.flatten(), wrong.flatten())
    by_class = selection_by_class(keep, p_clean, wrong)
    for name in ("precision", "recall", "auroc"):
        scores[f"{name}_macro"] = float(torch.tensor(by_class[name]).nanmean())
    return scores


def selection_metrics(keep: Tensor, p_clean: Tensor, wrong: Tensor) -> dict[str, float]:
    """Quality of a selection of samples; samples with a right label are the positives.

    Args:
        keep: [N] bool, True for the samples kept.
        p_clean: [N] float, larger for samples believed clean; NaN where nothing was computed.
        wrong: [N] bool, True where the label is wrong.

    Returns:
        ``kept``: share of samples kept; ``precision``: share of the kept that are clean;
        ``recall``: share of the clean that are kept; ``excluded_precision``: share of the others
        that are wrong; ``excluded_recall``: share of the wrong that are among them; ``auroc`` of
        `p_clean`; ``average_precision``, ``fnr_at_budget`` and ``precision_at_100`` of finding
        wrong labels by it. NaN where undefined.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> import torch
        >>> keep, wrong = torch.tensor([True, True, False]), torch.tensor([False, False, True])
        >>> scores = selection_metrics(keep, torch.tensor([0.9, 0.6, 0.3]), wrong)
        >>> scores["precision"], scores["recall"], scores["auroc"]
        (1.0, 1.0, 1.0)
    """
    if not keep.shape == p_clean.shape == wrong.shape or keep.ndim != 1:
        raise ValueError(
            f"keep {tuple(keep.shape)}, p_clean {tuple(p_clean.shape)} and wrong "
            f"{tuple(wrong.shape)} must all be [N]"
        )
    keep, clean = keep.to(torch.bool), ~wrong.to(torch.bool)
    kept_clean = int((keep & clean).sum())
    ranking = _Ranking.of(p_clean, ~clean)
    return {
        "kept": _share(int(keep.sum()), len(keep)),
        "precision": _share(kept_clean, int(keep.sum())),
        "recall": _share(kept_clean, int(clean.sum())),
        **_exclusion(~keep, ~clean),
        "auroc": ranking.auroc(),
        **ranking.finding(),
    }


def finding(trust: Tensor, wrong: Tensor) -> dict[str, float]:
    """`FINDING` of a search for wrong labels [N] by trust [N]; NaN where nothing was scored."""
    return _Ranking.of(trust, wrong).finding()


def selection_scores(keep: Tensor, p_clean: Tensor, wrong: Tensor) -> dict[str, float]:
    """Quality of a selection of samples or, where they are judged, of entries.

    Args:
        keep, p_clean, wrong: [N] as for `selection_metrics`, or [N, C] as for
            `entry_selection_metrics`.
    """
    score = entry_selection_metrics if entry_classes(keep) else selection_metrics
    return score(keep, p_clean, wrong)


def network_exclusions(keeps: Mapping[str, Tensor], wrong: Tensor) -> dict[str, float]:
    """Precision and recall of what several networks leave out as a guess at wrong samples.

    Args:
        keeps: what each network keeps, [N] bool by its name.
        wrong: [N] bool.

    Returns:
        ``excluded_precision`` and ``excluded_recall``, see `selection_metrics`, each followed by
        ``_NAME`` for every network, ``_intersection`` (left out by all of them) and ``_union`` (by
        any).

    Example:
        >>> import torch
        >>> keeps = {"a": torch.tensor([False, True]), "b": torch.tensor([False, False])}
        >>> found = network_exclusions(keeps, torch.tensor([True, False]))
        >>> found["excluded_precision_intersection"], found["excluded_precision_union"]
        (1.0, 0.5)
    """
    out = {name: ~keep.to(torch.bool) for name, keep in keeps.items()}
    together = torch.stack(list(out.values()))
    out |= {"intersection": together.all(dim=0), "union": together.any(dim=0)}
    return {
        f"{metric}_{name}": value
        for name, excluded in out.items()
        for metric, value in _exclusion(excluded, wrong.to(torch.bool)).items()
    }


def _exclusion(excluded: Tensor, wrong: Tensor) -> dict[str, float]:
    """Precision and recall of what is left out, [N] bool, as a guess at what is wrong, [N] bool."""
    hits = int((excluded & wrong).sum())
    return {
        "excluded_precision": _share(hits, int(excluded.sum())),
        "excluded_recall": _share(hits, int(wrong.sum())),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def suspicion_precision(keep: Tensor, suspected: Tensor, wrong: Tensor) -> float:
    """Share of the samples left out whose suspected class is indeed marked wrongly.

    Args:
        keep: [N] bool, True for the samples kept.
        suspected: [N] int64, a class.
        wrong: [N, C] bool, True where an entry is wrong.

    Returns:
        In [0, 1]; NaN if nothing is left out.

    Example:
        >>> import torch
        >>> wrong = torch.tensor([[True, False], [False, False]])
        >>> suspicion_precision(torch.tensor([False, False]), torch.tensor([0, 1]), wrong)
        0.5
    """
    hit = wrong.to(torch.bool).gather(1, suspected[:, None])[:, 0]
    return float(hit[~keep.to(torch.bool)].double().mean())
