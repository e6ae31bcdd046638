"""noisyml: representation learning when labels are wrong, few or missing.

The main functions of the library are here under one name, each loaded when it is first asked for::

    import noisyml

    manifest = noisyml.Symmetric(rate=0.4, seed=0).inject(labels, num_classes=10)
    neighbours = noisyml.self_topk(embeddings, 10)
    metrics = noisyml.retrieval_metrics(embeddings, labels)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisyml.api import compare as compare
    from noisyml.api import train as train
    from noisyml.embeddings.store import EmbeddingStore as EmbeddingStore
    from noisyml.estimators.labels import LabelAuditor as LabelAuditor
    from noisyml.estimators.labels import NoisyLabelClassifier as NoisyLabelClassifier
    from noisyml.estimators.tldr import TLDR as TLDR
    from noisyml.metrics.retrieval import retrieval_metrics as retrieval_metrics
    from noisyml.noise import Asymmetric as Asymmetric
    from noisyml.noise import CaptionDropWords as CaptionDropWords
    from noisyml.noise import CaptionGeneric as CaptionGeneric
    from noisyml.noise import CaptionShuffle as CaptionShuffle
    from noisyml.noise import ClassificationBased as ClassificationBased
    from noisyml.noise import Composed as Composed
    from noisyml.noise import FromManifest as FromManifest
    from noisyml.noise import HumanLabels as HumanLabels
    from noisyml.noise import LabelList as LabelList
    from noisyml.noise import Matrix as Matrix
    from noisyml.noise import MultiLabelMixed as MultiLabelMixed
    from noisyml.noise import MultiLabelPerSample as MultiLabelPerSample
    from noisyml.noise import MultiLabelUniform as MultiLabelUniform
    from noisyml.noise import NoNoise as NoNoise
    from noisyml.noise import OpenSet as OpenSet
    from noisyml.noise import Pair as Pair
    from noisyml.noise import PartDependent as PartDependent
    from noisyml.noise import PolynomialMarginDiminishing as PolynomialMarginDiminishing
    from noisyml.noise import SmallCluster as SmallCluster
    from noisyml.noise import Symmetric as Symmetric
    from noisyml.reports.tables import load_runs as load_runs
    from noisyml.similarity.kmeans import kmeans as kmeans
    from noisyml.similarity.search import self_topk as self_topk
    from noisyml.similarity.search import topk as topk
    from noisyml.similarity.transport import sinkhorn as sinkhorn

__version__ = "0.1.0"

#: Public names by the module that has them.
_NAMES = {
    "noisyml.api": ("compare", "train"),
    "noisyml.embeddings.store": ("EmbeddingStore",),
    "noisyml.estimators.labels": ("LabelAuditor", "NoisyLabelClassifier"),
    "noisyml.estimators.tldr": ("TLDR",),
    "noisyml.metrics.retrieval": ("retrieval_metrics",),
    "noisyml.noise": (
        "Asymmetric",
        "CaptionDropWords",
        "CaptionGeneric",
        "CaptionShuffle",
        "ClassificationBased",
        "Composed",
        "FromManifest",
        "HumanLabels",
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
        "OpenSet",
        "Pair",
        "PartDependent",
        "PolynomialMarginDiminishing",
        "SmallCluster",
        "Symmetric",
    ),
    "noisyml.reports.tables": ("load_runs",),
    "noisyml.similarity.kmeans": ("kmeans",),
    "noisyml.similarity.search": ("self_topk", "topk"),
    "noisyml.similarity.transport": ("sinkhorn",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
