"""Instance discrimination: every image a class of its own, told apart by a softmax.

`nt_xent` within a batch (Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020), `queue_info_nce` against a queue of earlier keys (He et al., "Momentum
Contrast for Unsupervised Visual Representation Learning", CVPR 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor

from noisyml.checks import Positive, checked


@checked
def nt_xent(embeddings: Tensor, labels: Tensor, temperature: Positive = 0.5) -> Tensor:
    """Normalised temperature-scaled cross-entropy of a batch with itself.

    For rows i and the other rows j of its label: minus log of the share of ``exp(s_ij / t)`` among
    all rows but i, averaged over j and then over i. With two rows of each label it is SimCLR's loss
    (eq. 1); with more, that of Khosla et al., NeurIPS 2020 (L_out).

    Args:
        embeddings: [B, D], unit norm.
        labels: [B] int64; rows whose label no other row has add nothing.
        temperature: t.

    Returns:
        Scalar; 0 where no row has a partner.

    Example:
        >>> rows = torch.eye(2, dtype=torch.float64)[[0, 1, 0, 1]]
        >>> round(float(nt_xent(rows, torch.tensor([1, 2, 1, 2]), temperature=1.0)), 4)
        0.5514
    """
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    logits = (embeddings @ embeddings.T / temperature).masked_fill(itself, -torch.inf)
    same = (labels[:, None] == labels) & ~itself
    counts = same.sum(dim=1)
    own = logits.masked_fill(~same, 0.0).sum(dim=1) / counts.clamp(min=1)
    losses = logits.logsumexp(dim=1) - own
    has = counts > 0
    return losses.masked_fill(~has, 0.0).sum() / has.sum().clamp(min=1)


@checked
def queue_info_nce(
    queries: Tensor, keys: Tensor, queue: Tensor, temperature: Positive = 0.07
) -> Tensor:
    """Cross-entropy of queries with their key among a queue of other keys.

    Args:
        queries: [A, D], unit norm.
        keys: [A, K, D], unit norm, constant; with several keys the loss is their mean.
        queue: [Q, D], unit norm, constant.
        temperature: divides the similarities.

    Returns:
        Scalar, the mean over queries and keys (eq. 1 of the paper).

    Example:
        >>> rows = torch.eye(2, dtype=torch.float64)
        >>> loss = queue_info_nce(rows[:1], rows[None, :1], rows[1:], temperature=1.0)
        >>> round(float(loss), 4)
        0.3133
    """
    positive = torch.einsum("ad,akd->ak", queries, keys.detach()) / temperature
    negative = (queries @ queue.detach().T / temperature).logsumexp(dim=1, keepdim=True)
    return (torch.logaddexp(positive, negative) - positive).mean()
