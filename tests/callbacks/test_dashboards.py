"""Dashboards: what a run shows on each, read back by the dashboard's own reader."""

import importlib.util
import json
import logging
import socket

import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from support.wandb_records import records_of_wandb

from noisyml.callbacks.dashboards import wandb as wandb_dashboard
from noisyml.callbacks.dashboards.base import Suspects, announce_results, announce_run, place_of
from noisyml.callbacks.dashboards.mlflow import GROUP_TAG, mlflow_logger
from noisyml.callbacks.dashboards.tensorboard import tensorboard_logger
from noisyml.callbacks.dashboards.trackio import trackio_logger
from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder

CONFIG = {"seed": 1, "noise": {"rate": 0.3}, "logger": {"x": {"api_key": "topsecret"}}}
#: Final metrics, one of them undefined.
METRICS = {"test/accuracy": 0.75, "test/map_at_r": float("nan")}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The fourth job of a sweep, with judged samples, noise and a checkpoint."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # What was typed; a secret among it must not be recorded.
    monkeypatch.setattr("sys.argv", ["noisyml", "train", "+logger.x.api_key=topsecret"])
    folder = tmp_path / "outputs" / "train" / "demo" / "now" / "3"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    (folder.parent / "multirun.yaml").write_text("")
    pd.DataFrame({"index": [0, 1]}).to_parquet(folder / "noise.parquet")
    np.savez(
        folder / "thumbnails.npz",
        images=np.full((9, 64, 64, 3), 7, np.uint8),
        key=np.array([f"image {i}" for i in range(9)]),
        observed_name=np.array(["cat"] * 9),
        p_clean=np.arange(9) / 10,
    )
    yield RunFolder(folder)
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if b"topsecret" in file.read_bytes()]


def told(logger, run):
    """A run as it is told to a logger: settings, a point of a curve, what came out."""
    announce_run([logger], CONFIG)
    logger.log_metrics({"val/accuracy": 0.5, "epoch": 2}, step=40)
    announce_results([logger], run, CONFIG, METRICS, 60)


@pytest.mark.further
def test_wandb_records_a_run_of_a_group_with_table_and_artifacts(run, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    told(wandb_dashboard.wandb_logger(str(run.path), "project", "demo"), run)
    records = records_of_wandb(run.path)
    (started,) = [r.run for r in records if r.HasField("run")]
    assert (started.run_group, started.display_name) == ("demo/now", "demo/3")
    kept = {r.request.log_artifact.artifact.type for r in records if r.HasField("request")}
    kept |= {r.artifact.type for r in records if r.HasField("artifact")}
    assert {"dataset", "model", "run_table"} <= kept
    # Waiting in the run folder for `wandb sync`: the table, and a picture for each row.
    staged = [f.read_bytes() for f in (run.path / "wandb" / "staging").rglob("*") if f.is_file()]
    table, *_ = [json.loads(c) for c in staged if c.startswith(b'{"_type": "table"')]
    assert table["columns"] == ["image", "key", "label", "p_clean"]
    assert table["data"][2][1:] == ["image 2", "cat", 0.2]
    assert table["data"][2][0]["_type"] == "image-file"
    assert any(content[:4] == b"\x89PNG" for content in staged)
    rows = [{i.nested_key[0]: i.value_json for i in r.history.item} for r in records]
    points = [row for row in rows if "val/accuracy" in row]
    assert [(p["val/accuracy"], p["trainer/global_step"]) for p in points] == [("0.5", "40")]


def test_tensorboard_has_curves_and_pictures(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told(tensorboard_logger(str(run.path), "tensorboard", "", False), run)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("val/accuracy")] == [(40, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("test/accuracy")] == [(60, 0.75)]
    (sheet,) = events.Images("suspects")
    assert (sheet.step, sheet.width, sheet.height) == (60, 8 * 64, 64)
    (text,) = events.Tensors("suspects/text_summary")
    assert "| image 3 | cat | 0.3 |" in text.tensor_proto.string_val[0].decode()


@pytest.mark.further
def test_mlflow_has_parameters_metrics_table_and_artifacts(run, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = tmp_path / "outputs"
    make = [str(run.path), str(store), None, "experiment", "demo"]
    interrupted = mlflow_logger(*make)
    announce_run([interrupted], {**CONFIG, "trainer": {"max_epochs": 3}})
    logger = mlflow_logger(*make)
    announce_run([logger], {**CONFIG, "trainer": {"max_epochs": 5}})
    told(logger, run)
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "experiment"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == interrupted.run_id  # it went on
    assert (found.info.run_name, found.info.status) == ("demo/3", "FINISHED")
    assert found.data.tags[GROUP_TAG] == "demo/now"
    assert found.data.tags["changed.trainer.max_epochs"] == "5"
    assert found.data.params == {"seed": "1", "noise.rate": "0.3", "trainer.max_epochs": "3"}
    assert found.data.metrics == {"val/accuracy": 0.5, "epoch": 2.0, "test/accuracy": 0.75}
    (point,) = client.get_metric_history(found.info.run_id, "test/accuracy")
    assert point.step == 60
    for kind, name in (("noise", "noise.parquet"), ("checkpoint", "last.ckpt")):
        (kept,) = client.list_artifacts(found.info.run_id, kind)
        assert kept.path == f"{kind}/{name}"
    table = client.load_table(experiment.experiment_id, "suspects.json", [found.info.run_id])
    assert table["key"].tolist() == [f"image {i}" for i in range(9)]
    picture = client.download_artifacts(found.info.run_id, table["image"][8]["filepath"])
    assert (np.asarray(Image.open(picture)) == 7).all()
    # The next run in the folder is another.
    assert mlflow_logger(*make).run_id != found.info.run_id


def test_trackio_has_parameters_metrics_table_and_artifacts(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    trackio = pytest.importorskip("trackio")

    told(trackio_logger(str(run.path), str(tmp_path), "project"), run)
    (found,) = trackio.Api().runs("project")
    assert found.name == "demo/now/3"
    assert (found.config["noise.rate"], found.config["_Group"]) == (0.3, "demo/now")
    rows = trackio.SQLiteStorage.get_logs("project", found.name)
    assert [(r["step"], r["val/accuracy"]) for r in rows if "val/accuracy" in r] == [(40, 0.5)]
    assert [(r["step"], r["test/accuracy"]) for r in rows if "test/accuracy" in r] == [(60, 0.75)]
    (table,) = [row["suspects"] for row in rows if "suspects" in row]
    assert table["_value"][2]["key"] == "image 2"
    assert len(list((tmp_path / "trackio" / "media").rglob("*.png"))) == 9


def test_any_other_logger_is_given_parameters_and_metrics(run):
    logger = CSVLogger(str(run.path), name="csv", version="")
    told(logger, run)
    table = pd.read_csv(run.path / "csv" / "metrics.csv")
    assert table["test/accuracy"].dropna().tolist() == [0.75]


def test_suspects_without_pictures_are_those_of_the_list(tmp_path):
    assert Suspects.read(RunFolder(tmp_path)) is None
    rows = {"key": ["b", "a"], "label": ["cat", "dog"], "p_clean": [0.1, 0.2], "kept": [0.0, 1.0]}
    pd.DataFrame(rows).to_csv(tmp_path / "suspects.csv", index=False)
    found = Suspects.read(RunFolder(tmp_path))
    assert found.table.to_dict("list") == {k: rows[k] for k in ("key", "label", "p_clean")}
    assert found.images is None


def test_a_run_alone_is_in_no_group(tmp_path):
    assert place_of(tmp_path, "demo") == ("demo", None)


@pytest.mark.parametrize(
    ("package", "sentence", "make"),
    [
        ("mlflow", r"noisyml\[mlflow\]", lambda: mlflow_logger("r", "s", None, "e", "n")),
        ("tensorboard", r"noisyml\[tensorboard\]", lambda: tensorboard_logger("r", "n", "", False)),
        ("trackio", r"noisyml\[trackio\]", lambda: trackio_logger("r", "s", "p")),
    ],
)
def test_a_missing_package_is_one_sentence_with_the_extra(monkeypatch, package, sentence, make):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else found(name, *a)
    )
    with pytest.raises(UserError, match=sentence):
        make()


@pytest.mark.long
def test_a_server_that_does_not_answer_makes_the_run_offline(tmp_path, monkeypatch, caplog):
    with socket.socket() as silent, caplog.at_level(logging.WARNING):
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.setattr(wandb_dashboard, "PATIENCE", 0.2)
        logger = wandb_dashboard.wandb_logger(str(tmp_path), "project", "run")
    assert logger._offline
    assert "no answer from http://127.0.0.1" in caplog.text
