"""Label noise: seeded, pure NumPy, every corruption with a record of what it did.

In a notebook::

    from noisyml.noise import Symmetric
    manifest = Symmetric(rate=0.4, seed=0).inject(labels, num_classes=10)
    noisy_labels, is_wrong, rate = manifest.observed, manifest.changed, manifest.actual_rate
"""

from noisyml.noise.base import FeatureKind, Injector, NoNoise
from noisyml.noise.injectors.captions import (
    CaptionDropWords,
    CaptionGeneric,
    CaptionShuffle,
)
from noisyml.noise.injectors.class_conditional import Asymmetric, Matrix, Pair, Symmetric
from noisyml.noise.injectors.composed import Composed
from noisyml.noise.injectors.files import FromManifest, HumanLabels, LabelList
from noisyml.noise.injectors.instance import (
    ClassificationBased,
    PartDependent,
    PolynomialMarginDiminishing,
)
from noisyml.noise.injectors.masks import (
    MaskBoundary,
    MaskClassSwap,
    MaskMissing,
    MaskScribbles,
)
from noisyml.noise.injectors.multilabel import (
    MultiLabelMixed,
    MultiLabelPerSample,
    MultiLabelUniform,
)
from noisyml.noise.injectors.open_set import OpenSet
from noisyml.noise.injectors.small_cluster import SmallCluster
from noisyml.noise.manifest import NoiseManifest, SampleState
from noisyml.noise.planted import plant_errors, planted
from noisyml.noise.released.lists import check_official_list, manifest_from_list, read_list

__all__ = [
    "Asymmetric",
    "CaptionDropWords",
    "CaptionGeneric",
    "CaptionShuffle",
    "ClassificationBased",
    "Composed",
    "FeatureKind",
    "FromManifest",
    "HumanLabels",
    "Injector",
    "LabelList",
    "MaskBoundary",
    "MaskClassSwap",
    "MaskMissing",
    "MaskScribbles",
    "Matrix",
    "MultiLabelMixed",
    "MultiLabelPerSample",
    "MultiLabelUniform",
    "NoNoise",
    "NoiseManifest",
    "OpenSet",
    "Pair",
    "PartDependent",
    "PolynomialMarginDiminishing",
    "SampleState",
    "SmallCluster",
    "Symmetric",
    "check_official_list",
    "manifest_from_list",
    "plant_errors",
    "planted",
    "read_list",
]
