"""Class activation maps and their consistency, against the released code and its traps."""

import functools

import pytest
import torch
import torch.nn.functional as F
from support import paths, vectors
from torch import nn

from noisyml.losses.classification.eac import attention_consistency, class_activation_maps

GOLDEN = paths.GOLDEN / "eac"
load = functools.partial(vectors.tensors, GOLDEN)


def some(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("consistency_7x7_f64", 1e-12),
        ("consistency_7x7_f32", 1e-5),
        # Not square: mirroring the other axis would not even fit.
        ("consistency_h5_w8_f64", 1e-12),
    ],
)
def test_consistency_is_the_released_one(name, tolerance):
    golden = load(name)
    first, second = (golden[key].requires_grad_() for key in ("att1", "att2"))
    # With an identity for a classifier, the features are the maps.
    weight = torch.eye(first.shape[1], dtype=first.dtype)
    loss = attention_consistency(first, second, weight).mean()
    loss.backward()
    close = {"rtol": 0, "atol": tolerance}
    torch.testing.assert_close(loss.detach(), golden["loss"], **close)
    torch.testing.assert_close(first.grad, golden["grad_att1"], **close)
    torch.testing.assert_close(second.grad, golden["grad_att2"], **close)
    # The release samples a grid whose x is negated: a reversal of the last axis alone.
    torch.testing.assert_close(second.detach().flip(-1), golden["att2_flipped"], **close)
    sampled = F.grid_sample(
        second.detach(),
        golden["grid"].movedim(1, -1).expand(len(second), -1, -1, -1),
        padding_mode="border",
        align_corners=True,
    )
    torch.testing.assert_close(sampled, second.detach().flip(-1), **close)


def test_maps_scores_and_gradients_are_the_released_ones():
    golden = load("forward_small_f64")
    first, second, weight, bias = (
        golden[key].requires_grad_() for key in ("feat1", "feat2", "fc_weight", "fc_bias")
    )
    for features, number in ((first, 1), (second, 2)):
        maps = class_activation_maps(features, weight)
        torch.testing.assert_close(maps, golden[f"cam{number}"], rtol=0, atol=1e-12)
        # The mean of a map is the score without its bias.
        scores = maps.mean(dim=(2, 3)) + bias
        torch.testing.assert_close(scores.detach(), golden[f"logits{number}"], rtol=0, atol=1e-12)
    logits = F.linear(first.mean(dim=(2, 3)), weight, bias)
    ce = F.cross_entropy(logits, golden["labels"])
    consistency = attention_consistency(first, second, weight).mean()
    total = ce + golden["lam"].double() * consistency
    total.backward()
    for found, key in (
        (ce, "ce"),
        (consistency, "consistency"),
        (total, "total"),
        (first.grad, "grad_feat1"),
        (second.grad, "grad_feat2"),
        (weight.grad, "grad_fc_weight"),
        (bias.grad, "grad_fc_bias"),
    ):
        torch.testing.assert_close(found.detach(), golden[key], rtol=0, atol=1e-12)


def test_the_classifier_is_out_of_reach_unless_asked_for():
    assert not load("forward_small_f64")["consistency_depends_on_fc"]
    first, second = some(2, 4, 3, 3).requires_grad_(), some(2, 4, 3, 3, seed=1)
    weight = some(5, 4, seed=2).requires_grad_()
    attention_consistency(first, second, weight).mean().backward()
    assert weight.grad is None
    assert first.grad.abs().sum() > 0
    attention_consistency(first, second, weight, detach_classifier=False).mean().backward()
    # Left alone the weight would shrink: along itself the gradient is positive.
    assert (weight.grad * weight.detach()).sum() > 0


def test_the_maps_keep_their_sign_and_scale():
    """No rectification and no scaling, as are usual for display: the loss would be another."""
    features, weight = some(2, 4, 3, 5), some(5, 4, seed=2)
    maps = class_activation_maps(features, weight)
    assert (maps < 0).any()
    torch.testing.assert_close(class_activation_maps(3 * features, weight), 3 * maps)
    torch.testing.assert_close(maps, torch.einsum("cd,bdhw->bchw", weight, features))


def test_equal_maps_cost_nothing_and_one_column_is_no_special_case():
    features, weight = some(3, 4, 5, 1), some(2, 4, seed=1)
    assert attention_consistency(features, features, weight).tolist() == [0, 0, 0]
    wide = some(3, 4, 5, 6)
    assert attention_consistency(wide, wide.flip(-1), weight).abs().max() < 1e-25
    assert attention_consistency(wide, wide.flip(-2), weight).min() > 0.1
    assert attention_consistency(wide, wide, weight).min() > 0.1


def test_the_mean_runs_over_classes_and_positions_too():
    """A sum there would multiply lambda by C * H * W."""
    first, second, weight = some(2, 4, 3, 5), some(2, 4, 3, 5, seed=1), some(6, 4, seed=2)
    small = attention_consistency(first, second, weight)
    tiled = attention_consistency(
        first.repeat(1, 1, 2, 1), second.repeat(1, 1, 2, 1), weight.repeat(3, 1)
    )
    torch.testing.assert_close(small, tiled)
    assert small.shape == (2,)


def test_all_is_single_precision_under_autocast():
    features = some(2, 64, 7, 7).float()
    weight = nn.Parameter(some(3, 64, seed=1).float())
    exact = class_activation_maps(features, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(class_activation_maps(features, weight), exact)
        half = features.bfloat16()
        assert class_activation_maps(half, weight).dtype == torch.float32
        near = half * 1.01
        found = attention_consistency(half, near.flip(-1), weight)
    expected = class_activation_maps(half.float() - near.float(), weight)
    torch.testing.assert_close(found, expected.square().mean(dim=(1, 2, 3)))
