"""Blocks that look for pairs on behalf of later ones: the same ranks, whatever is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.clusters import clusters

from noisyml.metrics.retrieval import retrieval_metrics
from noisyml.similarity.exact import kernels
from noisyml.similarity.exact import quantised as coarse
from noisyml.similarity.exact.kernels import Pairs
from noisyml.similarity.ranks import block, lending, opening, scores, walk
from noisyml.similarity.ranks.lending import LentPairs, guessed_floors
from noisyml.similarity.ranks.task import RankingTask, ranking_task

compiled = pytest.mark.skipif(not kernels.available(), reason="no compiled loops here")
OPTIONS = {
    "metrics": ("precision_at_1", "r_precision", "map_at_r"),
    "recall_at": (1, 5),
    "tie_bounds": True,
    "memory_budget_bytes": 2**20,
    "return_per_query": True,
}


def awkward(classes: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of about a fourteenth of the rows and of 1, many equal rows, zeros and a long row."""
    x, y = clusters(1000, classes, dim=24, noise=1.2)
    x[100:180] = x[500]
    x[200:220] = 0
    x[300] *= 40
    y[40:45] = torch.arange(100, 105)
    return x, y


def on_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integer loops before the float32 filter however small the task."""
    monkeypatch.setattr(coarse, "LEAST_WORK", 0)
    monkeypatch.setattr(coarse, "_AXES_WORK", 0)
    monkeypatch.setattr(coarse, "_CANDIDATE_COST", {"int8_loops": 1})
    monkeypatch.setattr(coarse, "_MOST_LOOKS", 1.0)


def same_as_without(
    monkeypatch: pytest.MonkeyPatch, metric: str, change: Callable[[], None], classes: int = 14
) -> list[bool]:
    """Compares the metrics with those that nobody lent for; for each stretch, if it was lent."""
    x, y = awkward(classes)
    with monkeypatch.context() as without:
        without.setattr(coarse, "number_format_of", lambda device: None)
        means, expected = retrieval_metrics(x, y, metric=metric, **OPTIONS)
    on_the_loops(monkeypatch)
    lent: list[bool] = []
    original = LentPairs.lend

    def lend(self: LentPairs, source: int, stretch: slice, found: Pairs | None) -> None:
        lent.append(found is not None)
        original(self, source, stretch, found)

    monkeypatch.setattr(LentPairs, "lend", lend)
    change()
    found_means, found = retrieval_metrics(x, y, metric=metric, **OPTIONS)
    assert lent
    assert found_means == means
    for name, values in expected.items():
        assert torch.equal(found[name].nan_to_num(-1), values.nan_to_num(-1)), name
    return lent


@pytest.mark.long
@compiled
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_lending_changes_nothing(monkeypatch: pytest.MonkeyPatch, metric: str) -> None:
    assert all(same_as_without(monkeypatch, metric, lambda: None))


@compiled
def test_a_block_may_be_longer_than_a_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    first_widths = {}
    original = walk.Ranking._found_by

    def found_by(self: walk.Ranking, queries: block.QueryBlock, *given: object) -> object:
        # A block meets itself first.
        first_widths.setdefault(tuple(queries.query_index.tolist()), given[1].stop - given[1].start)
        return original(self, queries, *given)

    def change() -> None:
        monkeypatch.setattr(walk.Ranking, "_found_by", found_by)

    assert all(same_as_without(monkeypatch, "cosine", change, classes=60))
    assert any(width < len(queries) for queries, width in first_widths.items())


@pytest.mark.long
@compiled
@pytest.mark.parametrize("room", [0, 1500, pytest.param(4000, marks=pytest.mark.further)])
def test_what_there_was_no_room_for_is_looked_for_later(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    original, owed = LentPairs.owed, []

    def owing(self: LentPairs, number: int) -> list[slice]:
        owed.extend(found := original(self, number))
        return found

    def change() -> None:
        monkeypatch.setattr(lending, "_PIECE", 16)
        monkeypatch.setattr(LentPairs, "owed", owing)
        monkeypatch.setattr(walk, "LentPairs", lambda slices, _: LentPairs(slices, room))

    lent = same_as_without(monkeypatch, "cosine", change)
    assert owed
    assert any(lent) == (room > 0)


@compiled
@pytest.mark.further
def test_floors_that_were_guessed_too_high_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    again = []
    original = block.QueryBlock.unsettled

    def unsettled(self: block.QueryBlock) -> torch.Tensor:
        found = original(self)
        again.append(int(found.sum()))
        return found

    def change() -> None:
        monkeypatch.setattr(block.QueryBlock, "unsettled", unsettled)
        monkeypatch.setattr(lending, "_CAUTION", -2.0)

    same_as_without(monkeypatch, "cosine", change)
    assert sum(again) > 100


@pytest.mark.long
@compiled
def test_stretches_with_too_many_pairs_are_met_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    original, turns = coarse.CoarseFilter.hits, []

    def hits(self: coarse.CoarseFilter, *given: object) -> object:
        turns.append(1)
        return None if len(turns) % 3 == 1 else original(self, *given)

    lent = same_as_without(
        monkeypatch, "cosine", lambda: monkeypatch.setattr(coarse.CoarseFilter, "hits", hits)
    )
    assert any(lent)
    assert not all(lent)


@pytest.mark.long
def test_one_class_alone_is_scored_in_squares_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = awkward()
    monkeypatch.setattr(opening, "_WHOLE_CLASS", 0)
    expected = retrieval_metrics(x, y, **OPTIONS)
    monkeypatch.setattr(opening, "_WHOLE_CLASS", 1024)
    monkeypatch.setattr(scores, "_SQUARE", 7)
    found = retrieval_metrics(x, y, **OPTIONS)
    assert found[0] == expected[0]
    for name, values in expected[1].items():
        assert torch.equal(found[1][name].nan_to_num(-1), values.nan_to_num(-1)), name


def task_of(x: torch.Tensor, y: torch.Tensor) -> RankingTask:
    own = torch.arange(len(x))
    return ranking_task(x, y, None, None, (own, own), "cosine")


def test_guessed_floors_are_seldom_too_high() -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(4096, 16, generator=generator), torch.arange(4096) // 64
    order = torch.arange(4096)
    looked_at = torch.full((4096,), 300)
    looked_at[:2] = torch.tensor([0, 1])
    floors = guessed_floors(task_of(x, y), order, looked_at, room=2**30)
    assert floors is not None
    assert floors[0] == torch.inf
    unit = torch.nn.functional.normalize(x, dim=1)
    reached = (unit @ unit.T > floors[:, None]).sum(1)
    assert reached[1] < 64
    assert (reached[2:] < 300).float().mean() < 0.2
    assert reached[2:].float().mean() < 450


def test_nothing_is_lent_where_there_is_no_room_for_all() -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(4096, 16, generator=generator), torch.arange(4096) // 64
    task, order, looked_at = task_of(x, y), torch.arange(4096), torch.full((4096,), 300)
    # About 350 pairs of a query: 4096 * 350 / 4 are kept at once, 10 bytes each.
    assert guessed_floors(task, order, looked_at, room=4_400_000) is not None
    assert guessed_floors(task, order, looked_at, room=2_800_000) is None
    assert guessed_floors(task, order, torch.full((4096,), 600), room=2**30) is None
    assert guessed_floors(task, order[:0], looked_at[:0], room=2**30) is None


def test_pairs_come_back_to_the_block_they_were_lent_to() -> None:
    slices = [slice(0, 4), slice(4, 8), slice(8, 11)]
    lent = LentPairs(slices, room=10**6)
    found = Pairs(
        torch.tensor([0, 3, 4, 6, 2], dtype=torch.int32),
        torch.tensor([3, 1, 0, 2, 0], dtype=torch.int32),
        torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]),
    )
    lent.lend(0, slice(4, 11), found)
    lent.lend(1, slice(8, 11), None)
    assert lent.owed(1) == []
    assert lent.owed(2) == [slice(4, 8)]
    (first,), (second,) = lent.taken(1), lent.taken(2)
    assert [first.query.tolist(), first.place.tolist()] == [[0, 3, 2], [3, 1, 0]]
    assert first.score.tolist() == pytest.approx([0.1, 0.2, 0.5])
    assert [second.query.tolist(), second.place.tolist()] == [[0, 2], [0, 2]]
    assert list(lent.taken(1)) == []


def test_of_a_block_that_did_not_fit_nothing_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "_PIECE", 2)
    monkeypatch.setattr(lending, "_PIECES_PER_BLOCK", 0.5)
    slices = [slice(0, 2), slice(2, 4), slice(4, 6)]
    lent = LentPairs(slices, room=2 * 2 * 10)

    def pairs(n: int) -> Pairs:
        return Pairs(torch.arange(n) % 2, torch.zeros(n, dtype=torch.int64), torch.ones(n))

    lent.lend(0, slices[2], pairs(1))
    lent.lend(1, slices[2], pairs(5))
    assert lent.full
    assert lent.owed(2) == [slices[1]]
    kept = [(int(q), int(p)) for part in lent.taken(2) for q, p in zip(*part[:2], strict=True)]
    assert kept == [(0, 0)]
    assert not lent.full
