"""What spares the tests time when they compose changes no configuration."""

from hydra._internal import defaults_list
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import (
    ImportlibResourcesConfigSource,
)
from support import composing

from noisyml.command.config import compose


def test_kept_files_and_tables_give_what_hydra_composes(monkeypatch):
    typed = [
        ("train", ["method=rkd", "stages=teacher", "noise=symmetric", "optimizer.lr=1"]),
        ("train", ["experiment=demo", "evaluator=[retrieval,classification]"]),
        ("embed", ["dataset=digits", "backbone=mlp"]),
    ]
    found = [compose(root, words) for root, words in typed]
    monkeypatch.setattr(FileConfigSource, "load_config", composing.ORIGINAL[0])
    monkeypatch.setattr(ImportlibResourcesConfigSource, "load_config", composing.ORIGINAL[1])
    monkeypatch.setattr(defaults_list, "_create_interpolation_map", composing.ORIGINAL[2])
    assert found == [compose(root, words) for root, words in typed]
