"""Any loss of pytorch-metric-learning, by its class name.

Musgrave et al., "PyTorch Metric Learning", 2020 (arXiv 2008.09164). The formulas and their sources
stand in that library's documentation.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

from noisyml.checks import Count
from noisyml.errors import UserError
from noisyml.losses.base import Declared, EmbeddingLoss
from noisyml.similarity.memory_bank import MemoryBank

#: Losses that cannot be computed from embeddings and labels with arguments from a config file.
_UNSUITABLE = frozenset({"BaseMetricLossFunction", "GenericPairLoss", "ManifoldLoss", "VICRegLoss"})
#: Where the library keeps class vectors, and along which axis of the parameter the classes lie.
_CLASS_VECTORS = {"proxies": 0, "W": 1, "fc": 1}
#: Losses that learn vectors per class, and the argument that says how many; None: always one.
_CENTRES = {
    "ArcFaceLoss": None,
    "CosFaceLoss": None,
    "LargeMarginSoftmaxLoss": None,
    "NormalizedSoftmaxLoss": None,
    "ProxyAnchorLoss": None,
    "ProxyNCALoss": None,
    "SoftTripleLoss": "centers_per_class",
    "SphereFaceLoss": None,
    "SubCenterArcFaceLoss": "sub_centers",
}


class PMLLoss(EmbeddingLoss):
    """A loss of pytorch-metric-learning on the kept samples of a batch.

    Args:
        name: class in `pytorch_metric_learning.losses`, such as ``CircleLoss``.
        num_classes: C, handed on to losses that ask for it.
        embedding_size: D, handed on to losses that ask for it.
        params: further constructor arguments of the loss, by the library's names.
        miner: class in `pytorch_metric_learning.miners`, or None for all pairs and triplets.
        miner_params: constructor arguments of the miner.

    Raises:
        UserError: unknown loss, miner or argument, or a missing argument.

    Example:
        >>> loss = PMLLoss("ProxyAnchorLoss", num_classes=3, embedding_size=2, params={"alpha": 32})
        >>> loss.proxies().shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        name: str,
        num_classes: Count,
        embedding_size: Count,
        params: Mapping[str, Any] | None = None,
        miner: str | None = None,
        miner_params: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        kind = _find_class("loss", name, _loss_classes())
        arguments = dict(params or {})
        known = _argument_names(kind)
        for key, value in (("num_classes", num_classes), ("embedding_size", embedding_size)):
            if key in known:
                arguments.setdefault(key, value)
        self.name = name
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.loss: nn.Module = _construct("loss.params", kind, arguments)
        self.miner: nn.Module | None = None
        if miner is not None:
            miner_kind = _find_class("miner", miner, _miner_classes())
            self.miner = _construct("loss.miner_params", miner_kind, dict(miner_params or {}))
        elif miner_params:
            raise UserError("loss.miner_params is set without a miner: set loss.miner as well.")
        if self._class_vectors() is not None:
            self.gives = frozenset({"proxies"})

    @classmethod
    def declares(cls, settings: Mapping[str, Any]) -> Declared:
        """Proxies, if the loss called ``name`` learns exactly one vector per class."""
        name, params = settings.get("name"), settings.get("params") or {}
        argument = _CENTRES.get(str(name), "")
        one = argument is None or params.get(argument) == 1
        return Declared(cls.needs, frozenset({"proxies"} if one else ()))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        memory: MemoryBank | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The loss of the kept samples; `memory` is not read. Computed in float32 at least."""
        if keep is not None:
            kept = keep.nonzero().squeeze(1)  # once: every boolean mask waits for the device
            embeddings, labels = embeddings[kept], labels[kept]
        if len(embeddings) == 0:
            # Every parameter takes part, so that no process waits for a missing gradient.
            return sum((p.sum() * 0 for p in self.parameters()), embeddings.sum() * 0)
        # The library casts its parameters to the embeddings' type: half precision would stay.
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
            mined = self.miner(embeddings, labels) if self.miner is not None else None
            value: Tensor = self.loss(embeddings, labels, mined)
        return value

    def proxies(self) -> Tensor:
        """Class vectors [C, D], unit norm, detached.

        Raises:
            TypeError: the loss has none, or several per class.
        """
        vectors = self._class_vectors()
        if vectors is None:
            raise TypeError(f"{self.name} does not keep exactly one vector per class")
        return nn.functional.normalize(vectors.detach(), dim=1)

    def _class_vectors(self) -> Tensor | None:
        for name, class_axis in _CLASS_VECTORS.items():
            weight = getattr(self.loss, name, None)
            if isinstance(weight, nn.Parameter):
                vectors = weight if class_axis == 0 else weight.T
                if vectors.shape == (self.num_classes, self.embedding_size):
                    return vectors
        return None


def _loss_classes() -> dict[str, type[nn.Module]]:
    classes = _subclasses(losses, losses.BaseMetricLossFunction)
    return {name: kind for name, kind in classes.items() if name not in _UNSUITABLE}


def _miner_classes() -> dict[str, type[nn.Module]]:
    classes = _subclasses(miners, miners.BaseMiner)
    return {name: kind for name, kind in classes.items() if kind is not miners.BaseMiner}


def _subclasses(package: ModuleType, base: type[nn.Module]) -> dict[str, type[nn.Module]]:
    return {
        name: kind
        for name, kind in inspect.getmembers(package, inspect.isclass)
        if issubclass(kind, base)
    }


def _find_class(role: str, name: str, classes: dict[str, type[nn.Module]]) -> type[nn.Module]:
    if name in classes:
        return classes[name]
    lowered = {known.lower(): known for known in classes}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=3, cutoff=0.5)
    candidates = ", ".join(lowered[match] for match in close) or ", ".join(sorted(classes))
    raise UserError(
        f"pytorch-metric-learning has no {role} {name!r}: use one such as {candidates}."
    )


def _argument_names(kind: type[nn.Module]) -> set[str]:
    """Names of all constructor arguments, those handed up to base classes included."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name
        for base in kind.__mro__
        if base not in (nn.Module, object) and "__init__" in vars(base)
        for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items()
        if name != "self" and parameter.kind in named
    }


def _construct(key: str, kind: type[nn.Module], arguments: dict[str, Any]) -> nn.Module:
    known = _argument_names(kind)
    for name in arguments:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"use {close[0]}" if close else f"it takes {', '.join(sorted(known))}"
            raise UserError(f"{key}.{name} is no argument of {kind.__name__}: {hint}.")
    try:
        return kind(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"{kind.__name__} could not be built from {key}={arguments}: {error}; correct {key}."
        ) from error
