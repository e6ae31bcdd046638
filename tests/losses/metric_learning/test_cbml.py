"""Contrastive Bayesian loss: the authors' values, gradients and masks, and its own promises."""

import functools
import inspect

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.losses.metric_learning.cbml import CBMLLoss, cbml_loss, most_similar_negatives
from noisyml.losses.metric_learning.pairs import Samples, cosine_pairs, mine_pairs
from noisyml.metrics.retrieval import retrieval_metrics

GOLDEN = paths.GOLDEN / "cbml"
CONF = paths.CONF / "loss"
#: Our argument -> the golden field's.
HYPERPARAMETERS = {
    "a_p": "pos_a",
    "b_p": "pos_b",
    "a_n": "neg_a",
    "b_n": "neg_b",
    "margin": "margin",
    "mvc_weight": "weight",
    "hyper_weight": "hyper_weight",
    "positive_weight": "weight_p",
    "negative_weight": "weight_n",
    "adaptive_negatives": "adaptive_neg",
}
load = functools.partial(vectors.tensors, GOLDEN)
close = functools.partial(vectors.close, check_dtype=False)


def through_norm(raw):
    return raw / raw.norm(dim=1, keepdim=True)


def arguments(case):
    return {
        ours: case[f"hp_{theirs}"].item()
        for ours, theirs in HYPERPARAMETERS.items()
        if f"hp_{theirs}" in case
    }


CASES = [
    (name, form)
    for name in (
        "loss_types.npz",
        "hyperparameters.npz",
        "no_mvc.npz",
        "edge_single_and_duplicate.npz",
    )
    for form in ("log", "sqrt", "const")
] + [("fixed_negatives.npz", "log")]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_values_and_gradients(name, form):
    case = load(name)
    loss = CBMLLoss(form=form, **arguments(case))
    feats = case["feats"].requires_grad_()
    value = loss(feats, case["labels"])
    value.backward()
    close(value, case[f"loss_{form}"])
    close(feats.grad, case[f"grad_feats_{form}"])

    raw = case["raw"].requires_grad_()
    loss(through_norm(raw), case["labels"]).backward()
    close(raw.grad, case[f"grad_raw_{form}"])


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_mined_pairs(name):
    case = load(name)
    pairs = cosine_pairs(Samples.of_batch(case["feats"], case["labels"])).below(1e-5)
    positive, negative = mine_pairs(pairs, case["hp_margin"].item())
    if not case["hp_adaptive_neg"]:
        negative = most_similar_negatives(pairs, 100)
        assert (negative.sum(dim=1) == 100).all()
    used = positive.any(dim=1) & negative.any(dim=1)
    assert torch.equal(used, case["anchor_used"])
    assert torch.equal(positive & used[:, None], case["pos_selected"])
    assert torch.equal(negative & used[:, None], case["neg_selected"])


@pytest.mark.parametrize(("name", "form"), CASES)
def test_terms_of_single_anchors(name, form):
    """One anchor against the whole batch shows its own three terms and centre."""
    case = load(name)
    labels, given_arguments = case["labels"], arguments(case)
    batch = Samples.of_batch(case["feats"], labels)

    def terms(i, **changed):
        pairs = cosine_pairs(batch.rows(slice(i, i + 1)), batch)
        return cbml_loss(pairs, form=form, **{**given_arguments, **changed})

    for i in range(0, len(labels), max(1, len(labels) // 12)):
        positive, negative, constraint = case[f"terms_{form}"][i].tolist()
        free = terms(i, constraint="none")
        close(free, torch.tensor(positive + negative, dtype=torch.float64))
        close(terms(i, mvc_weight=1.0) - free, torch.tensor(constraint, dtype=torch.float64))
        if case["anchor_used"][i]:
            # The mean square around the centre is variance + (mean - centre)^2.
            others = (case["feats"][i] @ case["feats"].T)[labels != labels[i]]
            spread = terms(i, mvc_weight=1.0, mvc_reduction="mean") - free
            expected = others.var(correction=0) + (others.mean() - case["mvc_centre"][i]) ** 2
            close(spread, expected)


@pytest.mark.parametrize(
    ("field", "constraint"),
    [
        ("abs_mean_abs_var_2020_06_02", "released_2020_06_02"),
        ("neg_around_half_batchmean_half_midpoint_2020_07_16", "released_2020_07_16"),
        ("neg_around_weighted_means_2020_08_05", "mvc"),
        ("neg_around_mix_batchmean_midpoint_2020_08_07", "released_2020_08_07"),
    ],
)
def test_constraints_of_earlier_code(field, constraint):
    case = load("legacy_constraints.npz")
    raw = case["raw"].requires_grad_()
    loss = CBMLLoss(constraint=constraint, hyper_weight=case["hp_hyper_weight"].item())
    value = loss(through_norm(raw), case["labels"])
    value.backward()
    close(value, case[f"loss_{field}"])
    close(raw.grad, case[f"grad_raw_{field}"])


@pytest.mark.parametrize("form", ["log", "sqrt", "const"])
def test_nothing_mined(form):
    case = load("edge_nothing_mined.npz")
    raw = case["raw"].requires_grad_()
    value = CBMLLoss(form=form)(through_norm(raw), case["labels"])
    value.backward()
    assert value == case["loss"]
    assert torch.equal(raw.grad, case["grad_raw"])


@pytest.mark.parametrize(
    ("bits", "dtype", "rtol", "atol"),
    [(32, torch.float32, 1e-4, 1e-6), (64, torch.float64, 1e-8, 1e-8)],
)
def test_number_formats(bits, dtype, rtol, atol):
    """The batch is stored in float32, rounded: the float64 values hold to that rounding."""
    case = load("float32.npz")
    raw = case["raw"].to(dtype).requires_grad_()
    value = CBMLLoss()(through_norm(raw), case["labels"])
    value.backward()
    assert value.dtype == dtype
    close(value, case[f"loss{bits}"], rtol=rtol, atol=atol)
    close(raw.grad, case[f"grad_raw{bits}"], rtol=rtol, atol=atol)


def test_descent():
    case = load("sgd_trajectory.npz")
    raw = case["raw0"].clone()
    loss = CBMLLoss()
    for step, expected in enumerate(case["losses"]):
        close(raw, case["raw_steps"][step])
        leaf = raw.requires_grad_()
        value = loss(through_norm(leaf), case["labels"])
        value.backward()
        close(value, expected)
        raw = (leaf - case["lr"] * leaf.grad).detach()
    close(raw, case["raw_steps"][-1])


def test_recall():
    case = load("recall.npz")
    metrics = [f"recall_margin_at_{k}" for k in case["ks"].tolist()]
    alone = retrieval_metrics(case["feats"], case["labels"], metrics=metrics)
    assert [alone[m] for m in metrics] == pytest.approx(case["recall"].tolist(), abs=1e-12)
    apart = retrieval_metrics(
        case["query_feats"],
        case["query_labels"],
        case["gallery_feats"],
        case["gallery_labels"],
        metrics=metrics,
        lone="zero",
    )
    expected = case["recall_query_gallery"].tolist()
    assert [apart[m] for m in metrics] == pytest.approx(expected, abs=1e-12)


def batch(seed, n=24, dim=6, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, dim, generator=generator, dtype=dtype)
    labels = torch.randint(classes, (n,), generator=generator)
    return torch.nn.functional.normalize(rows, dim=1), labels, torch.rand(n, generator=generator)


CONSTRAINTS = ["mvc", "none", "released_2020_06_02", "released_2020_07_16", "released_2020_08_07"]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(1, 24),
    constraint=st.sampled_from(CONSTRAINTS),
    form=st.sampled_from(["log", "sqrt", "const"]),
    adaptive=st.booleans(),
)
def test_dropped_samples_leave_no_trace(seed, n, constraint, form, adaptive):
    """The loss is that of the kept samples alone, even if the others hold NaN."""
    embeddings, labels, draw = batch(seed, n)
    keep = draw < 0.6
    loss = CBMLLoss(
        form=form, constraint=constraint, adaptive_negatives=adaptive, fixed_negatives=5
    )
    alone = embeddings[keep].requires_grad_()
    expected = loss(alone, labels[keep])
    expected.backward()
    whole = torch.where(keep[:, None], embeddings, torch.nan).requires_grad_()
    value = loss(whole, labels, keep=keep)
    value.backward()
    assert torch.equal(value, expected)
    assert torch.equal(whole.grad[keep], alone.grad)
    assert not whole.grad[~keep].any()
    assert value.isfinite()
    assert alone.grad.isfinite().all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), constraint=st.sampled_from(CONSTRAINTS))
def test_order_of_the_batch_does_not_matter(seed, constraint):
    embeddings, labels, _ = batch(seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    loss = CBMLLoss(constraint=constraint)
    first = embeddings.clone().requires_grad_()
    second = embeddings[order].requires_grad_()
    values = loss(first, labels), loss(second, labels[order])
    for value in values:
        value.backward()
    close(values[0], values[1].detach())
    close(first.grad[order], second.grad)


@pytest.mark.parametrize("keep", [True, False])
def test_no_samples(keep):
    embeddings, labels, _ = batch(0)
    leaf = embeddings.requires_grad_()
    nothing = torch.zeros(len(labels), dtype=torch.bool)
    value = (
        CBMLLoss()(leaf, labels, keep=nothing)
        if keep
        else CBMLLoss()(leaf[nothing], labels[nothing])
    )
    value.backward()
    assert value == 0
    assert not leaf.grad.any()


def test_autocast_changes_nothing():
    embeddings, labels, _ = batch(3, dtype=torch.float32)
    expected = CBMLLoss()(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(CBMLLoss()(embeddings, labels), expected)
        assert CBMLLoss()(embeddings.bfloat16(), labels).dtype == torch.float32


def test_samples_are_not_their_own_positives():
    """Left out by position: in short rows no cosine to itself reaches the cut-off."""
    embeddings, labels, _ = batch(5)
    short = embeddings * 0.99
    similarity = short @ short.T
    expected = 0.0
    for i, row in enumerate(similarity):
        same = (labels == labels[i]) & (torch.arange(len(labels)) != i)
        positives, negatives = row[same], row[labels != labels[i]]
        mined_positives = positives[positives - 0.1 < negatives.max()]
        mined_negatives = negatives[negatives + 0.1 > positives.min()]
        if len(mined_positives) and len(mined_negatives):
            expected += torch.log1p(torch.exp(-(mined_positives - 0.5) / 0.5).sum())
            expected += torch.log1p(torch.exp((mined_negatives - 1.0) / 0.01).sum())
    assert expected > 0
    close(CBMLLoss(constraint="none")(short, labels), expected / len(labels))


def test_steep_negatives_do_not_overflow():
    embeddings, labels, _ = batch(7, dtype=torch.float32)
    leaf = embeddings.requires_grad_()
    value = CBMLLoss(a_n=-1.0, b_n=0.01)(leaf, labels)
    value.backward()
    assert value.isfinite()
    assert leaf.grad.isfinite().all()
    reference = CBMLLoss(a_n=-1.0, b_n=0.01)(embeddings.detach().double(), labels)
    close(value, reference, rtol=1e-4, atol=1e-4)


def test_mean_reduction_divides_by_the_negatives():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(20, 3, generator=generator), dim=1)
    labels = torch.arange(5).repeat_interleave(4)
    free, total, mean = (
        CBMLLoss(constraint=constraint, mvc_reduction=reduction)(embeddings, labels)
        for constraint, reduction in (("none", "sum"), ("mvc", "sum"), ("mvc", "mean"))
    )
    assert total > free
    close((total - free) / 16, mean - free, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"form": "lgo"}, "log"),
        ({"constraint": "mcv"}, "Did you mean 'mvc'"),
        ({"mvc_reduction": "max"}, "sum or mean"),
        ({"b_p": 0.0}, "b_p=0.0"),
        ({"b_n": -1.0}, "b_n=-1.0"),
        ({"mvc_weight": -1.0}, "mvc_weight"),
        ({"positive_weight": -1.0}, "positive_weight"),
        ({"negative_weight": float("nan")}, "negative_weight"),
        ({"positive_cutoff": -1e-5}, "positive_cutoff"),
        ({"hyper_weight": 1.2}, "from 0 to 1"),
        ({"fixed_negatives": 0}, "of at least 1"),
        ({"form": "const", "a_n": 0.0}, "raise loss.b_n"),
        ({"form": "sqrt", "b_p": 0.001}, "raise loss.b_p"),
    ],
)
def test_mistakes(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        CBMLLoss(**wrong)


def test_config_states_the_defaults_of_the_code():
    node = OmegaConf.load(CONF / "cbml.yaml")
    built = instantiate(node)
    assert type(built) is CBMLLoss
    defaults = {n: p.default for n, p in inspect.signature(CBMLLoss).parameters.items()}
    assert {key: value for key, value in node.items() if key != "_target_"} == defaults
