"""Passes in evaluation mode."""

import pytest
import torch
from torch import nn

from noisyml.methods.passes import batches_on, evaluation_mode


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
