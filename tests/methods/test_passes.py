"""Passes in evaluation mode."""

import pytest
import torch
from torch import nn

from noisyml.methods.passes import (
    batches_on,
    evaluation_mode,
    training_mode_with_fixed_norms,
)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back_whatever_happens(training):
    module = nn.Sequential(nn.Dropout()).train(training)
    with pytest.raises(ValueError), evaluation_mode(module):
        int("1" if module[0].training else "a failure inside the pass")
    assert module.training == module[0].training == training


def test_empty_batches_are_left_out():
    loader = [{"index": torch.arange(n), "label": torch.zeros(n)} for n in (2, 0, 1)]
    found = list(batches_on(torch.device("cpu"), loader))
    assert [len(batch["index"]) for batch in found] == [2, 1]
    assert found[0].keys() == {"index", "label"}


def test_every_part_gets_its_own_mode_back():
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    module.train()
    module[0].eval()
    before = [part.training for part in module.modules()]
    with evaluation_mode(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == before
    with training_mode_with_fixed_norms(module):
        norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d)]
        assert not any(part.training for part in norms)
        assert module[1][0].training
    assert [part.training for part in module.modules()] == before
