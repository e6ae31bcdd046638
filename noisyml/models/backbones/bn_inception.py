"""BN-Inception (Ioffe and Szegedy, ICML 2015, arXiv 1502.03167) as its Caffe model was published.

Modules bear the names of the converted Caffe weights (``bn_inception-52deb4733.pth`` and
``bn_inception-239d2248.pth`` of pretrainedmodels), so that these load by name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisyml.errors import UserError

#: Width of the last map.
OUT_FEATURES = 1024


@dataclass(frozen=True)
class _Widths:
    """Channels of one inception block, which exists in two forms.

    The common form joins four branches; the halving form (``single`` is 0) has no 1x1 branch, goes
    in strides of 2, and passes its pooled input on unprojected.
    """

    name: str
    single: int
    triple_reduce: int
    triple: int
    double_reduce: int
    double: int
    projection: int
    pool: str = "avg"


#: Table of the published Caffe model: 1x1; 3x3 reduce, 3x3; double reduce, double (both
#: convolutions); projection of the pooled input.
_BLOCKS = (
    _Widths("3a", 64, 64, 64, 64, 96, 32),
    _Widths("3b", 64, 64, 96, 64, 96, 64),
    _Widths("3c", 0, 128, 160, 64, 96, 0, "max"),
    _Widths("4a", 224, 64, 96, 96, 128, 128),
    _Widths("4b", 192, 96, 128, 96, 128, 128),
    _Widths("4c", 160, 128, 160, 128, 160, 128),
    _Widths("4d", 96, 128, 192, 160, 192, 128),
    _Widths("4e", 0, 128, 192, 192, 256, 0, "max"),
    _Widths("5a", 352, 192, 320, 160, 224, 128),
    _Widths("5b", 352, 192, 320, 192, 224, 128, "max"),
)


class BNInception(nn.Module):
    """The body of BN-Inception with a pooling of one's choice: 10.3 million parameters.

    Args:
        pooling: the module applied to the last map, [B, 1024, h, w] to [B, 1024, 1, 1].
        norm_momentum: weight of the newest batch in the running statistics of batch norm. 0.1 is
            PyTorch's default; the converted model says 0.9, Caffe's decay taken for PyTorch's
            weight. Without effect while the statistics are frozen.
    """

    def __init__(self, pooling: nn.Module, norm_momentum: float = 0.1) -> None:
        super().__init__()
        self._momentum = norm_momentum
        self._add("conv1_7x7_s2", 3, 64, 7, stride=2)
        self._add("conv2_3x3_reduce", 64, 64, 1)
        self._add("conv2_3x3", 64, 192, 3)
        self.stage1 = _Stage()
        self.stage2, self.stage3, self.stage4 = _Stage(), _Stage(), _Stage()
        width = 192
        for block in _BLOCKS:
            width = self._add_block(block, width)
        self.global_pool = pooling

    def _add(self, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        """A convolution with bias and its batch norm, under the published names."""
        conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
        self.add_module(name, conv)
        self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs, momentum=self._momentum))

    def _add_block(self, widths: _Widths, inputs: int) -> int:
        """The layers of one block; returns its output channels."""
        prefix = f"inception_{widths.name}_"
        stride = 1 if widths.single else 2
        if widths.single:
            self._add(f"{prefix}1x1", inputs, widths.single, 1)
        self._add(f"{prefix}3x3_reduce", inputs, widths.triple_reduce, 1)
        self._add(f"{prefix}3x3", widths.triple_reduce, widths.triple, 3, stride)
        self._add(f"{prefix}double_3x3_reduce", inputs, widths.double_reduce, 1)
        self._add(f"{prefix}double_3x3_1", widths.double_reduce, widths.double, 3)
        self._add(f"{prefix}double_3x3_2", widths.double, widths.double, 3, stride)
        if widths.projection:
            self._add(f"{prefix}pool_proj", inputs, widths.projection, 1)
        return widths.single + widths.triple + widths.double + (widths.projection or inputs)

    def _conv(self, x: Tensor, *names: str) -> Tensor:
        """Convolution, batch norm and ReLU, once for each name."""
        for name in names:
            x = F.relu(self.get_submodule(f"{name}_bn")(self.get_submodule(name)(x)))
        return x

    def _block(self, x: Tensor, widths: _Widths) -> Tensor:
        """One inception block: branches on the same input, joined along the channels."""
        prefix = f"inception_{widths.name}_"
        double = (f"{prefix}double_3x3_reduce", f"{prefix}double_3x3_1", f"{prefix}double_3x3_2")
        branches = [
            self._conv(x, f"{prefix}3x3_reduce", f"{prefix}3x3"),
            self._conv(x, *double),
        ]
        if not widths.single:
            if x.shape[-2] % 2 or x.shape[-1] % 2:
                # Strided convolution and pooling round odd sides differently.
                raise UserError(
                    f"BN-Inception cannot halve a map of {x.shape[-2]} x {x.shape[-1]} positions: "
                    "choose images with both sides 224, 227, 256 or another multiple of 32."
                )
            return torch.cat([*branches, F.max_pool2d(x, 3, stride=2, ceil_mode=True)], dim=1)
        if widths.pool == "max":
            pooled = F.max_pool2d(x, 3, stride=1, padding=1, ceil_mode=True)
        else:
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, ceil_mode=True)
        single = self._conv(x, f"{prefix}1x1")
        return torch.cat([single, *branches, self._conv(pooled, f"{prefix}pool_proj")], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] to features [B, 1024].

        Raises:
            UserError: sides that cannot be halved five times.
        """
        x = F.max_pool2d(self._conv(x, "conv1_7x7_s2"), 3, stride=2, ceil_mode=True)
        x = self.stage1(self._conv(x, "conv2_3x3_reduce", "conv2_3x3"))
        x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        # The last block of each resolution: their outputs are what feature distillation compares.
        stages = {"3b": self.stage2, "4d": self.stage3, "5b": self.stage4}
        for block in _BLOCKS:
            x = self._block(x, block)
            if block.name in stages:
                x = stages[block.name](x)
        pooled: Tensor = self.global_pool(x)
        return pooled.flatten(1)


class _Stage(nn.Identity):
    """The end of a resolution: a place to read the map from, without weights."""
