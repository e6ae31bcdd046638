"""Base of injectors: checked labels in, a manifest out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisyml.checks import WholeNonNegative, check_fields
from noisyml.errors import UserError
from noisyml.noise.manifest import NoiseManifest
from noisyml.noise.random import ClassOrder, Draws, sample_ids
from noisyml.targets import PARTIAL, SINGLE, TARGETS, Labels, TargetKind, target_of

#: Features that an injector asks for: raw pixels 0..255, network embeddings, class probabilities.
FeatureKind = Literal["none", "pixels", "embeddings", "probabilities"]
#: Features [N, D] of the samples, or those of several kinds.
Features = ArrayLike | Mapping[FeatureKind, ArrayLike]


@dataclass(frozen=True)
class Samples:
    """The training split as an injector sees it.

    Attributes:
        labels: clean labels, int64 [N] or multi-hot uint8 [N, C].
        num_classes: number of classes C.
        ids: uint64 [N], stable sample ids.
        keys: N sample keys or None.
        features: float [N, D] or None; their meaning depends on the injector's `feature_kind`.
        class_names: C names or None.
    """

    labels: Labels
    num_classes: int
    ids: NDArray[np.uint64]
    keys: Sequence[str] | None = None
    features: NDArray[Any] | None = None
    class_names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def class_order(self) -> ClassOrder:
        """The classes in an order that does not depend on their numbers."""
        return ClassOrder.of(self.labels, self.ids, self.num_classes)


@dataclass(frozen=True)
class Outcome:
    """The decisions of an injector; fields as in `NoiseManifest`, None follows from the rest."""

    observed: Labels
    nominal_rate: float | None = None
    clean: Labels | None = None
    changed: NDArray[np.bool_] | None = None
    source_index: NDArray[np.int64] | None = None
    num_classes: int | None = None
    class_source: NDArray[np.int64] | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Injector(ABC):
    """Corrupts the labels of a training split, once, as a pure function of its arguments.

    Raises:
        ArgumentError: a setting that its annotation does not allow.
    """

    #: The injector's name in records and the salt of its draws.
    name: ClassVar[str]
    #: The features that `inject` needs.
    feature_kind: ClassVar[FeatureKind] = "none"
    #: True if `inject` needs `features`.
    needs_features: ClassVar[bool] = False
    #: True if the corruption describes one training split (a file of labels, renumbered classes,
    #: foreign images) and cannot be repeated on the validation split.
    training_only: ClassVar[bool] = False
    #: The kinds of labels it corrupts.
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"single"})
    #: True if the labels it gives do not depend on those it is given (a file of labels).
    replaces_labels: ClassVar[bool] = False
    #: True if it is the record of a whole split, those of its samples included that have no label.
    describes_split: ClassVar[bool] = False
    #: True if classes may be gone afterwards and the rest have other numbers.
    renumbers_classes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def wants(self) -> frozenset[FeatureKind]:
        """The kinds of features that `inject` needs."""
        return frozenset({self.feature_kind} if self.needs_features else ())

    def sized(self, foreign_images: Callable[[], int]) -> Injector:
        """The same noise, told how many foreign images there are if it has to know.

        Args:
            foreign_images: number of images in the open-set source; called only if need be.
        """
        return self

    def check_kind(self, labels: ArrayLike) -> None:
        """Refuse labels of a kind that this injector does not corrupt.

        Raises:
            UserError: such labels.
        """
        given = target_of(labels)
        if given is PARTIAL and SINGLE.name in self.target_kinds - {given.name}:
            missing = int(np.flatnonzero(np.asarray(labels) < 0)[0])
            raise UserError(
                f"Training sample {missing} has label {np.asarray(labels)[missing]}: noise "
                f"'{self.name}' changes labels that are there, so give it those alone."
            )
        if given.name not in self.target_kinds:
            own = TARGETS[min(self.target_kinds)]
            raise UserError(
                f"Noise '{self.name}' {own.noise_words}, but the data set gives {given.words}: "
                f"choose e.g. noise={given.example_noise}."
            )

    @abstractmethod
    def inject(
        self,
        labels: ArrayLike,
        num_classes: int,
        *,
        keys: Sequence[str] | None = None,
        features: Features | None = None,
        class_names: Sequence[str] | None = None,
    ) -> NoiseManifest:
        """Corrupt `labels` and say what was done.

        Args:
            labels: clean labels, integers [N] in ``0 .. num_classes-1`` or zeros and ones
                [N, num_classes]: list, array or tensor.
            num_classes: number of classes C of the split.
            keys: N unique sample names; with them a sample's noise depends on its name and not on
                its position.
            features: float [N, D], required if `needs_features`, see `feature_kind`; or a mapping
                from kinds to such arrays.
            class_names: C names, for class maps written with names.

        Returns:
            The manifest; with a rate of 0 its observed labels equal `labels`.

        Raises:
            UserError: labels of another kind or out of range, repeated keys, missing features, or
                a request that this data cannot meet.
        """


@dataclass(frozen=True, kw_only=True)
class SplitInjector(Injector):
    """An injector that only has to say what becomes of checked samples."""

    @abstractmethod
    def corrupt(self, samples: Samples) -> Outcome:
        """The corruption of at least one checked sample; use `inject` from outside."""

    def record(self) -> dict[str, Any]:
        """The constructor's arguments as they go into the manifest."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def idle(self) -> bool:
        """True if the settings ask for no corruption."""
        return self.record().get("rate") == 0

    def inject(
        self,
        labels: ArrayLike,
        num_classes: int,
        *,
        keys: Sequence[str] | None = None,
        features: Features | None = None,
        class_names: Sequence[str] | None = None,
    ) -> NoiseManifest:
        """Check the split, corrupt it and write the record; see `Injector.inject`."""
        self.check_kind(labels)
        target = target_of(labels)
        clean = target.checked(labels, num_classes)
        params = self.record()
        if isinstance(features, Mapping):
            features = features.get(self.feature_kind)
        array = None if features is None else np.asarray(features)
        if self.needs_features:
            if array is None:
                raise UserError(
                    f"noise={self.name} depends on the images and needs {self.feature_kind}, but "
                    "none were given; use a data set with images or another injector."
                )
            if array.ndim != 2 or len(array) != len(clean):
                raise ValueError(f"features {list(array.shape)} do not fit {len(clean)} labels")
            if not np.isfinite(array).all():
                raise UserError(
                    f"The {self.feature_kind} for noise={self.name} hold NaN or infinity; check "
                    "the images or the network they come from."
                )
        samples = Samples(
            labels=clean,
            num_classes=num_classes,
            ids=sample_ids(len(clean), keys),
            keys=keys,
            features=array,
            class_names=class_names,
        )
        if self.idle() or len(clean) == 0:
            rate = params.get("rate")
            outcome = Outcome(
                observed=clean, nominal_rate=rate if isinstance(rate, int | float) else None
            )
        else:
            outcome = self.corrupt(samples)
        return NoiseManifest(
            observed=outcome.observed,
            clean=clean if outcome.clean is None else outcome.clean,
            changed=target.changed(outcome.observed, clean)
            if outcome.changed is None
            else outcome.changed,
            num_classes=num_classes if outcome.num_classes is None else outcome.num_classes,
            injector=self.name,
            params=params,
            seed=params.get("seed"),
            nominal_rate=outcome.nominal_rate,
            source_index=outcome.source_index,
            keys=keys,
            num_clean_classes=num_classes,
            class_source=outcome.class_source,
            details=outcome.details,
        )


@dataclass(frozen=True, kw_only=True)
class SeededInjector(SplitInjector):
    """An injector that draws.

    Args:
        seed: the seed of the noise alone; training seeds do not touch it.
    """

    seed: WholeNonNegative = 0

    @property
    def draws(self) -> Draws:
        """The injector's source of random numbers."""
        return Draws(seed=self.seed, injector=self.name)


@dataclass(frozen=True, kw_only=True)
class NoNoise(SplitInjector):
    """Leaves the labels as they are.

    Example:
        >>> from noisyml.noise import NoNoise
        >>> NoNoise().inject([0, 1, 1], 2).actual_rate
        0.0
    """

    name: ClassVar[str] = "none"
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset(TARGETS)

    def corrupt(self, samples: Samples) -> Outcome:
        """The clean labels."""
        return Outcome(observed=samples.labels, nominal_rate=0.0)
