"""Injectors whose noise depends on the sample itself: part-dependent, PMD, classification-based."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from noisyml.checks import Ge, Positive, Share
from noisyml.errors import UserError
from noisyml.noise.base import (
    FeatureKind,
    Outcome,
    Samples,
    SeededInjector,
    SplitInjector,
)
from noisyml.noise.released import single_label as legacy


@dataclass(frozen=True, kw_only=True)
class PartDependent(SeededInjector):
    """Instance-dependent noise from random projections of the pixels.

    Each sample flips with its own rate q from Normal(rate, norm_std^2) cut to [0, 1]; the wrong
    class follows the softmax of a random projection of its pixels (Xia et al., NeurIPS 2020).

    Features are the flattened raw pixels, 0..255, in height, width, channel order.

    Args:
        rate: mean flip rate.
        norm_std: standard deviation of the flip rate.
        pixel_factor: raw pixels are multiplied by it before the projection. 1 (the release): the
            scores spread so widely that each image has practically one fixed wrong class; 1/255:
            softer.
        variant: ``part_dependent``: one projection per true class; ``cifar_n``: one for all classes
            (generator of the CIFAR-N repository).
        count: ``bernoulli`` or ``legacy`` (released generator streams; for ``cifar_n`` the release
            uses seed 0).
        seed: the noise seed.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import PartDependent
        >>> pixels = np.arange(24.0).reshape(12, 2)
        >>> noise = PartDependent(rate=0.5)
        >>> noise.inject(np.repeat([0, 1, 2], 4), 3, features=pixels).observed.tolist()
        [0, 1, 1, 0, 2, 2, 2, 2, 2, 1, 1, 1]
    """

    name: ClassVar[str] = "pdn"
    feature_kind: ClassVar[FeatureKind] = "pixels"
    needs_features: ClassVar[bool] = True

    rate: Share
    norm_std: Positive = 0.1
    pixel_factor: Positive = 1.0
    variant: Literal["part_dependent", "cifar_n"] = "part_dependent"
    count: Literal["bernoulli", "legacy"] = "bernoulli"

    def __post_init__(self) -> None:
        super().__post_init__()
        fixed = self.norm_std == 0.1 and self.pixel_factor == 1.0
        if self.count == "legacy" and self.variant == "cifar_n" and not fixed:
            raise UserError(
                "The released cifar_n generator fixes noise.norm_std=0.1 and noise.pixel_factor=1; "
                "leave them alone or set noise.count=bernoulli."
            )

    def corrupt(self, samples: Samples) -> Outcome:
        """Flip by per-sample rates towards what the projection suggests."""
        if samples.num_classes < 2:
            raise UserError("Part-dependent noise needs two classes; the data set has one.")
        features = _required(samples.features)
        labels, classes = samples.labels, samples.num_classes
        if self.count == "bernoulli":
            observed = self._draw(samples, features)
        elif self.variant == "cifar_n":
            observed = legacy.cifar_n_instance(features, labels, self.rate, classes, self.seed)
        else:
            inputs = features.astype(np.float32) * np.float32(self.pixel_factor)
            observed = legacy.part_dependent(
                inputs, labels, self.rate, classes, self.norm_std, self.seed
            )
        return Outcome(observed=observed, nominal_rate=self.rate)

    def _draw(self, samples: Samples, features: NDArray) -> NDArray[np.int64]:
        draws, order = self.draws, samples.class_order()
        shape = (features.shape[1], samples.num_classes)
        entries = np.arange(shape[0] * shape[1], dtype=np.uint64)
        rate = draws.truncated_normal(self.rate, self.norm_std, samples.ids, "flip_rate")
        flip = draws.uniform(samples.ids, "flip") < rate
        point = draws.uniform(samples.ids, "target")
        observed = samples.labels.copy()
        shared = self.variant == "cifar_n"
        weights = draws.normal(entries if shared else entries[:0], "projection")
        # One true class at a time: D x C weights in memory instead of C x D x C.
        for label in np.unique(samples.labels[flip]):
            members = np.flatnonzero(flip & (samples.labels == label))
            own = order.rank[label]
            if not shared:
                weights = draws.normal(entries, f"projection/{own}")
            inputs = features[members].astype(np.float64) * self.pixel_factor
            scores = inputs @ weights.reshape(shape)
            scores[:, own] = -np.inf
            cumulative = np.cumsum(softmax(scores, axis=1), axis=1)
            target = (cumulative <= point[members, None] * cumulative[:, -1:]).sum(axis=1)
            observed[members] = order.classes[target]
        return observed


def pmd_levels(
    eta: NDArray[np.float64], kind: int, factor: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Polynomial-margin-diminishing noise (Zhang et al., PLC, ICLR 2021).

    Args:
        eta: float64 [N, C], class posteriors.
        kind: 1, 2 or 3: the polynomial g of the margin d between the two likeliest classes.
        factor: divides the probability of keeping the likeliest class.

    Returns:
        The likeliest class u and the second one s, int64 [N]; g float64 [N]; the probability of
        observing u rather than s, float64 [N].

    Example:
        >>> import numpy as np
        >>> from noisyml.noise.injectors.instance import pmd_levels
        >>> first, second, level, keep = pmd_levels(np.array([[0.7, 0.2, 0.1]]), kind=1, factor=1.0)
        >>> int(first[0]), int(second[0]), round(float(level[0]), 3), round(float(keep[0]), 3)
        (0, 1, 0.375, 0.625)
    """
    top = np.argsort(-eta, axis=1, kind="stable")[:, :2]
    best = np.take_along_axis(eta, top, axis=1)
    margin = np.abs(best[:, 0] - best[:, 1])
    if kind == 1:
        level = -0.5 * margin**2 + 0.5
        keep = np.maximum(1.0 - level, 0.5) / factor
    elif kind == 2:
        level = 1.0 - margin**3
        keep = (1.0 - level) / factor
    else:
        level = 1.0 - margin**3 / 3 - margin**2 / 3 - margin / 3
        keep = (1.0 - level) / factor
    return top[:, 0], top[:, 1], level, keep


@dataclass(frozen=True, kw_only=True)
class PolynomialMarginDiminishing(SeededInjector):
    """PMD noise: the likeliest class or the second one, by the margin between them (PLC).

    Features are class posteriors [N, C] of a network trained on the clean labels. The data set's
    own label takes no part: where the network disagrees with it, that counts as noise as well.
    There is no rate; `factor` scales the noise and the realised rate is measured.

    Args:
        type: 1, 2 or 3, the polynomial of the margin.
        factor: at least 1; larger means more noise.
        count: ``bernoulli`` or ``legacy`` (NumPy's old binomial stream).
        seed: the noise seed.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import PolynomialMarginDiminishing
        >>> eta = np.array([[0.9, 0.1], [0.55, 0.45], [0.2, 0.8], [0.48, 0.52]])
        >>> noise = PolynomialMarginDiminishing(type=1)
        >>> noise.inject([0, 0, 1, 1], 2, features=eta).observed.tolist()
        [0, 0, 0, 1]
    """

    name: ClassVar[str] = "pmd"
    feature_kind: ClassVar[FeatureKind] = "probabilities"
    needs_features: ClassVar[bool] = True

    type: Literal[1, 2, 3] = 1
    factor: Annotated[float, Ge(1)] = 1.2
    count: Literal["bernoulli", "legacy"] = "bernoulli"

    def corrupt(self, samples: Samples) -> Outcome:
        """Draw between the two likeliest classes."""
        eta = _posteriors(samples)
        first, second, _, keep = pmd_levels(eta, self.type, self.factor)
        if self.count == "legacy":
            observed = legacy.pmd(first, second, keep, self.seed)
        else:
            observed = np.where(self.draws.uniform(samples.ids, "keep") < keep, first, second)
        disagreement = float((first != samples.labels).mean())
        return Outcome(observed=observed, details={"network_disagreement": disagreement})


@dataclass(frozen=True, kw_only=True)
class ClassificationBased(SplitInjector):
    """The samples a clean network finds most ambiguous get its strongest wrong class.

    Features are class probabilities [N, C] averaged over the epochs of training on the clean
    labels; exactly ``floor(rate N)`` samples flip, those whose strongest wrong class is most
    probable (Chen et al., "Beyond class-conditional assumption", AAAI 2021). Nothing is drawn.

    Args:
        rate: fraction of samples that flip.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import ClassificationBased
        >>> eta = np.array([[0.9, 0.1], [0.55, 0.45], [0.2, 0.8], [0.48, 0.52]])
        >>> ClassificationBased(rate=0.5).inject([0, 0, 1, 1], 2, features=eta).observed.tolist()
        [0, 1, 1, 0]
    """

    name: ClassVar[str] = "classification_based"
    feature_kind: ClassVar[FeatureKind] = "probabilities"
    needs_features: ClassVar[bool] = True

    rate: Share

    def corrupt(self, samples: Samples) -> Outcome:
        """Flip the most ambiguous samples."""
        probabilities = _posteriors(samples).copy()
        rows = np.arange(len(samples))
        probabilities[rows, samples.labels] = -1.0
        strongest = probabilities.argmax(axis=1)
        # Equal probabilities are ordered by stable id, so that the order of the data is irrelevant.
        order = np.lexsort((samples.ids, -probabilities[rows, strongest]))
        flipped = order[: int(np.floor(self.rate * len(samples) + 1e-9))]
        observed = samples.labels.copy()
        observed[flipped] = strongest[flipped]
        return Outcome(observed=observed, nominal_rate=self.rate)


def _required(features: NDArray[Any] | None) -> NDArray[Any]:
    if features is None:
        raise ValueError("this injector needs features")
    return features


def _posteriors(samples: Samples) -> NDArray[np.float64]:
    """The features as class probabilities, float64 [N, C]."""
    eta = _required(samples.features).astype(np.float64)
    if eta.shape[1] != samples.num_classes or samples.num_classes < 2:
        raise UserError(
            f"The class probabilities have {eta.shape[1]} columns for {samples.num_classes} "
            "classes; give one column per class, and at least two."
        )
    if eta.min() < 0 or np.abs(eta.sum(axis=1) - 1.0).max() > 1e-3:
        raise UserError(
            "The features for this noise are not class probabilities: a row is negative or does "
            "not sum to 1; pass the softmax of a network trained on clean labels."
        )
    return eta
