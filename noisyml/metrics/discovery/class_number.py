"""Number of classes among labelled and unlabelled samples, where nobody knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from scipy.optimize import minimize_scalar
from torch import Tensor

from noisyml.checks import Count, Seed, checked
from noisyml.errors import UserError
from noisyml.metrics.discovery.accuracy import match
from noisyml.similarity.kmeans import kmeans


class ClassNumber(NamedTuple):
    """An estimate of the number of classes.

    Attributes:
        number: of classes, old and new ones.
        tried: accuracy on labelled samples by number of clusters.
    """

    number: int
    tried: dict[int, float]


@checked
def estimate_classes(
    embeddings: Tensor,
    labels: Tensor,
    most: Count = 1000,
    n_init: Count = 10,
    max_iterations: Count = 200,
    seed: Seed = 0,
) -> ClassNumber:
    """Number of clusters at which k-means finds the labelled classes again best.

    K-means looks at all samples and at no label; its clusters of the labelled ones are then matched
    to their classes. The number is found by Brent's bounded search between the number of labelled
    classes and `most`, then one by one around the best it tried; the most accurate number wins, the
    largest of equals, since fewer clusters may merge classes that nobody labelled.

    Args:
        embeddings: [N, D] float.
        labels: [N] int64, negative: none.
        most: upper end of the search.
        n_init: starts of each k-means.
        max_iterations: of each start.
        seed: of the starts.

    Raises:
        UserError: no labelled sample, or `most` below the number of labelled classes.

    Source: Vaze et al., "Generalized Category Discovery", CVPR 2022, section 3.3.
    """
    known = labels >= 0
    least = len(labels[known].unique())
    most = min(most, len(embeddings))
    if least == 0:
        raise UserError("The number of classes is estimated by labelled samples: there is none.")
    if most < least:
        raise UserError(
            f"The number of classes is at least that of the {least} labelled ones: allow more than "
            f"{most}."
        )
    classes = labels[known].unique(return_inverse=True)[1]

    def accuracy(number: int) -> float:
        found = kmeans(
            embeddings, number, n_init=n_init, max_iterations=max_iterations, seed=seed
        ).labels[known]
        matched = match(found, classes).classes.to(found.device)
        return float((matched[found] == classes).double().mean())

    tried = _searched(accuracy, least, most)
    return ClassNumber(_best(tried), tried)


def _best(tried: dict[int, float]) -> int:
    highest = max(tried.values())
    return max(number for number, value in tried.items() if value == highest)


def _searched(accuracy: Callable[[int], float], least: int, most: int) -> dict[int, float]:
    """Accuracies of the whole numbers that Brent's bounded search looked at."""
    tried: dict[int, float] = {}

    def loss(number: float) -> float:
        whole = round(float(number))
        if whole not in tried:
            tried[whole] = accuracy(whole)
        return -tried[whole]

    if least == most:
        loss(least)
    else:
        minimize_scalar(loss, bounds=(least, most), method="bounded", options={"xatol": 0.5})
    while True:
        best = _best(tried)
        for near in (max(least, best - 1), min(most, best + 1)):
            loss(near)
        if _best(tried) == best:
            return tried
