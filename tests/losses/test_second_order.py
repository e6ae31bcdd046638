"""Second derivatives of losses with a backward pass of their own, alone and in a sum."""

import ast

import pytest
import torch
from support import paths

from noisyml.losses.distillation.relational import rkd_angle, rkd_angles
from noisyml.losses.gram import gram
from noisyml.losses.metric_learning.proxy_nca_pp import proxynca_pp_loss
from noisyml.losses.multilabel.rcml import squared_mmd

LABELS = torch.tensor([0, 2, 1, 0])


def points(n, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, dtype=torch.float64, generator=generator)


#: Functions of one or two tensors of four rows of three.
LOSSES = {
    "gram": lambda x, y: (gram(x) * gram(y).sin()).sum(),
    "squared_mmd": lambda x, y: squared_mmd(x, y, 2.0),
    "squared_mmd-median": lambda x, y: squared_mmd(x, y, "median"),
    "rkd_angle": lambda x, y: rkd_angle(x, points(4, 2, 9)) + y.sum(),
    "rkd_angle-distinct": lambda x, y: rkd_angle(x, points(4, 2, 9), tuples="distinct") + y.sum(),
    "rkd_angle-groups": lambda x, y: rkd_angle(x, points(4, 2, 9), group_size=3) + y.sum(),
    "proxynca_pp": lambda x, y: proxynca_pp_loss(x, LABELS, y),
    "proxynca": lambda x, y: proxynca_pp_loss(x, LABELS, y, denominator="negatives"),
    "proxynca_pp-blocks": lambda x, y: proxynca_pp_loss(x, LABELS, y, block_bytes=1),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.long
def test_second_derivatives_are_right(name):
    x, y = (points(4, 3, seed).requires_grad_() for seed in (1, 2))
    if name != "squared_mmd-median":  # the median has no gradient, numerically it has
        assert torch.autograd.gradcheck(LOSSES[name], (x, y))
        assert torch.autograd.gradgradcheck(LOSSES[name], (x, y))


@pytest.mark.parametrize("name", LOSSES)
def test_the_share_of_a_loss_in_a_sum_is_not_left_out(name):
    x, y = (points(4, 3, seed).requires_grad_() for seed in (1, 2))
    along = points(4, 3, 5)
    alone, together = (
        torch.autograd.grad(torch.autograd.grad(value, x, create_graph=True)[0], x, along)[0]
        for value in (LOSSES[name](x, y), LOSSES[name](x, y) + (x**3).sum())
    )
    torch.testing.assert_close(together, alone + 6 * x * along)
    assert alone.abs().max() > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_a_graph_of_the_gradient_does_not_change_the_gradient(name):
    x, y = (points(4, 3, seed).requires_grad_() for seed in (3, 4))
    plain = torch.autograd.grad(LOSSES[name](x, y), (x, y))
    recorded = torch.autograd.grad(LOSSES[name](x, y), (x, y), create_graph=True)
    for expected, found in zip(plain, recorded, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_tensor_compared_with_itself_has_its_derivative_once():
    x = points(4, 3, 1).requires_grad_()
    (slope,) = torch.autograd.grad(squared_mmd(x, 2 * x, 2.0), x, create_graph=True)
    plain = torch.autograd.grad(squared_mmd(x, 2 * x, 2.0), x)[0]
    torch.testing.assert_close(slope, plain)
    assert torch.autograd.gradgradcheck(lambda x: squared_mmd(x, 2 * x, 2.0), (x,))


def test_angles_of_equal_points_have_no_derivative_and_no_infinite_one():
    x = points(4, 3, 1)
    x[1] = x[0]
    x.requires_grad_()
    (slope,) = torch.autograd.grad(rkd_angle(x, points(4, 2, 9)), x, create_graph=True)
    assert torch.autograd.grad(slope.sum(), x)[0].isfinite().all()
    angles = rkd_angles(x.detach())
    assert (angles[0, 1] == 0).all()
    assert (angles[1, 0] == 0).all()


#: Functions whose backward pass is made of operations that autograd follows, as `LOSSES` show.
FOLLOWED = {"gram.py: _Gram"}


def test_no_loss_drops_its_share_of_a_second_derivative():
    """Whatever writes its own backward pass asks if a graph of the gradient is wanted."""
    silent = []
    written = [
        f for f in (paths.ROOT / "noisyml").rglob("*.py") if "autograd.Function" in f.read_text()
    ]
    assert len(written) > 3
    for file in written:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(base).endswith("autograd.Function") for base in node.bases
            ):
                text = ast.unparse(node)
                if "recorded_gradient(" not in text and ".apply(" not in text:
                    silent.append(f"{file.name}: {node.name}")
    assert set(silent) == FOLLOWED
