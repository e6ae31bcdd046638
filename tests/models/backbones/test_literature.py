"""The small networks of the noisy-label literature: sizes, maps, shortcuts."""

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support import paths

from noisyml.errors import UserError
from noisyml.models.backbones.literature import (
    _PreActivated,
    _Residual,
    bare_cnn,
    cifar_resnet,
    lenet,
    nine_layer_cnn,
    wide_resnet,
)

CONF = paths.CONF / "backbone"
#: Parameters with a linear classifier of so many classes, as published or counted in the papers'
#: code: bare (its specification), Co-teaching's layers, He et al. (0.46 M), the usual CIFAR
#: variants of ResNet, WRN-28-10 (36.5 M), torchvision's DenseNet-121, and ViT-S/16 (22 M).
PUBLISHED = {
    "mlp_256": (10, 203_530),
    "lenet": (10, 61_706),
    "bare_cnn": (10, 333_254),
    "nine_layer_cnn": (10, 4_434_570),
    "cifar_resnet18": (10, 11_173_962),
    "cifar_resnet32": (10, 464_154),
    "cifar_resnet34": (10, 21_282_122),
    "preact_resnet18": (10, 11_171_146),
    "wrn_28_10": (10, 36_479_194),
    "densenet121": (1000, 7_978_856),
    "vit_small": (1000, 22_050_664),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_number_of_parameters(name):
    classes, expected = PUBLISHED[name]
    with torch.device("meta"):
        backbone = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), _convert_="all")
    own = sum(parameter.numel() for parameter in backbone.body.parameters())
    assert own + (backbone.out_features + 1) * classes == expected


NETWORKS = {
    "lenet": (lambda: lenet(), (1, 28), {"block1": (6, 14), "block2": (16, 5), "last": (120, 1)}),
    "bare_cnn": (
        lambda: bare_cnn(),
        (3, 32),
        {"block1": (64, 16), "block2": (128, 8), "block3": (16, 4), "last": (16, 4)},
    ),
    "nine_layer_cnn": (
        lambda: nine_layer_cnn(),
        (3, 32),
        {"block1": (128, 32), "block2": (256, 16), "block3": (128, 2), "last": (128, 2)},
    ),
    "cifar_resnet32": (
        lambda: cifar_resnet(32),
        (3, 32),
        {"block1": (16, 32), "block2": (32, 16), "block3": (64, 8), "last": (64, 8)},
    ),
    "preact_resnet18": (
        lambda: cifar_resnet(18, pre_activated=True),
        (3, 16),
        {
            "block1": (64, 16), "block2": (128, 8), "block3": (256, 4), "block4": (512, 2),
            "last": (512, 2),
        },
    ),
    "wide_resnet": (
        lambda: wide_resnet(10, 2, dropout=0.3),
        (1, 32),
        {"block1": (32, 32), "block2": (64, 16), "block3": (128, 8), "last": (128, 8)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_show_their_maps_and_learn(name):
    make, (channels, side), expected = NETWORKS[name]
    torch.manual_seed(0)
    network = make()
    images = torch.randint(0, 256, (2, channels, side, side), dtype=torch.uint8)
    features, maps = network.feature_maps(images)
    found = {key: tuple(tensor.shape[1:3]) for key, tensor in maps.items()}
    assert found == expected
    assert features.shape == (2, network.out_features)
    features.square().sum().backward()
    without = [n for n, p in network.body.named_parameters() if p.grad is None]
    assert not without
    network.eval()
    with torch.no_grad():
        features, maps = network.feature_maps(images)
        if name in ("lenet", "bare_cnn"):
            # Their maps are flattened; at a map of one position that is no difference.
            assert features.shape[1] in (84, maps["last"][0].numel())
        else:
            torch.testing.assert_close(features, maps["last"].mean(dim=(2, 3)))


def test_shortcuts_without_parameters_keep_every_second_position():
    block = _Residual(4, 10, 2, projected=False).eval()
    with torch.no_grad():
        block.norm2.weight.zero_()
        x = torch.rand(2, 4, 6, 6)
        out = block(x)
    torch.testing.assert_close(out[:, 3:7], x[:, :, ::2, ::2])
    assert not out[:, :3].any()
    assert not out[:, 7:].any()
    assert not [n for n, _ in block.shortcut.named_parameters()]


def test_pre_activated_shortcuts_pass_the_raw_or_the_projected_activated_image():
    x = torch.randn(2, 4, 6, 6)
    same, wider = _PreActivated(4, 4, 1).eval(), _PreActivated(4, 8, 2).eval()
    with torch.no_grad():
        for block in (same, wider):
            block.conv2.weight.zero_()
        torch.testing.assert_close(same(x), x)
        torch.testing.assert_close(wider(x), wider.shortcut(F.relu(wider.norm1(x))))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: cifar_resnet(20), "depth=20 must be 18, 32 or 34"),
        (lambda: cifar_resnet(32, pre_activated=True), "use 18 or 34 with"),
        (lambda: wide_resnet(30), r"backbone\.depth=30 is no depth"),
        (lambda: cifar_resnet(18, in_channels=12, mean=(0.5,) * 3), r"backbone\.mean has 3 values"),
        (lambda: lenet(image_size=16), "image_size=16 must be a whole number of at least 28"),
    ],
)
def test_mistakes_are_named(make, said):
    with pytest.raises(UserError, match=said):
        make()
