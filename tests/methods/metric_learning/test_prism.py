"""One step of PRISM: what enters the memory, and when."""

import pytest
import torch
from support.parts import parts_for
from torch import nn

from noisyml.errors import UserError
from noisyml.losses.base import EmbeddingLoss
from noisyml.methods.metric_learning.prism import Prism
from noisyml.metrics.retrieval_evaluator import RetrievalEvaluator
from noisyml.selectors.base import Selection, Selector
from noisyml.similarity.memory_bank import MemoryBank

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Fixed(Selector):
    """Keeps what it is told and notes how full the memory was."""

    def __init__(self, keep):
        super().__init__()
        self.keep = torch.tensor(keep)

    def select(self, evidence):
        assert not evidence.embeddings.requires_grad
        self.saw = len(evidence.memory)
        return Selection(self.keep, self.keep.float())


class Sum(EmbeddingLoss):
    """Notes how full the memory was."""

    needs = frozenset({"memory"})

    def forward(self, embeddings, labels, *, memory=None, keep=None):
        self.saw = len(memory)
        return embeddings[keep].sum()


class Unit(nn.Linear):
    def forward(self, batch):
        return nn.functional.normalize(super().forward(batch["features"]), dim=1)


def prism(keep, **settings):
    memory = MemoryBank(10, 4, 3)
    parts = parts_for(
        Unit(5, 4),
        loss=Sum(),
        selector=Fixed(keep),
        memory=memory,
        evaluator=RetrievalEvaluator(),
    )
    return Prism(parts, **settings), memory


def batch():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 5, generator=generator)
    return {"features": features, "label": LABELS, "index": torch.arange(6) + 40}


@pytest.mark.parametrize("keep", [[True, False, True, True, False, False], [False] * 6])
def test_only_the_kept_enter_the_memory_and_only_after_the_loss(keep):
    method, memory = prism(keep)
    expected = method.encoder(batch())[torch.tensor(keep)].detach()
    outcome = method.training_step(batch(), 0)
    assert (method.selector.saw, method.loss.saw, len(memory)) == (0, 0, 0)
    outcome["loss"].backward()
    assert torch.isfinite(method.encoder.weight.grad).all()
    method.on_after_backward()
    stored = memory.filled()
    assert torch.equal(stored.embeddings, expected)
    assert torch.equal(stored.labels, LABELS[torch.tensor(keep)])
    assert stored.index.tolist() == [40 + i for i, kept in enumerate(keep) if kept]
    method.training_step(batch(), 1)
    assert method.selector.saw == method.loss.saw == sum(keep)


def test_the_released_baseline_lets_the_loss_see_the_batch_itself():
    method, memory = prism([True] * 6, enqueue="before")
    method.training_step(batch(), 0)
    assert (method.selector.saw, method.loss.saw) == (0, 6)
    method.on_after_backward()
    assert len(memory) == 6


def test_an_unknown_order_is_refused():
    with pytest.raises(UserError, match="must be after or before"):
        prism([True] * 6, enqueue="never")
