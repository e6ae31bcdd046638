"""Margins of embeddings by which runs without a selector rank their labels."""

import pytest
import torch

from noisyml.methods.metric_learning.base import margin_facts, trust_by_margin
from noisyml.selectors import base
from noisyml.selectors.base import Facts
from noisyml.selectors.keep_all import batch_margin


def _batch(size: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(size, 16, generator=generator)
    labels = torch.randint(0, 4, (size,), generator=generator)
    return {"embeddings": torch.nn.functional.normalize(rows, dim=1), "labels": labels}


def test_margin_is_nearness_to_the_own_class_less_the_nearest_other_one():
    batch = _batch(12, 0)
    rows, labels = batch["embeddings"].double(), batch["labels"]
    expected = []
    for i, own in enumerate(labels):
        near = {
            int(c): (rows[i] @ rows[[j for j in range(12) if labels[j] == c and j != i]].T).mean()
            for c in labels.unique()
        }
        mine = near.pop(int(own))
        expected.append(float(mine - max(near.values())))
    margins = batch_margin(**batch)
    torch.testing.assert_close(margins, torch.tensor(expected), equal_nan=True)


def test_margin_is_unknown_for_a_lone_sample_and_without_another_class():
    rows = torch.eye(3)
    assert batch_margin(rows, torch.tensor([0, 0, 1])).isnan().tolist() == [False, False, True]
    assert batch_margin(rows, torch.zeros(3, dtype=torch.int64)).isnan().all()
    assert batch_margin(rows[:0], torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("most_pairs", [1, 150, 2**22])
def test_columns_of_many_batches_are_those_of_each_alone(monkeypatch, most_pairs):
    monkeypatch.setattr(base, "MOST_PAIRS", most_pairs)
    batches = [_batch(size, seed) for seed, size in enumerate([8, 8, 8, 5, 8, 8])]
    facts = [
        Facts({**batch, "loss": batch["labels"].float()}, margin_facts, True) for batch in batches
    ]
    found = Facts.columns(facts)
    alone = torch.cat([batch_margin(**batch) for batch in batches])
    # To the bit: how many batches a checkpoint found waiting must not show in the ledger.
    assert torch.equal(found["margin"].nan_to_num(9), alone.nan_to_num(9))
    assert torch.equal(found["loss"], torch.cat([batch["labels"] for batch in batches]).float())


def test_without_a_score_the_margin_is_the_log_odds():
    batch = {**_batch(8, 0), "labels": torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])}
    found = Facts.columns([Facts(batch, trust_by_margin, by_batch=True)])
    assert torch.equal(found["p_clean"], found["margin"].sigmoid())
    assert torch.equal(found["log_odds"], found["margin"])
