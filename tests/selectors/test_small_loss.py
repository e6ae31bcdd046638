"""Quotas of small losses: the release's vectors, ties, and what the device alone knows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support import paths, vectors

from noisyml.methods.classification.base import kept_mean
from noisyml.selectors.small_loss import exchange, forget_rate, quota, small_loss


@pytest.fixture(scope="module")
def released():
    return vectors.tensors(paths.GOLDEN / "bare", "baseline_selectors_f32", prefix="coteaching/")


def test_the_exchange_of_the_release_with_its_gradients(released):
    labels = released["labels"]
    logits = [released[f"logits{i}"].requires_grad_() for i in (1, 2)]
    losses = [F.cross_entropy(x, labels, reduction="none") for x in logits]
    keep = quota(len(labels), float(released["forget_rate"]))
    masks = exchange(*(loss.detach() for loss in losses), keep)

    own_choice = released["selected_by_1"], released["selected_by_2"]
    for i in (0, 1):
        # Each learns from the other's choice; a network's purity is that of its own.
        chosen, taught = own_choice[i], own_choice[1 - i]
        assert masks[i].nonzero()[:, 0].tolist() == sorted(taught.tolist())
        torch.testing.assert_close(
            losses[i].detach()[taught],
            released[f"loss{i + 1}_on_peer_selection"],
            rtol=1e-6,
            atol=1e-6,
        )
        purity = released["is_clean"][chosen].double().mean()
        assert float(purity) == float(released[f"pure_ratio{i + 1}"])
    sum(kept_mean(loss, mask) for loss, mask in zip(losses, masks, strict=True)).backward()
    for i, x in enumerate(logits, start=1):
        torch.testing.assert_close(x.grad, released[f"grad{i}"], rtol=1e-6, atol=1e-7)


def test_the_schedule_of_the_release(released):
    expected = released["forget_schedule_20ep_rate0.4"].numpy()
    found = [forget_rate(epoch, 0.4, 10) for epoch in range(20)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_the_schedule_rises_to_a_power_and_ends_at_the_rate():
    found = [forget_rate(epoch, 0.4, 5, exponent=2.0) for epoch in range(7)]
    np.testing.assert_allclose(found, [*np.linspace(0, 0.4**2, 5), 0.4, 0.4], atol=1e-15)
    assert [forget_rate(epoch, 0.4, 1) for epoch in range(3)] == [0.0, 0.4, 0.4]


def test_a_quota_is_exact_in_decimals_and_never_nothing():
    for size, forget, kept in (
        (10, 0.8, 2),
        (10, 0.9, 1),
        (7, 0.3, 4),
        (5, 0.0, 5),
        (3, 0.9, 1),
        (1, 0.5, 1),
        (0, 0.5, 0),
    ):
        assert quota(size, forget) == kept
        assert quota(torch.tensor(size), forget).item() == kept


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, float("inf")]), min_size=1, max_size=12),
    st.data(),
)
def test_small_losses_are_the_first_of_a_stable_order(values, data):
    allowed = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    keep = data.draw(st.integers(0, sum(allowed)))
    mask = small_loss(torch.tensor(values), torch.tensor(keep), torch.tensor(allowed))
    wanted = sorted((v, i) for i, v in enumerate(values) if allowed[i])[:keep]
    assert mask.nonzero()[:, 0].tolist() == sorted(i for _, i in wanted)
    everyone = small_loss(torch.tensor(values), len(values))
    assert everyone.all()


def test_a_loss_that_is_no_number_comes_last():
    assert small_loss(torch.tensor([torch.nan, 3.0, 1.0]), 2).tolist() == [False, True, True]
