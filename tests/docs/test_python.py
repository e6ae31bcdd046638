"""Python in the documentation runs, on small stand-ins for what the reader has."""

from functools import partial

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from support import paths
from support.shell import TINY
from support.snippets import snippets, written

import noisyml

SNIPPETS = [
    snippet
    for file in written()
    for snippet in snippets(file.read_text(encoding="utf-8"), str(file.relative_to(paths.ROOT)))
    if snippet.language == "python" and not snippet.unchecked
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with runs of the names that the documentation uses."""
    folder = tmp_path_factory.mktemp("docs")
    words = [word for word in TINY if word != "report=false"]
    settings = dict(word.split("=", 1) for word in words) | {"trainer.max_epochs": 1}
    for name, rate in (("A", 0.001), ("B", 0.002)):
        place = {"hydra.run.dir": str(folder / "outputs" / "train" / name)}
        noisyml.train(settings | place | {"optimizer.lr": rate})
    (folder / "outputs" / "train" / "NAME").symlink_to(folder / "outputs" / "train" / "A")
    return folder


def stand_ins():
    """What a snippet takes for given."""
    digits = load_digits()
    rows = digits.data[:200].astype(np.float32)
    labels = digits.target[:200]
    return {
        "embeddings": rows,
        "labels": labels,
        "queries": rows[:10],
        "rows": rows,
        "lists": [np.flatnonzero(labels == label) for label in labels[:10]],
        "X": rows,
        "y": labels,
        "my_classifier": LogisticRegression(max_iter=500),
    }


def test_there_are_some():
    assert len(SNIPPETS) >= 6


@pytest.mark.long
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.place)
def test_a_snippet_runs(snippet, folder, monkeypatch):
    monkeypatch.chdir(folder)
    train = noisyml.train

    def briefly(overrides=None, /, **settings):
        small = {"trainer.max_epochs": 1, "backbone": "mlp", "backbone.hidden_features": [16]}
        return train({**(overrides or {}), **settings, **small})

    monkeypatch.setattr(noisyml, "train", briefly)
    small = {"projector": "mlp-1-16", "batch_size": 50, "epochs": 2, "warmup_epochs": 1}
    monkeypatch.setattr(noisyml, "TLDR", partial(noisyml.TLDR, **small), raising=False)
    exec(compile(snippet.text, snippet.place, "exec"), stand_ins())
