import numpy as np
import torch

from noisyml.selectors.training_dynamics import (
    Dynamics,
    area_under_margin,
    logit_margin,
    mislabelled_by_threshold_samples,
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
