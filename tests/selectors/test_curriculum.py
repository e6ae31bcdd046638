"""The curriculum rule: the released code, and what the bound means."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.selectors.base import Evidence
from noisyml.selectors.curriculum import Curriculum, curriculum_keep

GOLDEN = paths.GOLDEN / "bare"


def test_released_rule():
    golden = vectors.tensors(GOLDEN, "baseline_selectors_f32", prefix="curriculum/")
    losses, rate = golden["losses"], float(golden["noise_rate"])
    ordered, mean = golden["selected_index_sorted"], golden["mean_loss"]
    keep = curriculum_keep(losses, rate)
    assert sorted(ordered.tolist()) == keep.nonzero().squeeze(1).tolist()
    assert float(losses[keep].mean()) == pytest.approx(float(mean), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 30), rate=st.floats(0, 0.99))
def test_the_kept_are_the_longest_prefix(seed, size, rate):
    losses = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 2 + 1
    keep = curriculum_keep(losses, rate)
    total, expected = 0.0, 0
    for i, loss in enumerate(losses.double().sort().values.tolist()):
        total += loss
        if total > (1 - rate) * size + 1 - i:
            break
        expected = i + 1
    assert int(keep.sum()) == expected
    if 0 < expected < size:
        assert losses[keep].max() <= losses[~keep].min()


def test_a_warm_up_keeps_everything_and_scores_are_probabilities():
    selector = Curriculum(0.5, warmup_epochs=2)
    losses = torch.tensor([0.0, 0.1, 5.0, 9.0])
    labels = torch.zeros(4, dtype=torch.int64)

    def select(epoch):
        return selector.select(Evidence(labels, labels, sample_loss=losses, epoch=epoch))

    assert select(1).keep.all()
    assert select(2).keep.tolist() == [True, True, False, False]
    torch.testing.assert_close(select(2).p_clean, torch.exp(-losses))


def test_settings_out_of_range_are_refused():
    for wrong in ({"noise_rate": 1.0}, {"noise_rate": 0.2, "warmup_epochs": -1}):
        with pytest.raises(UserError, match=f"^{list(wrong)[-1]}="):
            Curriculum(**wrong)
