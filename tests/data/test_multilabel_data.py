"""Several labels per image: splits, batches, samplers, mosaics, words of glyphs, tables."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from noisyml.data.checks import check_images, contact_sheet, find_duplicates
from noisyml.data.datamodule import DataModule
from noisyml.data.datasets.embedded import glyphs
from noisyml.data.datasets.embedded.digits import Digits
from noisyml.data.datasets.embedded.glyphs import Glyphs
from noisyml.data.datasets.embedded.mosaic import Mosaic
from noisyml.data.datasets.embedded.typefaces import Character
from noisyml.data.datasets.own.csv_table import CsvTable
from noisyml.data.readers.layout import array_split
from noisyml.data.readers.partition import carve_labelled
from noisyml.data.samplers.balanced import ClassBalanced, RandomClasses
from noisyml.data.samplers.plans import MPerClass, Shuffle
from noisyml.data.transforms.image import ImageTransform
from noisyml.data.views import FeatureView
from noisyml.embeddings.store import EmbeddingPlan, EmbeddingStore, SplitWriter
from noisyml.errors import UserError
from noisyml.noise import MultiLabelMixed, Symmetric
from noisyml.targets import MULTI, SINGLE, labels_of

LABELS = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=np.uint8)


def digits(**settings):
    return Digits(val_fraction=0.083, test_fraction=0.25, **settings)


def mosaic(**settings):
    return Mosaic(digits(), **({"num_train": 60, "num_val": 20, "num_test": 30} | settings))


def split(labels=LABELS, names=("ant", "bee", "cat")):
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 6), dtype=np.uint8)
    return array_split("train", pixels, labels, names, [f"s{i}" for i in range(len(labels))])


# -- splits and batches --------------------------------------------------------------------------


def test_a_split_knows_its_kind_its_classes_and_their_members():
    several, one = split(), split(np.array([0, 2, 2, 0]))
    assert (several.target, one.target) == (MULTI, SINGLE)
    assert several.class_counts.tolist() == [2, 2, 1]
    assert one.class_counts.tolist() == [2, 0, 2]
    assert several.members(1).tolist() == [2, 3]
    assert one.members(2).tolist() == [1, 2]
    with pytest.raises(ValueError, match="3 columns of labels for 2"):
        split(names=("ant", "bee"))


def data_module(noise, sampler=None, **settings):
    return DataModule(
        mosaic(),
        noise,
        ImageTransform(),
        sampler or (lambda labels, seed: Shuffle(labels, seed, batch_size=16)),
        seed=0,
        cache_dir=settings.pop("cache_dir", "unused"),
        **settings,
    )


def test_batches_carry_observed_labels_as_zeros_and_ones():
    data = data_module(MultiLabelMixed(rate=0.5))
    manifest = data.prepare_labels()
    assert data.target is MULTI
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert "label" not in batch
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].shape == (16, 10)
    assert labels_of(batch) is batch["labels"]
    np.testing.assert_array_equal(batch["labels"].numpy(), manifest.observed[batch["index"]])
    assert (manifest.observed != data.splits["train"].labels).any()
    # Validation is as noisy as training, the test is not.
    (val,), (test,) = data.val_dataloader(), data.test_dataloader()
    assert not np.array_equal(next(iter(val))["labels"], data.splits["val"].labels)
    np.testing.assert_array_equal(next(iter(test))["labels"], data.splits["test"].labels)
    assert data.remarks()


def test_cached_features_come_with_labels_of_their_kind():
    features = np.zeros((4, 2), dtype=np.float32)
    batch = FeatureView(features, LABELS).__getitems__([3, 0])
    assert batch["labels"].tolist() == [[1, 1, 0], [1, 0, 1]]
    single = FeatureView(features, np.array([0, 1, 2, 0])).__getitems__([3, 1])
    assert labels_of(single).tolist() == [0, 1]


def test_noise_for_one_label_is_refused_before_anything_is_computed():
    with pytest.raises(UserError, match="gives several labels per image"):
        data_module(Symmetric(rate=0.3)).prepare_labels()


@pytest.mark.parametrize("sampler", [MPerClass, ClassBalanced, RandomClasses])
def test_samplers_that_draw_by_class_refuse(sampler):
    with pytest.raises(UserError, match="use sampler=shuffle"):
        sampler(LABELS, 0, batch_size=2, samples_per_class=1)


def test_embeddings_keep_several_labels(tmp_path):
    plan = EmbeddingPlan("train", 4, 2, "float32", 2, 2, "32-true", "d", "l", "t", "e")
    writer = SplitWriter(tmp_path / "embeddings" / "train", plan)
    writer.begin()
    writer.write(0, np.array([0, 1]), np.ones((2, 2), np.float32))
    writer.write(1, np.array([3]), np.ones((1, 2), np.float32))
    writer.finish(LABELS, ["a", "b", "c", "d"], ["ant", "bee", "cat"])
    stored = EmbeddingStore(tmp_path).split("train")
    np.testing.assert_array_equal(stored.labels, LABELS[[0, 1, 3]])
    assert stored.labels.dtype == np.uint8
    assert stored.label_names.tolist() == ["ant + cat", "", "ant + bee"]


# -- looking at them -----------------------------------------------------------------------------


def test_checks_count_labels_and_compare_sets():
    shown = split()
    shown.images.pixels[3] = shown.images.pixels[0]
    report = check_images(shown)
    assert report.to_dict()["class_counts"] == {"ant": 2, "bee": 2, "cat": 1}
    assert report.unlabelled == 1
    assert report.lone_classes == ["cat"]
    (pair,) = find_duplicates({"train": report})
    assert pair.members[0][2] == "ant + cat"
    assert pair.labels_differ
    json.dumps(report.to_dict())
    # A row per class, an image wherever it belongs.
    assert contact_sheet(shown, tile=16).size == (220 + 2 * 16, 3 * 16)


# -- mosaics -------------------------------------------------------------------------------------


def test_mosaics_show_the_classes_they_are_labelled_with():
    parts = mosaic(items=(0, 3), num_train=400).splits()
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 400,
        "val": 20,
        "test": 30,
    }
    source = digits().splits()
    for name, part in parts.items():
        pictures = {
            source[name].images.pixels[i].tobytes(): int(source[name].labels[i])
            for i in range(len(source[name]))
        }
        for row in range(len(part)):
            cells = part.images.pixels[row].reshape(8, 3, 8).swapaxes(0, 1)
            shown = {pictures[cell.tobytes()] for cell in cells if cell.any()}
            assert shown == set(np.flatnonzero(part.labels[row]))
            assert sum(cell.any() for cell in cells) == part.extras["items"][row]
    filled = np.bincount(parts["train"].extras["items"])
    assert filled.min() > 70
    assert len(filled) == 4
    occupied = parts["train"].images.pixels.reshape(400, 8, 3, 8).any(axis=(1, 3)).mean(axis=0)
    assert np.abs(occupied - 0.5).max() < 0.08


def test_mosaics_depend_on_their_seed_and_not_on_their_number():
    few, many = mosaic().splits()["train"], mosaic(num_train=90).splits()["train"]
    np.testing.assert_array_equal(many.images.pixels[:60], few.images.pixels)
    np.testing.assert_array_equal(many.labels[:60], few.labels)
    assert many.keys[:60] == few.keys
    other = mosaic(seed=1).splits()["train"]
    assert (other.labels != few.labels).any()
    grid = mosaic(grid=(2, 3), items=(6, 6)).splits()["train"]
    assert grid.images.load(0).size == (24, 16)
    assert mosaic(num_val=0).splits().keys() == {"train", "test"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"grid": (3,)}, "must be a list of 2"),
        ({"items": (1, 4)}, r"in 0 \.\. 3"),
        ({"num_test": 0}, "num_test=0 must be a whole number of at least 1"),
    ],
)
def test_impossible_mosaics_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        mosaic(**settings)


def test_a_source_without_the_split_or_with_other_classes_is_refused():
    with pytest.raises(UserError, match=r"dataset\.num_val=0"):
        Mosaic(Digits(val_fraction=0.0)).splits()
    with pytest.raises(UserError, match="with the classes of training"):
        Mosaic(Digits(split="zero_shot", val_fraction=0.2)).splits()
    with pytest.raises(UserError, match="one label per image"):
        Mosaic(mosaic()).splits()


# -- words of glyphs -----------------------------------------------------------------------------


def test_glyphs_are_labelled_with_the_words_of_their_names(monkeypatch):
    # Looking through all typefaces for characters takes seconds.
    alphabet = [Character(point, (0, 9)) for point in (*range(0x41, 0x5B), *range(0x61, 0x7B))]
    monkeypatch.setattr(glyphs, "find_characters", lambda *settings: alphabet)
    settings = {
        "num_train_classes": 30,
        "num_val_classes": 0,
        "num_test_classes": 10,
        "distortions": 1,
        "max_faces": 2,
        "image_size": 8,
        "targets": "words",
        "min_word_classes": 4,
    }
    parts = Glyphs(**settings).splits()
    words = list(parts["train"].class_names)
    assert words == sorted(words) == list(parts["test"].class_names)
    assert words == ["CAPITAL", "LATIN", "LETTER", "SMALL"]
    for part in parts.values():
        for caption, row in zip(part.extras["caption"], part.labels, strict=True):
            assert {words[i] for i in np.flatnonzero(row)} == set(caption.split()) & set(words)
    names = set(parts["train"].extras["caption"])
    assert all(sum(word in name.split() for name in names) >= 4 for word in words)
    closed = Glyphs(**(settings | {"split": "closed_set", "distortions": 4})).splits()
    assert list(closed["test"].class_names) == words
    with pytest.raises(UserError, match=r"lower dataset\.min_word_classes"):
        Glyphs(**(settings | {"min_word_classes": 31})).splits()


# -- tables --------------------------------------------------------------------------------------

TAGS = ["sea;ship", "sea", "", "field | tree", "tree;tree", "ship ; sea", "field", "tree", "sea"]


def table(folder, name="labels.csv", **columns):
    for i in range(len(TAGS)):
        Image.new("L", (4, 4), i).save(folder / f"{i}.png")
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(len(TAGS))], **columns})
    path = folder / name
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return str(path)


def test_a_table_may_give_several_labels_per_image(tmp_path):
    parts = CsvTable(table(tmp_path, labels=TAGS), val_fraction=0.2, test_fraction=0.3).splits()
    found = {}
    for part in parts.values():
        assert part.target is MULTI
        assert list(part.class_names) == ["field", "sea", "ship", "tree"]
        for key, row in zip(part.keys, part.labels, strict=True):
            found[key] = {part.class_names[i] for i in np.flatnonzero(row)}
    expected = [{"sea", "ship"}, {"sea"}, set(), {"field", "tree"}, {"tree"}, {"sea", "ship"}]
    assert [found[f"{i}.png"] for i in range(6)] == expected
    # Every class can be learnt.
    assert parts["train"].class_counts.min() >= 1
    lists = table(tmp_path, "t.parquet", labels=[tag.replace("|", ";").split(";") for tag in TAGS])
    again = CsvTable(lists, val_fraction=0.2, test_fraction=0.3).splits()
    np.testing.assert_array_equal(again["train"].labels, parts["train"].labels)


def test_splits_of_a_table_are_taken_as_given(tmp_path):
    named = ["train"] * 7 + ["test"] * 2
    path = table(tmp_path, labels=TAGS, split=named)
    parts = CsvTable(path, val_fraction=0.2).splits()
    assert len(parts["test"]) == 2
    assert len(parts["val"]) == 1
    path = table(tmp_path, labels=["sea", *TAGS[1:-1], "new"], split=named)
    with pytest.raises(UserError, match="1 classes have no training image, the first is 'new'"):
        CsvTable(path).splits()


def test_which_column_of_a_table_counts(tmp_path):
    both = table(tmp_path, label=["a", "b"] * 4 + ["a"], labels=TAGS)
    assert CsvTable(both).splits()["train"].target is SINGLE
    assert CsvTable(both, labels_column="labels").splits()["train"].target is MULTI
    with pytest.raises(UserError, match=r"set dataset\.labels_column to one of them"):
        CsvTable(both, labels_column="tags").splits()
    with pytest.raises(UserError, match="has no column 'label'"):
        CsvTable(table(tmp_path, "b.csv", labels=TAGS), labels_column=None).splits()
    with pytest.raises(UserError, match="several labels per image: use split=closed_set"):
        CsvTable(table(tmp_path, "c.csv", labels=TAGS), split="zero_shot").splits()


def test_carving_leaves_every_class_something_to_train_on():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 30)) < 0.02).astype(np.uint8)
    keys = [f"k{i}" for i in range(200)]
    parts = carve_labelled(labels, keys, 0.2, 0.5, 0)
    assert labels[parts == 0].any(axis=0)[labels.any(axis=0)].all()
    assert 80 <= (parts == 2).sum() <= 100
    rows = rng.permutation(200)
    again = carve_labelled(labels[rows], [keys[i] for i in rows], 0.2, 0.5, 0)
    np.testing.assert_array_equal(again, parts[rows])
