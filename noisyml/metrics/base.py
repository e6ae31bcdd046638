"""What an evaluator is to the rest of the house."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

from torch import Tensor

from noisyml.runs.artefacts import Artefact
from noisyml.targets import TargetKind

SplitRole = Literal["pool", "query", "gallery"]


class Evaluator(ABC):
    """Streams embeddings or logits in, gives a flat dict of named metrics out.

    Exact under DDP: the ranks' shards may be uneven or empty, samples that a distributed sampler
    repeated for padding count once (recognised by `index`), and every rank returns the same dict.
    """

    #: What a model must give: ``embeddings`` or ``logits``.
    needs: ClassVar[frozenset[str]] = frozenset({"embeddings"})
    #: Which labels it evaluates against.
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset({"single"})
    #: What the classes are called, for metrics named after them; set before use.
    class_names: Sequence[str] = ()

    @abstractmethod
    def update(
        self,
        *,
        index: Tensor,
        labels: Tensor,
        embeddings: Tensor | None = None,
        logits: Tensor | None = None,
        split_role: SplitRole = "pool",
    ) -> None:
        """Take in one batch of this rank.

        Args:
            index: positions in the split [b] int64.
            labels: [b] int64, or multi-hot [b, C].
            embeddings: [b, D] float or None.
            logits: [b, C] float or None.
            split_role: ``pool`` (queries that are their own gallery), ``query`` or ``gallery``.

        Raises:
            UserError: the metrics asked for need an output that the model does not give.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The metrics over everything taken in on all ranks; a collective call.

        Names carry no split prefix (``precision_at_1``); fractions of 1; NaN where undefined.
        """

    def artefacts(self) -> Iterable[Artefact]:
        """Pictures and tables for the run folder and its report; here none.

        Called on every rank between `compute` and `reset` of a test.
        """
        return ()

    @abstractmethod
    def reset(self) -> None:
        """Forget all batches."""
