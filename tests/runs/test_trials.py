"""Trials of a search: reports to the study, and when they are told to stop."""

import pytest

from noisyml.errors import UserError
from noisyml.runs.trials import (
    JOURNAL_FILE,
    PRUNED,
    STUDY_NAME,
    TRIAL_FILE,
    Reports,
    Search,
    Trial,
    open_journal,
)

optuna = pytest.importorskip("optuna")

RULE = Search("val/accuracy", "median", startup_trials=2, warmup_epochs=1)
#: Accuracy after each of four epochs; the middle of two and more decides.
GOOD, FAIR, BAD = (0.5, 0.6, 0.7, 0.8), (0.4, 0.5, 0.6, 0.7), (0.3, 0.2, 0.6, 0.9)


@pytest.fixture
def search(tmp_path):
    """A study; the function begins its next trial and gives what the run folder has for it."""
    study = optuna.create_study(
        storage=open_journal(tmp_path / JOURNAL_FILE), study_name=STUDY_NAME, direction="maximize"
    )

    def begin(rule=RULE):
        number = study.ask().number
        folder = tmp_path / str(number)
        folder.mkdir()
        Trial.of(folder, tmp_path, number, rule).write(folder)
        return Reports(folder, Trial.read(folder))

    begin.study = study
    return begin


def epochs_of(reports, values):
    """The number of epochs that a trial does, which reports after each of them."""
    for epoch, value in enumerate(values, 1):
        reports.report(epoch, value)
        if epoch < len(values) and reports.stops(epoch, value):
            return epoch
    return len(values)


def test_a_trial_below_the_median_stops_after_the_warm_up(search):
    for values in (GOOD, FAIR):
        assert epochs_of(search(), values) == 4
        search.study.tell(search.study.trials[-1].number, values[-1])
    hopeless = search()
    assert epochs_of(hopeless, BAD) == 2  # the best so far, 0.3, is below the median, 0.55
    assert search.study.trials[2].user_attrs == {PRUNED: 2}
    written = Trial.read(hopeless.folder)
    assert (written.pruned, written.value) == (2, 0.2)
    assert written.why == "Stopped after epoch 2 by the search (median): val/accuracy was 0.2000."
    assert epochs_of(search(Search("val/accuracy", "none", 0, 0)), BAD) == 4


def test_a_trial_that_was_killed_reports_once_and_stops_where_it_had_stopped(search):
    for values in (GOOD, FAIR):
        epochs_of(search(), values)
        search.study.tell(search.study.trials[-1].number, values[-1])
    first = search()
    first.report(1, BAD[0])
    again = Reports(first.folder, Trial.read(first.folder))
    assert epochs_of(again, BAD) == 2
    assert search.study.trials[2].intermediate_values == {1: 0.3, 2: 0.2}
    # Killed after it was told and before it has stopped: nobody is asked again.
    late = Reports(first.folder, Trial.read(first.folder))
    search.study.tell(2, state=optuna.trial.TrialState.PRUNED)
    assert [late.stops(epoch, 0.99) for epoch in (1, 2, 3)] == [False, True, True]


def test_the_best_third_goes_on_by_halving(search):
    rule = Search("val/accuracy", "halving", startup_trials=0, warmup_epochs=1)
    done = [epochs_of(search(rule), [value] * 4) for value in (0.6, 0.5, 0.4, 0.9, 0.2)]
    assert done == [4, 1, 1, 4, 1]


def test_a_run_that_is_no_trial_any_more_reports_nothing(search, tmp_path):
    reports = search()
    search.study.tell(0, 0.5)
    reports.report(1, 0.1)
    assert not reports.stops(1, 0.1)
    assert search.study.trials[0].intermediate_values == {}
    (tmp_path / JOURNAL_FILE).unlink()
    reports.report(2, 0.1)
    assert not (tmp_path / JOURNAL_FILE).exists()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"number": 1}',
        '{"journal": "/etc/passwd", "number": 0, "search": {"objective": "val/a", '
        '"pruner": "none", "startup_trials": 0, "warmup_epochs": 0}}',
    ],
)
def test_a_damaged_or_foreign_trial_is_refused(tmp_path, text):
    assert Trial.read(tmp_path) is None
    (tmp_path / TRIAL_FILE).write_text(text)
    with pytest.raises(UserError, match=TRIAL_FILE):
        Trial.read(tmp_path)
