"""Small-cluster noise: whole classes dissolve and their visual groups join other classes.

Liu et al., "Noise-resistant Deep Metric Learning with Ranking-based Instance Selection", CVPR 2021.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from noisyml.checks import Count, Share
from noisyml.errors import UserError
from noisyml.noise.base import FeatureKind, Outcome, Samples, SeededInjector


@dataclass(frozen=True)
class Removal:
    """One step of the process.

    Attributes:
        removed_class: the class that dissolves.
        members: int64 [M], the samples that carry its label at that moment.
        cluster: int64 [M], each member's cluster, ``0 .. max(1, M//2)-1``.
        destination: int64 [clusters], the class each cluster joins.
    """

    removed_class: int
    members: NDArray[np.int64]
    cluster: NDArray[np.int64]
    destination: NDArray[np.int64]


def num_clusters(members: int) -> int:
    """Clusters a class of `members` images falls into: ``max(1, members // 2)``.

    Example:
        >>> from noisyml.noise.injectors.small_cluster import num_clusters
        >>> num_clusters(1), num_clusters(7)
        (1, 3)
    """
    return max(1, members // 2)


def compact_labels(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Renumber labels 0.. by first appearance in row order.

    Returns:
        Renumbered labels int64 [N], and the old label of each new one int64 [K].

    Example:
        >>> import numpy as np
        >>> from noisyml.noise.injectors.small_cluster import compact_labels
        >>> new, old = compact_labels(np.array([7, 3, 7, 9]))
        >>> new.tolist(), old.tolist()
        ([0, 1, 0, 2], [7, 3, 9])
    """
    values, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(values), dtype=np.int64)
    rank[order] = np.arange(len(values))
    return rank[inverse], values[order]


def replay(
    labels: NDArray[np.int64], removals: Sequence[Removal], rate: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Apply recorded removals, checking each against the rules of the process.

    Args:
        labels: clean labels int64 [N].
        removals: the steps, in order.
        rate: the process stops at the first step that reaches it.

    Returns:
        Labels after the last step, in the original numbering, int64 [N]; the fraction of samples
        that left their class, after each step, float64 [steps].

    Raises:
        ValueError: members are not the current carriers of the label, the number of clusters is
            not ``max(1, M//2)``, a destination is not a remaining class, or the process does not
            stop where it should.
    """
    current = labels.copy()
    remaining = np.zeros(int(labels.max()) + 1, dtype=bool)
    remaining[labels] = True
    rates: list[float] = []
    for step, removal in enumerate(removals):
        if rates and rates[-1] >= rate:
            raise ValueError(f"step {step} comes after the rate was reached")
        carriers = np.flatnonzero(current == removal.removed_class)
        if not np.array_equal(np.sort(removal.members), carriers):
            raise ValueError(f"step {step}: members do not carry class {removal.removed_class}")
        if len(removal.destination) != num_clusters(len(carriers)):
            raise ValueError(f"step {step}: {len(removal.destination)} clusters")
        remaining[removal.removed_class] = False
        if not remaining[removal.destination].all():
            raise ValueError(f"step {step}: a destination is not a remaining class")
        current[removal.members] = removal.destination[removal.cluster]
        rates.append(float((current != labels).mean()))
    if rates and rates[-1] < rate:
        raise ValueError(f"the process stops at {rates[-1]} before reaching {rate}")
    return current, np.array(rates)


@dataclass(frozen=True, kw_only=True)
class SmallCluster(SeededInjector):
    """Small-cluster noise of PRISM: open-set, visually coherent and class-removing.

    Until the fraction of images outside their own class reaches `rate`: a random remaining class is
    dissolved, all images that carry its label are clustered by k-means on `features` into half as
    many clusters as images, and each cluster joins a random remaining class. Remaining classes are
    renumbered by first appearance. Features are embeddings of a pretrained network.

    Args:
        rate: smallest fraction of images that end outside their class.
        n_init: k-means starts per class; the best one counts.
        seed: the noise seed.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import SmallCluster
        >>> embeddings = np.arange(24.0).reshape(12, 2)
        >>> noise = SmallCluster(rate=0.3)
        >>> manifest = noise.inject(np.repeat([0, 1, 2], 4), 3, features=embeddings)
        >>> manifest.num_classes, manifest.class_source.tolist(), round(manifest.actual_rate, 3)
        (2, [0, 2], 0.333)
    """

    name: ClassVar[str] = "small_cluster"
    training_only: ClassVar[bool] = True
    renumbers_classes: ClassVar[bool] = True
    feature_kind: ClassVar[FeatureKind] = "embeddings"
    needs_features: ClassVar[bool] = True

    rate: Share
    n_init: Count = 1

    def corrupt(self, samples: Samples) -> Outcome:
        """Dissolve classes until the rate is reached, then renumber."""
        removals = self.removals(samples)
        after, rates = replay(samples.labels, removals, self.rate)
        observed, source = compact_labels(after)
        return Outcome(
            observed=observed,
            nominal_rate=self.rate,
            changed=after != samples.labels,
            num_classes=len(source),
            class_source=source,
            details={
                "removed_classes": [removal.removed_class for removal in removals],
                "rate_after_each": rates,
            },
        )

    def removals(self, samples: Samples) -> list[Removal]:
        """The steps for these samples.

        Raises:
            UserError: the rate cannot be reached while a class remains.
        """
        if samples.features is None:
            raise ValueError("small-cluster noise needs features")
        draws, labels = self.draws, samples.labels
        # Carriers are kept sorted by stable id: neither the order of the rows nor the numbers of
        # the classes may decide what k-means sees.
        by_id = np.argsort(samples.ids, kind="stable")
        grouped = by_id[np.argsort(labels[by_id], kind="stable")]
        sizes = np.bincount(labels, minlength=samples.num_classes)
        carriers = dict(enumerate(np.split(grouped, np.cumsum(sizes)[:-1])))
        remaining = [int(c) for c in samples.class_order().classes if sizes[c]]
        away = 0
        steps: list[Removal] = []
        # Sums over several threads round differently; on one, every machine agrees.
        with threadpool_limits(limits=1):
            while away / len(labels) < self.rate:
                if len(remaining) < 2:
                    raise UserError(
                        f"Small-cluster noise cannot reach noise.rate={self.rate} on this data: "
                        f"one class is left at {away / len(labels):.3f}; lower the rate."
                    )
                step = np.array([len(steps)], dtype=np.uint64)
                removed = remaining.pop(int(draws.below(len(remaining), step, "class")[0]))
                members = carriers.pop(removed)
                cluster = self._cluster(samples.features[members], samples.ids[members], len(steps))
                count = num_clusters(len(members))
                numbers = np.arange(count, dtype=np.uint64)
                which = draws.below(len(remaining), numbers, f"destination/{len(steps)}")
                destination = np.array(remaining, dtype=np.int64)[which]
                steps.append(Removal(removed, members, cluster, destination))
                # Nobody returns: whoever was sent away comes from a class that is gone.
                away += int((labels[members] == removed).sum())
                arrivals = destination[cluster]
                for host in np.unique(arrivals).tolist():
                    joined = np.concatenate([carriers[host], members[arrivals == host]])
                    carriers[host] = joined[np.argsort(samples.ids[joined], kind="stable")]
        return steps

    def _cluster(self, features: NDArray, ids: NDArray[np.uint64], step: int) -> NDArray[np.int64]:
        """k-means of one class's carriers, clusters numbered by first appearance; int64 [M]."""
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        state = int(self.draws.below(2**31, np.array([step], dtype=np.uint64), "k-means")[0])
        model = KMeans(num_clusters(len(ids)), n_init=self.n_init, random_state=state)
        with warnings.catch_warnings():
            # Repeated images leave clusters empty, which the process does not mind.
            warnings.simplefilter("ignore", ConvergenceWarning)
            assigned = model.fit_predict(features.astype(np.float64))
        return compact_labels(assigned.astype(np.int64))[0]
