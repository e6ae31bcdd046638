"""Losses of entries: released values and gradients, reductions, what is left out."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.losses.multilabel.base import (
    BinaryCrossEntropy,
    Focal,
    bce_entries,
    focal_entries,
    reduce_entries,
)


@pytest.mark.parametrize(("name", "kind"), [("bce", BinaryCrossEntropy), ("focal", Focal)])
def test_released_values_and_gradients(name, kind):
    vector = vectors.tensors(paths.GOLDEN / "rcml", "per_sample_losses")
    logits = vector["logits"].requires_grad_()
    criterion = kind(reduction="class_sum")
    entries = criterion(logits, vector["y"], torch.arange(len(logits)), 0)
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(criterion.per_sample(entries), vector[f"{name}_sum"], **close)
    loss = criterion.reduce(entries, torch.ones(len(logits), dtype=torch.bool))
    torch.testing.assert_close(loss, vector[f"{name}_sum"].mean(), **close)
    loss.backward()
    expected = vector[f"grad_mean_{name}_sum"]
    # At a score of exactly 0 the release differentiates a kink of its cross-entropy to the wrong
    # side (1 in place of 1/2); everywhere else there is one derivative.
    kink = (logits == 0) & (torch.tensor(name == "bce"))
    assert int(kink.sum()) == (name == "bce")
    torch.testing.assert_close(logits.grad[~kink], expected[~kink], **close)
    torch.testing.assert_close(
        logits.grad[kink] * len(logits), 0.5 - vector["y"][kink], rtol=0, atol=0
    )


def batch(seed, rows=5, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 2, (rows, classes), generator=generator).double()
    keep = torch.rand(rows, classes, generator=generator) < 0.5
    return logits.requires_grad_(), labels, keep


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_kept_entries_alone_count(seed):
    logits, labels, keep = batch(seed)
    entries = bce_entries(logits, labels)
    torch.testing.assert_close(
        reduce_entries(entries, keep),
        entries[keep].mean() if keep.any() else torch.zeros((), dtype=torch.float64),
    )
    rows = keep.any(dim=1)
    summed = (entries * keep).sum(dim=1)[rows]
    expected = summed.mean() if rows.any() else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(reduce_entries(entries, keep, "class_sum"), expected)
    # A sample kept is a row of entries kept.
    for reduction in ("mean", "class_sum"):
        torch.testing.assert_close(
            reduce_entries(entries, rows, reduction),
            reduce_entries(entries, rows[:, None].expand_as(keep), reduction),
        )


def test_all_kept_is_the_plain_mean_and_a_sum_is_classes_times_it():
    logits, labels, _ = batch(0)
    everything = torch.ones(5, dtype=torch.bool)
    mean = BinaryCrossEntropy().reduce(bce_entries(logits, labels), everything)
    torch.testing.assert_close(mean, F.binary_cross_entropy_with_logits(logits, labels))
    summed = BinaryCrossEntropy("class_sum").reduce(bce_entries(logits, labels), everything)
    torch.testing.assert_close(summed, 4 * mean)


def test_what_is_left_out_cannot_spoil_the_loss():
    entries = torch.tensor([[1.0, torch.inf], [torch.inf, 3.0]], requires_grad=True)
    loss = reduce_entries(entries, torch.tensor([[True, False], [False, True]]))
    loss.backward()
    assert float(loss.detach()) == 2.0
    assert entries.grad.tolist() == [[0.5, 0.0], [0.0, 0.5]]
    nothing = reduce_entries(entries, torch.zeros(2, dtype=torch.bool))
    assert float(nothing.detach()) == 0.0
    assert (torch.autograd.grad(nothing, entries)[0] == 0).all()


def test_focal_without_modulation_is_weighted_cross_entropy():
    logits, labels, _ = batch(1)
    torch.testing.assert_close(
        focal_entries(logits, labels, alpha=0.5, gamma=0.0), 0.5 * bce_entries(logits, labels)
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BinaryCrossEntropy("sum"), "reduction=sum must be mean or class_sum"),
        (lambda: Focal(alpha=1.5), "alpha=1.5 must be a number from 0 to 1"),
        (lambda: Focal(gamma=-1.0), "gamma=-1.0 must be a number of at least 0"),
    ],
)
def test_mistakes_end_in_a_sentence(make, words):
    with pytest.raises(UserError, match=words):
        make()
