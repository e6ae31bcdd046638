"""Selectors that judge the whole training split at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.clusters import clusters
from support.ranks import run_ranks

from noisyml.audit.scores.confident import confident_issues
from noisyml.audit.scores.density import density_log_odds
from noisyml.audit.scores.folds import chosen_strength, out_of_fold_probabilities, projected_rows
from noisyml.audit.scores.neighbours import wann_votes
from noisyml.audit.scores.selectors import (
    Audit,
    ClassDensity,
    ConfidentLearning,
    SimiFeat,
    WeightedNeighbours,
)
from noisyml.errors import UserError
from noisyml.selectors.base import Evidence, SplitRows

N, CLASSES = 240, 4
#: Positions of the rows in a training split of which 60 samples have no label or no picture.
POSITIONS = torch.randperm(300, generator=torch.Generator().manual_seed(3))[:N]
ALL = (WeightedNeighbours, SimiFeat, ConfidentLearning, ClassDensity, Audit)


def split() -> tuple[SplitRows, torch.Tensor]:
    """Rows with a fifth of their labels wrong, and which those are."""
    rows, true = clusters(N, CLASSES, noise=0.5)
    wrong = torch.arange(N) % 5 == 0
    labels = torch.where(wrong, (true + 1 + torch.arange(N) % 3) % CLASSES, true)
    return SplitRows(rows, labels, POSITIONS), wrong


def judged(selector, epoch=0):
    """A selector that has seen the split, and its answer for all rows of it."""
    whole, _ = split()
    selector.begin_epoch(epoch, lambda source: whole, False)
    return selector.select(Evidence(whole.labels, whole.index, epoch=epoch))


@pytest.mark.long
@pytest.mark.parametrize("make", ALL)
def test_wrong_labels_are_left_out_and_right_ones_kept(make):
    wrong = split()[1]
    found = judged(make())
    assert found.keep[~wrong].float().mean() > 0.97
    assert found.keep[wrong].float().mean() < 0.1
    assert ((found.p_clean >= 0) & (found.p_clean <= 1)).all()
    budget = found.log_odds.argsort()[: int(wrong.sum())]
    assert wrong[budget].float().mean() > 0.95
    assert found.keep.any()


def test_scores_are_those_of_an_audit():
    rows, labels = split()[0].rows.numpy(), split()[0].labels.numpy()
    unit = torch.nn.functional.normalize(split()[0].rows)
    cosine = (unit @ unit.T).fill_diagonal_(-2)
    nearest = cosine.argsort(dim=1, descending=True)

    votes = torch.zeros(N, CLASSES)
    votes.scatter_add_(1, split()[0].labels[nearest[:, :10]], torch.ones(N, 10))
    own = votes[torch.arange(N), split()[0].labels]
    found = judged(SimiFeat())
    torch.testing.assert_close(found.p_clean, own / votes.norm(dim=1))
    assert (found.keep == (votes.argmax(dim=1) == split()[0].labels)).all()

    found = judged(SimiFeat(rule="rank", noise_rate=0.25))
    for label in range(CLASSES):
        of_class = split()[0].labels == label
        assert int((~found.keep[of_class]).sum()) == round(0.25 * int(of_class.sum()))
        left_out = found.p_clean[of_class & ~found.keep].max()
        assert left_out <= found.p_clean[of_class & found.keep].min()

    expected = wann_votes(nearest[:, :51].numpy(), labels, CLASSES)
    found = judged(WeightedNeighbours())
    np.testing.assert_allclose(found.p_clean, expected[np.arange(N), labels], rtol=1e-6)
    found = judged(WeightedNeighbours(threshold=0.9))
    assert (found.keep == (found.p_clean.double() >= 0.9)).all()

    odds = density_log_odds(rows, labels, CLASSES)
    np.testing.assert_allclose(judged(ClassDensity()).log_odds, odds, rtol=1e-5)

    short = projected_rows(rows)
    strength = chosen_strength(short, np.eye(CLASSES, dtype=np.float32)[labels])
    probabilities = out_of_fold_probabilities(short, labels, CLASSES, folds=5, strength=strength)
    found = judged(ConfidentLearning(rule="both"))
    assert (found.keep.numpy() == ~confident_issues(probabilities, labels, "both")).all()
    np.testing.assert_allclose(found.p_clean, probabilities[np.arange(N), labels], rtol=1e-6)


def test_labels_are_judged_when_the_schedule_says_so():
    whole, _ = split()
    asked = []

    def see(source):
        asked.append((epoch, source))
        return whole

    once = SimiFeat(warmup_epochs=2)
    often = SimiFeat(warmup_epochs=1, every_n_epochs=3, source="embeddings")
    for epoch in range(8):
        once.begin_epoch(epoch, see, False)
        often.begin_epoch(epoch, see, False)
        often.begin_epoch(epoch, see, False)  # as a run that goes on in the middle of an epoch
    assert asked == [
        *((1, "embeddings"), (2, "features"), (4, "embeddings"), (7, "embeddings")),
    ]
    kept = once.select(Evidence(whole.labels, whole.index, epoch=1))
    assert kept.keep.all()
    epoch = 8
    once.begin_epoch(epoch, see, True)
    assert asked[-1] == (8, "features")


def test_what_was_not_judged_is_kept():
    selector = SimiFeat()
    judged(selector)
    others = torch.tensor([int(i) for i in range(310) if i not in set(POSITIONS.tolist())])
    found = selector.select(Evidence(torch.zeros(len(others), dtype=torch.int64), others))
    assert found.keep.all()
    assert found.p_clean.isnan().all()


@pytest.mark.long
@pytest.mark.parametrize("make", ALL)
def test_judgements_go_into_a_checkpoint(make):
    one, two = make(), make()
    expected = judged(one)
    two.load_state_dict(one.state_dict())
    whole, _ = split()
    two.begin_epoch(0, None, False)  # nothing is looked at again
    found = two.select(Evidence(whole.labels, whole.index))
    assert torch.equal(found.keep, expected.keep)
    torch.testing.assert_close(found.log_odds, expected.log_odds, rtol=0, atol=0)


def test_what_cannot_be_judged_is_a_sentence():
    alike = SplitRows(torch.randn(9, 4), torch.zeros(9, dtype=torch.int64), torch.arange(9))
    with pytest.raises(UserError, match="9 labelled rows of 1 classes"):
        ClassDensity().begin_epoch(0, lambda source: alike, False)
    with pytest.raises(UserError, match=r"selector.k_min=60 must not be above"):
        WeightedNeighbours(k_min=60)


def _shared(rank: int, world: int, folder: str) -> None:
    whole, _ = split()
    mine = slice(0, 150) if rank == 0 else slice(150, N)
    part = SplitRows(whole.rows[mine], whole.labels, whole.index)
    answers = {}
    for make in (WeightedNeighbours, ClassDensity):
        selector = make()
        selector.begin_epoch(0, lambda source: part, False)
        found = selector.select(Evidence(whole.labels, whole.index))
        answers[make.__name__] = torch.stack([found.keep.float(), found.p_clean, found.log_odds])
    torch.save(answers, f"{folder}/{rank}.pt")


def test_ranks_judge_as_one_process(tmp_path: Path):
    run_ranks(_shared, 2, tmp_path, str(tmp_path))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for make in (WeightedNeighbours, ClassDensity):
            alone = judged(make())
            expected = torch.stack([alone.keep.float(), alone.p_clean, alone.log_odds])
            assert torch.equal(found[make.__name__], expected)
