"""Ranks, wins and pairs, against values worked out by hand."""

import numpy as np
import pytest
from support.synthetic_runs import RunMaker

from noisyml.reports import load_runs, result_table
from noisyml.reports.sections.base import ReportedRuns
from noisyml.reports.sections.comparisons import comparisons
from noisyml.reports.statistics import average_ranks, interval, mean_interval, wins

P1 = "test/precision_at_1"


def test_ranks_have_letters_by_the_critical_difference():
    # Ranks 1, 2, 3 in each of 20 blocks; q(.05, 3) = 2.343, so CD = 2.343 * sqrt(12 / 120) = .741.
    apart = np.tile([0.9, 0.8, 0.7], (20, 1))
    assert [(r.name, r.mean, r.letters) for r in average_ranks(apart, "abc")] == [
        ("a", 1.0, "a"),
        ("b", 2.0, "b"),
        ("c", 3.0, "c"),
    ]
    # Four blocks: CD = 2.343 * sqrt(12 / 24) = 1.657; only the first and the last differ.
    letters = {r.name: r.letters for r in average_ranks(apart[:4], "abc")}
    assert letters == {"a": "a", "b": "ab", "c": "b"}
    errors = average_ranks(apart, "abc", lower_is_better=True)
    assert [r.name for r in errors] == ["c", "b", "a"]


def test_wins_count_blocks_and_ties_half():
    values = np.array([[0.9, 0.8], [0.7, 0.7], [0.6, 0.5], [0.1, 0.2]])
    np.testing.assert_allclose(wins(values), [[0.5, 0.625], [0.375, 0.5]])
    np.testing.assert_allclose(wins(values, lower_is_better=True), [[0.5, 0.375], [0.625, 0.5]])


def test_few_values_have_students_interval():
    assert interval([1.0, 2.0, 3.0]) == mean_interval([1.0, 2.0, 3.0])
    many = np.arange(10.0)
    assert interval(many) != mean_interval(many)
    assert interval(many).low < many.mean() < interval(many).high


@pytest.fixture
def runs(tmp_path):
    maker = RunMaker(tmp_path)
    for selector, values in {"a": (0.9, 0.8, 0.7), "b": (0.8, 0.75, 0.6)}.items():
        for seed, value in enumerate(values):
            for rate in (0.3, 0.5):
                where = f"s/{selector}{seed}{rate}"
                figures = {P1: value - rate / 10}
                maker.run(where, selector, rate, seed, metrics=figures, files=False)
    maker.run("s/lonely", "b", 0.7, 0, metrics={P1: 0.99}, files=False)
    return load_runs(str(tmp_path / "s"))


def test_a_report_compares_what_has_data_noise_and_seed_in_common(runs):
    (table,) = comparisons(ReportedRuns(runs, result_table(runs)))
    assert "Over 6 blocks" in table.caption
    first, second = table.rows
    assert first[0] == "a"
    # Differences -.1 -.05 -.1, each twice.
    assert second[:2] == ("b", "2.00 b")
    assert second[3] == "-0.0833"
    assert second[5] == "6 of 6"
