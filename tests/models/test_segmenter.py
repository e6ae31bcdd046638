"""Heads that give every pixel class scores."""

import pytest
import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from noisyml.checks import ArgumentError
from noisyml.models.segmenter import FCN, DeepLabV2, DeepLabV3

MAPS = torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", [FCN, DeepLabV2, DeepLabV3])
def test_maps_become_class_scores_of_their_size(head):
    segmenter = head(in_features=8, num_classes=3)
    assert segmenter(MAPS).shape == (2, 3, 5, 6)
    with pytest.raises(ArgumentError, match="num_classes"):
        head(in_features=8, num_classes=0)


def test_deeplab_v2_sums_its_branches():
    segmenter = DeepLabV2(8, 3, rates=[1, 2])
    assert [branch.dilation for branch in segmenter.branches] == [(1, 1), (2, 2)]
    assert all((branch.bias == 0).all() for branch in segmenter.branches)
    expected = sum(branch(MAPS) for branch in segmenter.branches)
    torch.testing.assert_close(segmenter(MAPS), expected)


def test_deeplab_v3_has_the_rates_that_it_is_given():
    segmenter = DeepLabV3(8, 3, rates=[2, 3])
    pyramid = next(m for m in segmenter.modules() if isinstance(m, ASPP))
    dilated = [m.dilation[0] for m in pyramid.modules() if isinstance(m, nn.Conv2d)]
    assert [rate for rate in dilated if rate > 1] == [2, 3]
