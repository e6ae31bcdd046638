"""Global poolings against their definitions, values and gradients."""

import pytest
import torch
from torch import nn

from noisyml.errors import UserError
from noisyml.models.pooling import GeneralisedMean, LargestMean, global_pooling


def _maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize("pooling", ["avg", "max", "sum", "gem"])
def test_poolings_give_one_value_per_channel(pooling):
    assert global_pooling(pooling)(_maps().float()).shape == (3, 4, 1, 1)


def test_generalised_mean_lies_between_average_and_maximum():
    maps = _maps().detach().abs() + 0.1
    flat = maps.flatten(2)
    torch.testing.assert_close(GeneralisedMean(1.0).double()(maps).flatten(1), flat.mean(2))
    three = GeneralisedMean(3.0).double()(maps).flatten(1)
    assert (three > flat.mean(2)).all()
    assert (three < flat.amax(2)).all()
    steep = GeneralisedMean(400.0).double()(maps).flatten(1)
    torch.testing.assert_close(steep, flat.amax(2), rtol=2e-2, atol=0)


def test_generalised_mean_has_right_gradients():
    layer = GeneralisedMean().double()
    assert torch.autograd.gradcheck(lambda x, p: _with_exponent(layer, p)(x), (_maps(), layer.p))
    fixed = GeneralisedMean(learnable=False)
    assert not list(fixed.parameters())
    assert fixed.state_dict()["p"] == 3


def _with_exponent(layer, p):
    return lambda x: torch.func.functional_call(layer, {"p": p}, (x,))


def test_powers_do_not_overflow_in_half_precision():
    layer = GeneralisedMean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = layer(torch.full((1, 1, 2, 2), 100.0, dtype=torch.float16))
    torch.testing.assert_close(pooled, torch.full((1, 1, 1, 1), 100.0))


def test_mean_of_the_largest():
    maps = _maps()
    for k in (1, 3, 30, 99):
        largest = maps.flatten(2).sort(dim=2, descending=True).values[..., :k]
        torch.testing.assert_close(LargestMean(k)(maps).flatten(1), largest.mean(2))


def test_modules_are_taken_as_they_are():
    layer = nn.Identity()
    assert global_pooling(layer) is layer


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: global_pooling("average"), "pooling=average must be avg, max, sum or gem"),
        (lambda: GeneralisedMean(0.0), "p=0.0 must be a number above 0"),
        (lambda: LargestMean(0), "k=0 must be a whole number of at least 1"),
    ],
)
def test_mistakes_are_named(make, said):
    with pytest.raises(UserError, match=said):
        make()
