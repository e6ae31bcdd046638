"""Heads that give every pixel class scores: FCN and DeepLab on the last map of a backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from noisyml.checks import Checked, Count


class FCN(Checked, FCNHead):
    """torchvision's FCN head: a 3x3 convolution to a quarter of the channels, dropout, classes.

    Source: Long et al., CVPR 2015, as in torchvision.

    Args:
        in_features: channels of the map.
        num_classes: C.
    """

    def __init__(self, in_features: Count, num_classes: Count) -> None:
        super().__init__(in_features, num_classes)


class DeepLabV3(Checked, DeepLabHead):
    """torchvision's DeepLabv3 head: parallel dilated convolutions and an image-wide average.

    Its batch norm over the image-wide average needs two images in a training batch. Source: Chen et
    al., arXiv 1706.05587, as in torchvision.

    Args:
        in_features: channels of the map.
        num_classes: C.
        rates: dilations.
    """

    def __init__(
        self, in_features: Count, num_classes: Count, rates: Sequence[Count] = (12, 24, 36)
    ) -> None:
        super().__init__(in_features, num_classes, list(rates))


class DeepLabV2(Checked, nn.Module):
    """The sum of parallel dilated 3x3 convolutions to classes; weights N(0, 0.01), zero biases.

    Source: Chen et al., arXiv 1606.00915, as in the released code of ClassMix and S4GAN.

    Args:
        in_features: channels of the map.
        num_classes: C.
        rates: dilations.
    """

    def __init__(
        self, in_features: Count, num_classes: Count, rates: Sequence[Count] = (6, 12, 18, 24)
    ) -> None:
        super().__init__()
        branches = [
            nn.Conv2d(in_features, num_classes, 3, padding=rate, dilation=rate) for rate in rates
        ]
        for branch in branches:
            nn.init.normal_(branch.weight, 0.0, 0.01)
            assert branch.bias is not None
            nn.init.zeros_(branch.bias)
        self.branches = nn.ModuleList(branches)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, in_features, h, w] to class scores [B, C, h, w]."""
        first, *others = self.branches
        scores: Tensor = first(maps)
        for branch in others:
            scores = scores + branch(maps)
        return scores
