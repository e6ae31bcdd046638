"""Losses on the two codes of a pair: redundancy reduction, and an autoencoder's.

Redundancy reduction (Barlow Twins: Zbontar et al., ICML 2021, arXiv 2103.03230; TLDR: Kalantidis et
al., TMLR 2022, arXiv 2110.09455) wants the cross-correlation of both sides to be the identity: each
dimension agrees with itself, and tells nothing of the others. There are no negatives.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from noisyml.checks import Count, NonNegative, Positive, checked
from noisyml.losses.gram import gram

#: Weights of the off-diagonal entries and of the whole, as released.
LAMBD, SCALE = 3.9e-3, 1 / 32
#: Standard deviation of Gaussian partners, as a share of the root of the batch's own.
GAUSSIAN_SHARE = 0.1

Form = Literal["auto", "correlation", "gram"]


@checked
def redundancy_reduction(
    first: Tensor,
    second: Tensor,
    *,
    batch_size: Count | None = None,
    lambd: NonNegative = LAMBD,
    scale: Positive = SCALE,
    form: Form = "auto",
) -> Tensor:
    """Distance of the cross-correlation C = first^T second / B from the identity.

    ``scale * (sum_a (C_aa - 1)^2 + lambd * sum_{a != b} C_ab^2)``: sums, not means. The value is
    the same in both forms: ``correlation`` makes C [d, d], ``gram`` two matrices [B, B], by
    ``sum_ab C_ab^2 = sum_il (first_i . first_l) (second_i . second_l) / B^2``.

    Args:
        first: [B, d] float, one side, each column standardised over the batch.
        second: [B, d] float, the other side.
        batch_size: the divisor B; None: the number of rows.
        lambd: weight of the entries off the diagonal.
        scale: of the whole.
        form: ``auto`` takes ``gram`` where there are fewer rows than columns.

    Returns:
        Scalar, float32 or better whatever the precision around it.

    Source: Zbontar et al., equation 1; scale as TLDR's released code has it.

    Example:
        >>> import torch
        >>> sides = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> float(redundancy_reduction(sides, sides))
        0.0
        >>> float(redundancy_reduction(sides, -sides, scale=1.0))
        8.0
    """
    with torch.autocast(first.device.type, enabled=False):
        precision = torch.promote_types(first.dtype, torch.float32)
        first, second = first.to(precision), second.to(precision)
        rows, columns = first.shape
        divisor = rows if batch_size is None else batch_size
        diagonal = (first * second).sum(0) / divisor
        loss = (diagonal - 1).square().sum()
        if lambd:
            if form == "gram" or (form == "auto" and rows < columns):
                products = gram(first).flatten() @ gram(second).flatten()
                entries = products / divisor**2
            else:
                correlation = (first.T @ second / divisor).flatten()
                entries = correlation @ correlation
            loss = loss + lambd * (entries - diagonal.square().sum())
        return scale * loss


@checked
def reconstruction_error(inputs: Tensor, outputs: Tensor, *, scale: Positive = SCALE) -> Tensor:
    """Mean squared difference of inputs and outputs [B, D], times `scale`: an autoencoder's loss.

    Args:
        inputs: [B, D] float, both sides of the pairs one after the other.
        outputs: [B, D] float, what was made of them.
        scale: of the whole.

    Raises:
        ValueError: the outputs have another width.

    Example:
        >>> import torch
        >>> float(reconstruction_error(torch.zeros(2, 3), torch.ones(2, 3), scale=0.5))
        0.5
    """
    if inputs.shape != outputs.shape:
        raise ValueError(f"outputs {list(outputs.shape)} must be like inputs {list(inputs.shape)}")
    return scale * (inputs - outputs).square().mean()


def gaussian_partners(rows: Tensor, noise: Tensor, share: float = GAUSSIAN_SHARE) -> Tensor:
    """Rows with noise added: partners that ask no graph, TLDR's ablation.

    The deviation of the noise is ``share * sqrt(s)``, s being the (unbiased) standard deviation of
    all entries of the batch; the root is as released.

    Args:
        rows: [B, D] float, the global batch.
        noise: [B, D] float, standard normal.
        share: see above.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[0.0, 0.0], [8.0, 8.0]])
        >>> gaussian_partners(rows, torch.ones(2, 2))
        tensor([[0.2149, 0.2149],
                [8.2149, 8.2149]])
    """
    return rows + share * rows.std().sqrt() * noise
