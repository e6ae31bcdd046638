"""Looking over a data set: what is broken, doubled or alone, and the verb that says so."""

import inspect
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noisyml import cli
from noisyml.data.base import Split
from noisyml.data.checks import check_images, contact_sheet, find_duplicates
from noisyml.data.datasets.own.image_folder import ImageFolder
from noisyml.data.inputs import ArrayImages, FileImages


def _save(path, seed, mode="RGB", size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    for part, start in (("train", 0), ("test", 100)):
        for i, name in enumerate(("cat", "dog")):
            for j in range(4):
                _save(root / part / name / f"{j}.png", start + 10 * i + j)
    _save(root / "train" / "cat" / "grey.png", 50, mode="L", size=(20, 3))
    (root / "train" / "cat" / "cut.png").write_bytes((root / "train/cat/0.png").read_bytes()[:60])
    (root / "train" / "dog" / "text.jpg").write_text("no image")
    copy = (root / "train" / "dog" / "1.png").read_bytes()
    (root / "test" / "dog" / "copy.png").write_bytes(copy)
    (root / "train" / "cat" / "wrong.png").write_bytes((root / "train/dog/2.png").read_bytes())
    return root


def _reports(folder, **options):
    splits = ImageFolder(str(folder), val_fraction=0.0).splits()
    return {name: check_images(split, **options) for name, split in splits.items()}


def test_broken_images_are_named(folder):
    done = []
    reports = _reports(folder, workers=2, progress=done.append)
    assert sorted(key for key, _ in reports["train"].broken) == [
        "train/cat/cut.png",
        "train/dog/text.jpg",
    ]
    assert all(reason for _, reason in reports["train"].broken)
    assert reports["test"].broken == []
    assert sum(done) == sum(len(report.keys) for report in reports.values()) == 21


def test_a_file_that_vanished_is_broken(folder):
    split = ImageFolder(str(folder), val_fraction=0.0).splits()["test"]
    (folder / split.keys[3]).unlink()
    report = check_images(split)
    assert [key for key, _ in report.broken] == [split.keys[3]]


def test_sizes_modes_and_classes(folder):
    report = _reports(folder)["train"]
    assert report.modes == {"RGB": 9, "L": 1}
    assert report.sizes == {"min": (6, 3), "median": (6, 5), "max": (20, 5)}
    assert report.class_counts.tolist() == [7, 5]
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["class_counts"] == {"cat": 7, "dog": 5}
    assert len(plain["broken"]) == 2


def test_lone_and_empty_classes():
    images = ArrayImages(np.zeros((3, 4, 4), dtype=np.uint8))
    split = Split("test", images, np.array([0, 0, 2]), ["a", "b", "c"], ["x", "y", "z"], "")
    report = check_images(split, workers=1)
    assert report.lone_classes == ["c"]
    assert report.empty_classes == ["b"]


def test_duplicates_across_splits_and_with_other_labels(folder):
    groups = find_duplicates(_reports(folder))
    found = {tuple(sorted(key for _, key, _ in group.members)): group for group in groups}
    across = found.pop(("test/dog/copy.png", "train/dog/1.png"))
    assert across.across_splits
    assert not across.labels_differ
    differ = found.pop(("train/cat/wrong.png", "train/dog/2.png"))
    assert differ.labels_differ
    assert not differ.across_splits
    assert not found


def test_arrays_with_the_same_bytes_but_another_shape_are_no_duplicates():
    splits = {}
    for name, shape in (("train", (1, 2, 8)), ("test", (1, 4, 4))):
        images = ArrayImages(np.zeros(shape, dtype=np.uint8))
        splits[name] = Split(name, images, np.array([0]), ["a"], ["x"], "")
    assert find_duplicates({name: check_images(split) for name, split in splits.items()}) == []
    same = {name: check_images(splits["train"]) for name in ("train", "test")}
    assert len(find_duplicates(same)) == 1


def test_contact_sheet_shows_images_and_marks_broken_ones(folder):
    split = ImageFolder(str(folder), val_fraction=0.0).splits()["train"]
    sheet = np.asarray(contact_sheet(split, classes=2, instances=5, tile=32))
    assert sheet.shape == (64, 220 + 5 * 32, 3)
    tiles = [sheet[y : y + 32, x : x + 32] for y in (0, 32) for x in range(220, 380, 32)]
    pure_red = [(tile == [255, 0, 0]).all(axis=2).sum() > 32 for tile in tiles]
    rows = [np.flatnonzero(split.labels == label) for label in (0, 1)]
    shown = [r[np.round(np.linspace(0, len(r) - 1, 5)).astype(int)] for r in rows]
    broken = [split.keys[i].endswith(("cut.png", "text.jpg")) for row in shown for i in row]
    assert any(broken)
    assert pure_red == broken
    assert all(tile.any() for tile in tiles)


def test_a_broken_tile_is_crossed_twice(tmp_path):
    (tmp_path / "x.png").write_text("no image")
    split = Split("train", FileImages(["x.png"], str(tmp_path)), np.array([0]), ["a"], ["x"], "")
    tile = np.asarray(contact_sheet(split, tile=32))[:, 220:]
    red = (tile == [255, 0, 0]).all(axis=2)
    assert red.diagonal().all()
    assert red[:, ::-1].diagonal().all()


def test_names_with_accents_have_their_own_shapes():
    images = ArrayImages(np.zeros((3, 4, 4), dtype=np.uint8))
    split = Split("train", images, np.array([0, 1, 2]), ["é", "ü", "ж"], list("xyz"), "")
    sheet = np.asarray(contact_sheet(split, tile=32))[:, :220]
    names = [sheet[y : y + 32].tobytes() for y in (0, 32, 64)]
    assert len(set(names)) == 3


def test_absolute_and_relative_paths(tmp_path):
    _save(tmp_path / "a.png", 0)
    images = FileImages([str(tmp_path / "a.png"), "a.png"], str(tmp_path))
    assert images.load(0).tobytes() == images.load(1).tobytes()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "PPM"])
def test_damaged_files_never_end_in_another_error(tmp_path, kind):
    rng = np.random.default_rng(0)
    path = tmp_path / "x"
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path, kind)
    good = path.read_bytes()
    split = Split("train", FileImages(["x"], str(tmp_path)), np.array([0]), ["a"], ["x"], "")
    broken = 0
    for _ in range(60):
        damaged = bytearray(good[: rng.integers(1, len(good))])
        damaged[rng.integers(0, min(len(damaged), 100))] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        broken += len(check_images(split, workers=1).broken)
    assert broken > 20


@pytest.fixture
def noisyml(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["noisyml", *arguments])
        status = cli.main()
        out, err = capfd.readouterr()
        return status, out, err

    return run


def _outputs(pattern):
    return sorted(Path("outputs/data").rglob(pattern))


def test_verb_check_finds_what_is_wrong(noisyml, folder):
    status, out, err = noisyml("data", "check", "dataset=image_folder", f"dataset.path={folder}")
    assert status == 1
    assert "train/cat/cut.png" in out
    assert "1 images are in more than one split" in out
    assert "1 images have copies with another label" in out
    assert "differ in size, but a batch wants one: train with transform=square" in out
    assert f"splits: from the folders train, test in {folder}; val carved by" in out
    (found,) = _outputs("check.json")
    content = json.loads(found.read_text())
    assert [split["split"] for split in content["splits"]] == ["train", "val", "test"]
    assert len(content["duplicates"]) == 2
    assert "21/21" in err
    assert "images/s" in err


@pytest.mark.long
def test_verb_check_passes_a_clean_set(noisyml):
    status, out, _ = noisyml("data", "check", "dataset=digits")
    assert status == 0
    assert "broken images" not in out
    assert "differ in size" not in out
    assert "splits: carved by val_fraction=0.1, test_fraction=0.3 and seed=0" in out


def test_verb_show_writes_contact_sheets(noisyml):
    status, out, _ = noisyml(
        "data", "show", "dataset=digits", "classes=3", "instances=4", "tile=16"
    )
    assert status == 0
    assert "1079" in out
    sheets = _outputs("*.png")
    assert [sheet.name for sheet in sheets] == ["test.png", "train.png", "val.png"]
    assert Image.open(sheets[0]).size == (220 + 4 * 16, 3 * 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek"], "Did you mean 'check'?"),
        (["check", "dataset=csv"], "A value for 'dataset.path' is needed"),
        (["show", "dataset=cub200"], "images.txt is missing; fetch CUB_200_2011.tgz"),
        (
            ["show", "dataset=digits", "dataset.split=open"],
            "split=open must be zero_shot or closed_set",
        ),
        (
            ["check", "dataset=digits", "workers=0"],
            "workers=0 must be a whole number of at least 1",
        ),
    ],
)
def test_verb_mistakes_end_in_one_sentence(noisyml, arguments, message):
    status, _, err = noisyml("data", *arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_verb_without_action_prints_its_usage(noisyml):
    status, out, _ = noisyml("data")
    assert status == 0
    assert "usage: noisyml data check|show" in out


@pytest.mark.long
def test_every_configuration_builds_its_data_set(monkeypatch):
    from hydra.utils import instantiate

    from noisyml.command.config import compose, conf_dir

    monkeypatch.setenv("NOISYML_DATA", os.devnull)
    folder = conf_dir() / "dataset"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    assert len(names) >= 11
    for name in names:
        asked = re.findall(r"^(\w+): \?\?\?", (folder / f"{name}.yaml").read_text(), re.MULTILINE)
        given = [f"dataset.{key}=/nowhere/t.csv" for key in asked]
        config = compose("data", [f"dataset={name}", *given])
        source = instantiate(config.dataset, _convert_="all")
        assert source.description
        settings = set(config.dataset) - {"_target_"}
        accepted = set(inspect.signature(type(source)).parameters)
        assert settings == accepted, name
