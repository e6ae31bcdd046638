"""Losses on class scores: reference vectors, limits, memories, transition matrices."""

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.losses.classification.base import (
    CrossEntropy,
    GeneralisedCrossEntropy,
    generalised_cross_entropy,
)
from noisyml.losses.classification.elr import EarlyLearningRegularisation
from noisyml.losses.classification.loss_correction import (
    BackwardCorrection,
    ForwardCorrection,
    anchor_transition,
    backward_correction,
    forward_correction,
)
from noisyml.losses.classification.sat import SelfAdaptiveTraining
from noisyml.losses.target_memory import TargetMemory, last_of_equal
from noisyml.noise.transition import symmetric_matrix

GOLDEN = paths.GOLDEN / "mlnoise"


def batch(size=12, classes=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size, classes, generator=generator, dtype=dtype)
    labels = torch.randint(classes, (size,), generator=generator)
    return logits.requires_grad_(), labels, torch.arange(size)


# -- per-sample memories -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sat", "elr"])
def test_released_sequence_of_values_gradients_and_targets(method):
    golden = vectors.tensors(GOLDEN, "single_label_originals")
    labels = golden["labels"]
    sizes = {"num_samples": len(labels), "num_classes": 6}
    if method == "sat":
        momentum, warmup = float(golden["sat_momentum"]), int(golden["sat_es"])
        loss = SelfAdaptiveTraining(**sizes, momentum=momentum, warmup_epochs=warmup).double()
    else:
        weight, momentum = float(golden["elr_lambda"]), float(golden["elr_beta"])
        loss = EarlyLearningRegularisation(**sizes, weight=weight, momentum=momentum).double()
    close = {"rtol": 1e-9, "atol": 1e-11}
    for step, epoch in enumerate(golden["epoch0"].tolist()):
        index = golden["index"][step]
        logits = golden["logits"][step].clone().requires_grad_()
        found = loss(logits, labels[index], index, epoch).mean()
        found.backward()
        torch.testing.assert_close(found.detach(), golden[f"{method}_loss"][step], **close)
        torch.testing.assert_close(logits.grad, golden[f"{method}_grad"][step], **close)
        rows = loss.targets.rows
        if method == "sat":
            # The released table begins with the labels; ours knows them once a sample comes by.
            rows = torch.where(loss.targets.seen[:, None], rows, F.one_hot(labels, 6))
        torch.testing.assert_close(rows, golden[f"{method}_state"][step], **close)


def test_the_place_of_the_last_occurrence():
    index = torch.tensor([4, 9, 4, 2, 9, 4])
    assert last_of_equal(index).tolist() == [5, 4, 5, 3, 4, 5]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, 20))
def test_a_sample_that_comes_twice_is_written_once(seed, size):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(8, (size,), generator=generator)
    values = torch.rand(size, 3, generator=generator)
    memory = TargetMemory(8, 3)
    start = torch.full((size, 3), 1 / 3)
    found = memory.blend(index, values, 0.9, start)
    expected = torch.zeros(8, 3)
    for i in range(size):  # the last one wins
        expected[index[i]] = 0.9 / 3 + 0.1 * values[i]
    torch.testing.assert_close(memory.rows, expected)
    assert torch.equal(found, memory.rows[index])
    assert memory.seen.sum() == len(set(index.tolist()))


@pytest.mark.parametrize("kind", [EarlyLearningRegularisation, SelfAdaptiveTraining])
def test_a_memory_lives_in_the_state_dict(kind):
    more = {"warmup_epochs": 0} if kind is SelfAdaptiveTraining else {}
    logits, labels, index = batch(dtype=torch.float32)
    loss, again = (kind(20, 5, **more) for _ in range(2))
    loss(logits, labels, index, 3)
    assert loss.targets.rows[:12].any()
    again.load_state_dict(loss.state_dict())
    assert torch.equal(
        loss(logits * 2, labels, index, 3).detach(), again(logits * 2, labels, index, 3).detach()
    )
    assert not again.targets.rows.requires_grad


def test_elr_begins_as_cross_entropy_and_pulls_towards_what_was_predicted():
    logits, labels, index = batch()
    loss = EarlyLearningRegularisation(12, 5, weight=0.0).double()
    torch.testing.assert_close(
        loss(logits, labels, index, 0), F.cross_entropy(logits, labels, reduction="none")
    )
    loss.weight = 3.0
    for _ in range(20):
        loss(logits, labels, index, 0)
    (gradient,) = torch.autograd.grad(loss(logits, labels, index, 0).sum(), logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)
    favourite = logits.argmax(dim=1, keepdim=True)
    assert (gradient.gather(1, favourite) < plain.gather(1, favourite)).all()


def test_sat_weights_have_a_mean_of_one():
    logits, labels, index = batch()
    loss = SelfAdaptiveTraining(12, 5, momentum=1 - 1e-12 - 1e-3, warmup_epochs=0).double()
    found = loss(logits, labels, index, 0)
    targets = loss.targets.rows
    soft = -(targets * F.log_softmax(logits, dim=1)).sum(1)
    weight = found / soft
    assert float(weight.detach().mean()) == pytest.approx(1.0)
    torch.testing.assert_close(weight / weight.sum(), targets.amax(1) / targets.amax(1).sum())


# -- generalised cross-entropy -----------------------------------------------------------------


def test_the_limits_of_q():
    logits, labels, _ = batch()
    p = F.softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(generalised_cross_entropy(logits, labels, 1.0), 1 - p)
    torch.testing.assert_close(
        generalised_cross_entropy(logits, labels, 1e-9),
        F.cross_entropy(logits, labels, reduction="none"),
    )
    torch.testing.assert_close(generalised_cross_entropy(logits, labels, 0.7), (1 - p**0.7) / 0.7)


def test_its_gradient_is_that_of_cross_entropy_times_p_to_the_q():
    logits, labels, _ = batch()
    p = F.softmax(logits, dim=1).gather(1, labels[:, None]).detach()
    (found,) = torch.autograd.grad(generalised_cross_entropy(logits, labels, 0.7).sum(), logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)
    torch.testing.assert_close(found, p**0.7 * plain)
    # A hopeless sample has a loss and a gradient, not NaN.
    far = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = generalised_cross_entropy(far, torch.tensor([1]), 0.7).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1 / 0.7)
    assert far.grad.isfinite().all()


def test_truncated_samples_teach_nothing_after_the_warm_up():
    logits, labels, index = batch()
    loss = GeneralisedCrossEntropy(0.7, truncation=0.4, truncation_epoch=3)
    p = F.softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1).detach()
    assert 0 < int((p > 0.4).sum()) < 12
    before, after = (loss(logits, labels, index, epoch) for epoch in (2, 3))
    torch.testing.assert_close(before[p > 0.4], after[p > 0.4])
    assert torch.allclose(after[p <= 0.4], torch.tensor((1 - 0.4**0.7) / 0.7).double())
    (gradient,) = torch.autograd.grad(after.sum(), logits)
    assert (gradient[p <= 0.4] == 0).all()
    assert loss.warmup_epochs == 3
    assert GeneralisedCrossEntropy().warmup_epochs == 0


# -- loss correction ---------------------------------------------------------------------------


def matrix(classes=5, seed=3):
    rows = torch.rand(classes, classes, generator=torch.Generator().manual_seed(seed)).double()
    rows = rows + 3 * torch.eye(classes)
    return rows / rows.sum(1, keepdim=True)


def test_without_noise_both_corrections_are_cross_entropy():
    logits, labels, _ = batch()
    plain = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(forward_correction(logits, labels, torch.eye(5)), plain)
    torch.testing.assert_close(backward_correction(logits, labels, torch.eye(5)), plain)
    (gradient,) = torch.autograd.grad(
        forward_correction(logits, labels, torch.eye(5)).sum(), logits
    )
    assert gradient.isfinite().all()


def test_forward_correction_is_the_likelihood_of_the_label():
    logits, labels, _ = batch()
    p = F.softmax(logits, dim=1) @ matrix()
    expected = -p.gather(1, labels[:, None]).squeeze(1).log()
    torch.testing.assert_close(forward_correction(logits, labels, matrix()), expected)
    assert torch.autograd.gradcheck(lambda x: forward_correction(x, labels, matrix()), logits)


def test_backward_correction_is_unbiased():
    """Averaged over labels drawn from T it is the cross-entropy with the true class."""
    logits, true, _ = batch()
    transition = matrix()
    inverse = torch.linalg.inv(transition)
    mean = sum(
        transition[true, observed]
        * backward_correction(logits, torch.full_like(true, observed), inverse)
        for observed in range(5)
    )
    torch.testing.assert_close(mean, F.cross_entropy(logits, true, reduction="none"))


def test_anchors_recover_a_matrix_from_calibrated_predictions():
    transition = matrix()
    generator = torch.Generator().manual_seed(0)
    scores = 6 * torch.randn(4000, 5, generator=generator).double()
    clean = F.softmax(scores, dim=1)
    torch.testing.assert_close(anchor_transition(clean @ transition), transition, atol=0.02, rtol=0)
    # A single freak prediction is an anchor, unless the top is passed over.
    noisy = clean @ transition
    noisy[7] = torch.tensor([0.98, 0.01, 0.005, 0.004, 0.001])
    assert float(anchor_transition(noisy)[0, 0]) == pytest.approx(0.98)
    found = anchor_transition(noisy, outliers=0.03)
    torch.testing.assert_close(found, transition, atol=0.04, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(5).double())


def test_an_estimated_matrix_is_asked_for_once_and_kept():
    loss = ForwardCorrection(5, estimation_epoch=2)
    logits, labels, index = batch(dtype=torch.float32)
    plain = F.cross_entropy(logits, labels, reduction="none")
    assert [loss.wants_predictions(epoch) for epoch in range(4)] == [False, False, True, True]
    torch.testing.assert_close(loss(logits, labels, index, 1), plain)
    loss.learn(F.softmax(torch.randn(50, 5), dim=1))
    assert not loss.wants_predictions(2)
    assert not torch.allclose(loss(logits, labels, index, 2), plain)
    again = ForwardCorrection(5, estimation_epoch=2)
    again.load_state_dict(loss.state_dict())
    assert not again.wants_predictions(2)
    assert torch.equal(loss(logits, labels, index, 2), again(logits, labels, index, 2))
    with pytest.raises(TypeError, match="learns from no predictions"):
        CrossEntropy().learn(torch.ones(1, 2))


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_a_given_matrix(tmp_path, suffix):
    logits, labels, index = batch()
    file = tmp_path / f"matrix.{suffix}"
    if suffix == "npy":
        np.save(file, matrix().numpy())
    else:
        np.savetxt(file, matrix().numpy(), delimiter=",")
    forward = ForwardCorrection(5, "file", path=str(file))
    assert not forward.wants_predictions(100)
    torch.testing.assert_close(
        forward(logits, labels, index, 0),
        forward_correction(logits, labels, matrix()),
        rtol=1e-5,
        atol=1e-6,
    )
    backward = BackwardCorrection(5, "symmetric", rate=0.4)
    inverse = torch.from_numpy(np.linalg.inv(symmetric_matrix(5, 0.4)))
    torch.testing.assert_close(
        backward(logits, labels, index, 0),
        backward_correction(logits, labels, inverse),
        rtol=1e-5,
        atol=1e-6,
    )
    pair = ForwardCorrection(5, "pair", rate=0.3).matrix
    assert pair[4].tolist() == pytest.approx([0.3, 0, 0, 0, 0.7])
    with pytest.raises(UserError, match="has 5 classes, but the data has 6"):
        forward(torch.zeros(1, 6), labels[:1], index[:1], 0)


@pytest.mark.parametrize(
    ("kind", "wrong", "sentence"),
    [
        (GeneralisedCrossEntropy, {"q": 0.0}, "q=0.0"),
        (GeneralisedCrossEntropy, {"truncation": 1.0}, "truncation=1.0"),
        (ForwardCorrection, {"transition": "given"}, "must be estimated, symmetric, pair or file"),
        (ForwardCorrection, {"transition": "pair"}, "loss.rate=None with pair: set it"),
        (ForwardCorrection, {"rate": 0.2}, "set loss.rate=null"),
        (ForwardCorrection, {"path": "a.npy"}, "set loss.path=null"),
        (ForwardCorrection, {"transition": "file", "path": "a.npy"}, "There is no noise matrix"),
        (ForwardCorrection, {"transition": "pair", "rate": 1.0}, "rate=1.0 must be .* below 1"),
        (ForwardCorrection, {"outliers": 0.2}, "loss.outliers=0.2 must be below 1/5"),
        (ForwardCorrection, {"estimation_epoch": 0}, "untrained network"),
        (BackwardCorrection, {"transition": "symmetric", "rate": 0.8}, "has no inverse"),
        (EarlyLearningRegularisation, {"momentum": 1.0}, "momentum"),
        (EarlyLearningRegularisation, {"weight": -1.0}, "weight"),
        (SelfAdaptiveTraining, {"momentum": -0.1}, "momentum"),
        (SelfAdaptiveTraining, {"warmup_epochs": -1}, "warmup_epochs"),
    ],
)
def test_settings_out_of_range_are_refused(kind, wrong, sentence):
    sizes = {"num_classes": 5, "num_samples": 10}
    takes = inspect.signature(kind).parameters
    with pytest.raises(UserError, match=sentence):
        kind(**{k: v for k, v in sizes.items() if k in takes}, **wrong)
