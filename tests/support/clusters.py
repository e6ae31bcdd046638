"""Rows scattered around class centres."""

from __future__ import annotations

import torch
from torch import Tensor


def clusters(
    n: int, classes: int, dim: int = 16, seed: int = 0, noise: float = 0.8
) -> tuple[Tensor, Tensor]:
    """Rows [n, dim] float32 around Gaussian centres, and their classes [n] int64."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, dim, generator=generator)
    return centres[y] + noise * torch.randn(n, dim, generator=generator), y
