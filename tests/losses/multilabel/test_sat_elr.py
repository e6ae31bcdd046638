"""SAT and ELR for several labels against the released losses: values, gradients, memories."""

import functools

import pytest
import torch
from support import paths, vectors
from support.vectors import close
from torch import nn

from noisyml.errors import UserError
from noisyml.losses.multilabel.elr import MultiLabelELR
from noisyml.losses.multilabel.sat import MultiLabelSAT

GOLDEN = paths.GOLDEN / "mlnoise"
load = functools.partial(vectors.tensors, GOLDEN)


def make(name, case):
    """The loss of a case; the released warm-up lasts one epoch longer than it is told."""
    samples, classes = case.get("labels", case.get("Y")).shape
    given = {
        key.removeprefix("hp_"): value.item() for key, value in case.items() if not value.dim()
    }
    if "elr" in name:
        return MultiLabelELR(samples, classes, given["lam"], given["beta"]).double()
    warmup = given.get("warmup", given.get("warmup_epochs")) + 1
    return MultiLabelSAT(samples, classes, given["momentum"], warmup).double()


def memory(loss, labels):
    """SAT's rows are the labels until a sample has been seen."""
    if isinstance(loss, MultiLabelSAT):
        return torch.where(loss.targets.seen[:, None], loss.targets.rows, labels)
    return loss.targets.rows


@pytest.mark.parametrize(
    "name", ["sat_sequence", "sat_weighted", "elr_sequence", "elr_saturated", "elr_weighted"]
)
def test_sequences_of_batches_are_the_released(name):
    case = load(name)
    loss = make(name, case)
    after = case.get("soft_labels_after", case.get("target_after"))
    for step, index in enumerate(case["index"]):
        real = index >= 0
        index = index[real]
        logits = case["logits"][step][real].clone().requires_grad_()
        entries = loss(logits, case["labels"][index], index, int(case["epoch0"][step]))
        weight = case["weight"][step][real] if "weight" in case else None
        value = loss.reduce(entries, torch.ones(len(index), dtype=torch.bool), weight)
        value.backward()
        close(value, case["loss"][step])
        close(logits.grad, case["grad_logits"][step][real])
        close(memory(loss, case["labels"]), after[step])


@pytest.mark.parametrize("name", ["train_sat", "train_elr"])
def test_training_is_the_released(name):
    case = load(name)
    loss = make(name, case)
    weights = [nn.Parameter(case[f"{w}_init"].clone()) for w in ("W1", "b1", "W2", "b2")]
    optimizer = torch.optim.AdamW(
        weights, lr=float(case["lr"]), weight_decay=float(case["weight_decay"])
    )
    w1, b1, w2, b2 = weights
    for step, index in enumerate(case["index"]):
        index = index[index >= 0]
        logits = torch.relu(case["X"][index] @ w1 + b1) @ w2 + b2
        entries = loss(logits, case["Y"][index], index, int(case["epoch0"][step]))
        value = loss.reduce(entries, torch.ones(len(index), dtype=torch.bool))
        close(value, case["loss"][step], atol=1e-8)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    for weight, w in zip(weights, ("W1", "b1", "W2", "b2"), strict=True):
        close(weight, case[f"{w}_final"], atol=1e-8)
    close(memory(loss, case["Y"]), case["state_final"], atol=1e-8)


def test_a_repeated_sample_is_remembered_by_its_last_place():
    loss = MultiLabelELR(4, 2, momentum=0.5)
    logits = torch.tensor([[0.0, 0.0], [4.0, -4.0], [1.0, 1.0]])
    loss(logits, torch.zeros(3, 2), torch.tensor([2, 0, 2]), 0)
    torch.testing.assert_close(loss.targets.rows[2], 0.5 * logits[2].sigmoid())
    assert (loss.targets.rows[[1, 3]] == 0).all()


def test_memories_travel_with_checkpoints_and_stand_still_in_the_warm_up():
    loss = MultiLabelSAT(3, 2, warmup_epochs=2)
    labels, index = torch.tensor([[1.0, 0.0]]), torch.tensor([1])
    for epoch in range(2):
        loss(torch.zeros(1, 2), labels, index, epoch)
        assert not loss.targets.seen.any()
    loss(torch.zeros(1, 2), labels, index, 2)
    again = MultiLabelSAT(3, 2, warmup_epochs=2)
    again.load_state_dict(loss.state_dict())
    torch.testing.assert_close(again.targets.rows[1], torch.tensor([0.95, 0.05]))


@pytest.mark.parametrize(
    ("make_loss", "sentence"),
    [
        (lambda: MultiLabelSAT(1, 1, momentum=1.0), r"momentum=1\.0"),
        (lambda: MultiLabelSAT(1, 1, warmup_epochs=-1), r"warmup_epochs=-1"),
        (lambda: MultiLabelELR(1, 1, weight=-1.0), r"weight=-1\.0"),
        (lambda: MultiLabelELR(1, 1, momentum=-0.1), r"momentum=-0\.1"),
    ],
)
def test_values_out_of_range_are_refused(make_loss, sentence):
    with pytest.raises(UserError, match=sentence):
        make_loss()
