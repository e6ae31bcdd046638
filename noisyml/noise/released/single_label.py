"""Released label-noise recipes, bit for bit.

These reproduce the label files of published studies: same generator, same order of draws. Each
creates its own generator, so no global state is read or written, but by their nature a sample's
noise depends on the order and presence of all samples before it. Anything new should use the
injectors' default draws instead.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from noisyml.noise.probabilities import flip_probabilities, part_dependent_probabilities

Labels = NDArray[np.int64]


def _legacy_generator(seed: int) -> np.random.RandomState:
    # The recipes are defined by this generator; NumPy froze its stream for exactly such uses.
    return np.random.RandomState(seed)


def multinomial(labels: Labels, matrix: NDArray[np.float64], seed: int) -> Labels:
    """One single-trial multinomial per sample, in order, from row ``matrix[label]``; int64 [N].

    Shared by Co-teaching, Co-teaching+, JoCoR, PLC, BARE, ELR (CIFAR-100) and CIFAR-N.
    """
    generator = _legacy_generator(seed)
    rows = [
        [(place, float(row[place])) for place in np.flatnonzero(row[:-1]).tolist()]
        for row in matrix
    ]
    last, uniform = matrix.shape[1] - 1, generator.random_sample
    drawn = [_one_trial(rows[label], last, uniform) for label in labels.tolist()]
    return np.array(drawn, dtype=np.int64)


def _one_trial(row: list[tuple[int, float]], last: int, uniform: Callable[[], float]) -> int:
    """The class that NumPy's multinomial drew for one trial when the recipes were published.

    A binomial for each class in turn, given that no class before it was drawn; NumPy 2.5 draws
    other numbers for a class that is certain.

    Args:
        row: classes but the last, with their probabilities above 0.
        last: number of the last class.
        uniform: draws from [0, 1).
    """
    left = 1.0
    for place, probability in row:
        share = probability / left
        if _bernoulli(share, uniform) if share <= 0.5 else not _bernoulli(1.0 - share, uniform):
            return place
        left -= probability
    return last


def _bernoulli(share: float, uniform: Callable[[], float]) -> bool:
    """NumPy's binomial for one trial with at most even chances, by inversion."""
    none = math.exp(math.log(1.0 - share))
    while True:
        drawn = uniform()
        if drawn <= none:
            return False
        if drawn - none <= share * none / (1.0 - share):
            return True


def fer(labels: Labels, rate: float, num_classes: int, seed: int) -> Labels:
    """Facial-expression recipe (EAC, FERPlus and AffectNet): Bernoulli, never the true class.

    Each row draws a uniform number and one class that is thrown away; flipped rows go on drawing
    classes until one differs.
    """
    generator = random.Random(seed)
    noisy = labels.copy()
    for i, label in enumerate(labels.tolist()):
        flip = generator.uniform(0, 1) <= rate
        generator.randint(0, num_classes - 1)
        if flip:
            candidate = label
            while candidate == label:
                candidate = generator.randint(0, num_classes - 1)
            noisy[i] = candidate
    return noisy


def _shuffled(n: int, generator: random.Random) -> NDArray[np.int64]:
    order = list(range(n))
    generator.shuffle(order)
    return np.array(order, dtype=np.int64)


def _redraw(
    labels: Labels, selected: NDArray[np.int64], num_classes: int, generator: random.Random
) -> Labels:
    """Selected samples, in ascending order, draw a class from all classes."""
    noisy = labels.copy()
    drawn = [generator.randint(0, num_classes - 1) for _ in range(len(selected))]
    noisy[np.sort(selected)] = np.array(drawn, dtype=np.int64)
    return noisy


def dividemix_symmetric(labels: Labels, rate: float, num_classes: int, seed: int) -> Labels:
    """DivideMix: ``floor(rate N)`` shuffled samples redraw over all classes; int64 [N]."""
    generator = random.Random(seed)
    selected = _shuffled(len(labels), generator)[: int(rate * len(labels))]
    return _redraw(labels, selected, num_classes, generator)


def _mapped(labels: Labels, pairs: Mapping[int, int]) -> Labels:
    mapped = labels.copy()
    for source, target in pairs.items():
        mapped[labels == source] = target
    return mapped


def dividemix_asymmetric(
    labels: Labels, rate: float, pairs: Mapping[int, int], seed: int
) -> Labels:
    """DivideMix: ``floor(rate N)`` shuffled samples go through the class map; int64 [N]."""
    selected = _shuffled(len(labels), random.Random(seed))[: int(rate * len(labels))]
    noisy = labels.copy()
    noisy[selected] = _mapped(labels[selected], pairs)
    return noisy


def elr_symmetric(
    labels: Labels, rate: float, num_classes: int, seed: int
) -> tuple[Labels, NDArray[np.int64]]:
    """ELR: ``ceil(rate N)`` permuted samples redraw over all classes.

    Returns:
        Noisy labels int64 [N] and the redrawn samples in the order they were visited.
    """
    generator = _legacy_generator(seed)
    order = generator.permutation(len(labels))
    selected = order[: np.count_nonzero(np.arange(len(labels)) < rate * len(labels))]
    noisy = labels.copy()
    noisy[selected] = generator.randint(num_classes, size=len(selected), dtype=np.int32)
    return noisy, selected


def elr_asymmetric(
    labels: Labels, rate: float, num_classes: int, pairs: Mapping[int, int], seed: int
) -> tuple[Labels, NDArray[np.int64]]:
    """ELR: class by class, ``ceil(rate n_c)`` shuffled members are mapped.

    The release reads membership from the labels already changed, so a cat turned into a dog may be
    turned back; kept, because the released figures carry it.

    Returns:
        Noisy labels int64 [N] and the mapped samples in the order they were visited.
    """
    generator = _legacy_generator(seed)
    noisy = labels.copy()
    visited = []
    for source in range(num_classes):
        members = np.flatnonzero(noisy == source)
        generator.shuffle(members)
        selected = members[: np.count_nonzero(np.arange(len(members)) < rate * len(members))]
        noisy[selected] = pairs.get(source, source)
        visited.append(selected)
    return noisy, np.concatenate(visited)


def selcl_symmetric(labels: Labels, rate: float, num_classes: int, seed: int) -> Labels:
    """Sel-CL: ``floor(rate N)`` permuted samples redraw over all classes; int64 [N]."""
    generator = _legacy_generator(seed)
    selected = generator.permutation(len(labels))[: int(len(labels) * rate)]
    noisy = labels.copy()
    noisy[selected] = generator.randint(num_classes, size=len(selected), dtype=np.int32)
    return noisy


def selcl_matrix(labels: Labels, matrix: NDArray[np.float64], seed: int) -> Labels:
    """Sel-CL: every sample, in permuted order, draws from row ``matrix[label]``; int64 [N]."""
    generator = _legacy_generator(seed)
    order = generator.permutation(len(labels))
    noisy = labels.copy()
    noisy[order] = [generator.choice(len(matrix), p=matrix[label]) for label in labels[order]]
    return noisy


def cleanlab(labels: Labels, matrix: NDArray[np.float64], seed: int) -> Labels:
    """cleanlab's exact counts: every off-diagonal count is cut to an integer; int64 [N].

    `matrix` is row-stochastic like everywhere here (cleanlab itself takes the transpose).
    """
    generator = _legacy_generator(seed)
    counts = np.bincount(labels, minlength=len(matrix))
    present = counts / float(len(labels))
    wanted = (matrix.T * present * len(labels)).astype(int).T
    np.fill_diagonal(wanted, 0)
    noisy = labels.copy()
    for source in range(len(matrix)):
        targets = np.repeat(np.arange(len(matrix)), wanted[source])
        members = np.flatnonzero((labels == source) & (noisy == source))
        if 0 < len(targets) <= len(members):
            noisy[generator.choice(members, len(targets), replace=False)] = targets
    return noisy


def evidentialmix(
    labels: Labels,
    rate: float,
    open_share: float,
    source_size: int,
    num_classes: int,
    seed: int,
) -> tuple[Labels, NDArray[np.int64], NDArray[np.int64]]:
    """EvidentialMix's mixture of closed-set and open-set noise (Sachdeva et al., WACV 2021).

    Args:
        labels: clean labels int64 [N].
        rate: fraction of noisy samples.
        open_share: fraction of the noisy samples whose image is replaced.
        source_size: number of images in the open-set source.
        num_classes: number of classes.
        seed: seed of Python's generator.

    Returns:
        Observed labels int64 [N]; pairs (sample, source image) int64 [M, 2] in drawing order;
        closed-noise samples int64 [K] in drawing order.
    """
    generator = random.Random(seed)
    selected = _shuffled(len(labels), generator)[: int(rate * len(labels))]
    num_open = int(open_share * len(selected))
    opened, closed = selected[:num_open], selected[num_open:]
    images = _shuffled(source_size, generator)[:num_open]
    noisy = _redraw(labels, closed, num_classes, generator)
    return noisy, np.stack([opened, images], axis=1), closed


def part_dependent(
    inputs: NDArray[np.float32],
    labels: Labels,
    rate: float,
    num_classes: int,
    norm_std: float,
    seed: int,
) -> Labels:
    """Part-dependent noise as released (Xia et al., NeurIPS 2020); int64 [N].

    Args:
        inputs: float32 [N, D], flattened inputs at the scale the study used.
        labels: clean labels int64 [N].
        rate: mean flip rate.
        num_classes: number of classes C; D x C x C normals are held in memory.
        norm_std: standard deviation of the flip rate.
        seed: seed of NumPy's legacy generator.
    """
    from scipy.stats import truncnorm

    generator = _legacy_generator(seed)
    flip_rate = truncnorm(-rate / norm_std, (1 - rate) / norm_std, loc=rate, scale=norm_std).rvs(
        len(labels), random_state=generator
    )
    weights = generator.randn(num_classes, inputs.shape[1], num_classes).astype(np.float32)
    rows = part_dependent_probabilities(inputs, labels, flip_rate, weights)
    return _choices(rows.astype(np.float64), generator)


def _choices(rows: NDArray[np.float64], generator: np.random.RandomState) -> Labels:
    """One choice per row, consuming the stream as ``choice(C, p=row)`` does; int64 [N]."""
    cumulative = rows.cumsum(axis=1)
    cumulative /= cumulative[:, -1:]
    drawn = generator.random_sample(len(rows))
    return (cumulative <= drawn[:, None]).sum(axis=1).astype(np.int64)


def cifar_n_instance(
    pixels: NDArray[np.uint8], labels: Labels, rate: float, num_classes: int, seed: int
) -> Labels:
    """The instance-dependent generator of the CIFAR-N repository; int64 [N].

    Args:
        pixels: uint8 [N, D], raw pixels in height, width, channel order.
        labels: clean labels int64 [N].
        rate: mean flip rate; its standard deviation is 0.1.
        num_classes: number of classes; the projection D x C is shared by them.
        seed: seed of NumPy's legacy generator (0 in the release).
    """
    generator = _legacy_generator(seed)
    flip_rate = generator.normal(loc=rate, scale=0.1, size=1_000_000)
    flip_rate = flip_rate[(flip_rate > 0) & (flip_rate < 1)][: len(labels)]
    weights = generator.normal(loc=0, scale=1, size=(pixels.shape[1], num_classes))
    rows = flip_probabilities(pixels.astype(np.float64) @ weights, labels, flip_rate)
    return _choices(rows / rows.sum(axis=1, keepdims=True), generator)


def pmd(first: Labels, second: Labels, keep_probability: NDArray[np.float64], seed: int) -> Labels:
    """PLC's draw: one binomial per sample, the first class if it succeeds; all arguments [N]."""
    keep = _legacy_generator(seed).binomial(1, keep_probability)
    return np.where(keep == 1, first, second)
