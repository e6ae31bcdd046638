import numpy as np
import pytest
from sklearn.datasets import load_digits

from noisyml.audit.judging import combined, judge_labels, mean_rank_of_margins, nearest_rows
from noisyml.audit.scores.labels import ranks
from noisyml.audit.steps import Steps, StoredSteps
from noisyml.errors import UserError
from noisyml.similarity.approximate import search as approximate
from noisyml.similarity.exact import plan
from noisyml.storage import unfinished


@pytest.fixture(scope="module")
def digits():
    """500 digits, a fifth of their labels wrong."""
    rows, true = load_digits(return_X_y=True)
    rows, true = rows[:500], true[:500]
    rng = np.random.default_rng(0)
    labels = true.copy()
    wrong = rng.choice(500, 100, replace=False)
    labels[wrong] = (true[wrong] + rng.integers(1, 10, 100)) % 10
    return rows, labels, true


@pytest.fixture(scope="module")
def judged(digits, tmp_path_factory):
    rows, labels, _ = digits
    folder = tmp_path_factory.mktemp("steps")
    told = []
    found = judge_labels(
        rows,
        labels,
        10,
        folds=5,
        replicates=20,
        progress=lambda what, share: told.append((what, share)),
        steps=StoredSteps(folder, "a"),
    )
    return found, folder, told


@pytest.mark.long
def test_wrong_labels_come_first_and_get_their_class(judged, digits):
    found, _, told = judged
    _, labels, true = digits
    wrong = labels != true
    budget = np.argsort(-found.p_wrong)[:100]
    assert wrong[budget].mean() > 0.9
    assert (found.suggested == true)[wrong].mean() > 0.9
    assert (found.suggested != labels).all()
    assert abs(found.noise_rate.value - 0.2) < 0.04
    assert found.noise_rate.low < 0.2 < found.noise_rate.high
    assert found.p_wrong.sum() == pytest.approx(found.noise_rate.value * 500, rel=0.02)
    np.testing.assert_allclose(found.posterior.sum(axis=1), 1, atol=1e-5)
    assert (found.p_suggested <= found.p_wrong + 1e-9).all()
    table, ends = found.confusion
    assert table.sum() == pytest.approx(500, rel=1e-3)
    np.testing.assert_allclose(table.sum(axis=0), np.bincount(labels), rtol=1e-3)
    assert (ends[0] <= table + 1e-6).all()
    assert {what for what, _ in told} == {
        *("neighbours", "round 1 of 2", "round 2 of 2", "crossed views", "intervals")
    }


def test_neighbours_are_found_by_lists_too():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(20, 8))[rng.integers(0, 20, 800)] * 4).astype(np.float32)
    rows += rng.normal(size=rows.shape).astype(np.float32)
    ways = {
        way: nearest_rows(rows, 5, Steps(), lambda what, share: None, way)
        for way in ("exact", "approximate")
    }
    exact, near = ways["exact"]["index"], ways["approximate"]["index"]
    assert ways["exact"]["recall"] == 1
    shared = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact, near, strict=True)])
    assert shared > 0.9
    assert ways["approximate"]["recall"] == pytest.approx(shared, abs=0.05)
    assert (near >= 0).all()
    assert (near != np.arange(800)[:, None]).all()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = (unit[:, None] * unit[near]).sum(axis=2)
    np.testing.assert_allclose(ways["approximate"]["similarity"], cosine, atol=1e-5)
    assert (np.diff(ways["approximate"]["similarity"], axis=1) <= 0).all()


@pytest.mark.long
@pytest.mark.parametrize("way", ["exact", "approximate"])
def test_a_killed_search_of_neighbours_goes_on(tmp_path, monkeypatch, way):
    monkeypatch.setattr(unfinished, "_SAVE_EVERY", 0.0)
    monkeypatch.setattr(unfinished, "_SAVE_SHARE", 0.0)
    monkeypatch.setattr(approximate, "_QUERIES_AT_ONCE", {"torch": 100})
    monkeypatch.setattr(plan, "_LARGEST_TILE", {"cpu": (64, 64)})
    rows = np.random.default_rng(1).normal(size=(800, 8)).astype(np.float32)
    whole = nearest_rows(rows, 5, Steps(), lambda what, share: None, way)
    shares = []

    def tell(what, share):
        shares.append(share)
        if share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nearest_rows(rows, 5, StoredSteps(tmp_path, "a"), tell, way)
    assert [file.name for file in tmp_path.iterdir()] == ["search.npz"]
    shares.clear()
    steps = StoredSteps(tmp_path, "a")
    found = nearest_rows(rows, 5, steps, lambda what, share: shares.append(share), way)
    assert shares[0] == 0
    assert shares[1] > 0.4
    assert [file.name for file in tmp_path.iterdir()] == ["neighbours.npz"]
    for name in ("index", "similarity", "recall"):
        np.testing.assert_array_equal(found[name], whole[name])


@pytest.mark.long
def test_crossed_views_do_not_know_the_label_of_their_row(digits):
    from noisyml.audit.scores.crossed import crossed_views, neighbour_sums
    from noisyml.audit.scores.folds import projected_rows

    rows, labels, _ = digits
    short, index = projected_rows(rows), np.argsort(-(rows @ rows.T), axis=1)[:, 1:9]
    before = crossed_views(short, labels, index, 10, concentration=10.0)
    # What is known of row 7 stands in place of its label, and teaches the other parts alone.
    known = np.where(np.arange(500) == 7, 3, -1)
    after = crossed_views(short, labels, index, 10, known, concentration=10.0)
    np.testing.assert_array_equal(before["probabilities"][7], after["probabilities"][7])
    np.testing.assert_array_equal(before["votes"][7], after["votes"][7])
    np.testing.assert_array_equal(before["cosines"][7], after["cosines"][7])
    assert (before["probabilities"] != after["probabilities"]).any()
    marks = np.eye(10, dtype=np.float32)[labels]
    allowed = np.arange(500) % 2 == 0
    sums = neighbour_sums(index, marks, allowed)
    expected = [marks[near[allowed[near]]].sum(axis=0) for near in index[:9]]
    np.testing.assert_allclose(sums[:9], expected)


@pytest.mark.long
def test_finished_steps_are_not_computed_again(judged, digits, monkeypatch):
    found, folder, _ = judged
    rows, labels, _ = digits

    def refuse(*_, **__):
        raise AssertionError("computed again")

    import noisyml.audit.judging as module

    monkeypatch.setattr(module, "self_topk", refuse)
    monkeypatch.setattr(module, "out_of_fold_probabilities", refuse)
    again = judge_labels(rows, labels, 10, folds=5, replicates=20, steps=StoredSteps(folder, "a"))
    np.testing.assert_array_equal(again.p_wrong, found.p_wrong)
    with pytest.raises(AssertionError, match="computed again"):
        judge_labels(rows, labels, 10, folds=5, replicates=20, steps=StoredSteps(folder, "b"))


@pytest.mark.long
def test_rows_that_were_looked_at_keep_what_was_said_and_teach_it(digits):
    rows, labels, true = digits
    known = np.where(np.arange(500) < 250, true, -1)
    found = judge_labels(rows, labels, 10, folds=5, replicates=2, known=known, rounds=1)
    np.testing.assert_array_equal(found.p_wrong[:250], (labels != true)[:250])
    wrong = (labels != true) & (known < 0)
    np.testing.assert_array_equal((found.p_wrong > 0.5)[:250], (labels != true)[:250])
    assert ranks(found.p_wrong)[wrong].mean() > 0.8


def test_rounds_are_brought_to_the_level_of_the_first():
    rng = np.random.default_rng(0)
    first, second = rng.random(300), rng.random(300) ** 3
    found = combined([first, second])
    assert found.sum() == pytest.approx(first.sum(), rel=1e-4)
    score = np.log(first / (1 - first)) + np.log(second / (1 - second))
    np.testing.assert_array_equal(np.argsort(score), np.argsort(found))


def test_ranks_of_margins_are_averaged():
    votes = np.array([[1.0, 0.0], [0.6, 0.4], [0.0, 1.0]])
    found = mean_rank_of_margins(votes, votes[::-1].copy(), np.zeros(3, dtype=np.int64))
    assert found.tolist() == [0.5, 0.5, 0.5]


def test_too_few_rows_or_classes_are_refused():
    with pytest.raises(UserError, match="3 rows are too few"):
        judge_labels(np.eye(3), np.array([0, 1, 1]), 2)
    with pytest.raises(UserError, match="num_classes=1"):
        judge_labels(np.eye(8), np.zeros(8, dtype=np.int64), 1)
