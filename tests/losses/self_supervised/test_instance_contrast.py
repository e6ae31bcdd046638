"""The pair loss of InsCLR: values and gradients of the released code, options, blocks."""

import functools

import pytest
import torch
from support import paths, vectors
from support.vectors import close

from noisyml.losses.self_supervised.instance_contrast import (
    batch_instance_contrast,
    memory_instance_contrast,
)

load = functools.partial(vectors.tensors, paths.GOLDEN / "insclr")
BATCH = load("contrastive_batch.npz")
MEMORY = load("contrastive_memory.npz")
EDGES = load("contrastive_edges.npz")
EDGE_NAMES = sorted(key.removesuffix("_loss") for key in EDGES if key.endswith("_loss"))


def found(case, suffix, prefix="", **options):
    """Loss and gradient of a case; against the memory where it has one."""
    get = {
        name: case.get(f"{prefix}{name}{suffix}")
        for name in (
            "features",
            "labels",
            "margin",
            "pos_margin",
            "memory_features",
            "memory_labels",
        )
    }
    rows = get["features"].clone().requires_grad_()
    options |= {"margin": float(get["margin"]), "positive_margin": float(get["pos_margin"])}
    if get["memory_features"] is None:
        result = batch_instance_contrast(rows, get["labels"], **options)
    else:
        columns = get["memory_features"], get["memory_labels"]
        result = memory_instance_contrast(rows, get["labels"], *columns, **options)
    result.loss.backward()
    return result, rows.grad


def check(case, suffix, prefix="", **options):
    result, gradient = found(case, suffix, prefix, **options)
    close(result.loss.detach(), case[f"{prefix}loss{suffix}"])
    close(gradient, case[f"{prefix}grad_features{suffix}"], atol=1e-10)
    # The released code rounds these to two decimals.
    close(result.positives, case[f"{prefix}avg_pos{suffix}"], atol=0.00501)
    close(result.negatives, case[f"{prefix}avg_neg{suffix}"], atol=0.00501)


@pytest.mark.parametrize("number", range(int(BATCH["n_cases"])))
def test_batch(number):
    check(BATCH, f"_{number}")


@pytest.mark.parametrize("block_columns", [3, 1000])
@pytest.mark.parametrize("number", range(int(MEMORY["n_cases"])))
def test_memory_in_any_blocks(number, block_columns):
    if f"memory_features_{number}" in MEMORY:
        check(MEMORY, f"_{number}", block_columns=block_columns)


@pytest.mark.parametrize("name", EDGE_NAMES)
def test_edges(name):
    check(EDGES, "", f"{name}_")


def test_the_hinge_takes_the_margin_off_every_counted_negative():
    plain, gradient = found(BATCH, "_0")
    hinge, same = found(BATCH, "_0", hinge=True)
    margin = float(BATCH["margin_0"])
    close(hinge.loss.detach(), (plain.loss - margin * plain.negatives).detach())
    assert torch.equal(gradient, same)


def test_rejected_rows_alone_give_zero():
    rows = torch.eye(2, requires_grad=True)
    loss = memory_instance_contrast(rows, torch.tensor([-1, -2]), torch.eye(2), torch.ones(2)).loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert not rows.grad.any()


def test_rows_of_a_bank_are_read_where_they_lie():
    case = MEMORY
    bank = torch.cat([torch.ones(5, case["memory_features_0"].shape[1]), case["memory_features_0"]])
    rows = case["features_0"].clone().requires_grad_()
    index = 5 + torch.randperm(len(case["memory_labels_0"]), generator=torch.Generator())
    labels = case["memory_labels_0"][index - 5]
    options = {"margin": float(case["margin_0"]), "positive_margin": float(case["pos_margin_0"])}
    result = memory_instance_contrast(
        rows, case["labels_0"], bank, labels, index=index, block_columns=7, **options
    )
    result.loss.backward()
    close(result.loss.detach(), case["loss_0"])
    close(rows.grad, case["grad_features_0"], atol=1e-10)
