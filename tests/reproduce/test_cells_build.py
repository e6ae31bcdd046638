"""Every cell composes, and its parts are built on tiny data."""

import pytest

from noisyml.assembly.build import assemble
from noisyml.command.config import compose
from noisyml.command.words import words_in
from noisyml.reproduce.cells import cells
from noisyml.reproduce.figures import published_tables

#: Embedded data of the kind that a cell's words ask for, by a word that tells the kind.
GLYPHS = ["dataset=glyphs", "dataset.split=closed_set", "dataset.num_train_classes=10"]
STAND_INS = {
    "method=multilabel": ["dataset=mosaic", "dataset.num_train=40", "dataset.num_test=20"],
    "experiment=gist_voc2012": ["dataset=glyph_pages", "dataset.num_train=40"],
    "experiment=gist_cityscapes": ["dataset=glyph_pages", "dataset.num_train=40"],
    "method=gcd": ["dataset=discovery_digits"],
    "method=simgcd": ["dataset=discovery_digits"],
    "method=promptcal": ["dataset=discovery_digits"],
    "method=meta_weight_net": GLYPHS,
    "method=meta_reweighting": GLYPHS,
}


def tiny(words):
    """The words on embedded data and without weights of other places; the same for many cells."""
    data = next((new for word, new in STAND_INS.items() if word in words), ["dataset=digits"])
    # Weights are elsewhere, and so are the classes that a map of confusions names.
    new = {"backbone.weights": "backbone.weights=null", "noise.map": "noise.map={0:1}"}
    kept = [
        new.get(word.key, word.text)
        for word in words_in(list(words))
        if not word.is_below("dataset", "data")
    ]
    brings_weights = any("=gist" in word or word == "backbone=prompted_vit" for word in kept)
    weights = ["backbone.weights=null"] if brings_weights else []
    return (*kept, *data, *weights)


def distinct(scale, each=None):
    found = {}
    for table in published_tables().values():
        able = [cell for cell in cells(table, scale) if cell.words]
        for cell in able[:each]:
            words = tiny(cell.words) if scale == "paper" else cell.words
            found.setdefault(words, f"{table.name}: {cell.label}")
    return found


def built(words):
    config = compose("train", [*words, "callbacks.progress=null", "previous_run=null"])
    config.run_dir = "nowhere"
    return config


@pytest.mark.parametrize("table", ["cbml_readme_64_resnet18", "bare_mnist", "iaa_table9"])
def test_a_cell_of_a_table_is_built(table):
    cell = next(c for c in cells(published_tables()[table], "desk") if c.words)
    assert assemble(built(cell.words)).method is not None


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scale", ["desk", "paper"])
def test_every_cell_composes_and_is_built_on_tiny_data(scale, tmp_path):
    refused = {}
    for words, name in distinct(scale).items():
        try:
            config = built(words)
            if not config.get("stages"):
                assemble(config)
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {str(error)[:200]}"
    assert refused == {}
