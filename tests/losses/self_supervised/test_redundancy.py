"""Redundancy reduction: released values and gradients, and both forms of it."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import paths, vectors
from torch import nn

from noisyml.losses.self_supervised.redundancy import (
    gaussian_partners,
    reconstruction_error,
    redundancy_reduction,
)

load = functools.partial(vectors.tensors, paths.GOLDEN / "tldr")
close = functools.partial(vectors.close, atol=1e-10)
CASES = range(3)
FORMS = ["correlation", "gram", "auto"]


def differentiated(first, second, standardise, **settings_):
    sides = [side.clone().requires_grad_() for side in (first, second)]
    norm = nn.BatchNorm1d(first.shape[1], affine=False).double() if standardise else nn.Identity()
    loss = redundancy_reduction(norm(sides[0]), norm(sides[1]), **settings_)
    loss.backward()
    return loss.detach(), sides[0].grad, sides[1].grad


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_released_values_and_gradients(case, standardise, form):
    golden = load("barlow_loss")
    assert int(golden["n_cases"]) == len(CASES)
    found = differentiated(
        golden[f"z1_{case}"],
        golden[f"z2_{case}"],
        standardise,
        batch_size=int(golden[f"batch_size_{case}"]),
        scale=float(golden[f"scale_loss_{case}"]),
        lambd=float(golden[f"lambd_{case}"]),
        form=form,
    )
    kind = "std" if standardise else "raw"
    for name, value in zip(("loss", "grad_z1", "grad_z2"), found, strict=True):
        close(value, golden[f"{kind}_{name}_{case}"])


@pytest.mark.parametrize("form", FORMS)
def test_a_constant_column_and_a_divisor_of_its_own(form):
    golden = load("barlow_loss", "edge_")
    found = differentiated(
        golden["z1"], golden["z2"], True, batch_size=int(golden["batch_size"]), form=form
    )
    for name, value in zip(("loss", "grad_z1", "grad_z2"), found, strict=True):
        close(value, golden[name])


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    lambd=st.floats(0, 2),
    seed=st.integers(0, 2**31),
)
def test_both_forms_are_one_function_of_the_rows_in_any_order(rows, columns, lambd, seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)
    correlation = differentiated(first, second, False, lambd=lambd, form="correlation")
    gram = differentiated(first, second, False, lambd=lambd, form="gram")
    for ours, theirs in zip(gram, correlation, strict=True):
        close(ours, theirs, atol=1e-8)
    order = torch.randperm(rows, generator=generator)
    shuffled = redundancy_reduction(first[order], second[order], lambd=lambd)
    close(shuffled, correlation[0], atol=1e-8)


def test_fewer_rows_than_columns_need_no_matrix_of_columns(monkeypatch):
    shapes = []
    matmul = torch.Tensor.__matmul__

    def watched(self, other):
        product = matmul(self, other)
        shapes.append(tuple(product.shape))
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    first, second = torch.randn(2, 4, 50)
    redundancy_reduction(first, second)
    assert max((size for shape in shapes for size in shape), default=0) == 4
    redundancy_reduction(first, second, form="correlation")
    assert (50, 50) in shapes


def test_half_precision_around_it_does_not_reach_it():
    first, second = torch.randn(2, 64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = redundancy_reduction(first, second)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, redundancy_reduction(first, second), rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_gaussian_partners_are_the_released_ones(case):
    golden = load("gaussian_pairs")
    assert int(golden["n_cases"]) == len(CASES)
    rows = golden[f"y1_{case}"].double()
    assert abs(float(rows.std()) - float(golden[f"std_{case}"])) < 1e-6
    close(
        gaussian_partners(rows, golden[f"noise_{case}"]), golden[f"y2_{case}"].double(), atol=1e-5
    )


def test_an_autoencoder_must_give_back_what_it_got():
    with pytest.raises(ValueError, match="must be like inputs"):
        reconstruction_error(torch.zeros(2, 3), torch.zeros(2, 4))
