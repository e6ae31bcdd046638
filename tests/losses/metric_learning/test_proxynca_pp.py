"""ProxyNCA++: the released loss and gradients, its training steps, and what we add to it."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.stats import hmean
from support import paths, vectors
from torch import nn

from noisyml.errors import UserError
from noisyml.losses.metric_learning.proxy_nca_pp import ProxyNCAPPLoss, proxynca_pp_loss
from noisyml.metrics.clustering import nmi
from noisyml.metrics.retrieval import retrieval_metrics
from noisyml.models.heads import EmbeddingHead
from noisyml.models.pooling import global_pooling
from noisyml.optim import parameter_groups

ROOT = paths.ROOT
GOLDEN = ROOT / "tests" / "golden" / "proxynca_pp"
#: Logits held at a time: all of them, three classes of twelve float64 rows, one class.
BLOCKS = [2**28, 300, 1]
load = functools.partial(vectors.tensors, GOLDEN)
close = functools.partial(vectors.close, atol=1e-12)


def differentiated(embeddings, labels, proxies, **arguments):
    """The loss, its gradient at the embeddings and its gradient at the proxies."""
    leaves = [x.clone().requires_grad_() for x in (embeddings, proxies)]
    value = proxynca_pp_loss(leaves[0], labels, leaves[1], **arguments)
    value.backward()
    return value.detach(), leaves[0].grad, leaves[1].grad


def by_definition(embeddings, labels, proxies, scale, denominator):
    """Softmax over squared distances of vectors of norm s, with autograd."""
    x, p = (scale * F.normalize(rows, dim=1, eps=1e-12) for rows in (embeddings, proxies))
    distance = (x[:, None] - p).square().sum(dim=2)
    own = F.one_hot(labels, len(proxies)).bool()
    others = distance.masked_fill(own, torch.inf) if denominator == "negatives" else distance
    return (distance[own] + torch.logsumexp(-others, dim=1)).mean()


# -- reference vectors ---------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize(
    ("name", "denominator"), [("loss_prob.npz", "all"), ("loss_classic.npz", "negatives")]
)
def test_released_losses(name, denominator, block_bytes):
    golden = load(name)
    for i, scale in enumerate(golden["scales"].tolist()):
        value, at_embeddings, at_proxies = differentiated(
            golden["X"],
            golden["labels"],
            golden["proxies"],
            scale=scale,
            denominator=denominator,
            block_bytes=block_bytes,
        )
        close(value, golden["loss"][i])
        close(at_embeddings, golden["grad_X"][i])
        close(at_proxies, golden["grad_proxies"][i])


def test_logits_differ_from_negated_squared_distances_by_a_constant():
    golden = load("loss_prob.npz")
    x, p = (F.normalize(golden[key], dim=1) for key in ("X", "proxies"))
    for scale, expected in zip(golden["scales"], golden["sq_dist"], strict=True):
        close(2 * scale**2 - 2 * scale**2 * (x @ p.T), expected)


@pytest.mark.parametrize(("denominator", "suffix"), [("negatives", "near"), ("all", "prob_near")])
def test_embeddings_at_their_proxies(denominator, suffix):
    golden = load("loss_classic.npz")
    value, at_embeddings, at_proxies = differentiated(
        golden["X_near"],
        golden["labels"],
        golden["proxies"],
        scale=float(golden["scale_near"]),
        denominator=denominator,
    )
    close(value, golden[f"loss_{suffix}"])
    close(at_embeddings, golden[f"grad_X_{suffix}"])
    close(at_proxies, golden[f"grad_proxies_{suffix}"])
    assert (value < 0) == (denominator == "negatives"), "only the classic loss may be negative"


@pytest.mark.parametrize("case", ["one", "same", "zero", "big", "nil"])
def test_edge_cases(case):
    golden = load("loss_edge.npz")
    value, at_embeddings, at_proxies = differentiated(
        golden[f"{case}_X"],
        golden[f"{case}_labels"],
        golden["proxies"],
        scale=float(golden["scale"]),
    )
    close(value, golden[f"{case}_loss"])
    expected = golden[f"{case}_grad_X"]
    if case == "nil":
        # The guard of 1e-12 makes the gradient of a zero vector as large as 1e12.
        assert at_embeddings[0].isfinite().all()
        at_embeddings, expected = at_embeddings[1:], expected[1:]
    close(at_embeddings, expected)
    close(at_proxies, golden[f"{case}_grad_proxies"])


def test_two_classes_get_the_right_loss_not_the_released_one():
    golden = load("loss_edge.npz")
    value, at_embeddings, at_proxies = differentiated(
        golden["two_X"], golden["two_labels"], golden["two_proxies"]
    )
    close(value, golden["two_loss_correct"])
    close(at_embeddings, golden["two_grad_X_correct"])
    close(at_proxies, golden["two_grad_proxies_correct"])
    assert abs(value - golden["two_loss_released"]) > 1


def test_a_label_without_proxy_is_refused():
    """The released code leaves such a sample out of the sum and still divides by all."""
    golden = load("loss_edge.npz")
    with pytest.raises(UserError, match=r"7 proxies.*labelled 12: labels must lie in 0..6"):
        proxynca_pp_loss(golden["zero_X"], golden["oob_labels"], golden["proxies"])
    loss = ProxyNCAPPLoss(7, 16)
    inside = golden["oob_labels"] < 7
    assert loss(golden["zero_X"].float(), golden["oob_labels"], keep=inside).isfinite()


def test_single_precision():
    golden = load("loss_prob_fp32.npz")
    value, at_embeddings, at_proxies = differentiated(
        golden["X"], golden["labels"], golden["proxies"], scale=float(golden["scale"])
    )
    assert value.dtype == torch.float32
    close(value, golden["loss"], rtol=1e-5, atol=1e-6)
    # Entries are sums of terms of about 1; one that cancels to 0.001 has lost three digits.
    close(at_embeddings, golden["grad_X"], rtol=1e-5, atol=2e-6)
    close(at_proxies, golden["grad_proxies"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("norm", ["ln", "noln"])
def test_head(kind, norm):
    golden = load("head.npz")
    pooled = global_pooling(kind)(golden["feature_map"]).flatten(1)
    head = EmbeddingHead(
        10, 6, input_norm="layer" if norm == "ln" else "none", normalise=False
    ).double()
    *before, linear = head.layers
    features = pooled
    for layer in before:
        assert layer.eps == float(golden["ln_eps"])
        features = layer(features)
    close(features, golden[f"{kind}_{norm}_feat"])
    with torch.no_grad():
        linear.weight.copy_(golden["emb_weight"])
        linear.bias.copy_(golden["emb_bias"])
        close(head(pooled), golden[f"{kind}_{norm}_emb"])


def test_training_steps():
    """Warm-up with a still backbone, then a fresh Adam; the proxies are fast and not clipped."""
    golden = load("train_steps.npz")
    model = nn.ModuleDict(
        {
            "backbone": nn.Linear(6, 8),
            "norm": nn.LayerNorm(8, eps=float(golden["ln_eps"]), elementwise_affine=False),
            "head": nn.Linear(8, 5),
            "loss": ProxyNCAPPLoss(4, 5, scale=float(golden["scale"])),
        }
    ).double()
    recorded = {
        "feat_w": model["backbone"].weight,
        "feat_b": model["backbone"].bias,
        "emb_w": model["head"].weight,
        "emb_b": model["head"].bias,
        "proxies": model["loss"].weight,
    }
    with torch.no_grad():
        for name, parameter in recorded.items():
            parameter.copy_(golden[name][0])
    clipped = [p for name, p in model.named_parameters() if not name.startswith("loss.")]

    def fresh_adam(backbone_lr):
        rates = {
            "backbone": {"lr": backbone_lr},
            "loss": {"lr": float(golden["proxy_lr"])},
        }
        return torch.optim.Adam(
            parameter_groups(model, rates),
            lr=float(golden["base_lr"]),
            eps=float(golden["adam_eps"]),
            betas=tuple(golden["adam_betas"].tolist()),
        )

    n_warm = int(golden["n_warm"])
    assert n_warm + int(golden["n_main"]) == len(golden["x"])
    for step, (x, labels) in enumerate(zip(golden["x"], golden["labels"], strict=True)):
        if step in (0, n_warm):
            optimizer = fresh_adam(0.0 if step == 0 else float(golden["base_lr"]))
        embeddings = model["head"](model["norm"](model["backbone"](x)))
        value = model["loss"](embeddings, labels)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_value_(clipped, float(golden["clip"]))
        close(value.detach(), golden["loss"][step], rtol=1e-7)
        close(recorded["proxies"].grad, golden["grad_proxies"][step], rtol=1e-7, atol=1e-10)
        close(recorded["feat_w"].grad, golden["grad_feat_w_clipped"][step], rtol=1e-7, atol=1e-10)
        optimizer.step()
        for name, parameter in recorded.items():
            close(parameter.detach(), golden[name][step + 1], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("metric", "key"), [("l2", "recall_raw"), ("cosine", "recall_l2norm")])
def test_released_recall(metric, key):
    golden = load("metrics.npz")
    ks = golden["ks"].tolist()
    found, per_query = retrieval_metrics(
        golden["emb"],
        golden["labels"],
        metrics=(),
        recall_at=range(1, 9),
        metric=metric,
        return_per_query=True,
    )
    assert [found[f"recall_at_{k}"] for k in ks] == pytest.approx(golden[key].tolist(), abs=1e-12)
    if metric == "l2":
        hit = (golden["neighbor_labels"] == golden["labels"][:, None]).double()
        for k in range(1, 9):
            close(per_query[f"recall_at_{k}"], hit[:, :k].amax(dim=1))
        of_clusters = nmi(golden["labels"], golden["clusters"], "geometric")
        assert of_clusters == pytest.approx(float(golden["nmi_geometric"]), abs=1e-12)
        score = hmean([of_clusters, found["recall_at_1"]])
        assert score == pytest.approx(float(golden["hmean"]), abs=1e-12)


def test_released_recall_of_queries_in_a_gallery():
    golden = load("metrics.npz")
    found = retrieval_metrics(
        golden["q_emb"],
        golden["q_labels"],
        golden["g_emb"],
        golden["g_labels"],
        metrics=(),
        recall_at=golden["qg_ks"].tolist(),
        metric="l2",
    )
    assert [found[f"recall_at_{k}"] for k in golden["qg_ks"].tolist()] == pytest.approx(
        golden["qg_recall"].tolist(), abs=1e-12
    )


# -- properties ----------------------------------------------------------------------------------


def batch(n, classes, dim, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, dim, generator=generator, dtype=dtype)
    proxies = torch.randn(classes, dim, generator=generator, dtype=dtype) / 8
    labels = torch.randint(classes, (n,), generator=generator)
    return rows, labels, proxies, torch.rand(n, generator=generator) < 0.6


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 8),
    classes=st.integers(2, 9),
    dim=st.integers(1, 6),
    seed=st.integers(0, 2**16),
    denominator=st.sampled_from(["all", "negatives"]),
    block_bytes=st.sampled_from(BLOCKS),
)
def test_equals_the_definition(n, classes, dim, seed, denominator, block_bytes):
    rows, labels, proxies, _ = batch(n, classes, dim, seed)
    leaves = [x.clone().requires_grad_() for x in (rows, proxies)]
    expected = by_definition(leaves[0], labels, leaves[1], 1.7, denominator)
    expected.backward()
    value, at_rows, at_proxies = differentiated(
        rows, labels, proxies, scale=1.7, denominator=denominator, block_bytes=block_bytes
    )
    close(value, expected.detach())
    close(at_rows, leaves[0].grad, atol=1e-11)
    close(at_proxies, leaves[1].grad, atol=1e-11)


@pytest.mark.parametrize("block_bytes", [2**28, 1])
def test_a_zero_proxy_is_at_distance_s_from_everything(block_bytes):
    rows, proxies = torch.eye(2).double()[:1], torch.tensor([[0, 1], [0, 0]]).double()
    value = proxynca_pp_loss(rows, torch.tensor([0]), proxies, scale=3, block_bytes=block_bytes)
    close(value, torch.tensor(9.000123402189, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("block_bytes", [2**28, 1])
@pytest.mark.parametrize("denominator", ["all", "negatives"])
@pytest.mark.parametrize("length", [0.0, 4e-13])
def test_a_proxy_under_the_guard_follows_the_definition(length, denominator, block_bytes):
    rows, labels, proxies, _ = batch(5, 3, 4, 0)
    proxies[1] *= length / proxies[1].norm()
    value, at_rows, at_proxies = differentiated(
        rows, labels, proxies, denominator=denominator, block_bytes=block_bytes
    )
    leaves = [x.clone().requires_grad_() for x in (rows, proxies)]
    expected = by_definition(leaves[0], labels, leaves[1], 3.0, denominator)
    expected.backward()
    close(value, expected.detach(), rtol=1e-9)
    close(at_rows, leaves[0].grad, rtol=1e-6)
    close(at_proxies, leaves[1].grad, rtol=1e-6)
    assert at_proxies[1].norm() > 1e9


@pytest.mark.parametrize("denominator", ["all", "negatives"])
@pytest.mark.parametrize("kept", ["some", "one", "none"])
def test_dropped_samples_leave_no_trace(denominator, kept):
    rows, labels, _, keep = batch(12, 5, 6, 1, torch.float32)
    if kept != "some":
        keep = torch.arange(12) == (3 if kept == "one" else 12)
    loss = ProxyNCAPPLoss(5, 6, denominator=denominator)
    rows.requires_grad_()
    value = loss(rows, labels, keep=keep)
    value.backward()
    assert not rows.grad[~keep].any()
    if kept == "none":
        assert value == 0
        assert not loss.weight.grad.any(), "a gradient of zeros, not a missing one"
        return
    alone, _, at_proxies = differentiated(
        rows.detach()[keep], labels[keep], loss.weight.detach(), denominator=denominator
    )
    assert value == alone
    torch.testing.assert_close(loss.weight.grad, at_proxies)


def test_half_precision_is_computed_in_single():
    rows, labels, proxies, _ = batch(8, 5, 16, 2, torch.float32)
    exact, at_rows, _ = differentiated(rows.bfloat16().float(), labels, proxies)
    with torch.autocast("cpu", torch.bfloat16):
        half = rows.bfloat16().requires_grad_()
        value = proxynca_pp_loss(half, labels, proxies)
        value.backward()
    assert value.dtype == torch.float32
    assert value == exact
    torch.testing.assert_close(half.grad, at_rows.bfloat16())


def test_module_temperature_proxies_and_start():
    torch.manual_seed(0)
    loss = ProxyNCAPPLoss(300, 40, scale=None, temperature=1 / 9)
    assert loss.scale == pytest.approx(3.0)
    assert loss.has_proxies
    assert loss.weight.std().item() == pytest.approx(0.125, rel=0.02)
    torch.testing.assert_close(loss.proxies(), F.normalize(loss.weight.detach(), dim=1))
    assert not loss.proxies().requires_grad


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_classes": 1}, "num_classes=1 must be .* of at least 2"),
        ({"temperature": 0.1}, "set the other to null"),
        ({"scale": None}, "set the other to null"),
        ({"scale": 0.0}, "scale=0.0 must be a number above 0 or null"),
        ({"scale": None, "temperature": -1.0}, "temperature=-1.0 must be a number above 0"),
        ({"proxy_init_std": 0.0}, "proxy_init_std=0.0"),
        ({"denominator": "positives"}, "must be all or negatives"),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(arguments, said):
    with pytest.raises(UserError, match=said):
        ProxyNCAPPLoss(**{"num_classes": 3, "embedding_size": 4, **arguments})


def test_config_states_the_defaults_of_the_code():
    node = OmegaConf.load(ROOT / "conf" / "loss" / "proxynca_pp.yaml")
    written = instantiate(node, num_classes=3, embedding_size=4)
    built = ProxyNCAPPLoss(3, 4)
    assert set(node) - {"_target_"} == {
        "scale",
        "temperature",
        "proxy_init_std",
        "denominator",
        "block_bytes",
    }
    for key in ("scale", "denominator", "block_bytes"):
        assert getattr(written, key) == getattr(built, key)
    assert node.proxy_init_std == 0.125


@pytest.mark.parametrize("denominator", ["all", "negatives"])
@pytest.mark.parametrize("block_bytes", [2**28, 1])
def test_the_loss_is_the_mean_of_those_of_the_samples(denominator, block_bytes):
    settings = {"denominator": denominator, "block_bytes": block_bytes}
    loss = ProxyNCAPPLoss(num_classes=5, embedding_size=3, **settings)
    rows, labels, _, keep = batch(12, 5, 3, seed=1, dtype=torch.float32)
    losses = loss.per_sample(rows.requires_grad_(), labels)
    assert not losses.requires_grad
    torch.testing.assert_close(losses[keep].mean(), loss(rows, labels, keep=keep).detach())


@pytest.mark.parametrize("block_bytes", [2**28, 1])
def test_losses_of_samples_come_with_the_loss(block_bytes):
    loss = ProxyNCAPPLoss(num_classes=5, embedding_size=3, block_bytes=block_bytes)
    rows, labels, _, keep = batch(12, 5, 3, seed=1, dtype=torch.float32)
    assert loss.last_losses is None
    mean = loss(rows.requires_grad_(), labels)
    assert not loss.last_losses.requires_grad
    assert torch.equal(loss.last_losses, loss.per_sample(rows, labels))
    assert torch.equal(loss.last_losses.sum() / 12, mean.detach())
    loss(rows, labels, keep=keep)
    assert loss.last_losses is None
