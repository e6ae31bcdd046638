"""Secrets are in no file of a run."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from support.shell import TINY
from support.shell import shell as shell

from noisyml.apps._common.folder import write_inputs
from noisyml.apps._common.resumable import write_changes
from noisyml.command.hydra import run_jobs
from noisyml.command.overrides import apply_overrides
from noisyml.command.secrets import as_yaml, is_secret, masked_words, resolved, still_masked
from noisyml.runs.folder import RunFolder


def test_what_a_variable_holds_is_read_anew_and_not_written(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hush-1")
    monkeypatch.setenv("NOTE", "hush-2")
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.setenv("GPUS", "2")
    config = OmegaConf.create(
        {
            "name": "a-${oc.env:NOTE}",
            "logger": {"token": "${oc.env:MY_TOKEN}", "deep": [{"x": "${name}"}]},
            "path": "${oc.env:PLACE}/data",
            "devices": "${oc.decode:${oc.env:GPUS}}",
            "missing": "${oc.env:NOT_THERE,default}",
            "hydra": {"job": 1},
        }
    )
    plain = resolved(config)
    assert plain == {
        "name": "a-${oc.env:NOTE}",
        "logger": {"token": "${oc.env:MY_TOKEN}", "deep": [{"x": "a-${oc.env:NOTE}"}]},
        "path": f"{tmp_path}/data",
        "devices": 2,
        "missing": "default",
    }
    saved = OmegaConf.create(plain)
    assert "hush" not in as_yaml(saved)
    assert saved.name == "a-hush-2"
    assert saved.logger.token == "hush-1"
    # OmegaConf's own resolver is back in its place.
    assert OmegaConf.to_container(config, resolve=True)["logger"]["token"] == "hush-1"


def test_a_typed_secret_is_in_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = [
        "+logger.wandb.api_key=hush",
        "+logger.wandb.settings={password:hush,n:1}",
        "dataset=digits",
        "hydra.run.dir=run",
    ]

    def task(config):
        folder = RunFolder(tmp_path / "run")
        saved = OmegaConf.create(resolved(config))
        assert config.logger.wandb.api_key == "hush"
        write_inputs(folder, saved, typed, {})
        write_changes(saved, folder, ["seed=1"])

    run_jobs(task, "train", "train", typed)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "overrides.yaml", "environment.json"} <= {file.name for file in files}
    assert [file for file in files if b"hush" in file.read_bytes()] == []
    saved = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert set(still_masked(saved)) == {"logger.wandb.api_key", "logger.wandb.settings.password"}
    given = apply_overrides(saved, ["logger.wandb.api_key=again"], groups=False)
    assert given.logger.wandb.api_key == "again"


@pytest.mark.further
def test_what_is_typed_as_a_variable_is_written_as_one(shell):
    """On a page, too, which shows the command."""
    typed = [*TINY, "trainer.max_epochs=1", "+note=${oc.env:MY_NOTE}", "report=true"]
    shell.monkeypatch.setenv("MY_NOTE", "hush-3")
    status, said = shell("train", *typed, "name=a-${oc.env:MY_NOTE}", "hydra.run.dir=run")
    assert status == 0, said
    # Whose run it is only the user knows.
    embed = ["embed", "checkpoint=run", "hydra.run.dir=rows"]
    status, said = shell(*embed)
    assert status == 2
    assert "name=a-${oc.env:MY_NOTE} refers to something else" in said
    assert "say trust=[oc.env] if the run is yours" in said
    assert shell(*embed, "trust=[oc.env]")[0] == 0
    assert shell("train", "resume=run", "trust=[oc.env]", "report=false")[0] == 0
    own = ["split=test", "k=2", "name=${oc.env:MY_NOTE}", "hydra.run.dir=graph"]
    assert shell("knn", "embeddings=rows", *own)[0] == 0
    files = [
        file for file in shell.folder.rglob("*") if file.is_file() and ".logs" not in str(file)
    ]
    assert {"report.html", "config.yaml", "index.json"} <= {file.name for file in files}
    assert [file for file in files if b"hush-3" in file.read_bytes()] == []


@pytest.mark.long
def test_a_sweep_hides_them_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = ["-m", "seed=0,1", "+logger.wandb.api_key=hush", "hydra.sweep.dir=sweep"]
    run_jobs(lambda config: None, "train", "train", typed)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "sweep" / "multirun.yaml" in files
    assert [file for file in files if b"hush" in file.read_bytes()] == []


def test_names_of_secrets():
    secrets = ["api_key", "logger.wandb.api_key", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "passwd"]
    harmless = ["key_column", "name", "monkey", "passes", "author", "tokens_per_word", "keys"]
    assert [name for name in secrets if not is_secret(name)] == []
    assert [name for name in harmless if is_secret(name)] == []
    assert masked_words(["a.password=${oc.env:P}"]) == ["a.password=${oc.env:P}"]
