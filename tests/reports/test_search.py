"""Searches in reports, on made-up results."""

import json

import pytest

from noisyml.reports.render import render_html, render_markdown
from noisyml.reports.report import build_report
from noisyml.reports.sections.search import searches
from noisyml.runs.folder import find_runs
from noisyml.runs.trials import RESULTS_FILE

WHY = "Stopped after epoch 2 by the search (median): val/map_at_r was 0.1000."


@pytest.fixture
def search(maker):
    """Four trials: two that finished, one stopped early, one that failed."""
    states = ["finished", "pruned", "finished", "failed"]
    for number, state in enumerate(states):
        why = {"reason": WHY} if state == "pruned" else {}
        status = None if state == "finished" else {"state": state, **why}
        maker.run(f"search/{number}", rate=0.1 * (number + 1), status=status, files=False)
    values = {
        0: ("complete", 0.4, {"1": 0.2, "2": 0.3, "3": 0.4}),
        1: ("pruned", 0.1, {"1": 0.2, "2": 0.1}),
        2: ("complete", 0.5, {"1": 0.1, "2": 0.3, "3": 0.5}),
        3: ("fail", None, {}),
    }
    trials = [
        {
            "number": number,
            "state": state,
            "value": value,
            "params": {"optimizer.lr": 0.00123456 * (number + 1), "head": "mlp"},
            "reported": reported,
        }
        for number, (state, value, reported) in values.items()
    ]
    content = {
        "objective": "val/map_at_r",
        "direction": "maximize",
        "on_test": False,
        "sampler": "tpe",
        "pruner": "median",
        "n_trials": 4,
        "importance": {"optimizer.lr": 0.75, "head": 0.25},
        "trials": trials,
    }
    home = maker.root / "search"

    def write(**changes):
        (home / RESULTS_FILE).write_text(json.dumps({**content, **changes}))
        return home

    write()
    return write


@pytest.mark.usefixtures("undrawn")
def test_the_page_has_the_best_values_and_leaves_stopped_trials_out_of_the_results(search):
    report = build_report([search()])
    assert report.summary.startswith("4 runs (2 finished)")
    (shown,) = report.searches
    assert shown.title == "highest val/map_at_r"
    best, mattered, trials = shown.tables
    assert best.rows == (("optimizer.lr", "0.003704"), ("head", "mlp"))
    assert "0.5000 in job 2; 2 of 4 trials finished, 1 stopped early (median), 1 failed" in (
        best.caption
    )
    assert mattered.rows == (("optimizer.lr", "0.75"), ("head", "0.25"))
    assert [row[:4] for row in trials.rows] == [
        ("2", "finished", "3", "0.5000"),
        ("0", "finished", "3", "0.4000"),
        ("1", "pruned", "2", "0.1000"),
    ]
    assert [(line.state, line.problem) for line in report.runs][1] == ("pruned", WHY)
    assert [line.state for line in report.unfinished] == ["failed"]
    assert [row.values for row in report.table.rows if row.runs == "1"] == [("0.1",), ("0.3",)]
    html, markdown = render_html(report), render_markdown(report)
    assert "Search: highest val/map_at_r" in html
    assert WHY in html
    assert "## highest val/map_at_r: Best values" in markdown


def test_a_search_on_test_data_says_so(search):
    runs = find_runs([search(on_test=True, objective="test/nll", direction="minimize")])
    (shown,) = searches(runs, [])
    assert shown.title == "CHOSEN ON TEST: lowest test/nll"
    assert shown.tables[0].caption.startswith("0.4000 in job 0")


def test_a_single_run_shows_no_search_and_a_damaged_one_is_said(search):
    runs = find_runs([search()])
    assert searches(runs[:1], []) == []
    (runs[0].path.parent / RESULTS_FILE).write_text("{}")
    said = []
    assert searches(runs, said) == []
    assert RESULTS_FILE in said[0]


@pytest.mark.parametrize("narrow", [False, True])
def test_trials_and_their_curves_are_drawn(search, narrow):
    (shown,) = searches(find_runs([search()]), [])
    history, curves = shown.pictures[0].draw(narrow=narrow).axes
    finished, stopped = (points.get_offsets().data.tolist() for points in history.collections)
    assert finished == [[0, 0.4], [2, 0.5]]
    assert stopped == [[1, 0.1]]
    assert history.lines[0].get_ydata().tolist() == [0.4, 0.5, 0.5]
    assert [line.get_ydata().tolist() for line in curves.lines] == [
        [0.2, 0.3, 0.4],
        [0.2, 0.1],
        [0.1, 0.3, 0.5],
    ]
