"""Parts that assembly hands to every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from noisyml.losses.base import Loss
from noisyml.metrics.base import Evaluator
from noisyml.models.encoder import Encoder
from noisyml.optim import OptimizerFactory, SchedulerFactory
from noisyml.selectors.base import Selector
from noisyml.similarity.memory_bank import MemoryBank

_T = TypeVar("_T")


@dataclass(frozen=True)
class Sizes:
    """Sizes that are known once data and encoder are there.

    Attributes:
        num_classes: C, of the labels that teach.
        embedding_size: D.
        num_samples: N, of the training split.
        class_names: of the observed classes, in the order of their numbers.
    """

    num_classes: int
    embedding_size: int
    num_samples: int
    class_names: Sequence[str] = ()

    @property
    def arguments(self) -> dict[str, int]:
        """The numbers by the names under which constructors ask for them."""
        return {
            "num_classes": self.num_classes,
            "embedding_size": self.embedding_size,
            "num_samples": self.num_samples,
        }


@dataclass(frozen=True)
class Parts:
    """Everything a method needs that is not a setting of its own.

    Attributes:
        encoder: images or features to embeddings.
        another_encoder: makes a second network of the same configuration, which shares a frozen
            backbone.
        optimizer: parameter groups to an optimiser.
        scheduler: ``(optimizer, total_steps=...)`` to a schedule per step, or to a `Plateau`; None:
            constant rate.
        evaluators: compute the metrics of a split, by name.
        sizes: see `Sizes`.
        param_groups: optimiser arguments by prefix of parameter names, see
            `noisyml.optim.parameter_groups`.
        loss: of the kind that the method's `takes_loss` says, or None.
        selector: judges global batches; None where the method asks none.
        memory: bank of earlier embeddings; None where the method keeps none.
        training: False: built to evaluate only.
    """

    encoder: Encoder
    another_encoder: Callable[[], Encoder]
    optimizer: OptimizerFactory
    scheduler: SchedulerFactory | None
    evaluators: Mapping[str, Evaluator]
    sizes: Sizes
    param_groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    loss: Loss | None = None
    selector: Selector | None = None
    memory: MemoryBank | None = None
    training: bool = True

    def need(self, name: str, kind: type[_T]) -> _T:
        """The part called `name`.

        Raises:
            TypeError: it is not there, or of another kind.
        """
        part = getattr(self, name)
        if not isinstance(part, kind):
            raise TypeError(f"the part '{name}' must be a {kind.__name__}, not {part!r}")
        return part
