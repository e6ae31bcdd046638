"""Classification metrics: exact, streamed, with the rule for ties stated.

The *rank* of a sample's class is the number of classes preferred to it: those with a larger score,
and among equal scores those with a smaller number. With C classes:

* ``accuracy``: rank 0.
* ``accuracy_topK``: rank below K; left out unless C > K.
* ``accuracy_per_class``: mean over the classes that occur of the accuracy on their samples
  (balanced accuracy).
* ``accuracy/CLASS``: of the samples of each class that occurs, if asked for.
* ``auc``: area under the ROC curve of two classes, ties count one half, if asked for.
* ``nll``: mean negative log-probability of the class under a softmax of the scores, in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.checks import Ge, Hint
from noisyml.distributed import collective_device, gather
from noisyml.errors import UserError
from noisyml.metrics.base import Evaluator, SplitRole

DEFAULT_TOP_K = (5,)
TopK = Annotated[int, Ge(2), Hint("Top 1 is accuracy.")]

#: Rank of a label that is no class.
_NO_CLASS = -1


def class_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of classes preferred to each sample's own.

    Args:
        logits: [B, C] float scores without NaN.
        labels: [B] int64 in ``0 .. C - 1``.

    Returns:
        [B] int64 in ``0 .. C - 1``; equal scores in the order of class numbers.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.1, 0.7, 0.2], [0.4, 0.4, 0.2]])
        >>> class_ranks(scores, torch.tensor([1, 1])).tolist()
        [0, 1]
    """
    own = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(dim=1)


def classification_metrics(
    ranks: Tensor,
    nll: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    top_k: Sequence[int] = DEFAULT_TOP_K,
    class_names: Sequence[str] | None = None,
) -> dict[str, float]:
    """The metrics of a split, see the head of this module.

    Args:
        ranks: [N] int64, from `class_ranks`; N > 0.
        nll: [N] float, negative log-probabilities of the labels.
        labels: [N] int64 in ``0 .. num_classes - 1``.
        num_classes: C.
        top_k: every K < C adds ``accuracy_topK``.
        class_names: add ``accuracy/NAME`` for each of these C names; None: leave them out.

    Example:
        >>> import torch
        >>> found = classification_metrics(
        ...     ranks=torch.tensor([0, 2, 0]),
        ...     nll=torch.tensor([0.1, 2.0, 0.3]),
        ...     labels=torch.tensor([0, 0, 1]),
        ...     num_classes=3,
        ...     top_k=[2],
        ... )
        >>> {name: round(value, 3) for name, value in found.items()}
        {'accuracy': 0.667, 'accuracy_top2': 0.667, 'accuracy_per_class': 0.75, 'nll': 0.8}
    """
    correct = (ranks == 0).double()
    sizes = torch.bincount(labels, minlength=num_classes)
    right = torch.bincount(labels, weights=correct, minlength=num_classes)
    occurs = sizes > 0
    metrics = {
        "accuracy": correct.mean(),
        **{f"accuracy_top{k}": (ranks < k).double().mean() for k in top_k if k < num_classes},
        "accuracy_per_class": (right[occurs] / sizes[occurs]).mean(),
        "nll": nll.double().mean(),
    }
    for label, name in enumerate(class_names or ()):
        if occurs[label]:
            metrics[f"accuracy/{name}"] = right[label] / sizes[label]
    return {name: float(value) for name, value in metrics.items()}


def binary_auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of two classes; ties count one half, NaN if one is absent.

    Args:
        scores: [N] float, larger for class 1.
        labels: [N] int64, 0 or 1.

    Example:
        >>> binary_auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))
        0.875
    """
    from torchmetrics.functional.classification import binary_auroc

    if not 0 < int(labels.sum()) < len(labels):
        return float("nan")
    # Ranks keep the order of all scores; the metric takes others than shares for logits.
    _, order = torch.unique(scores, return_inverse=True)
    shares = order.double() / max(int(order.max()), 1)
    return float(binary_auroc(shares, labels, thresholds=None))


@dataclass
class _Shard:
    """Batches that this rank has taken in, one entry for each."""

    index: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    ranks: list[Tensor] = field(default_factory=list)
    nll: list[Tensor] = field(default_factory=list)
    margin: list[Tensor] = field(default_factory=list)


class ClassificationEvaluator(Evaluator):
    """Accuracies and log-likelihood of class scores over the whole split, exact under DDP.

    Keeps four numbers per sample, however many classes there are.

    Args:
        top_k: every K adds ``accuracy_topK`` where there are more than K classes.
        per_class: add ``accuracy/CLASS`` for each class that occurs.
        auc: add ``auc``, the area under the ROC curve, where there are two classes.
        headline: the metric that checkpoints and progress go by unless told otherwise.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"nll"})
    metric_labels: ClassVar[Mapping[str, str]] = {
        "accuracy": "Accuracy",
        "accuracy_top5": "Top-5 acc.",
        "accuracy_topK": "Top-K acc.",
    }

    def __init__(
        self,
        top_k: Sequence[TopK] = DEFAULT_TOP_K,
        per_class: bool = False,
        auc: bool = False,
        headline: str = "accuracy",
    ) -> None:
        self.auc = auc
        self.top_k = list(top_k)
        self.per_class = per_class
        self.headline = headline
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._shard = _Shard()
        self._num_classes = 0

    @torch.no_grad()
    def update(
        self,
        outputs: Mapping[str, Tensor],
        targets: Tensor,
        index: Tensor,
        role: SplitRole = "pool",
    ) -> None:
        """Take in one batch: class scores ``logits`` [b, C], `targets` [b], `index` [b].

        Raises:
            UserError: no logits, labels that are not one integer per sample, or a split of queries
                and a gallery.
        """
        logits, labels = self.needed(outputs, "logits"), targets
        if labels.ndim != 1 or labels.is_floating_point():
            raise UserError(
                f"The classification evaluator needs one integer label per sample, but got labels "
                f"of shape {list(labels.shape)} and type {labels.dtype}; choose another "
                f"evaluator=…."
            )
        if role != "pool":
            raise UserError(
                "The classification evaluator needs a test split, but the data set has queries and "
                "a gallery; choose evaluator=retrieval."
            )
        if not len(index) == len(labels) == len(logits):
            raise ValueError("index, labels and logits must have the same length")
        if self._num_classes not in (0, logits.shape[1]):
            raise ValueError(f"{logits.shape[1]} classes after batches of {self._num_classes}")
        self._num_classes = logits.shape[1]
        labels = labels.to(torch.int64)
        # What is wrong with a sample is said by `compute`, which all ranks reach together.
        known = (labels >= 0) & (labels < self._num_classes)
        own = torch.where(known, labels, 0)
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        shard = self._shard
        shard.index.append(index.to(torch.int64))
        shard.labels.append(labels)
        shard.ranks.append(torch.where(known, class_ranks(scores, own), _NO_CLASS))
        shard.nll.append(F.cross_entropy(scores, own, reduction="none").double())
        if self.auc and self._num_classes == 2:
            shard.margin.append((scores[:, 1] - scores[:, 0]).double())

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """The metrics over all batches of all ranks, each sample counted once.

        Raises:
            UserError: nothing taken in, scores that are not finite, or labels that are no class.
        """
        shard = self._shard
        device = shard.index[0].device if shard.index else collective_device()
        classes = gather(torch.tensor([self._num_classes], device=device))
        num_classes = int(classes.max())
        if ((classes != 0) & (classes != num_classes)).any():
            raise ValueError(f"ranks differ in the number of classes: {classes.tolist()}")
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        index, labels, ranks = (
            gather(torch.cat([nothing, *part])) for part in (shard.index, shard.labels, shard.ranks)
        )
        nll = gather(torch.cat([nothing.double(), *shard.nll]))
        margin = gather(torch.cat([nothing.double(), *shard.margin]))
        if not len(index):
            raise UserError(
                "The classification evaluator has seen no sample; check the splits that the data "
                "set names."
            )
        index, order = index.sort(stable=True)
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        labels, ranks, nll = (x[order[first]] for x in (labels, ranks, nll))
        if (ranks == _NO_CLASS).any():
            raise UserError(
                f"A split has the label {int(labels[ranks == _NO_CLASS][0])}, but the classifier "
                f"knows the classes 0 to {num_classes - 1} only; evaluate on the classes of "
                f"training."
            )
        broken = int((~nll.isfinite()).sum())
        if broken:
            raise UserError(
                f"The class scores of {broken} of {len(nll)} samples are NaN or infinite; lower "
                f"the learning rate (optimizer.lr) or check the inputs."
            )
        metrics = classification_metrics(
            ranks,
            nll,
            labels,
            num_classes=num_classes,
            top_k=self.top_k,
            class_names=self.class_names if self.per_class else None,
        )
        if self.auc and num_classes == 2:
            metrics["auc"] = binary_auc(margin[order[first]], labels)
        return metrics
