"""Losses of samples in the ledger: those that the step works out, and no second time."""

import pytest
import torch
from support.parts import parts_for
from torch import nn

from noisyml.losses.metric_learning import proxy_nca_pp
from noisyml.losses.metric_learning.proxy_nca_pp import ProxyNCAPPLoss
from noisyml.methods.metric_learning.prism import Prism
from noisyml.methods.metric_learning.proxynca_pp import ProxyNCAPP
from noisyml.metrics.retrieval_evaluator import RetrievalEvaluator
from noisyml.selectors.base import Selection, Selector
from noisyml.selectors.keep_all import KeepAll
from noisyml.similarity.memory_bank import MemoryBank


class Half(Selector):
    """Keeps every second sample."""

    def select(self, evidence):
        keep = torch.arange(len(evidence.labels)) % 2 == 0
        return Selection(keep, keep.float())


class Encoder(nn.Linear):
    def forward(self, batch):
        return nn.functional.normalize(super().forward(batch["features"]), dim=1)


def batch():
    features = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    return {
        "features": features,
        "label": torch.tensor([0, 1, 2, 0, 1, 2]),
        "index": torch.arange(6),
    }


@pytest.mark.parametrize("make", [Prism, ProxyNCAPP])
@pytest.mark.parametrize(("selector", "computed"), [(KeepAll(), 1), (Half(), 2)])
def test_losses_are_computed_once_where_all_are_kept(make, selector, computed, monkeypatch):
    calls, whole = [], proxy_nca_pp._softmax_sums

    def counted(rows, *others):
        calls.append(len(rows))
        return whole(rows, *others)

    monkeypatch.setattr(proxy_nca_pp, "_softmax_sums", counted)
    method = make(
        parts_for(
            Encoder(5, 4),
            loss=ProxyNCAPPLoss(3, 4),
            selector=selector,
            memory=MemoryBank(10, 4, 3),
            evaluator=RetrievalEvaluator(),
        )
    )
    outcome = method.training_step(batch(), 0)
    assert len(calls) == computed
    noted = outcome["facts"].rows["loss"]
    embeddings, labels = method.encoder(batch()), batch()["label"]
    assert torch.equal(
        outcome["loss"], method.loss(embeddings, labels, keep=outcome["selection"].mask)
    )
    torch.testing.assert_close(noted, method.loss.per_sample(embeddings, labels))
