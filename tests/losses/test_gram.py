"""Gradients of the products of rows with each other."""

from __future__ import annotations

import torch

from noisyml.losses.gram import gram


def test_gradients_are_those_of_two_products() -> None:
    rows = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows.requires_grad_()
    assert torch.autograd.gradcheck(gram, [rows])
    assert torch.autograd.gradgradcheck(gram, [rows])
    weights = torch.arange(16.0, dtype=torch.float64).view(4, 4)
    found, plain = (
        torch.autograd.grad((weights * products).sum(), rows)[0]
        for products in (gram(rows), rows @ rows.T)
    )
    torch.testing.assert_close(found, plain)
