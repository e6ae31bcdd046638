"""What spares the tests time when they compose changes no configuration."""

import pytest
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from support import composing
from support.shell import shell

from noisyml.command.config import compose

__all__ = ["shell"]


@pytest.mark.long
def test_kept_files_and_tables_give_what_hydra_composes(monkeypatch):
    typed = [
        ("train", ["method=rkd", "stages=teacher", "noise=symmetric", "optimizer.lr=1"]),
        ("train", ["experiment=demo", "evaluator=[retrieval,classification]"]),
        ("embed", ["dataset=digits", "backbone=mlp"]),
    ]
    found = [compose(root, words) for root, words in typed]
    for source, load in composing.SOURCES.items():
        assert source.load_config is not load
        monkeypatch.setattr(source, "load_config", load)
    monkeypatch.setattr(defaults_list, "_create_interpolation_map", composing.TABLE)
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", composing.LOAD)
    assert found == [compose(root, words) for root, words in typed]


def test_a_file_that_has_changed_is_composed_anew(tmp_path, shell):
    experiment = tmp_path / "conf" / "experiment"
    experiment.mkdir(parents=True)
    for rate in ("0.1", "0.25"):
        (experiment / "mine.yaml").write_text(f"# @package _global_\noptimizer:\n  lr: {rate}\n")
        status, said = shell(
            "train", "--config-dir", str(tmp_path / "conf"), "experiment=mine", "--cfg", "job"
        )
        assert status == 0, said
        assert f"lr: {rate}" in said


def test_the_mode_that_a_file_sets_is_found(tmp_path, shell):
    experiment = tmp_path / "conf" / "experiment"
    experiment.mkdir(parents=True)
    (experiment / "several.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 0,1\n"
    )
    status, said = shell(
        *("train", "--config-dir", str(tmp_path / "conf"), "experiment=several"),
        *("dataset=digits", "backbone=mlp", "trainer.max_steps=1", "report=false"),
    )
    assert status == 0, said
    assert len(shell.runs()) == 2
