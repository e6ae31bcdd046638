"""Cross-entropy of pixels, partial and mixed, and pseudo-labels: reference vectors, gradients."""

import numpy as np
import pytest
import torch
from support import paths

from noisyml.losses.segmentation.pixels import (
    mixed,
    pixel_cross_entropy,
    pseudo_labels,
    soft_pixel_cross_entropy,
    upsampled,
)
from noisyml.optim import poly

GOLDEN = paths.GOLDEN / "gist_rist"


def tensors(file):
    return {name: torch.from_numpy(value) for name, value in np.load(file).items()}


def same(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-9, atol=1e-12)


def test_human_and_pseudo_losses_and_their_mixtures():
    v = tensors(GOLDEN / "pixel_ce_and_mix.npz")
    ignore = int(v["ignore_index"])
    human, pseudo = (v[name].requires_grad_() for name in ("logits_h", "logits_p"))

    def losses():
        return (
            pixel_cross_entropy(human, v["target_h"], ignore).mean(),
            pixel_cross_entropy(pseudo, v["target_p"], ignore).global_mean(),
        )

    of_human, of_pseudo = losses()
    same(of_human.detach(), v["loss_h"])
    same(of_pseudo.detach(), v["loss_p"])
    same(torch.autograd.grad(of_human, human)[0], v["grad_h"])
    same(torch.autograd.grad(of_pseudo, pseudo)[0], v["grad_p"])
    for i, alpha in enumerate(v["alphas"].tolist()):
        loss = mixed(*losses(), alpha)
        same(loss.detach(), v["loss_mix"][i])
        gradients = torch.autograd.grad(loss, [human, pseudo])
        same(gradients[0], v["grad_h_mix"][i])
        same(gradients[1], v["grad_p_mix"][i])


def test_nothing_labelled_costs_nothing():
    v = tensors(GOLDEN / "pixel_ce_and_mix.npz")
    logits = v["logits_h"].requires_grad_()
    loss = pixel_cross_entropy(logits, v["target_all_ignored"]).mean()
    assert loss == v["loss_all_ignored_expected"]
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_an_infinite_loss_of_an_ignored_pixel_stays_out():
    logits = torch.tensor([[[[0.0, torch.inf]], [[0.0, 0.0]]]], requires_grad=True)
    loss = pixel_cross_entropy(logits, torch.tensor([[[1, 255]]])).mean()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("kind", ["scribble", "dense"])
def test_partial_cross_entropy_is_a_mean_over_all_labelled_pixels_of_the_batch(kind):
    v = tensors(paths.GOLDEN / "ael" / "scribble_ce.npz")
    logits = v["logits"].requires_grad_()
    loss = pixel_cross_entropy(logits, v[kind], int(v["ignore_index"])).mean()
    same(loss.detach(), v[f"loss_{kind}"])
    same(torch.autograd.grad(loss, logits)[0], v[f"grad_{kind}"])


def test_soft_targets_of_one_class_are_hard_ones():
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 5))
    valid = torch.rand(2, 4, 5) < 0.7
    shares = torch.nn.functional.one_hot(target, 3).movedim(3, 1).double()
    soft = soft_pixel_cross_entropy(logits, shares, valid).mean()
    hard = pixel_cross_entropy(logits, target.masked_fill(~valid, 255)).mean()
    same(soft, hard)
    same(torch.autograd.grad(soft, logits)[0], torch.autograd.grad(hard, logits)[0])


def test_pseudo_labels_are_the_lowest_of_equals():
    v = tensors(GOLDEN / "pseudo_labels.npz")
    scores = upsampled(v["logits_lowres"], tuple(v["out_size"].tolist()))
    same(scores, v["upsampled"])
    found = pseudo_labels(scores)
    assert torch.equal(found.labels, v["labels"])
    same(found.confidence, v["confidence"])
    certain = pseudo_labels(scores, threshold=0.5)
    assert torch.equal(certain.labels == 255, v["confidence"] < 0.5)


def test_the_rate_falls_by_a_power_of_what_is_left():
    v = dict(np.load(GOLDEN / "poly_lr.npz"))
    body, head = (torch.zeros(1, requires_grad=True) for _ in range(2))
    base = float(v["base_lr"])
    groups = [{"params": [body], "lr": base}, {"params": [head], "lr": 10 * base}]
    optimizer = torch.optim.SGD(groups)
    schedule = poly(optimizer, total_steps=int(v["total_iters"]), power=float(v["power"]))
    for at, rate, of_head in zip(v["iters"].tolist(), v["lr"], v["lr_head"], strict=True):
        factor = schedule.lr_lambdas[0](at)
        np.testing.assert_allclose([base * factor, 10 * base * factor], [rate, of_head], rtol=1e-9)
