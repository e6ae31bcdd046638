import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KNeighborsClassifier
from support.paths import GOLDEN

from noisyml.audit.scores import confident, folds, neighbours
from noisyml.audit.scores.channel import (
    fit_channel,
    product_of_sources,
    raised_log_odds,
    weigh_sources,
)
from noisyml.audit.scores.density import class_cosines, density_log_odds
from noisyml.audit.scores.labels import best_other, label_margin, own_share, ranks
from noisyml.audit.scores.surest import least_share, marked_surest, surest_of_sources
from noisyml.errors import UserError
from noisyml.similarity.search import self_topk


@pytest.fixture(scope="module")
def blobs():
    """600 rows of 4 classes in 12 dimensions; a fifth of the labels are wrong."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 600)
    rows = (rng.normal(size=(4, 12)) * 1.4)[true] + rng.normal(size=(600, 12))
    labels = true.copy()
    wrong = rng.random(600) < 0.2
    labels[wrong] = (true[wrong] + rng.integers(1, 4, wrong.sum())) % 4
    return rows.astype(np.float32), labels, true


@pytest.fixture(scope="module")
def reference():
    return dict(np.load(GOLDEN / "clean" / "cleanlab.npz"))


def test_confident_learning_is_as_published(reference):
    p, labels = reference["probabilities"], reference["labels"]
    np.testing.assert_allclose(confident.confident_thresholds(p, labels), reference["thresholds"])
    raw = confident.confident_joint(p, labels, calibrated=False)
    np.testing.assert_array_equal(raw, reference["joint"])
    joint = confident.confident_joint(p, labels)
    np.testing.assert_array_equal(joint, reference["calibrated"])
    np.testing.assert_array_equal(joint.sum(axis=1), np.bincount(labels))
    assert confident.confident_noise_rate(p, labels) == 1 - joint.trace() / 240


@pytest.mark.parametrize("rule", ["confident_learning", "noise_rate", "class", "both"])
def test_the_rules_of_confident_learning_mark_the_published_rows(reference, rule):
    found = confident.confident_issues(reference["probabilities"], reference["labels"], rule)
    np.testing.assert_array_equal(found, reference[f"issues_{rule}"])


def test_scores_by_probabilities_are_as_published(reference):
    p, labels = reference["probabilities"], reference["labels"]
    np.testing.assert_allclose(confident.self_confidence(p, labels), reference["self_confidence"])
    np.testing.assert_allclose(
        confident.normalised_margin(p, labels), reference["normalised_margin"]
    )
    assert (best_other(p, labels) != labels).all()
    sure = label_margin(p, labels) < 0
    np.testing.assert_array_equal(best_other(p, labels)[sure], p.argmax(axis=1)[sure])


def test_a_class_without_rows_reaches_no_confidence():
    p = np.full((4, 3), 1 / 3)
    labels = np.array([0, 0, 1, 1])
    assert confident.confident_thresholds(p, labels)[2] == 2
    assert confident.confident_joint(p, labels)[2].tolist() == [0, 0, 0]


def test_votes_are_those_of_scikit_learn(blobs):
    rows, labels, _ = blobs
    unit = folds.unit_rows(rows)
    index = self_topk(rows, 30).index.numpy()
    votes = neighbours.neighbour_votes(index, labels, 4)
    for row in (0, 17, 599):
        others = np.arange(600) != row
        judge = KNeighborsClassifier(30).fit(unit[others], labels[others])
        np.testing.assert_allclose(votes[row], judge.predict_proba(unit[[row]])[0], atol=1e-6)
    power = np.linspace(0, 1, 600)
    weighted = neighbours.neighbour_votes(index, labels, 4, power)
    expected = [power[index[5]][labels[index[5]] == c].sum() for c in range(4)]
    np.testing.assert_allclose(weighted[5], expected / np.sum(expected), rtol=1e-5)


def test_votes_that_are_missing_do_not_count():
    index = np.array([[1, -1], [-1, -1]])
    votes = neighbours.neighbour_votes(index, np.array([0, 1]), 2)
    assert votes.tolist() == [[0.0, 1.0], [0.5, 0.5]]


def test_reliability_is_one_over_the_smallest_neighbourhood_that_agrees(blobs):
    rows, labels, _ = blobs
    index = self_topk(rows, 51).index.numpy()
    found = neighbours.wann_reliability(index, labels, 4)
    for row in range(60):
        expected = 0.0
        for k in range(11, 52):
            if np.bincount(labels[index[row, :k]], minlength=4).argmax() == labels[row]:
                expected = 1 / k
                break
        assert found[row] == expected
    votes = neighbours.wann_votes(index, labels, 4)
    size = round(1 / found[index[3, 0]]) if found[index[3, 0]] else 51
    power = found[index[3, :size]]
    expected = [power[labels[index[3, :size]] == c].sum() for c in range(4)]
    np.testing.assert_allclose(votes[3], expected / np.sum(expected), rtol=1e-5)


def test_simifeat_marks_by_votes_or_by_ranks(blobs):
    rows, labels, true = blobs
    votes = neighbours.neighbour_votes(self_topk(rows, 10).index.numpy(), labels, 4)
    score, marked = neighbours.simifeat(votes, labels, "vote")
    np.testing.assert_array_equal(marked, votes.argmax(axis=1) != labels)
    share = np.array([np.mean(true[labels == c] != c) for c in range(4)])
    score, marked = neighbours.simifeat(votes, labels, "rank", share)
    for label in range(4):
        own = labels == label
        assert marked[own].sum() == round(share[label] * own.sum())
        assert score[own & marked].max() <= score[own & ~marked].min()
    cosine = votes[0] @ np.eye(4)[labels[0]] / np.linalg.norm(votes[0])
    assert score[0] == pytest.approx(cosine)
    with pytest.raises(ValueError, match="needs wrong_share"):
        neighbours.simifeat(votes, labels, "rank")


def test_probabilities_are_those_of_a_classifier_that_has_not_seen_the_row(blobs):
    rows, labels, _ = blobs
    found = folds.out_of_fold_probabilities(rows, labels, 4, folds=5, max_iterations=300)
    held = folds.stratified_folds(labels, 5, 0)
    assert (np.bincount(held) == 120).all()
    counts = np.stack([np.bincount(labels[held == f], minlength=4) for f in range(5)])
    assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1
    projected = folds.principal_projection(rows, 256)(rows).numpy()
    judge = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000)
    judge.fit(projected[held != 2], labels[held != 2])
    expected = judge.predict_proba(projected[held == 2])
    np.testing.assert_allclose(found[held == 2], expected, atol=2e-3)


def test_probabilities_of_weighted_rows(blobs):
    rows, labels, _ = blobs
    weights = np.random.default_rng(1).random(600)
    found = folds.out_of_fold_probabilities(
        rows, labels, 4, folds=None, weights=weights, balanced=True, max_iterations=300
    )
    mass = np.bincount(labels, weights)
    power = weights * (weights.sum() / 4 / mass)[labels]
    projected = folds.principal_projection(rows, 256)(rows).numpy()
    judge = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000).fit(projected, labels, power)
    np.testing.assert_allclose(found, judge.predict_proba(projected), atol=2e-3)
    # Labels given as distributions are the same labels.
    same = folds.out_of_fold_probabilities(
        rows, labels, 4, folds=None, weights=weights, balanced=True, targets=np.eye(4)[labels]
    )
    np.testing.assert_allclose(same, found, atol=2e-3)


def test_more_folds_than_rows_are_refused():
    with pytest.raises(UserError, match=r"folds=9 must be from 2 to the 8 rows"):
        folds.out_of_fold_probabilities(np.eye(8), np.arange(8) % 2, 2, folds=9)


def test_few_directions_are_the_principal_ones(blobs):
    rows = blobs[0]
    unit = folds.unit_rows(rows)
    values = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)[1]
    projected = folds.principal_projection(rows, 3)(rows).numpy()
    lengths = np.linalg.norm(projected, axis=0)
    np.testing.assert_allclose(lengths / lengths[0], values[:3] / values[0], rtol=1e-4)
    assert np.square(projected).mean() == pytest.approx(1, rel=1e-4)


def test_densities_leave_the_row_itself_out(blobs):
    rows, labels, true = blobs
    found = density_log_odds(rows, labels, 4)
    assert found[labels == true].mean() > found[labels != true].mean() + 1
    # A class of one row says nothing about it.
    alone = np.r_[labels[:-1], 4]
    assert np.isnan(density_log_odds(rows, alone, 5)[-1])
    centred = folds.unit_rows(folds.unit_rows(rows) - folds.unit_rows(rows).mean(axis=0))
    sums = np.stack([centred[labels == c].sum(axis=0) for c in range(4)])
    left = sums[labels] - centred
    own = (centred * left).sum(axis=1) / np.linalg.norm(left, axis=1)
    towards = centred @ (sums / np.linalg.norm(sums, axis=1, keepdims=True)).T
    towards[np.arange(len(rows)), labels] = -1
    # The odds have the sign of the nearer direction, where one is clearly nearer.
    nearer = own - towards.max(axis=1)
    assert (nearer > 0.2).sum() > 300
    assert (nearer < -0.2).sum() > 50
    assert (found[nearer > 0.2] > 0).all()
    assert (found[nearer < -0.2] < 0).all()


def test_cosines_leave_the_row_itself_out():
    rng = np.random.default_rng(5)
    rows = torch.from_numpy(rng.normal(size=(60, 4)).astype(np.float32))
    share = rng.dirichlet(np.ones(3), 60).astype(np.float32)
    found = class_cosines(rows, share)
    unit = folds.unit_rows(rows.numpy())
    for row in (0, 17):
        others = np.delete(np.arange(60), row)
        means = share[others].T @ unit[others]
        expected = means @ unit[row] / np.linalg.norm(means, axis=1)
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
    np.testing.assert_array_equal(class_cosines(rows, share, np.array([17])), found[17:18])


@pytest.mark.long
def test_the_channel_finds_how_classes_are_mistaken():
    rng = np.random.default_rng(2)
    q = np.full((4000, 3), 0.04)
    q[np.arange(4000), rng.integers(0, 3, 4000)] = 0.92
    true = np.array([rng.choice(3, p=row) for row in q])
    flip = np.array([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.05, 0.05, 0.9]])
    labels = np.array([rng.choice(3, p=flip[c]) for c in true])
    channel = fit_channel(q, labels)
    np.testing.assert_allclose(channel.transition, flip, atol=0.05)
    p_wrong = 1 - own_share(channel.posterior, labels)
    assert p_wrong.mean() == pytest.approx((labels != true).mean(), abs=0.02)
    known = np.where(np.arange(4000) < 50, true, -1)
    seen = fit_channel(q, labels, known=known)
    assert (seen.posterior[:50].argmax(axis=1) == true[:50]).all()
    # A source that says nothing is not listened to, one that exaggerates is toned down. How much,
    # labels tell where some rows are surer than others.
    q = rng.dirichlet(np.ones(3) * 0.2, 4000) * 0.97 + 0.01
    true = np.array([rng.choice(3, p=row) for row in q])
    labels = np.array([rng.choice(3, p=flip[c]) for c in true])
    loud = np.log(q) * 3
    noise = np.log(rng.dirichlet(np.ones(3), 4000))
    exponents = weigh_sources([loud, noise], labels).exponents
    assert exponents[0] == pytest.approx(1 / 3, abs=0.1)
    assert exponents[1] < 0.1
    again = product_of_sources([loud], np.array([1 / 3]))
    np.testing.assert_allclose(again, q, atol=1e-5)


@pytest.mark.long
def test_lines_of_the_channel_are_even_where_labels_demand_it():
    rng = np.random.default_rng(3)
    q = rng.dirichlet(np.ones(5) * 0.2, 1500) * 0.95 + 0.01
    true = np.array([rng.choice(5, p=row) for row in q])
    wrong = rng.random(1500) < 0.3
    evenly = np.where(wrong, (true + rng.integers(1, 5, 1500)) % 5, true)
    to_the_next = np.where(wrong, (true + 1) % 5, true)
    even, pair = (weigh_sources([np.log(q)], given) for given in (evenly, to_the_next))
    assert even.concentration == 1000
    assert pair.concentration < 100
    for weighing, given in ((even, evenly), (pair, to_the_next)):
        shown = product_of_sources([np.log(q)], weighing.exponents)
        channel = fit_channel(shown, given, concentration=weighing.concentration)
        rate = 1 - own_share(channel.posterior, given).mean()
        assert rate == pytest.approx(wrong.mean(), abs=0.03)


def test_of_equally_likely_matrices_the_most_even_is_taken():
    rng = np.random.default_rng(4)
    q = rng.dirichlet(np.ones(5) * 0.2, 300) * 0.95 + 0.01
    true = np.array([rng.choice(5, p=row) for row in q])
    labels = np.where(rng.random(300) < 0.1, (true + 1) % 5, true)
    # The likeliest is 10, by less than its standard error; 1,000 is clearly less likely.
    assert weigh_sources([np.log(q)], labels).concentration == 100


@pytest.fixture(scope="module")
def by_instance():
    """What a perfect view says of labels whose mistakes it can foresee; labels, true classes."""
    rng = np.random.default_rng(5)
    true, other = rng.integers(0, 6, 1000), rng.integers(1, 6, 1000)
    q = 0.7 * np.eye(6)[true] + 0.3 * np.eye(6)[(true + other) % 6]
    # A fifth of the rows lies between its class and the next: there the view is less sure.
    q[:200] = 0.5 * q[:200] + 0.35 * np.eye(6)[(true[:200] + 1) % 6] + 0.15 / 6
    q = q + 1e-6
    q /= q.sum(axis=1, keepdims=True)
    true[:200] = np.where(rng.random(200) < 0.5, true[:200], (true[:200] + 1) % 6)
    labels = np.where(rng.random(1000) < 0.3, (true + other) % 6, true)
    return q, labels, true


def test_the_surest_rows_of_each_fold_are_marked(by_instance):
    q, labels, _ = by_instance
    fold = np.arange(1000) % 7
    marks = marked_surest(q, labels, fold)
    for number in range(7):
        rows = np.flatnonzero(fold == number)
        surest = sorted(rows, key=lambda row: -q[row].max())[: round(0.2 * len(rows))]
        assert (marks[surest] == (q[surest].argmax(axis=1) != labels[surest])).all()
        assert (marks[rows] >= 0).sum() == len(surest)
    weights = np.random.default_rng(0).random(1000)
    there = marks >= 0
    share = np.average(marks[there], weights=weights[there])
    error = (share * (1 - share) / there.sum()) ** 0.5
    assert least_share(marks, weights) == pytest.approx(share - error)
    assert least_share(np.full(3, -1, dtype=np.int8)) == 0


def test_a_floor_moves_posteriors_as_little_as_it_can(by_instance):
    from scipy.optimize import brentq

    q, labels, _ = by_instance
    found = fit_channel(q, labels, floor=0.3, iterations=200)
    rows = np.arange(1000)
    assert 1 - found.posterior[rows, labels].mean() == pytest.approx(0.3, abs=1e-4)
    joint = q * found.transition.T[labels]
    free = joint / joint.sum(axis=1, keepdims=True)
    wrong = np.arange(6)[None, :] != labels[:, None]

    def raised(added):
        lifted = free * np.exp(added * wrong)
        return lifted / lifted.sum(axis=1, keepdims=True)

    added = brentq(lambda x: (raised(x) * wrong).sum() - 0.3 * 1000, 0, 10)
    nearest = raised(added)
    np.testing.assert_allclose(found.posterior, nearest, atol=1e-3)
    apart = (nearest * np.log(nearest.clip(1e-12) / free.clip(1e-12))).sum(axis=1).mean()
    likely = np.log(joint.sum(axis=1)).mean()
    assert found.log_likelihood == pytest.approx(likely - apart, abs=1e-4)
    assert raised_log_odds((free * wrong).sum(axis=1), 0.3, np.ones(1000)) == pytest.approx(
        added, abs=1e-3
    )
    # Where more labels are wrong than the floor demands, it changes nothing.
    low = fit_channel(q, labels, floor=1e-9)
    np.testing.assert_array_equal(low.posterior, fit_channel(q, labels).posterior)


def test_mistakes_that_follow_the_features_are_told_from_overlap_by_the_surest_rows(by_instance):
    q, labels, true = by_instance
    rates = []
    fold = np.zeros(1000, dtype=np.int64)
    floor = least_share(surest_of_sources([np.log(q)], labels, fold))
    for least in (0.0, floor):
        weighing = weigh_sources([np.log(q)], labels, concentration=10.0, floor=least)
        shown = product_of_sources([np.log(q)], weighing.exponents)
        channel = fit_channel(shown, labels, concentration=10.0, floor=least)
        rates.append(1 - own_share(channel.posterior, labels).mean())
    assert floor == pytest.approx((labels != true).mean(), abs=0.05)
    assert rates[0] < 0.2
    assert rates[1] == pytest.approx((labels != true).mean(), abs=0.05)


def test_wrong_labels_call_for_a_stronger_penalty():
    rng = np.random.default_rng(4)
    true = rng.integers(0, 3, 900)
    rows = rng.normal(size=(900, 40)).astype(np.float32)
    rows[:, :3] += 4 * np.eye(3, dtype=np.float32)[true]
    labels = np.where(rng.random(900) < 0.4, rng.integers(0, 3, 900), true)
    marks = np.eye(3, dtype=np.float32)
    clean, noisy = (
        folds.chosen_strength(torch.from_numpy(rows), marks[given]) for given in (true, labels)
    )
    assert clean > noisy
    several = (rng.random((900, 2)) < 0.5).astype(np.float32)
    assert folds.chosen_strength(torch.from_numpy(rows), several, exclusive=False) < clean


def test_equal_scores_share_their_rank():
    assert ranks(np.array([3.0, 3.0])).tolist() == [0.5, 0.5]
    assert ranks(np.array([1.0])).tolist() == [0.0]


def test_the_mixture_of_losses_is_that_of_scikit_learn():
    from noisyml.selectors.loss_mixture import small_loss_posterior

    rng = np.random.default_rng(0)
    losses = np.r_[rng.gamma(2.0, 0.1, 700), rng.normal(3, 0.5, 300).clip(0)]
    found = small_loss_posterior(torch.from_numpy(losses), tolerance=1e-9, iterations=1000)
    scaled = ((losses - losses.min()) / (losses.max() - losses.min()))[:, None]
    model = GaussianMixture(2, reg_covar=5e-4, max_iter=1000, tol=1e-9, random_state=0)
    model.fit(scaled)
    expected = model.predict_proba(scaled)[:, model.means_.argmin()]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    some = torch.tensor([0.1, torch.nan, 3.0, 0.2])
    assert small_loss_posterior(some).isnan().tolist() == [False, True, False, False]
    assert small_loss_posterior(torch.ones(3)).tolist() == [1, 1, 1]
