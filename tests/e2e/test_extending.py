"""A method, a data set and their YAML files outside the package, loggers, and `noisyml list`."""

import json

import pytest
from support.shell import TINY
from support.wandb_records import records_of_wandb

METHOD = '''
"""A method of one page: the plain loss."""

from noisyml.methods.base import Method


class Plain(Method):
    needs_parts = frozenset({"loss"})

    def __init__(self, parts):
        super().__init__(parts)
        self.loss = parts.loss

    def training_step(self, batch, batch_idx):
        embeddings, labels, _ = self.embed_globally(batch)
        return {"loss": self.loss(embeddings, labels)}
'''
YAML = """# @package _global_
# Plain metric learning
defaults:
  - override /loss: contrastive
method:
  _target_: my_method.Plain
"""


def test_a_method_costs_one_module_and_one_yaml(shell, monkeypatch):
    (shell.folder / "my_method.py").write_text(METHOD)
    (shell.folder / "my_conf" / "method").mkdir(parents=True)
    (shell.folder / "my_conf" / "method" / "plain.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(str(shell.folder))
    status, said = shell("train", "--config-dir", "my_conf", "method=plain", *TINY)
    assert status == 0, said
    (run,) = shell.runs()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test/precision_at_1"] > 0.8
    assert not any(name.startswith("selection/") for name in metrics)
    status, said = shell(
        "train", "--config-dir", "my_conf", "method=plain", *TINY, "loss=memory_contrastive"
    )
    assert status == 2
    assert "reads a memory, and Plain keeps none" in said


def test_list_says_what_there_is(shell):
    status, said = shell("list", "--json")
    assert status == 0
    found = json.loads(said)
    assert {"name", "description", "files"} <= set(found["datasets"][0])
    by_name = {row["name"]: row["files"] for row in found["datasets"]}
    assert by_name["digits"] == "present"
    assert by_name["cub200"].startswith("missing")
    assert by_name["csv"] == "give dataset.path"
    for group, rows in found.items():
        for row in rows:
            assert row["description"], f"{group}/{row['name']} has no first comment"


def test_tensorboard_gets_settings_and_final_metrics(shell):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import (
        SESSION_START_INFO_TAG,
        parse_session_start_info_plugin_data,
    )

    status, said = shell("train", *TINY, "trainer.max_epochs=1", "logger=tensorboard")
    assert status == 0, said
    (run,) = shell.runs()
    metrics = json.loads((run / "metrics.json").read_text())
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    last = {tag: events.Scalars(tag)[-1] for tag in events.Tags()["scalars"]}
    for name in ("test/map_at_r", "best/test/map_at_r", "noise/actual_rate"):
        assert last[name].value == pytest.approx(metrics[name], rel=1e-6)
    assert last["test/map_at_r"].step == last["train/loss"].step > 0
    assert "hp_metric" not in last
    content = events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    hparams = parse_session_start_info_plugin_data(content).hparams
    assert hparams["noise.rate"].number_value == pytest.approx(0.3)
    assert hparams["dataset._target_"].string_value.endswith("Digits")
    assert not [key for key in hparams if key.startswith(("logger.", "run_dir", "paths."))]
    assert "noise.rate: 0.3" in (run / "tensorboard" / "hparams.yaml").read_text()


@pytest.mark.further
def test_wandb_without_a_key_records_each_run_with_settings_and_final_metrics_offline(shell):
    pytest.importorskip("wandb")
    done = shell.apart(
        "train",
        "-m",
        *TINY,
        "trainer.max_epochs=1",
        "logger=wandb",
        "seed=0,1",
        WANDB_API_KEY="",
        HOME="/nowhere",
    )
    assert done.returncode == 0, done.stderr
    assert "recorded offline" in done.stdout + done.stderr
    runs = shell.runs()
    assert len(runs) == 2
    for seed, run in enumerate(runs):
        metrics = json.loads((run / "metrics.json").read_text())
        config, summary = config_and_summary(run)
        assert (config["seed"], config["noise.rate"]) == (seed, 0.3)
        assert (config["init_from"], config["model_choice"]) == ("null", "['last', 'best']")
        assert summary["test/map_at_r"] == pytest.approx(metrics["test/map_at_r"])


def config_and_summary(run):
    """Configuration and last values of an offline run."""
    config, summary = {}, {}
    for record in records_of_wandb(run):
        for kept, updates in (
            (config, [*record.run.config.update, *record.config.update]),
            (summary, [*record.summary.update, *record.history.item]),
        ):
            for item in updates:
                kept[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return config, summary


EVALUATOR = '''
"""Counts what it is shown."""

import pandas as pd

from noisyml.metrics.base import Evaluator
from noisyml.runs.artefacts import Artefact


class Counter(Evaluator):
    headline = "shown"

    def __init__(self):
        self.shown = 0

    def update(self, outputs, targets, index, role):
        self.shown += len(index)

    def compute(self):
        return {"shown": float(self.shown)}

    def artefacts(self):
        yield Artefact("shown.csv", pd.DataFrame({"samples": [self.shown]}), "Samples shown")

    def reset(self):
        self.shown = 0
'''


@pytest.mark.usefixtures("undrawn")
def test_an_evaluator_of_ones_own_puts_a_table_into_the_report(shell, monkeypatch):
    (shell.folder / "my_evaluator.py").write_text(EVALUATOR)
    (shell.folder / "my_conf" / "evaluator").mkdir(parents=True)
    (shell.folder / "my_conf" / "evaluator" / "counter.yaml").write_text(
        "# @package evaluators.counter\n# Counts\n_target_: my_evaluator.Counter\n"
    )
    monkeypatch.syspath_prepend(str(shell.folder))
    status, said = shell(
        "train", "--config-dir", "my_conf", *TINY, "evaluator=[retrieval,counter]", "report=true"
    )
    assert status == 0, said
    (run,) = shell.runs()
    shown = json.loads((run / "metrics.json").read_text())["test/shown"]
    assert (run / "shown.csv").read_text() == f"samples\n{shown:.0f}\n"
    html = (run / "report.html").read_text()
    assert "<h3>Samples shown</h3>" in html
    assert f"<td>{shown:.0f}</td>" in html
