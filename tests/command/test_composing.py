"""What spares the tests time when they compose changes no configuration."""

from hydra._internal import defaults_list
from support import composing

from noisyml.command.config import compose


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
    assert found == [compose(root, words) for root, words in typed]
