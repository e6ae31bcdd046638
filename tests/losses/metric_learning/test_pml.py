import pytest
import torch
import yaml
from pytorch_metric_learning import losses, miners
from support import paths

from noisyml.errors import UserError
from noisyml.losses.metric_learning.pml import PMLLoss, _loss_classes

CONF = paths.CONF / "loss"
CLASSES, DIM = 6, 8


def batch(n=18, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(n, DIM, generator=generator), dim=1)
    return rows.to(dtype), torch.arange(n) % CLASSES


def build(name, params=None, **rest):
    return PMLLoss(name, CLASSES, DIM, params, **rest)


NEED_ARGUMENTS = {
    "P2SGradLoss": {"descriptors_dim": DIM},
    "RankedListLoss": {"margin": 0.4, "Tn": 10},
}


@pytest.mark.parametrize("name", sorted(_loss_classes()))
def test_every_loss_of_the_library_can_be_used(name):
    embeddings, labels = batch()
    loss = build(name, NEED_ARGUMENTS.get(name))
    leaf = embeddings.requires_grad_()
    keep = torch.arange(len(labels)) < 12
    value = loss(leaf, labels, keep=keep)
    value.backward()
    assert value.shape == ()
    assert torch.isfinite(value)
    assert not leaf.grad[12:].any()
    declared = PMLLoss.declares({"name": name, "params": NEED_ARGUMENTS.get(name)})
    assert ("proxies" in declared.gives) == loss.has_proxies


def test_nothing_kept_reaches_every_parameter():
    embeddings, labels = batch()
    leaf = embeddings.requires_grad_()
    loss = build("ProxyAnchorLoss")
    value = loss(leaf, labels, keep=torch.zeros(len(labels), dtype=torch.bool))
    value.backward()
    assert value == 0
    assert not leaf.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in loss.parameters())


@pytest.mark.parametrize(
    ("name", "params", "has"),
    [
        ("NormalizedSoftmaxLoss", {}, True),
        ("ProxyNCALoss", {}, True),
        ("ProxyAnchorLoss", {}, True),
        ("ArcFaceLoss", {}, True),
        ("SoftTripleLoss", {"centers_per_class": 1}, True),
        ("SoftTripleLoss", {"centers_per_class": 3}, False),
        ("SubCenterArcFaceLoss", {}, False),
        ("CircleLoss", {}, False),
    ],
)
def test_proxies(name, params, has):
    loss = build(name, params)
    assert loss.has_proxies == has
    assert ("proxies" in PMLLoss.declares({"name": name, "params": params}).gives) == has
    if not has:
        with pytest.raises(TypeError, match="one vector per class"):
            loss.proxies()
        return
    proxies = loss.proxies()
    assert proxies.shape == (CLASSES, DIM)
    assert not proxies.requires_grad
    torch.testing.assert_close(proxies.norm(dim=1), torch.ones(CLASSES))
    # The class's own vector must fit it best: the rows are in the order of the labels.
    if name == "NormalizedSoftmaxLoss":
        value = loss(proxies, torch.arange(CLASSES))
        assert value < loss(proxies, (torch.arange(CLASSES) + 1) % CLASSES)


def test_square_weights_keep_their_orientation():
    loss = PMLLoss("NormalizedSoftmaxLoss", DIM, DIM)
    expected = torch.nn.functional.normalize(loss.loss.W.detach(), dim=0).T
    torch.testing.assert_close(loss.proxies(), expected)


def test_a_miner_chooses_what_is_learnt_from():
    embeddings, labels = batch(dtype=torch.float64)
    arguments = {"margin": 0.2, "type_of_triplets": "semihard"}
    ours = build(
        "TripletMarginLoss", {"margin": 0.2}, miner="TripletMarginMiner", miner_params=arguments
    )
    mined = miners.TripletMarginMiner(**arguments)(embeddings, labels)
    expected = losses.TripletMarginLoss(margin=0.2)(embeddings, labels, mined)
    assert torch.equal(ours(embeddings, labels), expected)
    assert ours(embeddings, labels) != build("TripletMarginLoss", {"margin": 0.2})(
        embeddings, labels
    )


def test_autocast_leaves_parameters_in_float32():
    embeddings, labels = batch()
    loss = build("ProxyAnchorLoss")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(embeddings.bfloat16(), labels)
    assert value.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in loss.parameters())


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"name": "CirleLoss"}, "CircleLoss"),
        ({"name": "circleloss"}, "CircleLoss"),
        ({"name": "VICRegLoss"}, "no loss"),
        ({"name": "CrossBatchMemory"}, "no loss"),
        ({"name": "CircleLoss", "params": {"gama": 3}}, "gamma"),
        ({"name": "CircleLoss", "params": {"zzzzz": 3}}, "it takes"),
        ({"name": "RankedListLoss"}, "missing"),
        ({"name": "CircleLoss", "miner": "TripletMiner"}, "TripletMarginMiner"),
        ({"name": "CircleLoss", "miner_params": {"margin": 1}}, "loss.miner"),
        (
            {"name": "CircleLoss", "miner": "TripletMarginMiner", "miner_params": {"margn": 1}},
            "margin",
        ),
    ],
    ids=str,
)
def test_mistakes_get_a_sentence(arguments, hint):
    with pytest.raises(UserError, match=hint):
        PMLLoss(num_classes=CLASSES, embedding_size=DIM, **arguments)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "circle",
        "fast_ap",
        "multi_similarity",
        "normalised_softmax",
        "pml",
        "proxy_anchor",
        "proxy_nca",
        "soft_triple",
        "triplet",
    ],
)
def test_configs_build_and_learn(name):
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert config.pop("_target_") == "noisyml.losses.metric_learning.pml.PMLLoss"
    assert config.pop("_convert_") == "all"
    torch.manual_seed(0)
    loss = PMLLoss(num_classes=CLASSES, embedding_size=DIM, **config)
    raw = torch.randn(24, DIM, requires_grad=True)
    labels = torch.arange(24) % CLASSES
    optimizer = torch.optim.Adam([raw, *loss.parameters()], lr=0.05)
    history = []
    for _ in range(40):
        value = loss(torch.nn.functional.normalize(raw, dim=1), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append(float(value))
    assert history[-1] < history[0]
