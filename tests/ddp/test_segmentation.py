"""Pixels of several ranks: the loss of the whole batch, and the IoU of the whole split."""

import pytest
import torch
from support.ranks import run_ranks

from noisyml.losses.segmentation.pixels import pixel_cross_entropy
from noisyml.metrics.segmentation.evaluator import SegmentationEvaluator

pytestmark = pytest.mark.processes


def _data():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=generator)
    target = torch.randint(0, 3, (5, 4, 4), generator=generator)
    target[0] = 255
    target[3, :2] = 255
    return logits, target


def _metrics(logits, target, index):
    metric = SegmentationEvaluator(per_class=True)
    metric.class_names = ["a", "b", "c"]
    if len(index):
        metric.update({"class_map": logits.argmax(1)}, target, index)
    return metric.compute()


def _work(rank, world):
    logits, target = _data()
    whole = logits.clone().requires_grad_()
    expected = pixel_cross_entropy(whole, target).mean()
    expected.backward()
    mine = [slice(0, 4), slice(4, 5)][rank]
    own = logits[mine].clone().requires_grad_()
    loss = pixel_cross_entropy(own, target[mine]).global_mean()
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected.detach())
    # The averaging of gradients takes the number of ranks out again.
    torch.testing.assert_close(own.grad / world, whole.grad[mine])
    # A rank without images, and one image that both have seen.
    everything = torch.arange(5)
    reference = _metrics_alone()
    shares = [(everything, everything[:0]), (everything[:3], everything[2:])]
    for share in shares:
        rows = share[rank]
        assert _metrics(logits[rows], target[rows], rows) == reference


def _metrics_alone():
    from unittest import mock

    logits, target = _data()
    with mock.patch("noisyml.metrics.segmentation.evaluator.gather", lambda x: x):
        return _metrics(logits, target, torch.arange(5))


def test_two_ranks_are_one(tmp_path):
    run_ranks(_work, 2, tmp_path)
