"""The baseline without selection."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from noisyml.selectors.base import Evidence, Selection, Selector
from noisyml.targets import TARGETS, TargetKind


@torch.no_grad()
def batch_margin(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Nearness of each sample to its class in the batch, less that to the nearest other class.

    Nearness is the mean cosine to the samples of the class, the sample itself left out.

    Args:
        embeddings: unit-norm [B, D], or of k batches [k, B, D].
        labels: [B] int64, or [k, B].

    Returns:
        Like `labels`, in [-2, 2]; NaN for the only sample of its class, or where the batch has one
        class.

    Example:
        >>> e = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> batch_margin(e, torch.tensor([0, 0, 1, 1])).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    rows = embeddings.float()
    if not labels.numel():
        return rows.new_empty(labels.shape)
    cosine = rows @ rows.mT
    same = labels[..., :, None] == labels[..., None, :]
    weights = same.float()
    count = weights.sum(dim=-1)
    # Column j: the sum of cosines to the class of sample j.
    sums = cosine @ weights
    own = _diagonal(sums).sub(_diagonal(cosine)).div_(count - 1)
    other = sums.div_(count[..., None, :]).masked_fill_(same, -torch.inf).amax(dim=-1)
    margin = own - other
    return margin.masked_fill_(~margin.isfinite(), torch.nan)


def _diagonal(squares: Tensor) -> Tensor:
    return squares.diagonal(dim1=-2, dim2=-1)


class KeepAll(Selector):
    """Trusts every sample and scores none."""

    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset(TARGETS)
    gives_scores: ClassVar[bool] = False

    @torch.no_grad()
    def select(self, evidence: Evidence) -> Selection:
        """Keep the whole batch; `p_clean` is NaN."""
        return Selection.keep_everything(evidence.labels)
