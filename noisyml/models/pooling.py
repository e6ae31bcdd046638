"""Global pooling: from a feature map to one vector per image."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisyml.checks import Checked, Count, Positive, checked

Pooling = Literal["avg", "max", "sum", "gem"]


class AverageAndMax(nn.Module):
    """The sum of average and maximum over the positions of a map (arXiv 2211.16264)."""

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 1, 1]."""
        return F.adaptive_avg_pool2d(maps, 1) + F.adaptive_max_pool2d(maps, 1)


class GeneralisedMean(Checked, nn.Module):
    """GeM: the p-th root of the mean of p-th powers (Radenovic, Tolias, Chum, TPAMI 2019, eq. 3).

    Args:
        p: exponent; 1 is the average, and the larger it is, the nearer the maximum.
        learnable: train the exponent, one for all channels.
        eps: smallest activation, so that powers and their gradients are finite.
    """

    def __init__(self, p: Positive = 3.0, learnable: bool = True, eps: Positive = 1e-6) -> None:
        super().__init__()
        exponent = torch.tensor([float(p)])
        if learnable:
            self.p = nn.Parameter(exponent)
        else:
            self.register_buffer("p", exponent)
        self.eps = eps

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 1, 1]."""
        # Powers overflow half precision at small activations already: 41 ** 3 > 65504.
        with torch.autocast(maps.device.type, enabled=False):
            x = maps.to(torch.promote_types(maps.dtype, torch.float32)).clamp(min=self.eps)
            return x.pow(self.p).mean(dim=(-2, -1), keepdim=True).pow(1 / self.p)

    def extra_repr(self) -> str:
        """The settings, which belong to a backbone's fingerprint."""
        return f"learnable={isinstance(self.p, nn.Parameter)}, eps={self.eps}"


class LargestMean(Checked, nn.Module):
    """The mean of the k largest activations of each channel; k = 1 is the maximum.

    Args:
        k: how many; maps with fewer positions give the mean of all.
    """

    def __init__(self, k: Count) -> None:
        super().__init__()
        self.k = k

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 1, 1]."""
        flat = maps.flatten(2)
        largest = flat.topk(min(self.k, flat.shape[2]), dim=2).values
        return largest.mean(dim=2)[..., None, None]

    def extra_repr(self) -> str:
        """The settings, which belong to a backbone's fingerprint."""
        return f"k={self.k}"


def global_pooling(pooling: Pooling | nn.Module) -> nn.Module:
    """The module of a pooling, [B, C, H, W] to [B, C, 1, 1].

    Args:
        pooling: ``avg``, ``max``, ``sum`` (average plus maximum), ``gem`` (learnable exponent,
            starting from 3), or a module of one's own.

    Raises:
        UserError: another name.
    """
    return pooling if isinstance(pooling, nn.Module) else _by_name(pooling)


def state_names(body: nn.Module, pool: str) -> set[str]:
    """Names of the state of a network's exchanged pooling, which no published file holds.

    Args:
        body: the network.
        pool: name of its pooling.
    """
    return {f"{pool}.{name}" for name in body.get_submodule(pool).state_dict()}


@checked
def _by_name(pooling: Pooling) -> nn.Module:
    modules = {
        "avg": lambda: nn.AdaptiveAvgPool2d(1),
        "max": lambda: nn.AdaptiveMaxPool2d(1),
        "sum": AverageAndMax,
        "gem": GeneralisedMean,
    }
    module: nn.Module = modules[pooling]()
    return module
