"""Loss correction: cross-entropy that knows how labels are mistaken for one another.

Patrini et al., "Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach",
CVPR 2017 (arXiv 1609.03683). The matrix ``T[true, observed]`` is given by the user, or estimated
from the predictions of the network on noisy labels alone; the paper then starts again from random
weights, here the same network goes on.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from noisyml.checks import Count, Ge, Hint, OpenShare, Share
from noisyml.errors import UserError
from noisyml.losses.classification.base import ClassificationLoss
from noisyml.noise.injectors.class_conditional import read_matrix
from noisyml.noise.transition import check_matrix, map_matrix, pair_map, symmetric_matrix

Transition = Literal["estimated", "symmetric", "pair", "file"]

#: Epochs before the matrix is estimated.
Estimation = Annotated[int, Ge(1), Hint("An untrained network knows no transition matrix.")]

#: Condition number from which a matrix counts as singular: single precision has 7 digits.
_MAX_CONDITION = 1e6


def forward_correction(logits: Tensor, labels: Tensor, transition: Tensor) -> Tensor:
    """``-log (T^T p)_y`` (CVPR 2017, theorem 2): what is predicted is the label, not the class.

    Args:
        logits: [B, C] with gradient.
        labels: [B] int64, observed.
        transition: T [C, C], rows true, columns observed.

    Returns:
        [B], at least 0; infinite for a label that T excludes.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> transition = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
        >>> forward_correction(logits, labels, transition)
        tensor([0.2846, 0.6781])
    """
    into_label = transition.to(logits.dtype).log().T[labels]
    return -torch.logsumexp(F.log_softmax(logits, dim=1) + into_label, dim=1)


def backward_correction(logits: Tensor, labels: Tensor, inverse: Tensor) -> Tensor:
    """``(T^-1 l)_y`` with the cross-entropies ``l`` of all classes (CVPR 2017, theorem 1).

    Args:
        logits: [B, C] with gradient.
        labels: [B] int64, observed.
        inverse: T^-1 [C, C].

    Returns:
        [B], without bias in the mean but unbounded below.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> transition = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
        >>> backward_correction(logits, labels, transition.inverse())
        tensor([-0.8731,  1.8133])
    """
    return -(inverse.to(logits.dtype)[labels] * F.log_softmax(logits, dim=1)).sum(dim=1)


def anchor_transition(probabilities: Tensor, outliers: float = 0.0) -> Tensor:
    """T estimated from the samples most surely labelled as each class (CVPR 2017, eq. 12 and 13).

    Row i holds the probabilities at the sample with the largest probability of label i.

    Args:
        probabilities: of the observed labels, [N, C].
        outliers: share of the N samples passed over at the top of each class; in the paper's
            experiments with 10 classes 0.03.

    Returns:
        [C, C], rows that sum to 1.

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])
        >>> anchor_transition(probabilities)
        tensor([[0.9000, 0.1000],
                [0.3000, 0.7000]])
    """
    skipped = min(int(outliers * len(probabilities)), len(probabilities) - 1)
    anchors = probabilities.topk(skipped + 1, dim=0).indices[-1]
    rows = probabilities[anchors]
    return rows / rows.sum(dim=1, keepdim=True)


class LossCorrection(ClassificationLoss):
    """Base of forward and backward correction: the origin of the transition matrix.

    Args:
        num_classes: C.
        transition: ``estimated`` from the most confident samples, ``symmetric`` or ``pair`` with
            `rate`, or ``file`` with `path`.
        rate: share of wrong labels, for symmetric and pair noise, in [0, 1).
        path: a ``.npy`` or ``.csv`` file with C rows (true class) of C probabilities (observed).
        estimation_epoch: epochs of plain cross-entropy before the matrix is estimated.
        outliers: see `anchor_transition`, in [0, 1/C).

    Raises:
        ArgumentError: a value out of range.
        UserError: settings that do not go together, or a matrix without an inverse where one is
            needed.
    """

    matrix: Tensor
    known: Tensor

    def __init__(
        self,
        num_classes: Count,
        transition: Transition = "estimated",
        rate: OpenShare | None = None,
        path: str | None = None,
        estimation_epoch: Estimation = 10,
        outliers: Share = 0.0,
    ) -> None:
        super().__init__()
        if (rate is not None) != (transition in ("symmetric", "pair")):
            raise UserError(
                f"loss.rate belongs to loss.transition=symmetric and pair, and loss.rate={rate} "
                f"with {transition}: set {'it' if rate is None else 'loss.rate=null'}."
            )
        if (path is not None) != (transition == "file"):
            raise UserError(
                f"loss.path belongs to loss.transition=file, and loss.path={path} with "
                f"{transition}: set {'it' if path is None else 'loss.path=null'}."
            )
        if outliers >= 1 / num_classes:
            raise UserError(
                f"loss.outliers={outliers} must be below 1/{num_classes}, the share of an average "
                f"class: passing over more leaves none of its samples."
            )
        self.transition = transition
        self.estimation_epoch = estimation_epoch
        self.outliers = outliers
        given: NDArray[np.float64] = np.eye(num_classes)
        if rate is not None and transition == "symmetric":
            given = symmetric_matrix(num_classes, rate)
        elif rate is not None:
            given = map_matrix(num_classes, pair_map(num_classes), rate)
        elif path is not None:
            raw = read_matrix(Path(path))
            given = check_matrix(raw, len(raw))
        self.register_buffer("matrix", torch.empty(given.shape))
        self.register_buffer("known", torch.tensor(transition != "estimated"))
        self._set(torch.from_numpy(given))

    @property
    def warmup_epochs(self) -> int:
        """Epochs before the matrix is estimated."""
        return self.estimation_epoch if self.transition == "estimated" else 0

    def wants_predictions(self, epoch: int) -> bool:
        """True once the network is warm and the matrix is still to be estimated."""
        return epoch >= self.warmup_epochs and not bool(self.known)

    @torch.no_grad()
    def learn(self, probabilities: Tensor) -> None:
        """Estimate the matrix."""
        self._set(anchor_transition(probabilities.double(), self.outliers))
        self.known.fill_(True)

    def _set(self, transition: Tensor) -> None:
        """Keep of T what the loss needs."""
        self.matrix.copy_(transition)

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """[B], see `ClassificationLoss`; cross-entropy in the warm-up.

        Raises:
            UserError: a matrix for another number of classes.
        """
        if epoch < self.warmup_epochs:
            return F.cross_entropy(logits, labels, reduction="none")
        if len(self.matrix) != logits.shape[1]:
            raise UserError(
                f"The matrix of loss.path has {len(self.matrix)} classes, but the data has "
                f"{logits.shape[1]}: give one row and one column per class."
            )
        return self.corrected(logits, labels)

    @abstractmethod
    def corrected(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The corrected loss [B]."""


class ForwardCorrection(LossCorrection):
    """Cross-entropy between the observed label and the predictions carried through T.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> index = torch.tensor([0, 1])
        >>> ForwardCorrection(2, "symmetric", rate=0.2)(logits, labels, index, epoch=0)
        tensor([0.3168, 1.0179])
    """

    def corrected(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `forward_correction`."""
        return forward_correction(logits, labels, self.matrix)


class BackwardCorrection(LossCorrection):
    """Cross-entropies of all classes, combined by the inverse of T; unbiased, of high variance.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
        >>> index = torch.tensor([0, 1])
        >>> BackwardCorrection(2, "symmetric", rate=0.2)(logits, labels, index, epoch=0)
        tensor([-0.5397,  1.6466])
    """

    def _set(self, transition: Tensor) -> None:
        """Keep the inverse.

        Raises:
            UserError: there is none.
        """
        exact = transition.double().cpu()
        if not float(torch.linalg.cond(exact)) < _MAX_CONDITION:
            raise UserError(
                "The transition matrix has no inverse (two classes whose labels look alike): use "
                "loss=forward_correction, or another loss.transition or loss.rate."
            )
        self.matrix.copy_(torch.linalg.inv(exact))

    def corrected(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `backward_correction`."""
        return backward_correction(logits, labels, self.matrix)
