"""Evaluating a trained run: the same numbers, other data, other questions."""

import json

import numpy as np
import pytest
from PIL import Image


def metrics_of(said):
    return json.loads(said[said.index("{") : said.rindex("}") + 1])


def test_evaluation_repeats_the_numbers_of_training(shell, trained):
    expected = json.loads((trained / "metrics.json").read_text())
    for which, prefix in (("last", ""), ("best", "best/")):
        status, said = shell("evaluate", f"checkpoint={trained}", f"which={which}")
        assert status == 0, said
        found = metrics_of(said)
        assert found
        for name, value in found.items():
            assert abs(value - expected[prefix + name]) < 1e-9, name


def test_evaluation_asks_other_questions_of_other_data(shell, trained):
    folder = shell.folder / "mine"
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    (folder / "test" / "a" / "cut.png").write_bytes(b"\x89PNG")
    status, said = shell(
        "evaluate",
        f"checkpoint={trained}",
        "dataset=image_folder",
        f"dataset.path={folder}",
        "evaluators.retrieval.recall_at=[3]",
        "data.on_broken=skip",
        "hydra.run.dir=elsewhere",
    )
    assert status == 0, said
    listed = (shell.folder / "elsewhere" / "broken_images.csv").read_text()
    assert listed.splitlines()[1:] == ["test,6,test/a/cut.png"]
    found = metrics_of(said)
    assert found["test/queries"] == 12
    assert "test/recall_at_3" in found


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["which=worst"], "which=... may be one of: best, last"),
        (["evaluators.retrieval.recal_at=[1]"], "Did you mean 'evaluators.retrieval.recall_at'?"),
        (["dataset=digit"], "no dataset 'digit'. Did you mean 'digits'?"),
        (["head.out_features=7"], "keep backbone and head as they were trained"),
    ],
)
def test_mistakes_are_named(shell, trained, typed, sentence):
    status, said = shell("evaluate", f"checkpoint={trained}", *typed)
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said
