"""Multi-label metrics: exact, of whole splits.

Per class, over the samples:

* ``map_macro``: mean over classes of the average precision (area under the precision-recall steps,
  one step per distinct score); a class without positives counts as 0. ``map_macro_present`` leaves
  such classes out, ``map_weighted`` weighs classes by their positives.
* ``map_micro``: average precision of all N * C entries as one list.
* ``f1_macro``, ``f1_weighted`` (by the positives of a class), ``f1_micro``: F1 of the classes whose
  probability lies above a threshold; a class that neither occurs nor is named counts as 0.
* ``precision_micro``, ``recall_micro``: share of the named entries that are true, and of the true
  ones that are named; 0 where there are none.

Per sample, over the classes; samples without a label are left out (all but the last two):

* ``lrap``: label-ranking average precision, which is also the mean over samples of the average
  precision of each sample's list of classes ("samples" average of mAP).
* ``ranking_loss``: share of (true, false) pairs in which the true class does not score higher; 0
  for a sample that has every class.
* ``coverage``: mean number of classes that score at least as high as the true class scoring least.
* ``one_error``: share of samples whose first class is false.
* ``f1_samples``: mean F1 of the classes named for a sample; 0 where none is and none is true.
* ``hamming``: share of wrong entries.

Average precision ranks, F1 judges a threshold: labels missing in training pull all probabilities
down and superfluous ones up, so under noise rank methods by mAP (Burgert et al., TGRS 2022).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisyml.checks import Share
from noisyml.distributed import collective_device, gather
from noisyml.errors import UserError
from noisyml.metrics.base import Evaluator, SplitRole
from noisyml.targets import TargetKind

#: Comparisons of pairs of classes held at a time.
_BLOCK = 1 << 22


def average_precisions(scores: NDArray, labels: NDArray) -> NDArray[np.float64]:
    """Average precision of each class, [C]; 0 for a class without positives.

    Args:
        scores: [N, C] float, any increasing function of the probability.
        labels: [N, C], 0 or 1.

    Example:
        >>> import numpy as np
        >>> scores = np.array([[0.9, 0.1], [0.8, 0.3], [0.1, 0.2]])
        >>> average_precisions(scores, np.array([[1, 0], [0, 1], [1, 0]])).round(3).tolist()
        [0.833, 1.0]
    """
    from sklearn.metrics import average_precision_score

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No positive class found")
        each = [
            average_precision_score(truth, score)
            for truth, score in zip(labels.T, scores.T, strict=True)
        ]
    return np.asarray(each, dtype=np.float64)


def f1_scores(
    predicted: NDArray[np.bool_], labels: NDArray, axis: int | None = 0
) -> NDArray[np.float64]:
    """F1 of each class [C]; 0 where nothing is true and nothing predicted.

    Args:
        predicted: [N, C] bool.
        labels: [N, C], 0 or 1.
        axis: 0; 1: of each sample [N]; None: of all entries [].

    Example:
        >>> import numpy as np
        >>> predicted = np.array([[True, False], [True, False]])
        >>> f1_scores(predicted, np.array([[1, 0], [0, 0]])).round(3).tolist()
        [0.667, 0.0]
    """
    truth = labels > 0
    both = (predicted & truth).sum(axis=axis, dtype=np.float64)
    sizes = predicted.sum(axis=axis) + truth.sum(axis=axis)
    return np.asarray(2 * both / np.maximum(sizes, 1))


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part.sum() / whole.sum().clamp(min=1))


def ranking_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """``lrap ranking_loss coverage one_error`` of samples with a label; NaN without any.

    Args:
        scores: [N, C] float, any increasing function of the probability. Of classes with the same
            highest score the first counts.
        labels: [N, C], 0 or 1.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.7, 0.3]])
        >>> ranking_metrics(scores, torch.tensor([[1, 1, 0], [0, 1, 0]]))["ranking_loss"]
        0.25
    """
    truth = labels > 0
    labelled = truth.any(dim=1)
    scores, truth = scores[labelled], truth[labelled]
    if not len(scores):
        return dict.fromkeys(("lrap", "ranking_loss", "coverage", "one_error"), float("nan"))
    sums = torch.zeros(3, dtype=torch.float64, device=scores.device)
    block = max(1, _BLOCK // scores.shape[1] ** 2)
    for s, y in zip(scores.split(block), truth.split(block), strict=True):
        # [n, i, j]: class j scores at least as high as class i.
        above = s[:, None, :] >= s[:, :, None]
        at_least = above.sum(dim=2).double()
        true_at_least = (above & y[:, None, :]).sum(dim=2).double()
        own = y.sum(dim=1).double()
        false_above = torch.where(y, at_least - true_at_least, 0).sum(dim=1)
        pairs = own * (y.shape[1] - own)
        sums[0] += (torch.where(y, true_at_least / at_least, 0).sum(dim=1) / own).sum()
        sums[1] += (false_above / pairs.clamp(min=1)).sum()
        sums[2] += torch.where(y, at_least, 0).amax(dim=1).sum()
    lrap, ranking_loss, coverage = (sums / len(scores)).tolist()
    first = truth.gather(1, scores.argmax(dim=1, keepdim=True))
    return {
        "lrap": lrap,
        "ranking_loss": ranking_loss,
        "coverage": coverage,
        "one_error": float((~first).double().mean()),
    }


def multi_label_metrics(
    logits: Tensor,
    labels: Tensor,
    *,
    threshold: float = 0.5,
    strict: bool = True,
    class_names: Sequence[str] | None = None,
) -> dict[str, float]:
    """The metrics of a split, see the head of this module.

    Args:
        logits: [N, C] float, finite; N > 0.
        labels: [N, C], 0 or 1.
        threshold: probability above which a class is predicted.
        strict: False: at the threshold too.
        class_names: add ``ap/NAME`` and ``f1/NAME`` for each of these C names; None: leave them
            out.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, -1.0], [-0.5, 1.0], [0.3, -2.0]])
        >>> metrics = multi_label_metrics(logits, torch.tensor([[1, 0], [0, 1], [0, 0]]))
        >>> round(metrics["map_macro"], 3), round(metrics["f1_micro"], 3), metrics["one_error"]
        (1.0, 0.8, 0.0)
    """
    scores, truth = logits.double(), labels > 0
    probabilities = scores.sigmoid()
    predicted = probabilities > threshold if strict else probabilities >= threshold
    score_array, truth_array = scores.cpu().numpy(), truth.cpu().numpy()
    precisions = average_precisions(score_array, truth_array)
    positives = truth_array.sum(axis=0)
    micro = average_precisions(score_array.reshape(-1, 1), truth_array.reshape(-1, 1))
    named = predicted.cpu().numpy()
    f1 = f1_scores(named, truth_array)
    weights = positives / max(int(positives.sum()), 1)
    present = positives > 0
    nothing = float("nan")
    metrics = {
        "map_macro": float(precisions.mean()),
        "map_macro_present": float(precisions[present].mean()) if present.any() else nothing,
        "map_weighted": float(precisions @ weights),
        "map_micro": float(micro[0]),
        "f1_macro": float(f1.mean()),
        "f1_weighted": float(f1 @ weights),
        "f1_micro": float(f1_scores(named, truth_array, axis=None)),
        "f1_samples": float(f1_scores(named, truth_array, axis=1).mean()),
        "precision_micro": _share(predicted & truth, predicted),
        "recall_micro": _share(predicted & truth, truth),
        **ranking_metrics(scores, truth),
        "hamming": float((predicted != truth).double().mean()),
    }
    if class_names is not None:
        for metric, values in (("ap", precisions), ("f1", f1)):
            by_class = zip(class_names, values.tolist(), strict=True)
            metrics |= {f"{metric}/{name}": value for name, value in by_class}
    return metrics


class MultiLabelEvaluator(Evaluator):
    """Multi-label metrics of class scores over the whole split, exact under DDP.

    Keeps N * C scores and labels.

    Args:
        threshold: F1, precision, recall and Hamming loss take a class as present above this
            probability, in [0, 1].
        strict: False: at this probability too.
        per_class: add ``ap/CLASS`` and ``f1/CLASS``, average precision and F1 of each class.
        headline: the metric that checkpoints and progress go by unless told otherwise.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"multi"})

    lower_is_better: ClassVar[frozenset[str]] = frozenset(
        {"ranking_loss", "coverage", "one_error", "hamming"}
    )
    metric_labels: ClassVar[Mapping[str, str]] = {
        "map_macro": "mAP macro",
        "map_micro": "mAP micro",
        "f1_macro": "F1 macro",
        "f1_micro": "F1 micro",
        "f1_weighted": "F1 weighted",
        "f1_samples": "F1 samples",
        "lrap": "LRAP",
    }

    def __init__(
        self,
        threshold: Share = 0.5,
        strict: bool = True,
        per_class: bool = False,
        headline: str = "map_macro",
    ) -> None:
        self.threshold = threshold
        self.strict = strict
        self.per_class = per_class
        self.headline = headline
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._index: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    @torch.no_grad()
    def update(
        self,
        outputs: Mapping[str, Tensor],
        targets: Tensor,
        index: Tensor,
        role: SplitRole = "pool",
    ) -> None:
        """Take in one batch: class scores ``logits`` [b, C], `targets` [b, C], `index` [b].

        Raises:
            UserError: no logits, or one label per sample.
        """
        logits, labels = self.needed(outputs, "logits"), targets
        if labels.ndim != 2:
            raise UserError(
                "The multi-label evaluator needs several labels per sample, but the data set gives "
                "one; choose evaluator=classification."
            )
        if not (len(index) == len(logits) and labels.shape == logits.shape):
            raise ValueError("index, labels and logits must have the same length and classes")
        self._index.append(index.to(torch.int64))
        self._logits.append(logits.detach().to(torch.promote_types(logits.dtype, torch.float32)))
        self._labels.append(labels > 0)

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """The metrics over all batches of all ranks, each sample counted once.

        Raises:
            UserError: nothing taken in, or scores that are not finite.
        """
        device = self._index[0].device if self._index else collective_device()
        own = self._logits[0].shape[1] if self._logits else 0
        classes = int(gather(torch.tensor([own], device=device)).max())
        if not classes:
            raise UserError(
                "The multi-label evaluator has seen no sample; check the splits that the data set "
                "names."
            )
        nothing = torch.empty((0, classes), device=device)
        # Doubles travel: ranks may hold single and double precision only where one has nothing.
        logits = gather(torch.cat([nothing.double(), *self._logits]))
        labels = gather(torch.cat([nothing.bool(), *self._labels]))
        index = gather(torch.cat([torch.empty(0, dtype=torch.int64, device=device), *self._index]))
        index, order = index.sort(stable=True)
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        logits, labels = logits[order[first]], labels[order[first]]
        broken = int((~logits.isfinite().all(dim=1)).sum())
        if broken:
            raise UserError(
                f"The class scores of {broken} of {len(logits)} samples are NaN or infinite; lower "
                f"the learning rate (optimizer.lr) or check the inputs."
            )
        return multi_label_metrics(
            logits,
            labels,
            threshold=self.threshold,
            strict=self.strict,
            class_names=self.class_names if self.per_class else None,
        )
