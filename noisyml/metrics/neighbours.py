"""Neighbours that a reduction keeps: no labels are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from noisyml.checks import Count
from noisyml.distributed import gather
from noisyml.errors import UserError
from noisyml.metrics.base import Evaluator, SplitRole
from noisyml.similarity.search import self_topk
from noisyml.targets import TARGETS, TargetKind

Metric = Literal["cosine", "l2", "ip"]


@torch.no_grad()
def kept_neighbours(inputs: Tensor, embeddings: Tensor, k: int, metric: Metric = "cosine") -> float:
    """Mean share of each row's k nearest inputs that are among its k nearest embeddings.

    Args:
        inputs: [N, D] float.
        embeddings: [N, d] float, of the same rows.
        k: neighbours, below N.
        metric: on both sides.

    Raises:
        UserError: fewer rows than that, or rows that are not finite.

    Example:
        >>> import torch
        >>> line = torch.tensor([[0.0], [1.0], [3.0], [9.0]])
        >>> kept_neighbours(line, -line, 1, metric="l2")
        1.0
    """
    if k >= len(inputs):
        raise UserError(
            f"evaluators.neighbours.k has {k}, but there are only {len(inputs) - 1} other vectors "
            f"to be neighbours: lower it."
        )
    before, after = (self_topk(rows, k, metric=metric).index for rows in (inputs, embeddings))
    shared = (before[:, :, None] == after[:, None, :]).any(dim=2)
    return float(shared.double().mean())


class NeighbourEvaluator(Evaluator):
    """Shares of the neighbours among the inputs that are neighbours among the embeddings.

    Args:
        k: numbers of neighbours; each adds ``neighbours_kept_at_K``.
        metric: ``cosine``, ``l2`` or ``ip``, on both sides.
        headline: the metric that checkpoints and progress go by unless told otherwise; None: of the
            first k.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"embeddings", "inputs"})
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset(TARGETS)
    reads_labels: ClassVar[bool] = False

    def __init__(
        self,
        k: Sequence[Count] = (10,),
        metric: Metric = "cosine",
        headline: str | None = None,
    ) -> None:
        if not k:
            raise UserError("The evaluator of neighbours measures nothing: name numbers k.")
        self.k = list(k)
        self.metric = metric
        self.headline = headline or f"neighbours_kept_at_{self.k[0]}"
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(
        self,
        outputs: Mapping[str, Tensor],
        targets: Tensor,
        index: Tensor,
        role: SplitRole = "pool",
    ) -> None:
        """Take in one batch of ``embeddings`` and ``inputs``; a gallery is passed over."""
        if role in ("pool", "query"):
            rows = (self.needed(outputs, "inputs"), self.needed(outputs, "embeddings"))
            self._batches.append((index.detach(), rows[0].detach(), rows[1].detach()))

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """The shares over all samples of all ranks, each counted once.

        Raises:
            UserError: too few samples, or none.
        """
        # A rank without a batch asks the others what theirs look like.
        widths = gather(torch.tensor([[x.shape[1] for x in b[1:]] for b in self._batches[:1]],
                                     dtype=torch.int64).reshape(-1, 2))  # fmt: skip
        if not len(widths):
            raise UserError("The evaluator of neighbours has seen no samples.")
        empty = (torch.empty(0, dtype=torch.int64), *(torch.empty(0, int(w)) for w in widths[0]))
        parts = list(zip(*self._batches, strict=True)) or [(part,) for part in empty]
        index, inputs, embeddings = (gather(torch.cat(list(part))) for part in parts)
        order = index.argsort(stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = index[order][1:] != index[order][:-1]
        order = order[first]
        return {
            f"neighbours_kept_at_{k}": kept_neighbours(
                inputs[order].float(), embeddings[order].float(), k, self.metric
            )
            for k in self.k
        }
