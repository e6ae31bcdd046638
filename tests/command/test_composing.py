"""What spares the tests time when they compose changes no configuration."""

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from support import composing
from support.shell import shell

from noisyml.command.config import compose, conf_dir, register_resolvers

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
    found = [composed(root, words) for root, words in TYPED]
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
    for config, (root, words) in zip(found, TYPED, strict=True):
        assert facts(config) == facts(composed(root, words))


def composed(root, words):
    """A configuration with that of Hydra itself, which a command sees, too."""
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra_compose(root, words, return_hydra_config=True)


def facts(node):
    """Values as they stand, and what their comparison leaves out: flags, and the types taken."""
    metadata, content = node._metadata, node._value()
    if isinstance(content, dict):
        content = {key: facts(value) for key, value in content.items()}
    elif isinstance(content, list):
        content = [facts(value) for value in content]
    known = (metadata.flags, metadata.ref_type, metadata.object_type, metadata.optional)
    return (*known, metadata.key, content)


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
