import pytest
import torch

from noisyml.errors import UserError
from noisyml.selectors.base import Evidence
from noisyml.selectors.loss_mixture import small_loss_posterior
from noisyml.selectors.neighbour_vote import NeighbourVote, memory_votes
from noisyml.selectors.training_dynamics import Dynamics
from noisyml.selectors.watching import Learnt, LossMixture, MarginArea
from noisyml.similarity.memory_bank import MemoryBank

LABELS = torch.arange(12) % 3


def history(epochs=4):
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        logits = torch.randn(12, 3, generator=generator)
        for part in torch.randperm(12, generator=generator).split(4):
            yield epoch, part, logits[part]


def test_areas_and_shares_are_those_of_the_whole_history():
    area, learnt, whole = MarginArea(warmup_epochs=1), Learnt(warmup_epochs=0), Dynamics.begin(12)
    for epoch, part, logits in history():
        whole.update(part, logits, LABELS[part])
        evidence = Evidence(LABELS[part], part, logits=logits, epoch=epoch)
        found = area.select(evidence)
        expected = whole.area_under_margin[part]
        torch.testing.assert_close(found.log_odds, expected.float())
        assert (found.keep == ((expected >= 0) | (epoch < 1))).all()
        found = learnt.select(evidence)
        torch.testing.assert_close(found.p_clean, whole.hit_share[part].float())
        assert (found.keep == (whole.hit_share[part] >= 0.5)).all()
        torch.testing.assert_close(learnt.forgotten[part], whole.forgotten[part].double())


def test_often_forgotten_samples_are_left_out():
    learnt = Learnt(threshold=0, forgets=0, warmup_epochs=0)
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    kept = []
    for logits in (right, wrong, right):
        evidence = Evidence(torch.tensor([0]), torch.tensor([5]), logits=logits)
        kept.append(bool(learnt.select(evidence).keep))
    assert kept == [True, False, False]


def test_the_mixture_is_fitted_to_the_losses_of_the_epoch_before():
    mixture = LossMixture(warmup_epochs=1)
    losses = torch.where(torch.arange(12) < 9, 0.1, 3.0) + torch.arange(12) / 100
    index = torch.arange(12)
    first = mixture.select(Evidence(LABELS, index, sample_loss=losses, epoch=0))
    assert first.keep.all()
    assert first.p_clean.isnan().all()
    for part in index.split(5):
        found = mixture.select(
            Evidence(LABELS[part], part, sample_loss=losses[part].flip(0), epoch=1)
        )
        expected = small_loss_posterior(losses)[part]
        torch.testing.assert_close(found.p_clean, expected.float())
        assert (found.keep == (expected > 0.5)).all()


@pytest.mark.parametrize("make", [MarginArea, Learnt, LossMixture])
def test_what_is_known_goes_into_a_checkpoint(make):
    one, two = make(warmup_epochs=0), make(warmup_epochs=0)
    parts = list(history())
    for at, (epoch, part, logits) in enumerate(parts):
        evidence = Evidence(
            LABELS[part], part, logits=logits, sample_loss=logits[:, 0].exp(), epoch=epoch
        )
        expected = one.select(evidence)
        if at >= 5:
            found = two.select(evidence)
            torch.testing.assert_close(found.p_clean, expected.p_clean, equal_nan=True)
            torch.testing.assert_close(found.log_odds, expected.log_odds, equal_nan=True)
        if at == 4:
            two.load_state_dict(one.state_dict())


@pytest.mark.parametrize("make", [MarginArea, Learnt, LossMixture])
def test_a_warm_up_as_long_as_the_run_is_refused(make):
    with pytest.raises(UserError, match=r"selector\.warmup_epochs=3 keeps everything"):
        make(warmup_epochs=3).begin(None, 3)
    with pytest.raises(ValueError, match="this selector needs"):
        make().select(Evidence(LABELS, torch.arange(12)))


def test_neighbours_in_the_memory_vote():
    generator = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(40, 6, generator=generator), dim=1)
    labels = torch.arange(40) % 4
    memory = MemoryBank(size=40, dim=6, num_classes=4)
    selector = NeighbourVote(k=5)
    batch = rows[:8]
    evidence = Evidence(labels[:8], torch.arange(8), embeddings=batch, memory=memory)
    assert selector.select(evidence).keep.all()
    memory.enqueue(rows, labels, torch.arange(40))
    found = selector.select(evidence)
    similarity = batch @ rows.T
    similarity[torch.arange(8), torch.arange(8)] = -2
    nearest = labels[similarity.topk(5).indices]
    expected = (nearest == labels[:8, None]).float().mean(dim=1)
    torch.testing.assert_close(found.p_clean, expected)
    counts = torch.stack([(nearest == c).sum(dim=1) for c in range(4)], dim=1)
    own = counts[torch.arange(8), labels[:8]]
    assert (found.keep == (own == counts.amax(dim=1))).all()
    weighted = memory_votes(batch, torch.arange(8), rows, labels, torch.arange(40), 4, 5, 0.1)
    power = (similarity.topk(5).values / 0.1).exp()
    expected = (power * (nearest == 2)).sum(dim=1) / power.sum(dim=1)
    torch.testing.assert_close(weighted[:, 2], expected)
    strict = NeighbourVote(k=5, threshold=0.99).select(evidence)
    assert (strict.keep == (strict.p_clean >= 0.99)).all()
    early = NeighbourVote(k=5, threshold=0.99, warmup_steps=1).select(evidence)
    assert early.keep.all()
