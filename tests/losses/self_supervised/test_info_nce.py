"""Instance discrimination against its definition, and against pytorch-metric-learning."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from support.vectors import close

from noisyml.losses.self_supervised.info_nce import nt_xent, queue_info_nce


def rows(n, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return F.normalize(made).requires_grad_()


@pytest.mark.parametrize(("labels", "peer"), [
    ([0, 1, 2, 3] * 2, NTXentLoss), ([0, 1, 2, 3] * 2, SupConLoss), ([0, 1, 2] * 3, SupConLoss)
])  # fmt: skip
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_a_batch_told_apart_like_the_library_does(labels, peer, temperature):
    mine, theirs = rows(len(labels)), rows(len(labels))
    labels = torch.tensor(labels)
    found = nt_xent(mine, labels, temperature)
    expected = peer(temperature=temperature)(theirs, labels)
    close(found.detach(), expected.detach(), rtol=1e-6)
    found.backward()
    expected.backward()
    # The library normalises again, so that its gradient lies in the tangent plane.
    inside = theirs.grad - (theirs.grad * theirs).sum(1, keepdim=True) * theirs
    tangent = mine.grad - (mine.grad * mine).sum(1, keepdim=True) * mine
    close(tangent.detach(), inside.detach(), rtol=1e-5, atol=1e-9)


def test_rows_without_a_partner_are_compared_with_and_add_nothing():
    made = rows(5).detach()
    labels = torch.tensor([1, 1, 2, -1, -3])
    s = made @ made.T / 0.5
    losses = []
    for i, j in ((0, 1), (1, 0)):
        others = [math.exp(s[i, k]) for k in range(5) if k != i]
        losses.append(math.log(sum(others)) - float(s[i, j]))
    assert float(nt_xent(made, labels, 0.5)) == pytest.approx(sum(losses) / 2)
    assert float(nt_xent(made, torch.arange(5), 0.5)) == 0.0


def test_a_queue_holds_the_negatives():
    queries, keys, queue = rows(3), rows(6, seed=1).reshape(3, 2, 6), rows(7, seed=2)
    found = queue_info_nce(queries, keys, queue, temperature=0.2)
    losses = []
    for a in range(3):
        for k in range(2):
            positive = keys[a, k] @ queries[a] / 0.2
            logits = torch.cat([positive[None], queue @ queries[a] / 0.2])
            losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
    close(found.detach(), torch.stack(losses).mean().detach())
    (gradient,) = torch.autograd.grad(found, queries)
    (expected,) = torch.autograd.grad(_by_cross_entropy(queries, keys, queue), queries)
    close(gradient, expected)


def _by_cross_entropy(queries, keys, queue):
    """The same mean, keys and queue constant."""
    logits = [
        torch.cat([keys[:, k].detach().mul(queries).sum(1, keepdim=True), queries @ queue.T], 1)
        for k in range(keys.shape[1])
    ]
    target = torch.zeros(len(queries), dtype=torch.int64)
    return sum(F.cross_entropy(x / 0.2, target) for x in logits) / len(logits)
