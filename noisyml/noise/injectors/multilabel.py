"""Multi-label noise: labels added, labels removed, entries flipped.

Burgert, Ravanbakhsh, Demir, "On the Effects of Different Types of Label Noise in Multi-Label Remote
Sensing Image Classification", IEEE TGRS 2022 (arXiv 2207.13975): additive, subtractive and mixed
noise at rates that refer to the labels a class has. Flipping entries uniformly, as most works do,
adds far more labels than it removes where labels are sparse: with 10 percent of the entries
present and a rate of 0.3, there are 0.27 false labels per entry to 0.07 true ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import Share
from noisyml.errors import UserError, did_you_mean
from noisyml.noise.base import Outcome, Samples, SeededInjector
from noisyml.noise.released import multilabel as legacy
from noisyml.targets import TargetKind

#: One rate for all classes, one per class, or by class name (others: 0).
Rates = Share | Sequence[Share] | Mapping[str | int, Share]

MULTI: frozenset[TargetKind] = frozenset({"multi"})


def class_rates(rates: Rates, samples: Samples, key: str) -> NDArray[np.float64]:
    """The rate of every class, float64 [C].

    Raises:
        UserError: another number of rates than classes, or a name that no class has.
    """
    classes = samples.num_classes
    if isinstance(rates, Mapping):
        names = [str(name) for name in samples.class_names or range(classes)]
        for name in rates:
            if str(name) not in names:
                raise UserError(
                    f"{key} names the class '{name}', which the data set does not have."
                    f"{did_you_mean(str(name), names)}"
                )
        by_name = {str(name): rate for name, rate in rates.items()}
        return np.array([by_name.get(name, 0.0) for name in names], dtype=np.float64)
    if isinstance(rates, Sequence):
        if len(rates) != classes:
            raise UserError(
                f"{key} holds {len(rates)} rates, but the data set has {classes} classes: give one "
                "per class, or name them as in {dog: 0.3}."
            )
        return np.asarray(rates, dtype=np.float64)
    return np.full(classes, float(rates))


def whole_part(product: NDArray[np.float64] | float) -> NDArray[np.int64]:
    """Counts rounded down; a product that is whole but for its last bits is not cut."""
    return np.floor(np.asarray(product) + 1e-9).astype(np.int64)


def _stream(samples: Samples, label: int) -> str:
    """Salt of a class's draws: its name, so that they do not know its number."""
    return str(samples.class_names[label]) if samples.class_names is not None else str(label)


@dataclass(frozen=True, kw_only=True)
class MultiLabelMixed(SeededInjector):
    """Labels added to and removed from each class, in proportion to the labels it has.

    Of a class with n labels, ``floor(rate_sub * n)`` lose it and ``floor(rate_add * n)`` samples
    without it get it; both are drawn from the clean labels, so no entry changes twice.

    Args:
        rate: share of a class's labels, for what `rate_add` or `rate_sub` leaves open: a number,
            C numbers, or numbers by class name.
        rate_add: labels to add; None: `rate`. With 0 the noise is subtractive.
        rate_sub: labels to remove; None: `rate`. With 0 the noise is additive.
        max_presence: no label is added to a class beyond this share of the samples.
        count: ``exact``, or ``legacy``: the draws of the released code.
        seed: the noise seed.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import MultiLabelMixed
        >>> labels = np.eye(4, dtype=int)[[0, 0, 1, 1, 2, 2, 3, 3]]
        >>> rates = MultiLabelMixed(rate=0.5).inject(labels, 4).rates()
        >>> rates["added_rate"], rates["removed_rate"]
        (0.5, 0.5)
    """

    name: ClassVar[str] = "multilabel_mixed"
    target_kinds: ClassVar[frozenset[TargetKind]] = MULTI

    rate: Rates = 0.0
    rate_add: Rates | None = None
    rate_sub: Rates | None = None
    max_presence: Share = 0.95
    count: Literal["exact", "legacy"] = "exact"

    def idle(self) -> bool:
        """False: two rates may each ask for something."""
        return False

    def corrupt(self, samples: Samples) -> Outcome:
        """Add and remove, class by class."""
        labels, n = samples.labels, len(samples)
        positives = labels.sum(axis=0, dtype=np.int64)
        add, sub = (
            class_rates(self.rate if rates is None else rates, samples, f"noise.{key}")
            for key, rates in (("rate_add", self.rate_add), ("rate_sub", self.rate_sub))
        )
        asked = positives * (add + sub)
        if self.count == "legacy":
            room = np.maximum(int(self.max_presence * n) - positives, 0)
            added = np.minimum((positives * add).astype(np.int64), room)
            removed = (positives * sub).astype(np.int64)
            observed = legacy.add_and_remove(labels, added, removed, self.seed)
        else:
            room = np.maximum(whole_part(self.max_presence * n) - positives, 0)
            added = np.minimum(whole_part(positives * add), room)
            removed = whole_part(positives * sub)
            observed = labels.copy()
            for label in range(samples.num_classes):
                name = _stream(samples, label)
                for value, many in ((1, added[label]), (0, removed[label])):
                    pool = np.flatnonzero(labels[:, label] != value)
                    drawn = self.draws.smallest(int(many), samples.ids[pool], f"{value} {name}")
                    observed[pool[drawn], label] = value
        capped = np.flatnonzero(added < whole_part(positives * add))
        return Outcome(
            observed=observed,
            nominal_rate=float(asked.sum() / labels.size),
            details={"capped_classes": [_stream(samples, int(label)) for label in capped]},
        )


@dataclass(frozen=True, kw_only=True)
class MultiLabelUniform(SeededInjector):
    """Entries flipped whatever they say, for comparison.

    Args:
        rate: share of the entries to flip.
        entries: which: ``all`` N * C; ``absent`` (labels are added), ``present`` (removed), or
            ``each``: that share of the absent and that share of the present ones.
        count: ``exact`` over the split, ``exact_per_class``, ``bernoulli`` (each entry on its own),
            or ``legacy``: the draws of the released noisifier, over the split.
        legacy: ``entries``, or ``classwise``: N samples' share of each class, for ``entries=all``.
        seed: the noise seed.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import MultiLabelUniform
        >>> labels = np.eye(4, dtype=int)[[0, 0, 1, 1, 2, 2, 3, 3]]
        >>> MultiLabelUniform(rate=0.25).inject(labels, 4).actual_rate
        0.25
    """

    name: ClassVar[str] = "multilabel_uniform"
    target_kinds: ClassVar[frozenset[TargetKind]] = MULTI

    rate: Share
    entries: Literal["all", "absent", "present", "each"] = "all"
    count: Literal["exact", "exact_per_class", "bernoulli", "legacy"] = "exact"
    legacy: Literal["entries", "classwise"] = "entries"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.legacy == "classwise" and (self.count, self.entries) != ("legacy", "all"):
            raise UserError(
                "noise.legacy=classwise flips any entry as released: set noise.count=legacy and "
                "noise.entries=all."
            )

    def corrupt(self, samples: Samples) -> Outcome:
        """Flip."""
        labels = samples.labels
        pools = {
            "all": [np.ones(labels.shape, dtype=bool)],
            "absent": [labels == 0],
            "present": [labels == 1],
            "each": [labels == 0, labels == 1],
        }[self.entries]
        nominal = self.rate * sum(int(pool.sum()) for pool in pools) / labels.size
        if self.count == "legacy":
            if self.legacy == "classwise":
                flipped = legacy.classwise(labels.shape, self.rate, self.seed)
            else:
                flipped = legacy.share_of_entries(pools, self.rate, self.seed)
            return Outcome(observed=labels ^ flipped, nominal_rate=nominal)
        bits = np.stack(
            [
                self.draws.bits(samples.ids, _stream(samples, label))
                for label in range(samples.num_classes)
            ],
            axis=1,
        )
        flipped = np.zeros(labels.shape, dtype=bool)
        if self.count == "bernoulli":
            limit = np.uint64(min(self.rate * 2.0**64, 2.0**64 - 2**11))
            flipped = np.logical_or.reduce(pools) & ((bits < limit) | (self.rate == 1))
        elif self.count == "exact":
            for pool in pools:
                flipped |= _smallest(bits.ravel(), pool.ravel(), self.rate).reshape(labels.shape)
        else:
            for pool in pools:
                for label in range(samples.num_classes):
                    flipped[:, label] |= _smallest(bits[:, label], pool[:, label], self.rate)
        return Outcome(observed=labels ^ flipped, nominal_rate=nominal)


def _smallest(bits: NDArray[np.uint64], pool: NDArray[np.bool_], rate: float) -> NDArray[np.bool_]:
    """The share `rate` of the pool with the smallest bits, bool like `bits`."""
    chosen = np.zeros(len(bits), dtype=bool)
    inside = np.flatnonzero(pool)
    many = int(whole_part(rate * len(inside)))
    if many:
        chosen[inside[np.argpartition(bits[inside], many - 1)[:many]]] = True
    return chosen


@dataclass(frozen=True, kw_only=True)
class MultiLabelPerSample(SeededInjector):
    """A share of the samples, a share of the classes of each: those entries flip (RCML).

    Aksoy, Ravanbakhsh, Demir, IEEE TNNLS 2022 (arXiv 2012.10715). Where labels are sparse it
    mostly adds labels.

    Args:
        sample_rate: share of the samples that become noisy.
        class_rate: share of the classes whose entries flip in a noisy sample.
        count: ``exact`` (rounded down), or ``legacy``: the draws of a released code.
        legacy: ``rcml``, or ``ccml`` (noisifier): rounded counts and one set of classes for all
            noisy samples.
        seed: the noise seed.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import MultiLabelPerSample
        >>> labels = np.eye(4, dtype=int)[[0, 0, 1, 1, 2, 2, 3, 3]]
        >>> noise = MultiLabelPerSample(sample_rate=0.5, class_rate=0.5)
        >>> noise.inject(labels, 4).changed.sum(axis=1).tolist()
        [0, 2, 2, 2, 0, 2, 0, 0]
    """

    name: ClassVar[str] = "multilabel_per_sample"
    target_kinds: ClassVar[frozenset[TargetKind]] = MULTI

    sample_rate: Share
    class_rate: Share
    count: Literal["exact", "legacy"] = "exact"
    legacy: Literal["rcml", "ccml"] = "rcml"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.legacy == "ccml" and self.count != "legacy":
            raise UserError("noise.legacy=ccml has no effect without noise.count=legacy; set it.")

    def corrupt(self, samples: Samples) -> Outcome:
        """Draw samples, then classes of each."""
        labels = samples.labels
        if self.count == "legacy":
            recipe = legacy.per_sample if self.legacy == "rcml" else legacy.per_batch
            flipped = recipe(labels.shape, self.sample_rate, self.class_rate, self.seed)
        else:
            many = int(whole_part(self.sample_rate * len(samples)))
            noisy = self.draws.smallest(many, samples.ids, "sample")
            flips = int(whole_part(self.class_rate * samples.num_classes))
            bits = np.stack(
                [
                    self.draws.bits(samples.ids[noisy], f"class {_stream(samples, label)}")
                    for label in range(samples.num_classes)
                ],
                axis=1,
            )
            flipped = np.zeros(labels.shape, dtype=bool)
            flipped[noisy] = bits.argsort(axis=1).argsort(axis=1) < flips
        return Outcome(
            observed=labels ^ flipped, nominal_rate=math.prod((self.sample_rate, self.class_rate))
        )
