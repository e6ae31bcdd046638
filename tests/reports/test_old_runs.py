"""A run made before evaluators had names: its folder lies in ``old_run`` as it was written."""

import shutil
from pathlib import Path

import pytest

from noisyml.apps import embed, evaluate, train
from noisyml.errors import UserError
from noisyml.reports.report import build_report, write_report
from noisyml.runs.folder import RunFolder

OLD_RUN = Path(__file__).with_name("old_run")


@pytest.fixture
def old_run(tmp_path):
    """A copy of the folder, where a report may be written."""
    return RunFolder(Path(shutil.copytree(OLD_RUN, tmp_path / "digits" / "old")))


@pytest.mark.further
def test_a_run_made_before_is_reported_in_full(old_run):
    written = write_report([old_run.path])
    assert {path.stem for path in written.plots} == {
        "training_curves",
        "kept_set_by_epoch",
        "p_clean",
        "embedding_map",
        "class_maps",
    }
    html = written.html.read_text()
    assert "method classification · dataset digits · noise symmetric · selector bare" in html
    assert f"{old_run.metrics()['test/accuracy']:.4f}" in html
    assert html.count('class="thumb"') == 48
    assert "cannot be read" not in html


def test_runs_made_before_stand_beside_each_other(old_run):
    other = RunFolder(Path(shutil.copytree(OLD_RUN, old_run.path.parent / "other")))
    text = other.config_file.read_text().replace("\nseed: 0", "\nseed: 1")
    other.config_file.write_text(text.replace("selectors.bare.Bare", "selectors.base.KeepAll"))
    choices = other.choices_file.read_text()
    other.choices_file.write_text(choices.replace("selector: bare", "selector: keep_all"))
    report = build_report([old_run.path.parent])
    assert report.table.keys == ("selector",)
    assert [row.values for row in report.table.rows] == [("bare",), ("keep_all",)]
    assert not report.unfinished


@pytest.mark.parametrize(
    ("verb", "word"), [(train, "resume"), (evaluate, "checkpoint"), (embed, "checkpoint")]
)
def test_other_verbs_refuse_a_run_made_before_in_a_sentence(
    old_run, verb, word, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"made by an earlier version of noisyml.* train anew"):
        verb.main([f"{word}={old_run.path}"])
