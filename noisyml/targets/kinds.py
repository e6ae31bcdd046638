"""The kinds of labels there are, and the kind of given labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisyml.targets.base import Labels, Target, TargetKind
from noisyml.targets.labels import MULTI, SINGLE
from noisyml.targets.masks import MASKS
from noisyml.targets.pairs import PAIRS
from noisyml.targets.partial import PARTIAL

if TYPE_CHECKING:
    from torch import Tensor

#: Every kind of labels by its name.
TARGETS: dict[TargetKind, Target] = {
    target.name: target for target in (MASKS, PAIRS, MULTI, PARTIAL, SINGLE)
}


def target_of(labels: ArrayLike) -> Target:
    """The kind of given labels.

    Args:
        labels: of N samples, perhaps not yet checked; what no other kind holds counts as one label
            per sample, whose check then says what is wrong with it.

    Example:
        >>> from noisyml.targets import target_of
        >>> target_of([0, 2, 1]).name, target_of([[0, 1], [1, 1]]).name
        ('single', 'multi')
    """
    return next((target for target in TARGETS.values() if target.holds(labels)), SINGLE)


def label_fields(
    labels: Labels, index: NDArray[np.int64], target: Target | None = None
) -> dict[str, Tensor]:
    """The labels of the samples at `index`, under the name of their kind in a batch.

    Args:
        labels: of all samples.
        index: [b], positions.
        target: kind of the labels; None: looked up.
    """
    target = target or target_of(labels)
    return {target.field: target.tensor(labels[index])}


def labels_of(batch: Mapping[str, Tensor]) -> Tensor:
    """The observed labels of a batch.

    Returns:
        [b] int64, or several per sample as zeros and ones [b, C] float32.

    Raises:
        KeyError: a batch without labels.
    """
    found = next((target.field for target in TARGETS.values() if target.field in batch), "label")
    return batch[found]
