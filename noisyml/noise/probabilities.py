"""Label distributions of samples whose noise depends on the sample itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax


def flip_probabilities(
    scores: NDArray, labels: NDArray[np.int64], flip_rate: NDArray[np.float64]
) -> NDArray:
    """Label distribution of each sample: ``q softmax(scores without y)``, ``1 - q`` at y.

    Args:
        scores: float [N, C], how much each class attracts each sample.
        labels: int64 [N], true classes y.
        flip_rate: float64 [N], q in [0, 1].

    Returns:
        [N, C] in the dtype of `scores` (Xia et al., NeurIPS 2020, Algorithm 2).

    Example:
        >>> import numpy as np
        >>> from noisyml.noise.probabilities import flip_probabilities
        >>> scores = np.zeros((1, 3))
        >>> flip_probabilities(scores, np.array([0]), np.array([0.4])).round(2).tolist()
        [[0.6, 0.2, 0.2]]
    """
    rows = np.arange(len(labels))
    scores = scores.copy()
    scores[rows, labels] = -np.inf
    probabilities = flip_rate.astype(scores.dtype)[:, None] * softmax(scores, axis=1)
    probabilities[rows, labels] = 1.0 - flip_rate
    return probabilities


def part_dependent_probabilities(
    inputs: NDArray,
    labels: NDArray[np.int64],
    flip_rate: NDArray[np.float64],
    weights: NDArray,
) -> NDArray:
    """Part-dependent label distributions (Xia et al., NeurIPS 2020, Algorithm 2), [N, C].

    Args:
        inputs: float [N, D], flattened inputs.
        labels: int64 [N], true classes.
        flip_rate: float64 [N], per-sample flip rates.
        weights: float [C, D, C], one projection per true class.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise.probabilities import part_dependent_probabilities
        >>> inputs, weights = np.ones((1, 2)), np.zeros((3, 2, 3))
        >>> rows = part_dependent_probabilities(inputs, np.array([2]), np.array([0.5]), weights)
        >>> rows.round(2).tolist()
        [[0.25, 0.25, 0.5]]
    """
    scores = np.empty((len(labels), weights.shape[2]), dtype=np.result_type(inputs, weights))
    for label in np.unique(labels):
        members = labels == label
        scores[members] = inputs[members] @ weights[label]
    return flip_probabilities(scores, labels, flip_rate)
