"""Several noises one after the other, with one record that keeps the first truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from noisyml.errors import UserError
from noisyml.noise.base import FeatureKind, Features, Injector
from noisyml.noise.manifest import NoiseManifest


@dataclass(frozen=True, kw_only=True)
class Composed(Injector):
    """Several noises: each corrupts the labels that the one before it left.

    The record compares with the labels before the first of them, so that a label that a later step
    happens to put right counts as right.

    Args:
        steps: the noises by name, in their order; at least two.

    Raises:
        UserError: a step that cannot come where it stands, or two that draw alike.

    Example:
        >>> from noisyml.noise import Composed, Pair, Symmetric
        >>> noise = Composed(steps={"pair": Pair(rate=1.0), "other": Symmetric(rate=0.5)})
        >>> manifest = noise.inject([0, 1, 2, 0, 1, 2], 3)
        >>> manifest.clean.tolist(), manifest.observed.tolist()
        ([0, 1, 2, 0, 1, 2], [1, 2, 1, 1, 2, 1])
        >>> round(manifest.actual_rate, 2), manifest.details["steps"]["other"]["changed"]
        (1.0, 0.3333333333333333)
    """

    name: ClassVar[str] = "composed"

    steps: Mapping[str, Injector]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.steps) < 2:
            raise UserError(
                f"noise=composed has {len(self.steps)} steps and wants two or more: write e.g. "
                f"noise=[pair,symmetric]."
            )
        steps = list(self.steps.values())
        kinds = frozenset.intersection(*(step.target_kinds for step in steps))
        if not kinds:
            listed = " and ".join(step.name for step in steps)
            raise UserError(
                f"The noises {listed} are for different kinds of labels: compose noises of one "
                f"kind."
            )
        for name, step in list(self.steps.items())[1:]:
            if step.replaces_labels:
                raise UserError(
                    f"noise.steps.{name} gives every sample the label of a file, whatever the "
                    f"steps before it did: make it the first step."
                )
            if step.renumbers_classes:
                raise UserError(
                    f"noise.steps.{name} dissolves classes, which the steps after the first have "
                    f"no pictures of: make it the first step."
                )
        drawn: dict[tuple[str, Any], str] = {}
        for name, step in self.steps.items():
            if (seed := getattr(step, "seed", None)) is None:
                continue
            if (other := drawn.setdefault((step.name, seed), name)) != name:
                raise UserError(
                    f"noise.steps.{other} and noise.steps.{name} draw the same numbers "
                    f"({step.name} with seed {seed}): give one of them another seed."
                )
        # What it needs and what it is for follows from its steps.
        put = object.__setattr__
        put(self, "target_kinds", kinds)
        put(self, "training_only", any(step.training_only for step in steps))

    @property
    def wants(self) -> frozenset[FeatureKind]:
        """The kinds of features that any step needs."""
        return frozenset().union(*(step.wants for step in self.steps.values()))

    def sized(self, foreign_images: Callable[[], int]) -> Composed:
        """The same steps, each told the number of foreign images if it asks."""
        return replace(self, steps={n: s.sized(foreign_images) for n, s in self.steps.items()})

    def inject(
        self,
        labels: ArrayLike,
        num_classes: int,
        *,
        keys: Sequence[str] | None = None,
        features: Features | None = None,
        class_names: Sequence[str] | None = None,
    ) -> NoiseManifest:
        """Corrupt step by step; see `Injector.inject`."""
        self.check_kind(labels)
        told: dict[str, Any] = {}
        whole: NoiseManifest | None = None
        for name, step in self.steps.items():
            given: dict[str, Any] = {"keys": keys, "features": features if step.wants else None}
            if whole is None:
                whole = part = step.inject(labels, num_classes, class_names=class_names, **given)
            else:
                if whole.class_source is None:
                    given["class_names"] = class_names
                elif "probabilities" in step.wants:
                    raise UserError(
                        f"noise.steps.{name} needs the probability of every class, and the step "
                        f"before it renumbers them: choose another order."
                    )
                part = step.inject(whole.observed, whole.num_classes, **given)
                whole = followed_by(whole, part)
            told[name] = {
                "injector": part.injector,
                "params": part.params,
                "nominal_rate": part.nominal_rate,
                "changed": float(part.changed.mean()) if len(part) else 0.0,
                "details": part.details,
            }
        assert whole is not None
        return replace(
            whole,
            injector=self.name,
            params={"steps": {name: entry["params"] for name, entry in told.items()}},
            seed=None,
            nominal_rate=None,
            details={"steps": told},
        )


def followed_by(first: NoiseManifest, second: NoiseManifest) -> NoiseManifest:
    """The record of two corruptions: the truth of the first, the labels of the second.

    Args:
        first: of the split.
        second: of the labels that `first` observes; keeps their classes.

    Returns:
        The first's record with the second's labels. A label of which `first` does not know whether
        it was right stays unknown.

    Raises:
        ValueError: another number of samples, or classes that the second renumbers.

    Example:
        >>> from noisyml.noise import Symmetric
        >>> once = Symmetric(rate=1.0, seed=0).inject([0, 1, 0, 1], 2)
        >>> twice = followed_by(once, Symmetric(rate=1.0, seed=1).inject(once.observed, 2))
        >>> twice.observed.tolist(), twice.actual_rate
        ([0, 1, 0, 1], 0.0)
    """
    if len(first) != len(second) or second.class_source is not None:
        raise ValueError("the second record is not one of the labels that the first observes")
    target, clean = first.target, first.clean
    unknown = target.unknown(first.clean, first.changed)
    source = first.source_index
    if second.source_index is not None:
        before = np.full(len(first), -1) if source is None else source
        source = np.where(second.source_index >= 0, second.source_index, before)
        clean = np.where(source >= 0, -1, clean)
    named = second.observed
    if first.class_source is not None:
        named = first.class_source[named]
    changed = target.changed(named, clean) & ~unknown
    if source is not None:
        changed = changed | (source >= 0)
    return replace(
        first, observed=second.observed, clean=clean, changed=changed, source_index=source
    )
