"""Folders of images: classes, pictures, parts of a data set, and what is none of them."""

import os
import socket

import pytest
from PIL import Image

from noisyml.data.datasets.own.image_folder import ImageFolder
from noisyml.data.readers.folders import HIDDEN, LeftOut, class_folders, entries, split_folders
from noisyml.errors import UserError


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), "red").save(path)


def _tree(root, *names):
    for name in names:
        _image(root / name)
    return root


def _left_out(root):
    left_out = LeftOut()
    found = class_folders(root, left_out)
    by_kind = {
        kind: sorted(os.path.relpath(path, root) for path in paths)
        for kind, paths in left_out.by_kind.items()
    }
    return found, by_kind


def test_whatever_is_no_picture_of_a_class_is_named(tmp_path, monkeypatch):
    _tree(tmp_path, "cat/a.png", "cat/deep/b.JPG", "cat/.ipynb_checkpoints/a.png", "loose.png")
    (tmp_path / "README.md").touch()
    (tmp_path / "cat" / ".DS_Store").touch()
    (tmp_path / "cat" / "Thumbs.db").touch()
    (tmp_path / "cat" / "IMG.2019.10").touch()
    (tmp_path / "cat" / "scan.dcm").touch()
    (tmp_path / "void").mkdir()
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as door:
        # The name of a socket is short.
        monkeypatch.chdir(tmp_path / "cat")
        door.bind("door.png")
    os.symlink(tmp_path / "none" / "x.png", tmp_path / "cat" / "gone.png")
    os.symlink("self.png", tmp_path / "cat" / "self.png")
    os.symlink("round", tmp_path / "round")
    os.symlink(tmp_path / "none", tmp_path / "absent")
    found, left_out = _left_out(tmp_path)
    assert found == {"cat": ["cat/a.png", "cat/deep/b.JPG"]}
    assert left_out == {
        HIDDEN: ["cat/.DS_Store", "cat/.ipynb_checkpoints", "cat/Thumbs.db"],
        "class folders without images": ["void"],
        "files named *.dcm": ["cat/scan.dcm"],
        "files named *.md": ["README.md"],
        "files without suffix": ["cat/IMG.2019.10"],
        "images beside the class folders": ["loose.png"],
        "links to nothing": ["absent", "cat/gone.png", "cat/self.png", "round"],
        "pipes, sockets and devices": ["cat/door.png", "cat/pipe.png"],
    }


def test_links_to_folders_bring_no_picture_twice(tmp_path):
    root = _tree(tmp_path / "set", "cat/a.png", "dog/b.png", "dog/more/c.png")
    elsewhere = _tree(tmp_path / "elsewhere", "d.png")
    os.symlink(elsewhere, elsewhere / "loop")
    os.symlink(elsewhere, root / "dog" / "linked")
    os.symlink(root / "cat", root / "kitten")
    os.symlink("..", root / "cat" / "up")
    os.symlink("../dog", root / "cat" / "dog")
    os.symlink("more", root / "dog" / "again")
    found, left_out = _left_out(root)
    assert found == {
        "cat": ["cat/a.png"],
        "dog": ["dog/b.png", "dog/linked/d.png", "dog/more/c.png"],
    }
    assert left_out == {
        "links to folders already read or above": [
            "cat/dog", "cat/up", "dog/again", "dog/linked/loop", "kitten",
        ],
        "class folders without images": ["kitten"],
    }  # fmt: skip


def test_names_that_are_no_text_are_left_out(tmp_path):
    _tree(tmp_path, "Größe/図 1.png", "Größe/a=b, c.png")
    with open(os.fsencode(tmp_path) + b"/Gr\xc3\xb6\xc3\x9fe/caf\xe9.png", "wb"):
        pass
    found, left_out = _left_out(tmp_path)
    assert found == {"Größe": ["Größe/a=b, c.png", "Größe/図 1.png"]}
    assert left_out == {"names that are no UTF-8": ["Größe/caf\\xe9.png"]}


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    _tree(tmp_path, "cat/a.png", "cat/locked/b.png")
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    found, left_out = _left_out(tmp_path)
    assert found == {"cat": ["cat/a.png"]}
    assert left_out == {"folders that cannot be read": ["cat/locked"]}
    with pytest.raises(UserError, match="locked cannot be read: Permission denied"):
        entries(tmp_path / "cat" / "locked", LeftOut())


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train", "test"], ["train", "test"]),
        (["Training", "VALID", "Test"], ["Training", "VALID", "Test"]),
        (["train", "query", "gallery"], ["train", "query", "gallery"]),
        (["train", "test", "extra"], ["train", "test"]),
        (["cat", "dog", "train"], []),
        (["test", "cat"], []),
    ],
)
def test_folders_of_splits(tmp_path, names, found):
    for name in names:
        (tmp_path / name).mkdir()
    left_out = LeftOut()
    assert set(split_folders(tmp_path, left_out).values()) == set(found)
    beside = [str(tmp_path / name) for name in names if found and name not in found]
    assert left_out.by_kind == ({"folders beside those of the splits": beside} if beside else {})


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val"), ("train2017", "val2017"), ("train_images", "test-images"),
        ("bounding_box_train", "bounding_box_test", "query"), ("fold_1", "fold_2"),
        ("split0", "split1"), ("TrainSet", "TestSet", "train"),
    ],
)  # fmt: skip
def test_names_of_parts_are_no_classes(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="are named after splits, no classes"):
        split_folders(tmp_path, LeftOut())


def test_splits_inside_of_classes_are_refused(tmp_path):
    _tree(tmp_path, *(f"{c}/{part}/a.png" for c in ("cat", "dog") for part in ("train", "test")))
    with pytest.raises(UserError, match=r"hold folders of splits \(cat/test\): arrange .*test/cat"):
        split_folders(tmp_path, LeftOut())
    _image(tmp_path / "owl" / "a.png")
    assert split_folders(tmp_path, LeftOut()) == {}


def test_the_folder_inside_is_named(tmp_path):
    _tree(tmp_path, "archive/cat/a.png", "archive/dog/b.png", "notes/readme.png")
    (tmp_path / "notes" / "readme.png").unlink()
    with pytest.raises(UserError, match=r"perhaps dataset\.path=\S+/archive is meant"):
        ImageFolder(str(tmp_path)).splits()


def test_query_and_gallery_folders(tmp_path):
    for part, names in (("train", "ab"), ("query", "cd"), ("gallery", "cd")):
        for name in names:
            for i in range(3):
                _image(tmp_path / part / name / f"{part}{i}.png")
    splits = ImageFolder(str(tmp_path), split="zero_shot", val_fraction=0).splits()
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 6, "query": 6, "gallery": 6,
    }  # fmt: skip


def test_a_home_folder_is_found_unless_something_has_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert ImageFolder("~/photos").path == tmp_path / "home" / "photos"
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "photos").mkdir()
    assert str(ImageFolder("~/photos").path) == "~/photos"
    assert str(ImageFolder("~old").path) == "~old"


def test_classes_that_look_alike_are_named(tmp_path, caplog):
    for name in ("Cat", "cat ", "dog", "d-o-g"):
        for i in range(3):
            _image(tmp_path / name / f"{i}.png")
    ImageFolder(str(tmp_path)).splits()
    assert "2 classes look like another one, e.g. 'Cat' and 'cat '" in caplog.text
