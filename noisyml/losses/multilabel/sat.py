"""Self-adaptive training for several labels: targets move from the labels to the predictions.

Huang, Zhang and Zhang, "Self-Adaptive Training: beyond Empirical Risk Minimization", NeurIPS 2020
(arXiv 2002.10319), class by class with sigmoids and without the original's weights of samples, as
in the studies of Burgert et al. (IEEE TGRS 2022, arXiv 2207.13975; code of arXiv 2601.08446).
"""

from __future__ import annotations

from torch import Tensor

from noisyml.errors import UserError
from noisyml.losses.multilabel.base import MultiLabelLoss, Reduction, bce_entries
from noisyml.losses.target_memory import TargetMemory


class MultiLabelSAT(MultiLabelLoss):
    """Cross-entropy, after some epochs with targets that average the entry's own predictions.

    Args:
        num_samples: size of the training split.
        num_classes: C.
        momentum: m, share of the old target kept at each visit of a sample, in [0, 1).
        warmup_epochs: epochs of plain cross-entropy, in which targets stay the labels; counted
            exactly (the code of arXiv 2601.08446 has one more than it is told).
        reduction: see `MultiLabelLoss`.

    Raises:
        UserError: a value out of range.
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        momentum: float = 0.9,
        warmup_epochs: int = 6,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        if not 0 <= momentum < 1:
            raise UserError(f"loss.momentum={momentum} is a share: give 0 to below 1.")
        if warmup_epochs < 0:
            raise UserError(f"loss.warmup_epochs={warmup_epochs} must not be negative.")
        self.momentum = momentum
        self._warmup_epochs = warmup_epochs
        self.targets = TargetMemory(num_samples, num_classes)

    @property
    def warmup_epochs(self) -> int:
        """Epochs of plain cross-entropy."""
        return self._warmup_epochs

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """[B, C], see `MultiLabelLoss`; the targets are updated first."""
        targets = labels
        if epoch >= self.warmup_epochs:
            targets = self.targets.blend(index, logits.sigmoid(), self.momentum, labels)
        return bce_entries(logits, targets)
