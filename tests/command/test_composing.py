"""What spares the tests time when they compose changes no configuration."""

import pytest
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from omegaconf import Container, DictConfig
from support import composing
from support.shell import shell

from noisyml.command.config import compose

__all__ = ["shell"]


#: Commands of which one shares choices, files or words with another before it.
TYPED = [
    ("train", ["method=rkd", "stages=teacher", "noise=symmetric", "optimizer.lr=1"]),
    ("train", ["method=rkd", "stages=teacher", "noise=symmetric", "noise.rate=0.2"]),
    ("train", ["method=rkd", "stages=teacher", "noise=pair", "~scheduler"]),
    ("train", ["experiment=demo", "evaluator=[retrieval,classification]"]),
    ("embed", ["dataset=digits", "backbone=mlp"]),
    ("embed", ["dataset=digits", "backbone=mlp", "+trainer@other=cpu"]),
]


@pytest.mark.long
def test_what_is_kept_is_what_hydra_composes(monkeypatch):
    found = [compose(root, words) for root, words in TYPED]
    for source, load in composing.SOURCES.items():
        assert source.load_config is not load
        monkeypatch.setattr(source, "load_config", load)
    monkeypatch.setattr(defaults_list, "_create_interpolation_map", composing.TABLE)
    monkeypatch.setattr(defaults_list, "_create_defaults_list", composing.LIST)
    for name, given in (
        ("load_configuration", composing.LOAD),
        ("_compose_config_from_defaults_list", composing.MERGE),
    ):
        assert getattr(ConfigLoaderImpl, name) is not given
        monkeypatch.setattr(ConfigLoaderImpl, name, given)
    expected = [compose(root, words) for root, words in TYPED]
    assert found == expected
    assert [facts(config) for config in found] == [facts(config) for config in expected]


def facts(config):
    """What the comparison of configurations leaves out: flags, and the types that values take."""
    metadata, inside = config._metadata, []
    if isinstance(config, Container) and not (config._is_none() or config._is_missing()):
        keys = config.keys() if isinstance(config, DictConfig) else range(len(config))
        inside = [facts(config._get_node(key)) for key in keys]
    known = (metadata.flags, metadata.ref_type, metadata.object_type, metadata.optional)
    return (*known, metadata.key, inside)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["method=rkd", "nothing=1"], "Could not override 'nothing'"),
        (["method=nothing"], "Could not find 'method/nothing'"),
        (["~head=nothing"], "Could not delete"),
    ],
)
def test_what_hydra_refuses_is_refused_each_time(words, sentence):
    for _ in range(2):
        with pytest.raises(HydraException, match=sentence):
            compose("train", words)


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
