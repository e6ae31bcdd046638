"""A model of images and captions from the command line: trained, and asked to name pictures."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from noisyml.apps._common.naming import fitting
from noisyml.cli import run as command
from noisyml.data.checks import sheet_font
from noisyml.data.datasets.embedded.glyphs import Glyphs
from noisyml.errors import UserError

SETTINGS = [
    "method=otter",
    "dataset.num_train_classes=20",
    "dataset.num_val_classes=0",
    "dataset.num_test_classes=6",
    "dataset.min_faces=16",
    "dataset.distortions=1",
    "backbone=mlp",
    "backbone.image_size=32",
    "method.text_encoder.width=16",
    "method.text_encoder.layers=1",
    "noise=caption_shuffle",
    "trainer.max_epochs=2",
    "report=false",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("otter")
    assert command(["train", *SETTINGS, f"hydra.run.dir={folder}/run"]) == 0
    source = Glyphs(num_train_classes=20, num_test_classes=6, min_faces=16, distortions=1)
    test = source.splits()["test"]
    (folder / "pictures").mkdir()
    for i in range(0, len(test), 4):
        test.images.load(i).save(folder / "pictures" / f"{i:03d}.png")
    (folder / "pictures" / "999.png").write_bytes(b"broken")
    (folder / "names.txt").write_text("\n".join(test.class_names) + "\n")
    lines = [f"{i:03d}.png\t{test.labels[i]}" for i in range(0, len(test), 4)]
    (folder / "elsewhere.txt").write_text("test/000.png\t0\n")
    (folder / "labels.txt").write_text("\n".join(lines) + "\n")
    return folder


def typed(run, *more):
    return [
        "evaluate",
        f"checkpoint={run}/run",
        f"images={run}/pictures",
        f"classes={run}/names.txt",
        f"hydra.run.dir={run}/named",
        *more,
    ]


def test_pictures_of_a_folder_are_named(run):
    assert command(typed(run, f"labels={run}/labels.txt", "k=3", "data.eval_batch_size=5")) == 0
    with (run / "named" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = (run / "names.txt").read_text().splitlines()
    assert {row["image"] for row in rows} == {p.name for p in (run / "pictures").iterdir()}
    named = [row for row in rows if row["class_1"]]
    assert len(named) == len(rows) - 1
    for row in named:
        scores = [float(row[f"score_{i}"]) for i in (1, 2, 3)]
        assert scores == sorted(scores, reverse=True)
        assert len({row[f"class_{i}"] for i in (1, 2, 3)} & set(names)) == 3
    truth = dict(line.split("\t") for line in (run / "labels.txt").read_text().splitlines())
    right = [row["class_1"] == names[int(truth[row["image"]])] for row in named]
    metrics = json.loads((run / "named" / "metrics.json").read_text())
    assert metrics["images/fh_at_1"] == pytest.approx(np.mean(right))
    assert metrics["images/fh_at_10"] == 1.0
    assert metrics["images/number"] == len(rows)
    assert metrics["images/broken"] == 1
    with Image.open(run / "named" / "predictions.png") as sheet:
        assert sheet.width == 8 * 128


def test_names_on_the_sheet_fit_below_their_pictures():
    font = sheet_font(11)
    name = "0.29 LATIN SMALL LETTER TURNED M WITH LONG LEG AND Donaudampfschifffahrtsgesellschaft"
    for lines in (2, 3, 9):
        text = fitting(name, font, 120, lines)
        rows = text.split("\n")
        assert len(rows) <= lines
        assert all(font.getlength(row) <= 120 for row in rows)
        assert text.endswith("...")
    assert fitting("0.29 a b", font, 120, 3) == "0.29 a b"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["classes=none.txt"], "There is no list of classes none.txt"),
        (["images=none"], "images=none is no folder"),
        (["clases=names.txt"], "no setting 'clases'. Did you mean 'classes'"),
        (["labels=elsewhere.txt"], "none of its 1 pictures lies in"),
        (["templates=none.txt"], "There is no file of prompt templates none.txt"),
        (["k=0"], "k=0 must be a whole number of at least 1"),
    ],
)
def test_what_is_missing_is_said(run, given, sentence):
    keys = {word.partition("=")[0] for word in given}
    words = [word for word in typed(run) if word.partition("=")[0] not in keys]
    given = [word.replace("elsewhere", f"{run}/elsewhere") for word in given]
    with pytest.raises(UserError, match=sentence):
        command([*words, *given])
