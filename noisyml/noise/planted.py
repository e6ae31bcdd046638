"""Errors planted in labels on purpose, to measure whether a ranking of suspects finds errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from noisyml.noise.injectors.class_conditional import Symmetric
from noisyml.noise.injectors.composed import followed_by
from noisyml.noise.injectors.multilabel import MultiLabelMixed
from noisyml.noise.manifest import NoiseManifest

#: Where a record keeps what was planted, among its details.
_DETAIL = "planted"


# Names of their own: draws depend on them, and those of the noise must be others.
@dataclass(frozen=True, kw_only=True)
class _PlantedLabels(Symmetric):
    name: ClassVar[str] = "planted"


@dataclass(frozen=True, kw_only=True)
class _PlantedEntries(MultiLabelMixed):
    name: ClassVar[str] = "planted"


def plant_errors(manifest: NoiseManifest, share: float, seed: int = 0) -> NoiseManifest:
    """Flip some of the observed labels, whether they are right or wrong, and note which.

    One label per sample: that share of the samples gets another class, drawn evenly. Several: that
    share of each class's labels is removed, and as many are added elsewhere.

    Args:
        manifest: the labels as they are.
        share: fraction of 1.
        seed: of the draw, which depends on the samples' keys and not on their order.

    Returns:
        The record with the planted labels; `planted` finds them again. Where nobody knows whether a
        label was right, that stays unknown.

    Raises:
        UserError: fewer than two classes.

    Example:
        >>> from noisyml.noise import NoNoise
        >>> manifest = plant_errors(NoNoise().inject([0, 1, 2, 0, 1, 2, 0, 1, 2, 0], 3), share=0.2)
        >>> planted(manifest).tolist(), manifest.observed.tolist(), manifest.actual_rate
        ([7, 8], [0, 1, 2, 0, 1, 2, 0, 2, 0, 0], 0.2)
    """
    noise: Symmetric | MultiLabelMixed
    if manifest.target.exclusive:
        noise = _PlantedLabels(rate=share, count="exact_global", seed=seed)
    else:
        noise = _PlantedEntries(rate=share, seed=seed)
    errors = noise.inject(manifest.observed, manifest.num_classes, keys=manifest.keys)
    numbers = np.flatnonzero(errors.changed.ravel()).tolist()
    told = {"share": share, "seed": seed, "numbers": numbers}
    return replace(followed_by(manifest, errors), details={**manifest.details, _DETAIL: told})


def planted(manifest: NoiseManifest) -> NDArray[np.int64]:
    """Numbers of the planted errors, int64 [n]: positions, or ``position * C + class`` of entries.

    Example:
        >>> from noisyml.noise import NoNoise
        >>> planted(NoNoise().inject([0, 1], 2)).tolist()
        []
    """
    told = manifest.details.get(_DETAIL, {})
    return np.asarray(told.get("numbers", []), dtype=np.int64)
