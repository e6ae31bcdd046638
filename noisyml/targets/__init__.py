"""Kinds of labels: everything that depends on what a label is.

One object per kind answers every question about labels of that kind, so that no other package
tests the shape of an array: `Target` is the interface, `SINGLE` (one class per sample), `PARTIAL`
(one class or none), `MULTI` (any number of classes per sample), `PAIRS` (a caption per sample) and
`MASKS` (a class per pixel) are the kinds there are, and `target_of` finds the kind of given labels.
A further kind is a module beside `labels` with a subclass of `Target`, its word in `TargetKind`,
and its place in `TARGETS`.

Example:
    >>> import numpy as np
    >>> from noisyml.targets import target_of
    >>> several = np.array([[1, 0, 1], [0, 0, 0]], dtype=np.uint8)
    >>> target_of(several).texts(several, ["ant", "bee", "cat"])
    ['ant + cat', 'no label']
    >>> target_of(several).words
    'several labels per image'
"""

from noisyml.targets.base import Labels, Target, TargetKind
from noisyml.targets.kinds import TARGETS, label_fields, labels_of, target_of
from noisyml.targets.labels import MULTI, SINGLE, LabelChanges
from noisyml.targets.masks import MASKS
from noisyml.targets.pairs import PAIRS, texts_of
from noisyml.targets.partial import PARTIAL

__all__ = [
    "MASKS",
    "MULTI",
    "PAIRS",
    "PARTIAL",
    "SINGLE",
    "TARGETS",
    "LabelChanges",
    "Labels",
    "Target",
    "TargetKind",
    "label_fields",
    "labels_of",
    "target_of",
    "texts_of",
]
