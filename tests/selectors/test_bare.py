"""BARE against the released code and the paper's rule; what its description warns of."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import paths, vectors
from support.parts import parts_for
from torch import nn

from noisyml.errors import UserError
from noisyml.methods.classification.base import Classification
from noisyml.selectors.bare import Bare, bare_statistics, posteriors
from noisyml.selectors.base import Evidence

GOLDEN = paths.GOLDEN / "bare"
RELEASED = {"stats_scope": "batch", "std": "unbiased"}
load = functools.partial(vectors.tensors, GOLDEN)


class FirstLayers(nn.Module):
    """Everything of a perceptron but its last layer."""

    def __init__(self, inputs=2, width=2):
        super().__init__()
        self.out_features = width
        self.linear = nn.Linear(inputs, width)

    def forward(self, batch):
        return F.relu(self.linear(batch["features"]))


def bare(encoder=None, classes=2, **settings):
    names = [str(c) for c in range(classes)]
    parts = parts_for(
        encoder or FirstLayers(), names, selector=Bare(**settings), optimizer=torch.optim.Adam
    )
    return Classification(parts, on_empty="keep_all")


def judge(logits, labels, **settings):
    """The selection, the loss by the rule for empty ones, and the gradient of the logits."""
    logits = logits.clone().requires_grad_()
    evidence = Evidence(labels=labels, index=torch.arange(len(labels)), logits=logits)
    method = bare(**settings)
    selection = method.selector.select(evidence)
    loss = method.mean_loss(F.cross_entropy(logits, labels, reduction="none"), selection)
    loss.backward()
    return selection, loss.detach(), logits.grad


# -- the released code -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kappas", "tolerance"),
    [
        ("selection_b32_c5_f64", (1, 0, 2), 1e-12),
        ("selection_absent_class_f64", (1,), 1e-12),
        ("selection_b128_c10_f32", (1,), 1e-6),
    ],
)
def test_released_rule(name, kappas, tolerance):
    golden = load(name)
    labels = golden["labels"]
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    posterior = posteriors(golden["logits"])
    mean, std = bare_statistics(posterior, labels, "batch", "unbiased")
    torch.testing.assert_close(posterior, golden["prob"], **close)
    torch.testing.assert_close(mean, golden["mean"], **close)
    torch.testing.assert_close(std, golden["std"], **close)
    for kappa in kappas:
        wanted = load(name, f"k{kappa}/")
        threshold = (mean + kappa * std)[labels]
        torch.testing.assert_close(threshold, wanted["threshold_of_label"], **close)
        selection, loss, gradient = judge(golden["logits"], labels, kappa=float(kappa), **RELEASED)
        torch.testing.assert_close(selection.p_clean - threshold, wanted["margin"], **close)
        assert torch.equal(selection.keep, wanted["selected"])
        assert torch.equal(selection.keep.nonzero().squeeze(1), wanted["selected_index"])
        losses = F.cross_entropy(golden["logits"], labels, reduction="none")[selection.keep]
        torch.testing.assert_close(losses, wanted["losses_selected"], **close)
        torch.testing.assert_close(loss, wanted["mean_loss"], **close)
        torch.testing.assert_close(gradient, wanted["grad_logits"], **close)
        if kappa == 1:
            torch.testing.assert_close(loss, golden["reduction_mean_loss"], **close)
            total = loss * selection.keep.sum()
            torch.testing.assert_close(total, golden["reduction_sum_loss"], **close)


@pytest.mark.parametrize("case", ["one", "none", "bigk", "saturated", "tie"])
def test_released_edges(case):
    golden = load("edges_f32", f"{case}/")
    kappa = float(golden.get("k", torch.tensor(1.0)))
    selection, loss, gradient = judge(golden["logits"], golden["labels"], kappa=kappa, **RELEASED)
    assert torch.equal(selection.keep, golden["selected"])
    torch.testing.assert_close(loss, golden["loss"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, golden["grad"], rtol=1e-6, atol=1e-6)
    if case == "saturated":
        posterior = posteriors(golden["logits"])
        mean, std = bare_statistics(posterior, golden["labels"], "batch", "unbiased")
        torch.testing.assert_close(mean.float(), golden["mean"], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(std.float(), golden["std"], rtol=1e-6, atol=1e-6)
        losses = F.cross_entropy(golden["logits"], golden["labels"], reduction="none")
        torch.testing.assert_close(
            losses[selection.keep], golden["losses_selected"], rtol=1e-6, atol=1e-6
        )


def test_four_epochs_of_released_training():
    golden = load("train_four_epochs_f32")
    method = bare(FirstLayers(10, 32), classes=4, **RELEASED)
    names = {
        "0.weight": method.encoder.linear.weight,
        "0.bias": method.encoder.linear.bias,
        "2.weight": method.classifier.weight,
        "2.bias": method.classifier.bias,
    }
    with torch.no_grad():
        for name, weight in names.items():
            weight.copy_(golden[f"init/{name}"])
    optimizer = torch.optim.Adam(method.parameters(), lr=float(golden["lr"]))
    clean = golden["labels"] == golden["clean_labels"]
    for epoch, order in enumerate(golden["order"]):
        kept = torch.zeros(64, dtype=torch.bool)
        losses, right = [], 0
        for rows in order.split(int(golden["batch_size"])):
            labels = golden["labels"][rows]
            batch = {"features": golden["x"][rows], "label": labels, "index": rows}
            right += int((method.outputs(batch, {"logits"})["logits"].argmax(1) == labels).sum())
            outcome = method.training_step(batch, 0)
            kept[outcome["index"]] = outcome["selection"].keep
            losses.append(float(outcome["loss"].detach()))
            optimizer.zero_grad()
            outcome["loss"].backward()
            optimizer.step()
        assert torch.equal(kept, golden["selected"][epoch])
        assert np.mean(losses) == pytest.approx(float(golden["epoch_loss"][epoch]), abs=1e-5)
        assert 100 * right / 64 == pytest.approx(float(golden["epoch_train_acc_pct"][epoch]))
        precision, recall = (kept & clean).sum() / kept.sum(), (kept & clean).sum() / clean.sum()
        assert float(precision) == pytest.approx(float(golden["label_precision"][epoch]))
        assert float(recall) == pytest.approx(float(golden["label_recall"][epoch]))
        for name, weight in names.items():
            torch.testing.assert_close(
                weight.detach(), golden[f"epoch{epoch + 1}/{name}"], rtol=1e-5, atol=1e-5
            )


# -- the paper's rule --------------------------------------------------------------------------


def test_per_label_rule():
    golden = load("selection_per_class_derived_f64")
    labels = golden["labels"]
    mean, std = bare_statistics(posteriors(golden["logits"]), labels)
    close = {"rtol": 1e-10, "atol": 1e-10}
    assert golden["class_count"].tolist() == torch.bincount(labels, minlength=5).tolist()
    torch.testing.assert_close(mean, golden["mean"], equal_nan=True, **close)
    torch.testing.assert_close(std, golden["std"], equal_nan=True, **close)
    torch.testing.assert_close(posteriors(golden["logits"]), golden["prob"], **close)
    selection, loss, gradient = judge(golden["logits"], labels, kappa=float(golden["kappa"]))
    assert torch.equal(selection.keep, golden["selected"])
    torch.testing.assert_close(loss, golden["mean_loss"], **close)
    torch.testing.assert_close(gradient, golden["grad_logits"], **close)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 40),
    classes=st.integers(2, 12),
    scope=st.sampled_from(["label", "batch"]),
    std=st.sampled_from(["population", "unbiased"]),
    kappa=st.floats(0, 3),
)
def test_selection_equals_plain_loops_and_ignores_order(seed, size, classes, scope, std, kappa):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator) * 3
    labels = torch.randint(classes, (size,), generator=generator)
    selector = Bare(scope, std, kappa)

    def select(order):
        return selector.select(Evidence(labels[order], order, logits=logits[order]))

    found = select(torch.arange(size))
    p = posteriors(logits).double().numpy()
    clear = torch.zeros(size, dtype=torch.bool)  # not decided by rounding
    for i, label in enumerate(labels.tolist()):
        members = [j for j in range(size) if scope == "batch" or labels[j] == label]
        values = p[members, label]
        deviation = values.std()
        if std == "unbiased" and len(values) > 1:
            deviation = values.std(ddof=1)
        undefined = std == "unbiased" and scope == "batch" and size == 1
        margin = p[i, label] - values.mean() - kappa * deviation
        clear[i] = bool(abs(margin) > 1e-12)
        if clear[i]:
            assert bool(found.keep[i]) == (margin > 0 and not undefined)
    order = torch.randperm(size, generator=generator)
    shuffled = select(order)
    assert torch.equal(shuffled.keep & clear[order], (found.keep & clear)[order])
    assert torch.equal(shuffled.p_clean, found.p_clean[order])


# -- traps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", ["population", "unbiased"])
def test_ties_and_lone_samples_are_kept_by_label(std):
    logits = torch.full((7, 3), 0.3)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    assert judge(logits, labels, std=std)[0].keep.all()
    # One sample a class, as with more classes than samples.
    assert judge(torch.randn(5, 20), torch.arange(5), std=std)[0].keep.all()
    assert judge(torch.randn(1, 3), torch.tensor([1]), std=std)[0].keep.all()


def test_the_mean_is_over_the_kept_and_no_gradient_passes_the_threshold():
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 4), torch.arange(40) % 4
    selection, loss, gradient = judge(logits, labels)
    kept = selection.keep
    assert 0 < kept.sum() < 40
    torch.testing.assert_close(loss, F.cross_entropy(logits[kept], labels[kept]))
    assert (gradient[~kept] == 0).all()
    alone = logits[kept].clone().requires_grad_()
    F.cross_entropy(alone, labels[kept]).backward()
    torch.testing.assert_close(gradient[kept], alone.grad)


def test_an_extinct_class_keeps_its_surest_samples_by_label_but_not_by_batch():
    """Class 0 has a low posterior on its own samples, and a higher one elsewhere."""
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    logits = torch.randn(60, 3) * 0.1
    logits[labels == 0, 0] -= 4.0
    extinct = labels == 0
    assert judge(logits, labels)[0].keep[extinct].any()
    assert not judge(logits, labels, **RELEASED)[0].keep[extinct].any()


def test_half_precision_scores_are_judged_in_single():
    torch.manual_seed(0)
    logits, labels = torch.randn(64, 8).half().float(), torch.arange(64) % 8
    expected = judge(logits, labels)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = Bare().select(Evidence(labels, labels, logits=logits.half()))
    assert found.p_clean.dtype == torch.float32
    assert torch.equal(found.p_clean, expected.p_clean)
    assert torch.equal(found.keep, expected.keep)


def test_settings_out_of_range_are_refused():
    for wrong in ({"stats_scope": "class"}, {"std": "biased"}, {"kappa": -1.0}):
        with pytest.raises(UserError, match=f"^{next(iter(wrong))}="):
            Bare(**wrong)


def test_rounding_does_not_decide_about_two_samples_of_a_class():
    """The better of two lies one deviation above their mean: a tie, and ties are kept."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200).repeat(2)
    for _ in range(5):
        logits = torch.randn(400, 200, generator=generator, dtype=torch.float64)
        own = posteriors(logits).gather(1, labels[:, None]).squeeze(1)
        better = own > own.roll(200)
        keep = Bare().select(Evidence(labels=labels, index=labels, logits=logits)).keep
        assert torch.equal(keep, better)
