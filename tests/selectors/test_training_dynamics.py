import numpy as np
import torch

from noisyml.selectors.bare import label_log_odds
from noisyml.selectors.training_dynamics import (
    Dynamics,
    area_under_margin,
    logit_margin,
    mislabelled_by_threshold_samples,
    scored_entry_facts,
    scored_facts,
    training_facts,
)


def test_a_history_is_counted_batch_by_batch_as_in_one_go():
    generator = torch.Generator().manual_seed(0)
    history = torch.randn(7, 20, 5, generator=generator)
    labels = torch.arange(20) % 5
    seen = Dynamics.begin(20)
    for logits in history:
        order = torch.randperm(20, generator=generator)
        for part in order.split(6):
            seen.update(part, logits[part], labels[part])
    torch.testing.assert_close(
        seen.area_under_margin, area_under_margin(history.double(), labels), atol=1e-6, rtol=1e-6
    )
    right = (history.argmax(dim=2) == labels).numpy()
    for sample in range(20):
        path = right[:, sample]
        forgotten = float(np.sum(path[:-1] & ~path[1:])) if path.any() else np.inf
        assert seen.forgetting[sample] == forgotten
        first = int(path.argmax()) + 1 if path.any() else 0
        assert seen.learnt[sample] == first
        assert seen.hit_share[sample] == path.mean()


def test_margins_compare_with_the_best_other_class():
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    assert logit_margin(logits, torch.tensor([1, 2])).tolist() == [1.0, -1.0]


def test_samples_below_the_threshold_samples_are_mislabelled():
    area = torch.arange(10.0)
    threshold = torch.zeros(10, dtype=torch.bool)
    threshold[[2, 4]] = True
    found = mislabelled_by_threshold_samples(area, threshold)
    assert found.nonzero().flatten().tolist() == [0, 1, 3]


def test_facts_of_a_sample_compare_its_label_with_all_other_classes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 6, generator=generator)
    labels = torch.arange(50) % 6
    labels[7] = -1
    losses = torch.rand(50, generator=generator)
    found = scored_facts(logits, labels, losses)
    known = labels >= 0
    assert found["margin"].isnan().nonzero().flatten().tolist() == [7]
    torch.testing.assert_close(found["margin"][known], logit_margin(logits[known], labels[known]))
    odds = label_log_odds(logits[known], labels[known])
    torch.testing.assert_close(found["log_odds"][known], odds)
    torch.testing.assert_close(found["p_clean"][known], odds.sigmoid())
    assert torch.equal(found["prediction"], logits.argmax(dim=1).int())
    assert torch.equal(found["loss"], losses)
    plain = training_facts(logits, labels, losses)
    assert list(plain) == ["loss", "margin", "prediction"]
    assert all(torch.equal(plain[name], found[name]) or name == "margin" for name in plain)
    assert training_facts(logits[:, :1], labels.clamp(max=0), losses)["margin"].isnan().all()


def test_a_sample_of_several_labels_counts_by_its_worst_entry():
    logits = torch.tensor([[2.0, -3.0, 1.0], [2.0, 0.5, -1.0]])
    labels = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    found = scored_entry_facts(logits, labels, torch.zeros(2))
    assert found["margin"].tolist() == found["log_odds"].tolist() == [1.0, -0.5]
    assert found["suspected"].tolist() == [2, 1]
