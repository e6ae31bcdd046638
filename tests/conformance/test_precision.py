"""What the comparison of mixed and full precision finds."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from noisyml.conformance.precision import Steps, compare, in_single_precision

FULL = Steps([2.0, 1.0], [torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0])])


def changed(losses=None, gradients=None):
    return Steps(losses or FULL.losses, gradients or FULL.gradients)


def test_rounding_is_nothing_wrong():
    mixed = changed([2.004, 0.998], [torch.tensor([1.01, 1.99]), FULL.gradients[1]])
    found = compare(FULL, mixed)
    assert found.wrong == found.apart == ""
    assert found.steps == found.expected == 2
    assert found.loss == found.first_loss == pytest.approx(0.002)
    assert 0.999 < found.cosines[0] < 1
    assert found.cosines[1] == 1


@pytest.mark.parametrize(
    ("mixed", "sentence"),
    [
        (changed(FULL.losses[:1], FULL.gradients[:1]), "1 steps instead of 2"),
        (changed([2.0, math.nan]), "a loss or a gradient is no number"),
        (
            changed(None, [torch.tensor([math.inf, 2.0]), FULL.gradients[1]]),
            "a loss or a gradient is no number",
        ),
    ],
)
def test_more_than_rounding_is_told(mixed, sentence):
    assert compare(FULL, mixed).wrong == sentence


@pytest.mark.parametrize(
    ("mixed", "sentence"),
    [
        (changed([2.4, 1.0]), "the first loss is off by 20%"),
        (
            changed(None, [torch.tensor([-1.0, -2.0]), FULL.gradients[1]]),
            "the first gradient has a cosine of -1.00 with that in full precision",
        ),
        (changed([2.0, 1.2], [FULL.gradients[0], torch.tensor([1.0, 0.0])]), ""),
    ],
)
def test_the_first_step_tells_how_far_apart_they_are(mixed, sentence):
    found = compare(FULL, mixed)
    assert found.apart == sentence
    assert found.wrong == ""


def test_nothing_is_stored_in_double_precision():
    config = OmegaConf.create(
        {"memory": {"dtype": "float64"}, "list": [{"dtype": "float64"}], "n": 1}
    )
    expected = {"memory": {"dtype": "float32"}, "list": [{"dtype": "float32"}], "n": 1}
    assert in_single_precision(config) == OmegaConf.create(expected)
