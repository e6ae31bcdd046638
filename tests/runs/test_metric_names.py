"""Short names of metrics: given by evaluators, kept in the run folder, read by reports."""

import pytest
from support.synthetic_runs import RunMaker

from noisyml.metrics.base import Evaluator, metric_names
from noisyml.metrics.classification import ClassificationEvaluator
from noisyml.metrics.retrieval_evaluator import RetrievalEvaluator
from noisyml.reports.tables import KNOWN_NAMES, choose_columns, load_runs, result_table
from noisyml.runs.metric_names import MetricNames

LABELS = {"mean_angle": "Angle", "mean_angle_at_K": "Angle@K"}


class Angle(Evaluator):
    """An evaluator of somebody else."""

    lower_is_better = frozenset({"mean_angle"})
    metric_labels = LABELS
    headline = "mean_angle"

    def update(self, outputs, targets, index, role="pool"):
        """Nothing is needed."""

    def compute(self):
        """No metrics."""
        return {}

    def reset(self):
        """Nothing is kept."""


def test_numbers_stand_for_k():
    names = metric_names({"angle": Angle()})
    assert names.label("mean_angle_at_10") == "Angle@10"
    assert names.label("mean_angle") == "Angle"
    assert names.label("mean_angle_at_x") is None
    assert names.place("mean_angle") == 0
    assert names.place("mean_angle_at_10") is None


def test_names_survive_the_file(tmp_path):
    names = metric_names({"angle": Angle(), "classification": ClassificationEvaluator()})
    names.write(tmp_path / "names.json")
    assert MetricNames.read(tmp_path / "names.json") == names
    assert MetricNames.read(tmp_path / "none.json") == MetricNames()
    assert names.lower_is_better == {"mean_angle", "nll"}


@pytest.mark.parametrize("evaluator", [ClassificationEvaluator(), RetrievalEvaluator()])
def test_what_older_runs_are_read_with_agrees_with_the_evaluators(evaluator):
    known = KNOWN_NAMES.labels
    assert {key: known.get(key, label) for key, label in evaluator.metric_labels.items()} == (
        evaluator.metric_labels
    )
    assert evaluator.lower_is_better <= KNOWN_NAMES.lower_is_better


def test_the_table_shows_a_new_evaluators_metric_by_its_name_and_finds_the_smallest(tmp_path):
    maker = RunMaker(tmp_path)
    for selector, angle in (("prism_avg", 0.25), ("keep_all", 0.5)):
        for seed in range(3):
            figures = {"test/mean_angle": angle + seed / 100}
            where = f"s/{selector}{seed}"
            run = maker.run(where, selector, 0.3, seed, metrics=figures, files=False)
            metric_names({"angle": Angle()}).write(run.metric_names_file)
    runs = load_runs([maker.root])
    column = next(c for c in choose_columns(runs) if c.metric == "test/mean_angle")
    assert (column.label, column.lower_is_better) == ("Angle", True)
    cells = {row.values[-1]: row.cells for row in result_table(runs).rows}
    place = choose_columns(runs).index(column)
    assert cells["prism_avg"][place].best
    assert not cells["keep_all"][place].best
