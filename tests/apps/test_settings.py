"""Settings of verbs: the keys of their YAML files, and the values they may have."""

from __future__ import annotations

import shutil
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest
import yaml
from omegaconf import OmegaConf

from noisyml.apps._common.folder import write_inputs
from noisyml.apps._common.settings import (
    CleanSettings,
    DataSettings,
    EmbedSettings,
    EvaluateSettings,
    KnnSettings,
    TrainSettings,
    read_settings,
)
from noisyml.command.config import compose, conf_dir
from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder

KINDS = {
    "train": TrainSettings,
    "embed": EmbedSettings,
    "evaluate": EvaluateSettings,
    "knn": KnnSettings,
    "data": DataSettings,
    "clean": CleanSettings,
}
#: Keys of a root YAML whose values another signature checks.
ELSEWHERE = {"knn": {"k", "metric", "precision", "index", "recall_queries", "device",
                     "memory_budget_bytes", "csv"},
             "clean": {"neighbours", "folds", "rounds", "planted_errors", "relabel_above",
                       "drop_above", "duplicates_above", "unlike_deviations", "look_at_images",
                       "scores", "head_epochs", "rank_by", "search",
                       "gallery_rows", "export", "seed", "transform"}}  # fmt: skip


@pytest.mark.parametrize("root", KINDS)
def test_the_fields_are_the_keys_of_the_yaml(root: str) -> None:
    content = yaml.safe_load((conf_dir() / f"{root}.yaml").read_text())
    keys = set(content) - {"defaults", "hydra"} - ELSEWHERE.get(root, set())
    groups = {group for entry in content["defaults"] if entry != "_self_" for group in entry}
    named = {field.name for field in fields(KINDS[root])} - groups
    assert named == keys
    for name, hint in get_type_hints(KINDS[root]).items():
        if is_dataclass(hint) and name not in groups:
            assert {field.name for field in fields(hint)} == set(content[name]), name


def test_settings_that_the_search_checks_are_arguments_of_it() -> None:
    import inspect

    from noisyml.embeddings.neighbours import write_neighbours

    assert ELSEWHERE["knn"] <= set(inspect.signature(write_neighbours).parameters)


@pytest.mark.parametrize("root", ["train", "embed", "data"])
def test_the_defaults_fit(root: str) -> None:
    config = compose(root, ["name=x"])
    settings: Any = read_settings(KINDS[root], config)
    assert settings.name == "x"


@pytest.mark.parametrize(
    ("root", "key", "value", "sentence"),
    [
        ("train", "seed", [1], "seed=[1] must be a whole number from 0 to below 4294967296."),
        ("train", "seed", -1, "seed=-1 must be a whole number from 0 to below 4294967296."),
        ("train", "model_choice", True, "model_choice=true must be"),
        ("train", "model_choice", "newest", "Did you mean 'test'?"),
        ("train", "model_choice", [], "model_choice=[] evaluates no model"),
        ("train", "mean_last_epochs", -1, "mean_last_epochs=-1 must be a whole number of at"),
        ("train", "trainer.max_epochs", 0, "trainer.max_epochs=0 must be a whole number of at"),
        ("train", "trainer.limit_train_batches", 0, "trainer.limit_train_batches=0 must be"),
        ("train", "trainer.limit_train_batches", 0.0, "trainer.limit_train_batches=0.0 must be"),
        ("train", "trainer.devices", "two", "trainer.devices=two must be"),
        ("train", "data.eval_batch_size", 0, "data.eval_batch_size=0 must be a whole number of"),
        ("train", "data.on_broken", "skp", "data.on_broken=skp must be error or skip. Did you"),
        ("train", "data.train_size", 0, "data.train_size=0 must be"),
        ("train", "selection.warmup_steps", -1, "selection.warmup_steps=-1 must be"),
        ("train", "data", 3, "data=3 must be a mapping"),
        ("train", "report", 1, "report=1 must be true or false"),
        ("train", "name", "/", "name= is empty"),
        ("embed", "dtype", "float8", "dtype=float8 must be float32 or float16."),
        ("embed", "rows_per_shard", 0, "rows_per_shard=0 must be a whole number of at least 1."),
        ("embed", "knn", True, "knn=true must be a whole number of at least 1 or null."),
        ("embed", "splits", [], "splits=[] embeds nothing"),
        ("embed", "checkpoint", 3, "checkpoint=3 must be a word or null."),
        ("data", "tile", 1.5, "tile=1.5 must be a whole number of at least 1."),
    ],
)
def test_a_value_that_does_not_fit_is_one_sentence(
    root: str, key: str, value: object, sentence: str
) -> None:
    config = compose(root, ["name=x"])
    OmegaConf.update(config, key, value, merge=False)
    with pytest.raises(UserError) as raised:
        read_settings(KINDS[root], config)
    assert sentence in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_mean_over_more_epochs_than_there_are_is_refused() -> None:
    typed = ["name=x", "model_choice=mean_last", "trainer.max_epochs=2"]
    with pytest.raises(
        UserError, match=r"the last 5 epochs \(mean_last_epochs\), and the run has 2"
    ):
        read_settings(TrainSettings, compose("train", typed))


def test_a_missing_key_is_named_in_full() -> None:
    config = OmegaConf.to_container(compose("train", ["name=x"]))
    assert isinstance(config, dict)
    del config["data"]["train_seed"]
    with pytest.raises(UserError, match=r"'data\.train_seed' is needed"):
        read_settings(TrainSettings, config)


@pytest.mark.long
@pytest.mark.parametrize(
    ("typed", "guesses"),
    [
        (["selector=prism_avg"], ["selector.noise_rate=0.5"]),
        (["method=cdr"], ["method.noise_rate=0.5"]),
        (["selector=prism_avg", "selector.noise_rate=0.5"], []),
        (["selector=prism_avg", "++selector.noise_rate=0.3"], []),
        (["selector=prism_avg", "noise=symmetric"], []),
        (["selector=keep_all"], []),
        # An experiment sets its own.
        (["selector=prism_avg", "experiment=mine"], []),
    ],
)
def test_a_noise_rate_that_nobody_has_set_is_called_a_guess(
    tmp_path, monkeypatch, caplog, typed, guesses
):
    from noisyml.apps import train
    from noisyml.command import config as tree

    words = [word for word in typed if not word.startswith("experiment")]
    config = tree.compose("train", ["dataset=digits", *words])
    choices = dict(word.split("=") for word in typed if "." not in word)
    if "experiment" in choices:
        file = tmp_path / "experiment" / "mine.yaml"
        file.parent.mkdir()
        file.write_text("selector:\n  noise_rate: 0.5\n")
        shutil.copytree(tree.conf_dir() / "selector", tmp_path / "selector")
        monkeypatch.setattr(tree, "conf_dir", lambda: tmp_path)
    folder = RunFolder(tmp_path / "run")
    write_inputs(folder, config, typed, {"method": "prism", **choices})
    train._say_what_is_assumed(config, folder)
    assert [r.getMessage().partition(" ")[0] for r in caplog.records] == guesses
