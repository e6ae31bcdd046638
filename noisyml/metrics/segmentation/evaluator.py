"""Intersection over union of predicted masks, over a whole split, exact on several ranks.

Of each class, pixels are counted over the whole split (torchmetrics' statistics per image, added
up): ``IoU = TP / (TP + FP + FN)``. Pixels without a class count for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_stat_scores

from noisyml.distributed import collective_device, gather
from noisyml.errors import UserError
from noisyml.metrics.base import Evaluator, SplitRole
from noisyml.targets import TargetKind
from noisyml.targets.masks import IGNORE

#: Classes whose IoU a mean takes: those in labels or predictions; those in labels; or, as in the
#: released code of ClassMix and S4GAN, the sum over those ever predicted rightly divided by C.
Average = Literal["union", "ground_truth", "released"]

_TP, _FP, _FN = 0, 1, 2


def pixel_statistics(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """True positives, false positives and false negatives of each image and class.

    Args:
        predicted: [b, H, W] whole numbers in ``0 .. C - 1``.
        target: [b, H, W] likewise, or ``IGNORE``.
        num_classes: C.

    Returns:
        [b, C, 3] int64.
    """
    found: Tensor = multiclass_stat_scores(
        predicted.flatten(1).long(),
        target.flatten(1).long(),
        num_classes=num_classes,
        average=None,
        multidim_average="samplewise",
        ignore_index=IGNORE,
        validate_args=False,
    )
    # TP, FP, TN, FN, support.
    return found[..., [0, 1, 3]]


def class_ious(statistics: Tensor) -> Tensor:
    """IoU of each class [C] of statistics [C, 3], NaN where a class has no pixel at all."""
    counts = statistics.double()
    return counts[:, _TP] / counts.sum(dim=1)


def mean_iou(statistics: Tensor, average: Average = "union") -> float:
    """Mean over classes of the IoU, see `Average`; NaN if no class counts.

    Args:
        statistics: [C, 3] int64, from `pixel_statistics`, added up over images.
        average: classes that count.

    Example:
        >>> counts = torch.tensor([[8, 1, 1], [0, 2, 0], [0, 0, 0]])
        >>> [round(mean_iou(counts, how), 3) for how in ("union", "ground_truth", "released")]
        [0.4, 0.8, 0.267]
    """
    ious = class_ious(statistics)
    if average == "released":
        return float(ious[statistics[:, _TP] > 0].sum() / len(ious))
    pixels = statistics.sum(dim=1)
    if average == "ground_truth":
        pixels = statistics[:, _TP] + statistics[:, _FN]
    return float(ious[pixels > 0].mean())


class SegmentationEvaluator(Evaluator):
    """Mean IoU, IoU of each class and pixel accuracy of predicted masks.

    Keeps three numbers per image and class.

    Args:
        average: classes that the mean is taken over: ``union`` (in labels or predictions),
            ``ground_truth`` (in labels), or ``released`` (the sum over those with a true positive,
            divided by the number of all classes).
        per_class: add ``iou/CLASS`` for each class that has a pixel.
        headline: the metric that checkpoints and progress go by unless told otherwise.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"class_map"})
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"masks"})
    metric_labels: ClassVar[Mapping[str, str]] = {"miou": "mIoU", "pixel_accuracy": "Pixel acc."}

    def __init__(
        self, average: Average = "union", per_class: bool = False, headline: str = "miou"
    ) -> None:
        self.average: Average = average
        self.per_class = per_class
        self.headline = headline
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._index: list[Tensor] = []
        self._statistics: list[Tensor] = []

    @torch.no_grad()
    def update(
        self,
        outputs: Mapping[str, Tensor],
        targets: Tensor,
        index: Tensor,
        role: SplitRole = "pool",
    ) -> None:
        """Take in one batch: ``class_map`` [b, H, W], `targets` [b, H, W], `index` [b].

        Raises:
            UserError: no predicted masks, labels that are no masks, or masks of another size.
        """
        predicted = self.needed(outputs, "class_map")
        if targets.ndim != 3:
            raise UserError(
                f"The segmentation evaluator needs a mask per image, but got labels of shape "
                f"{list(targets.shape)}; choose another evaluator=…."
            )
        if predicted.shape != targets.shape:
            raise UserError(
                f"Predicted masks are {list(predicted.shape[1:])}, and the labels are "
                f"{list(targets.shape[1:])} (height, width)."
            )
        self._index.append(index.to(torch.int64))
        self._statistics.append(pixel_statistics(predicted, targets, len(self.class_names)))

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """The metrics over all batches of all ranks, each image counted once.

        Raises:
            UserError: nothing taken in.
        """
        device = self._index[0].device if self._index else collective_device()
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        index = gather(torch.cat([nothing, *self._index]))
        none = nothing.view(0, 1, 1).expand(0, len(self.class_names), 3)
        statistics = gather(torch.cat([none, *self._statistics]).contiguous())
        if not len(index):
            raise UserError(
                "The segmentation evaluator has seen no image; check the splits that the data set "
                "names."
            )
        index, order = index.sort(stable=True)
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        counts = statistics[order[first]].sum(dim=0)
        labelled = int((counts[:, _TP] + counts[:, _FN]).sum())
        metrics = {
            "miou": mean_iou(counts, self.average),
            "pixel_accuracy": int(counts[:, _TP].sum()) / labelled if labelled else float("nan"),
        }
        if self.per_class:
            ious = class_ious(counts).tolist()
            named = zip(self.class_names, ious, strict=True)
            metrics |= {f"iou/{name}": value for name, value in named if value == value}
        return metrics
