"""The step of RCML and CCML against the released code, and what it promises besides."""

import functools
from types import SimpleNamespace

import pytest
import torch
from support import paths, vectors
from support.parts import parts_for
from torch import nn

from noisyml.errors import UserError
from noisyml.losses.multilabel.base import BinaryCrossEntropy
from noisyml.losses.multilabel.elr import MultiLabelELR
from noisyml.losses.multilabel.rcml import kept_count, ranking_errors
from noisyml.losses.multilabel.sat import MultiLabelSAT
from noisyml.methods.multilabel.rcml import RCML
from noisyml.methods.two_networks import Seen, View, better
from noisyml.metrics.multilabel import MultiLabelEvaluator
from noisyml.models.backbones.small import mlp
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead
from noisyml.optim import exponential_steps

GOLDEN = paths.GOLDEN / "rcml"
NAMES = ["ant", "bee", "cat"]
load = functools.partial(vectors.tensors, GOLDEN)
close = functools.partial(vectors.close, check_dtype=False)


def encoder(seed):
    torch.manual_seed(seed)
    backbone = mlp(image_size=4, hidden_features=[8, 6])
    return Encoder(backbone, IdentityHead(backbone.out_features))


def rcml(loss=None, classes=NAMES, **settings):
    parts = parts_for(
        encoder(0),
        classes,
        another=lambda: encoder(1),
        loss=loss or BinaryCrossEntropy(reduction="class_sum"),
        evaluator=MultiLabelEvaluator(),
    )
    return RCML(parts, **settings)


def settings_of(case):
    return {
        "miss_alpha": float(case["alpha"]),
        "extra_beta": float(case["beta"]),
        "lambda2": float(case["lambda2"]),
        "lambda3": float(case["lambda3"]),
        "bandwidth": float(case["sigma"]),
    }


def seen_in(case, networks=(1, 2)):
    """The networks' outputs as leaves, and the batch made of them."""
    leaves = [
        [case[f"{kind}_{k}"].clone().requires_grad_() for kind in ("logits", "feat")]
        for k in networks
    ]
    views = [View(logits, {"block1": features}) for logits, features in leaves]
    index = case.get("batch_indices", torch.arange(len(case["y"])))
    return Seen(views[0], views[-1], case["y"], index), leaves


# -- against the released step -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["swap", "noswap", "ties", "partial_batch", "partial_all_kept", "nodivergence", "swap_elr"],
)
def test_a_step_is_the_released(name):
    case = load(f"step_{name}")
    loss = None
    if case["loss_fn"] == "ELR":
        samples = int(case["batch_indices"].max()) + 1
        loss = MultiLabelELR(samples, case["y"].shape[1], 1.0, 0.9, reduction="mean").double()
        loss.targets.rows[case["batch_indices"]] = case["state_rows_before"]
    method = rcml(
        loss,
        list("abcdef"),
        swap=bool(case["swap"]),
        discrepancy={"mmd": "mmd", "nothing": "none"}[case["divergence"]],
        share_memory=True,
        **settings_of(case),
    )
    seen, leaves = seen_in(case)
    count = kept_count(float(case["swap_rate"]), int(case["nominal_batch_size"]))
    found = method.exchange(seen, count)
    found.loss.backward()

    close(found.disparity, case["L2"])
    close(found.consistency, case["L3"])
    for k, (logits, features) in enumerate(leaves):
        close(found.rankings[k].errors, case[f"error_{k + 1}"])
        order = found.rankings[k].errors.argsort(stable=True)
        assert torch.equal(order, case[f"order_{k + 1}"])
        excluded = case["batch_indices"][~found.keep[k]]
        assert excluded.sort().values.tolist() == sorted(case[f"excluded_indices_{k + 1}"].tolist())
        close(found.taught[k], case[f"kept_mean_{k + 1}"])
        own = found.taught[k] + found.consistency - found.disparity
        close(own, case[f"loss_{k + 1}"])
        # One backward pass through the sum is one through each network's loss.
        close(logits.grad, case[f"dloss{k + 1}_dlogits{k + 1}"])
        if method.discrepancy == "mmd":
            close(features.grad, case[f"dloss{k + 1}_dfeat{k + 1}"])
    if loss is not None:
        close(loss.targets.rows[case["batch_indices"]], case["state_rows_after"])
    else:
        entries = method.entry_losses(seen, case["y"])
        for k in range(2):
            close(method.loss.per_sample(entries[k]), case[f"loss_per_sample_{k + 1}"])


@pytest.mark.parametrize("name", ["single_network", "single_sat"])
def test_one_network_learns_from_everything(name):
    case = load(f"step_{name}")
    index = case["batch_indices"]
    loss = BinaryCrossEntropy(reduction="class_sum")
    if case["loss_fn"] == "SAT":
        loss = MultiLabelSAT(int(index.max()) + 1, case["y"].shape[1], 0.9, 3).double()
        loss.targets.rows[index] = case["state_rows_before"]
        loss.targets.seen[index] = True
    logits = case["logits_1"].clone().requires_grad_()
    entries = loss(logits, case["y"], index, int(case["epoch"]) - 1)
    value = loss.reduce(entries, torch.ones(len(index), dtype=torch.bool))
    value.backward()
    close(loss.per_sample(entries), case["loss_per_sample_1"])
    close(value, case["loss_1"])
    close(logits.grad, case["dloss1_dlogits1"])
    errors = ranking_errors(
        logits.sigmoid(), case["y"], float(case["alpha"]), float(case["beta"])
    ).errors
    close(errors, case["error_1"])
    assert torch.equal(errors.argsort(stable=True), case["order_1"])
    if case["loss_fn"] == "SAT":
        close(loss.targets.rows[index], case["state_rows_after"])


def test_training_steps_are_the_released():
    case = load("train_steps")
    method = rcml(classes=list("abcde"), **settings_of(case))
    names = ("W1", "b1", "W2", "b2")
    networks = [
        [nn.Parameter(case[f"net{k}_{name}_init"].clone()) for name in names] for k in (1, 2)
    ]
    weights = [w for network in networks for w in network]
    optimizer = torch.optim.SGD(weights, lr=float(case["lr0"]))
    schedule = exponential_steps(
        optimizer,
        total_steps=len(case["X"]),
        gamma=float(case["decay_rate"]),
        decay_steps=int(case["decay_steps"]),
    )
    for step, (x, y, index) in enumerate(zip(case["X"], case["Y"], case["indices"], strict=True)):
        hidden = [torch.relu(x @ w1 + b1) for w1, b1, _, _ in networks]
        views = [
            View(h @ w2 + b2, {"block1": h})
            for h, (_, _, w2, b2) in zip(hidden, networks, strict=True)
        ]
        count = kept_count(float(case["swap_rates"][step]), len(x))
        found = method.exchange(Seen(*views, y, index), count)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        schedule.step()
        close(found.disparity, case["L2"][step], atol=1e-6)
        close(found.consistency, case["L3"][step], atol=1e-6)
        for k in range(2):
            close(found.rankings[k].errors, case[f"errors_{k + 1}"][step], atol=1e-6)
            own = found.taught[k] + found.consistency - found.disparity
            close(own, case[f"loss_{k + 1}"][step], atol=1e-6)
            excluded = case[f"excluded_{k + 1}"][step]
            assert index[~found.keep[k]].sort().values.tolist() == sorted(
                excluded[excluded >= 0].tolist()
            )
            for name, weight in zip(names, networks[k], strict=True):
                close(weight, case[f"net{k + 1}_{name}_after"][step], atol=1e-7)


@pytest.mark.parametrize("name", ["ccml_before_flip", "ccml_flip_step"])
def test_a_step_with_corrections_is_the_released(name):
    case = load(name)
    method = rcml(
        classes=list("abcdefg"),
        variant="ccml",
        threshold=float(case["threshold"]),
        rank_alpha=float(case["rank_alpha"]),
        flip_share=float(case["flip_per"]),
        flipped_ranking="first",
        **settings_of(case),
    )
    seen, leaves = seen_in(case)
    flip = bool(case["progress"] > case["flip_bound"])
    found = method.exchange(seen, kept_count(float(case["swap_rate"]), len(case["y"])), flip)
    found.loss.backward()
    assert torch.equal(found.labels, case["y_flipped"] if flip else case["y"])
    close(found.disparity, case["L2"])
    close(found.consistency, case["L3"])
    for k, (logits, _) in enumerate(leaves):
        own = found.taught[k] + found.consistency - found.disparity
        close(own, case[f"loss_{k + 1}"])
        close(logits.grad, case[f"dloss{k + 1}_dlogits{k + 1}"])
    close(leaves[0][1].grad, case["dloss1_dfeat1"])


def test_the_better_network_is_saved_where_it_beats_all_before():
    case = load("best_model_rule")
    best = -1.0
    for (first, second), saved, reached in zip(
        case["map_micro"].tolist(),
        case["saved_network"].tolist(),
        case["best_so_far"].tolist(),
        strict=True,
    ):
        chosen = better(first, second)
        score = (first, second)[chosen]
        # `RunCheckpoints` keeps a file only if the score is strictly above the best.
        assert saved == (chosen + 1 if score > best else 0)
        best = max(best, score)
        assert best == reached


# -- a whole step ------------------------------------------------------------------------------


def batch(size=8):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (size, 1, 4, 4), generator=generator, dtype=torch.uint8)
    labels = (torch.rand(size, 3, generator=generator) < 0.4).float()
    return {"image": image, "labels": labels, "index": torch.arange(size) + 40}


def in_training(method, epoch=0, epochs=10, size=8, step=0):
    method._trainer = SimpleNamespace(
        current_epoch=epoch,
        max_epochs=epochs,
        global_step=step,
        datamodule=SimpleNamespace(plan=SimpleNamespace(batch_size=size)),
    )
    return method


def test_the_first_network_learns_from_what_the_second_trusts():
    method = in_training(rcml(bandwidth="median"))
    outcome = method.training_step(batch(), 0)
    outcome["loss"].backward()
    assert all(p.grad is not None for p in method.parameters())
    seen = method.see(batch())
    second = ranking_errors(seen.second.logits.sigmoid(), seen.labels)
    selection = outcome["selection"]
    assert selection.keep.sum() == 4
    assert second.errors[selection.keep].max() <= second.errors[~selection.keep].min()
    torch.testing.assert_close(selection.p_clean, 1 / (1 + second.errors.detach()))
    assert torch.equal(selection.extras["suspected"], second.suspected)
    # The second network trusts what the first learns from, and the other way round.
    assert selection.extras.keys() == {"suspected", "kept_first", "kept_second"}
    assert torch.equal(selection.extras["kept_second"], selection.keep)
    first = ranking_errors(seen.first.logits.sigmoid(), seen.labels).errors
    trusted = selection.extras["kept_first"]
    assert first[trusted].max() <= first[~trusted].min()
    terms = outcome["terms"]
    expected = terms["first"] + terms["second"] + terms["consistency"] - terms["disparity"]
    torch.testing.assert_close(outcome["loss"].detach(), expected)


def test_the_warm_up_trusts_everything_and_the_nominal_size_counts():
    method = in_training(rcml(warmup_epochs=1))
    assert method.training_step(batch(), 0)["selection"].keep.all()
    in_training(method, epoch=1)
    assert method.training_step(batch(), 0)["selection"].keep.sum() == 4
    assert method.training_step(batch(5), 0)["selection"].keep.sum() == 4
    assert method.training_step(batch(3), 0)["selection"].keep.all()


def test_random_exclusion_repeats_itself_and_scores_nothing():
    method = in_training(rcml(ranking="random", seed=3))
    keeps = [method.training_step(batch(), 0)["selection"] for _ in range(2)]
    assert torch.equal(keeps[0].keep, keeps[1].keep)
    assert keeps[0].keep.sum() == 4
    assert keeps[0].p_clean.isnan().all()
    in_training(method, step=1)
    assert not torch.equal(method.training_step(batch(), 0)["selection"].keep, keeps[0].keep)


def test_labels_are_corrected_late_and_for_one_step_only():
    settings = {"variant": "ccml", "flip_share": 1.0, "flip_bound": 0.9}
    given = batch()
    labels = given["labels"].clone()
    early, late = (
        in_training(rcml(**settings), epoch=epoch).training_step(given, 0)["loss"]
        for epoch in (8, 9)
    )
    assert not torch.equal(early, late)
    assert torch.equal(given["labels"], labels)
    never = in_training(rcml(**{**settings, "flip_bound": 1.0}), epoch=9).training_step(given, 0)
    assert torch.equal(never["loss"], early)


def test_each_network_remembers_for_itself():
    method = in_training(rcml(MultiLabelELR(50, 3)))
    method.training_step(batch(), 0)
    first, second = method.loss.targets.rows, method.peer_loss.targets.rows
    assert (first[40:48] > 0).all()
    assert not torch.equal(first, second)
    shared = in_training(rcml(MultiLabelELR(50, 3), share_memory=True))
    assert not any("peer_loss" in name for name in shared.state_dict())


def test_clean_labels_are_not_asked_for():
    method = in_training(rcml())
    plain = method.training_step(batch(), 0)["loss"]
    with_truth = method.training_step(batch() | {"clean_label": torch.ones(8, 3)}, 0)["loss"]
    assert torch.equal(plain, with_truth)


def test_a_mean_of_probabilities_is_a_mean_of_probabilities():
    method = rcml()
    first, second = torch.tensor([[0.0, 80.0, -80.0]]), torch.tensor([[2.0, 80.0, 3.0]])
    found = method.average(first, second)
    torch.testing.assert_close(found.sigmoid(), (first.sigmoid() + second.sigmoid()) / 2)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"variant": "rmcl"}, "variant=rmcl must be rcml or ccml. Did you mean"),
        ({"ranking": "loss"}, "ranking=loss must be group_lasso or random"),
        ({"discrepancy": "kl"}, "discrepancy=kl must be mmd or none"),
        ({"swap_start": 60}, "swap_start=60 must be a number above 0 and at most 1"),
        ({"swap_end": 0.0}, r"swap_end=0\.0 must be a number above 0 and at most 1"),
        ({"bandwidth": "mean"}, "bandwidth=mean must be a number above 0 or median"),
        ({"bandwidth": 0.0}, r"bandwidth=0\.0 must be a number above 0"),
        ({"lambda2": -1.0}, r"lambda2=-1\.0 must be a number of at least 0"),
        ({"flip_share": 2.0}, r"flip_share=2\.0 must be a number from 0 to 1"),
    ],
)
def test_mistakes_are_one_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        rcml(**settings)


def test_a_layer_that_is_not_there_is_one_sentence():
    method = in_training(rcml(feature_layer="block7"))
    with pytest.raises(UserError, match=r"no layer 'block7' to look into: it has block1, block2"):
        method.training_step(batch(), 0)
