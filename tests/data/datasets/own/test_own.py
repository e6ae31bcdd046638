"""The user's own data: folders and tables, and the sentences for what can be wrong with them."""

import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from noisyml.data.datasets.own.csv_table import CsvTable
from noisyml.data.datasets.own.image_folder import ImageFolder
from noisyml.data.inputs import BrokenImage, FileImages
from noisyml.data.readers.layout import class_order
from noisyml.errors import UserError


def _image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("cat", "dog", "eel", "fox", "gnu", "hen")):
        for j in range(10):
            _image(tmp_path / "animals" / name / f"{j}.png", seed=10 * i + j)
    return tmp_path / "animals"


def _table(folder, name="labels.csv", **changes):
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    table = pd.DataFrame({"path": files, "label": [file.split("/")[0] for file in files]})
    for column, values in changes.items():
        table[column] = values
    path = folder / name
    if name.endswith("parquet"):
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if name.endswith("tsv") else ",")
    return path


def test_folder_closed_set(folder):
    splits = ImageFolder(str(folder)).splits()
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 42,
        "val": 6,
        "test": 12,
    }
    for split in splits.values():
        assert split.class_names == ["cat", "dog", "eel", "fox", "gnu", "hen"]
        assert [key.split("/")[0] for key in split.keys] == [
            split.class_names[label] for label in split.labels
        ]
        assert split.images.load(0).size == (5, 6)
    keys = [key for split in splits.values() for key in split.keys]
    assert len(set(keys)) == 60


def test_folder_zero_shot_has_disjoint_classes(folder):
    splits = ImageFolder(
        str(folder), split="zero_shot", val_fraction=0.0, test_fraction=0.5
    ).splits()
    assert list(splits) == ["train", "test"]
    names = [set(split.class_names) for split in splits.values()]
    assert [len(n) for n in names] == [3, 3]
    assert not names[0] & names[1]
    for split in splits.values():
        assert np.unique(split.labels).tolist() == [0, 1, 2]


def test_folder_split_already(folder, tmp_path):
    root = tmp_path / "ready"
    for part, names in (("train", "abc"), ("test", "ab")):
        for name in names:
            for j in range(5):
                _image(root / part / name / f"{j}.jpg", seed=j)
    splits = ImageFolder(str(root), val_fraction=0.2).splits()
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 12,
        "val": 3,
        "test": 10,
    }
    assert splits["test"].keys[0] == "test/a/0.jpg"
    assert splits["test"].class_names == ["a", "b", "c"]
    assert all(key.startswith("train/") for key in splits["val"].keys)
    with pytest.raises(UserError, match="2 are in training too, the first is 'a'"):
        ImageFolder(str(root), split="zero_shot").splits()
    _image(root / "test" / "d" / "0.jpg")
    with pytest.raises(UserError, match="1 classes have no training image, the first is 'd'"):
        ImageFolder(str(root)).splits()


def test_carving_survives_a_copy_of_the_folder(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    first, second = (ImageFolder(str(path)).splits() for path in (folder, tmp_path / "copy"))
    assert {n: s.keys for n, s in first.items()} == {n: s.keys for n, s in second.items()}


def test_fingerprint_follows_the_files(folder):
    before = ImageFolder(str(folder)).splits()
    assert before["train"].fingerprint == ImageFolder(str(folder)).splits()["train"].fingerprint
    changed = folder / before["train"].keys[0]
    os.utime(changed, ns=(1, 1))
    after = ImageFolder(str(folder)).splits()
    assert before["train"].fingerprint != after["train"].fingerprint
    assert before["test"].fingerprint == after["test"].fingerprint


def test_folder_mistakes(folder, tmp_path):
    with pytest.raises(UserError, match=r"the folder \S+nowhere is missing; set dataset.path"):
        ImageFolder(str(tmp_path / "nowhere")).splits()
    with pytest.raises(UserError, match=r"has 0 class folders .*; its 10 images lie in no"):
        ImageFolder(str(folder / "cat")).splits()
    with pytest.raises(UserError, match=r"0\.png \(a file has that name\) is missing"):
        ImageFolder(str(folder / "cat" / "0.png")).splits()


@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "labels.parquet"])
def test_table_formats_agree(folder, name):
    splits = CsvTable(str(_table(folder, name))).splits()
    same = ImageFolder(str(folder)).splits()
    assert {n: s.keys for n, s in splits.items()} == {n: s.keys for n, s in same.items()}
    for part, split in splits.items():
        np.testing.assert_array_equal(split.labels, same[part].labels)


def test_table_rows_may_come_in_any_order(folder):
    first = CsvTable(str(_table(folder))).splits()
    table = pd.read_csv(folder / "labels.csv").sample(frac=1, random_state=1)
    table.to_csv(folder / "labels.csv", index=False)
    second = CsvTable(str(folder / "labels.csv")).splits()
    assert {n: set(s.keys) for n, s in first.items()} == {n: set(s.keys) for n, s in second.items()}


def test_table_with_root_absolute_paths_and_other_columns(folder, tmp_path):
    files = sorted(folder.rglob("*.png"))
    table = pd.DataFrame({"file": [str(p) for p in files], "kind": [p.parent.name for p in files]})
    path = tmp_path / "elsewhere" / "t.csv"
    path.parent.mkdir()
    table.to_csv(path, index=False)
    absolute = CsvTable(str(path), path_column="file", label_column="kind").splits()["train"]
    assert absolute.images.load(0).size == (5, 6)
    table["file"] = [p.relative_to(folder).as_posix() for p in files]
    table.to_csv(path, index=False)
    rooted = CsvTable(str(path), root=str(folder), path_column="file", label_column="kind")
    assert rooted.splits()["train"].images.load(0).size == (5, 6)


def test_labels_stay_text(folder):
    labels = ["NA", "007", "7", "1.0", "", "nan"]
    labels[4] = "true"
    path = _table(folder, label=[labels[i // 10] for i in range(60)])
    assert set(CsvTable(str(path)).splits()["train"].class_names) == set(labels)


def test_whole_numbers_are_ordered_as_numbers(folder):
    path = _table(folder, label=[[10, 9, 100, 1, 2, 11][i // 10] for i in range(60)])
    assert CsvTable(str(path)).splits()["test"].class_names == ["1", "2", "9", "10", "11", "100"]


def test_query_and_gallery_share_their_classes(folder):
    parts = np.array((["train"] * 10) * 3 + (["query"] * 4 + ["gallery"] * 6) * 3)
    path = _table(folder, split=parts)
    source = CsvTable(str(path), split_column="split", split="zero_shot", val_fraction=0.0)
    splits = source.splits()
    assert list(splits) == ["train", "query", "gallery"]
    assert splits["query"].class_names == splits["gallery"].class_names == ["fox", "gnu", "hen"]
    assert splits["train"].class_names == ["cat", "dog", "eel"]
    assert np.unique(splits["query"].labels).tolist() == [0, 1, 2]


def _break(folder, what):
    table = pd.read_csv(_table(folder), dtype=str)
    if what == "empty label":
        table.loc[6, "label"] = None
    elif what == "blank path":
        table.loc[2, "path"] = "  "
    elif what == "duplicate":
        table.loc[8, "path"] = table.loc[3, "path"]
    elif what == "missing file":
        table.loc[4, "path"] = "cat/none.png"
    elif what == "one label":
        table["label"] = "x"
    elif what == "no column":
        table = table.rename(columns={"label": "class"})
    elif what == "bad split":
        table["split"] = "train"
        table.loc[5, "split"] = "tset"
    elif what == "only in test":
        table["split"] = np.where(table["label"] == "hen", "test", "train")
    table.to_csv(folder / "labels.csv", index=False)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("empty label", r"labels.csv, row 7: the column 'label' is empty; fill it or remove"),
        ("blank path", r"labels.csv, row 3: the column 'path' is empty"),
        ("duplicate", r"labels.csv, row 9: cat/3.png stands in row 4 already"),
        ("missing file", r"labels.csv, row 5: there is no file .*cat/none.png \(1 of 60"),
        ("one label", r"has 1 different labels in its column 'label'"),
        ("no column", r"has no column 'label' but: path, class; set dataset.label_column"),
        (
            "bad split",
            r"labels.csv, row 6: the split is 'tset' in the column 'split'; write one of: train",
        ),
        ("only in test", r"1 classes have no training image, the first is 'hen'"),
    ],
)
def test_table_mistakes(folder, what, message):
    _break(folder, what)
    with pytest.raises(UserError, match=message) as caught:
        CsvTable(str(folder / "labels.csv")).splits()
    # One sentence: one full stop, at its end.
    text = re.sub(r"\S+\.\S+", "x", str(caught.value))
    assert text.count(".") <= 1
    assert str(caught.value).endswith(".")


def test_unreadable_tables(tmp_path):
    for name, content in (
        ("a.csv", b""),
        ("b.csv", b"path,label\n\xff\xfe\xfa,x\n"),
        ("c.parquet", b"no parquet"),
        ("d.csv", b'path,label\n"open,quote\n'),
        ("a spreadsheet or an archive, no text; save it", b"PK\x03\x04\x80"),
    ):
        file = tmp_path / (name if name[1] == "." else "e.csv")
        file.write_bytes(content)
        with pytest.raises(UserError, match=name):
            CsvTable(str(file)).splits()
    with pytest.raises(UserError, match=r"the table \S+gone.csv is missing"):
        CsvTable(str(tmp_path / "gone.csv")).splits()
    with pytest.raises(UserError, match=r"is no table: its name must end in .csv"):
        CsvTable(str(tmp_path / "x.xlsx"))


def test_a_column_named_split_is_used_unless_told_otherwise(folder, caplog):
    parts = (["train"] * 7 + ["test"] * 3) * 6
    path = _table(folder, split=parts)
    source = CsvTable(str(path), val_fraction=0.0)
    with caplog.at_level("INFO"):
        found = source.splits()
    assert {name: len(split) for name, split in found.items()} == {"train": 42, "test": 18}
    assert source.split_origin == f"from the column 'split' of {path}"
    assert source.split_origin in caplog.text
    carved = CsvTable(str(path), split_column=None, val_fraction=0.0)
    assert len(carved.splits()["test"]) == 12
    assert carved.split_origin == "carved by val_fraction=0.0, test_fraction=0.2 and seed=0"
    partly = CsvTable(str(path), seed=3)
    partly.splits()
    assert partly.split_origin.endswith("; val carved by val_fraction=0.1 and seed=3 out of train")
    plain = CsvTable(str(_table(folder, "plain.csv")))
    plain.splits()
    assert plain.split_origin == "carved by val_fraction=0.1, test_fraction=0.2 and seed=0"


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_recognised(folder, separator):
    expected = CsvTable(str(_table(folder))).splits()
    table = pd.read_csv(folder / "labels.csv")
    table.insert(0, "a, note", "x, y")
    table.to_csv(folder / "labels.csv", index=False, sep=separator)
    found = CsvTable(str(folder / "labels.csv")).splits()
    assert {n: s.keys for n, s in found.items()} == {n: s.keys for n, s in expected.items()}


def test_a_byte_order_mark_tells_the_encoding_of_a_table(folder):
    text = _table(folder).read_text().replace("cat\n", "Kätzchen\n")
    (folder / "labels.csv").write_bytes(text.encode("utf-16"))
    assert "Kätzchen" in CsvTable(str(folder / "labels.csv")).splits()["train"].class_names


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le"])
def test_a_table_in_another_encoding_is_named(folder, encoding):
    text = _table(folder).read_text().replace("cat\n", "Kätzchen\n")
    (folder / "labels.csv").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=r"labels\.csv is not UTF-8 text; save it as UTF-8"):
        CsvTable(str(folder / "labels.csv")).splits()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda good: b"no image", "not an image, or damaged"),
        (lambda good: good[: len(good) - 20], "truncated"),
        (None, "No such file or directory"),
    ],
)
def test_the_reason_of_a_broken_image_is_short(tmp_path, damage, reason):
    path = tmp_path / "a.jpg"
    _image(path)
    good = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(good))
    with pytest.raises(BrokenImage) as caught:
        FileImages(["a.jpg"], str(tmp_path)).load(0)
    assert str(caught.value) == f"{path}: {reason}"


def test_broken_image_names_its_file(folder):
    (folder / "cat" / "0.png").write_bytes(b"\x89PNG nonsense")
    splits = ImageFolder(str(folder), val_fraction=0.0).splits()
    where = [(n, s.keys.index("cat/0.png")) for n, s in splits.items() if "cat/0.png" in s.keys]
    ((name, index),) = where
    with pytest.raises(BrokenImage, match=r"cat/0\.png"):
        splits[name].images.load(index)


def test_numbered_folders_are_in_numeric_order(tmp_path):
    for name in range(12):
        for image in range(5):
            _image(tmp_path / str(name) / f"{image}.png", seed=name * 5 + image)
    assert ImageFolder(str(tmp_path)).splits()["train"].class_names == [str(i) for i in range(12)]


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        (["10.0", "9.0", "-1.0"], ["-1.0", "9.0", "10.0"]),
        (["b10", "b9", "2"], ["2", "b10", "b9"]),
        (["007", "7", "1"], ["1", "007", "7"]),
    ],
)
def test_class_names_are_ordered_in_one_way(names, order):
    assert class_order(names) == order


@pytest.mark.parametrize(
    "parts", [("Train", "Test"), ("training", "testing"), ("train", "valid", "TEST")]
)
def test_folders_of_splits_by_other_names(folder, tmp_path, parts):
    for part in parts:
        shutil.copytree(folder, tmp_path / "parts" / part)
    splits = ImageFolder(str(tmp_path / "parts"), val_fraction=0).splits()
    assert sorted(splits) == sorted(
        ["train", "val", "test"] if len(parts) == 3 else ["train", "test"]
    )
    assert all(len(split) == 60 and len(split.class_names) == 6 for split in splits.values())


@pytest.mark.parametrize(
    "parts",
    [("train", "val"), ("clean_test", "clean_train", "noisy_train"), ("Train", "train", "x-test")],
)
def test_folders_of_splits_never_become_classes(folder, tmp_path, parts):
    for part in parts:
        shutil.copytree(folder, tmp_path / "parts" / part)
    with pytest.raises(UserError, match="are named after splits, no classes: name one of them"):
        ImageFolder(str(tmp_path / "parts")).splits()


def test_whatever_is_left_out_of_a_folder_is_counted_by_kind(folder):
    (folder / "void").mkdir()
    (folder / "__MACOSX").mkdir()
    _image(folder / "cat" / ".ipynb_checkpoints" / "0.png")
    _image(folder / "cat" / "__MACOSX" / "0.png")
    (folder / "cat" / "notes.TXT").touch()
    (folder / "dog" / "noname").touch()
    os.symlink(folder, folder / "dog" / "again")
    os.symlink(folder / "cat", folder / "cat" / "loop")
    os.symlink("/nowhere/x.png", folder / "eel" / "gone.png")
    source = ImageFolder(str(folder))
    splits = source.splits()
    keys = {key for split in splits.values() for key in split.keys}
    assert splits["train"].class_names == ["cat", "dog", "eel", "fox", "gnu", "hen"]
    assert not any("checkpoints" in key or "MACOSX" in key or "loop" in key for key in keys)
    assert source.left_out["class folders without images"] == [str(folder / "void")]
    assert len(source.left_out["hidden files and folders, or those of tools"]) == 3
    assert source.left_out["files named *.txt"] == [str(folder / "cat" / "notes.TXT")]
    assert source.left_out["files without suffix"] == [str(folder / "dog" / "noname")]
    assert source.left_out["links to nothing"] == [str(folder / "eel" / "gone.png")]
    assert sorted(source.left_out["links to folders already read or above"]) == [
        str(folder / "cat" / "loop"), str(folder / "dog" / "again"),
    ]  # fmt: skip


def test_commas_at_the_end_of_lines_are_no_column(folder):
    path = _table(folder)
    header, *rows = path.read_text().splitlines()
    plain = CsvTable(str(path)).splits()["train"]
    path.write_text("\n".join([header, *(f"{row},," for row in rows)]) + "\n")
    assert CsvTable(str(path)).splits()["train"].keys == plain.keys
    path.write_text("\n".join([header, *rows[:-1], f"{rows[-1]},more"]) + "\n")
    with pytest.raises(UserError, match="line 61 has 3 cells where the header has 2"):
        CsvTable(str(path)).splits()


def _seen(tmp_path, image, **how):
    image.save(tmp_path / f"one.{how.pop('suffix', 'png')}", **how)
    (path,) = tmp_path.glob("one.*")
    return np.asarray(FileImages([str(path)]).load(0))


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        (np.array([[0, 257 * 100, 65535]], dtype=np.uint16), "png"),
        (np.array([[0, 257 * 100, 65535]], dtype=np.uint16), "tif"),
        (np.array([[0, 257 * 100, 65535]], dtype=np.int32), "tif"),
        (np.array([[0, 100, 255]], dtype=np.float32), "tif"),
        (np.array([[0, 100 / 255, 1]], dtype=np.float32), "tif"),
    ],
)
def test_deep_greys_keep_their_share_of_the_range(tmp_path, values, suffix):
    assert _seen(tmp_path, Image.fromarray(values), suffix=suffix)[0].tolist() == [
        [0, 0, 0], [100, 100, 100], [255, 255, 255],
    ]  # fmt: skip


def test_greys_out_of_every_range_are_named(tmp_path):
    with pytest.raises(BrokenImage, match="grey values from -3 to 1; save it with 8 or 16 bits"):
        _seen(tmp_path, Image.fromarray(np.array([[-3, 1]], dtype=np.float32)), suffix="tif")


def test_pictures_are_turned_as_their_orientation_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[0] = 255
    seen = _seen(tmp_path, Image.fromarray(pixels), exif=exif)
    assert seen.shape == (4, 2, 3)
    assert (seen[:, 1] == 255).all()
    assert (seen[:, 0] == 0).all()


def test_a_damaged_note_on_orientation_costs_no_picture(tmp_path):
    pixels = np.full((4, 4, 3), 200, dtype=np.uint8)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\xff"
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        seen = _seen(tmp_path, Image.fromarray(pixels), suffix="jpg", exif=exif)
    assert np.abs(seen - 200.0).max() < 3


def test_what_is_transparent_lies_on_white(tmp_path):
    clear = Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], dtype=np.uint8))
    assert _seen(tmp_path, clear)[0].tolist() == [[255] * 3, [9] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 5, 6, 7])
    palette.putdata([0, 1])
    assert _seen(tmp_path, palette, transparency=0)[0].tolist() == [[255] * 3, [5, 6, 7]]


@pytest.mark.parametrize("separator", [",", "/", "+"])
def test_what_looks_like_a_separator_of_labels_is_said(folder, caplog, separator):
    path = _table(folder)
    table = pd.read_csv(path)
    table["labels"] = [f"{label}{separator}pet" for label in table.pop("label")]
    table.to_csv(path, index=False)
    CsvTable(str(path)).splits()
    assert f"'cat{separator}pet' in the column 'labels' is read as one label" in caplog.text


def test_cmyk_pictures_are_seen_as_colours(tmp_path):
    pixels = np.array([[[0, 0, 0, 0], [255, 255, 0, 0], [0, 0, 0, 255]]], dtype=np.uint8)
    for suffix in ("tif", "jpg"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(np.repeat(pixels, 16, axis=1).repeat(8, axis=0), mode="CMYK").save(path)
        seen = np.asarray(FileImages([str(path)]).load(0)).astype(int)[4, [8, 24, 40]]
        assert np.abs(seen - [[255] * 3, [0, 0, 255], [0] * 3]).max() < 12


def test_several_frames_and_bits_are_read(tmp_path):
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    first = FileImages([str(tmp_path / "a.gif")]).load(0)
    assert np.abs(np.asarray(first)[0, 0].astype(int) - [255, 0, 0]).max() < 3
    bits = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert _seen(tmp_path, bits)[0].tolist() == [[0] * 3, [255] * 3]


def _typed(folder, names, **columns):
    """A table in which some files have other names."""
    table = pd.read_csv(_table(folder), dtype=str)
    for row, name in enumerate(names):
        (folder / table.loc[row, "path"]).rename(folder / name)
        table.loc[row, "path"] = name
    for column, values in columns.items():
        table[column] = values
    table.to_csv(folder / "labels.csv", index=False)
    return str(folder / "labels.csv")


def test_paths_and_names_stay_as_typed(folder):
    names = [
        "cat/=1+2.png", "cat/a, b.png", "cat/it's.png", " lead.png", "cat/Größe 図.png", "007.png",
        "cat/x#1~;[new](2).png", 'cat/"q".png', "1e5.png",
    ]  # fmt: skip
    labels = [["=SUM(A1)", "+x", "a, b", "Фото", "名前　二", "-1"][i // 10] for i in range(60)]
    splits = CsvTable(_typed(folder, names, label=labels)).splits()
    keys = {key for split in splits.values() for key in split.keys}
    assert set(names) <= keys
    assert set(splits["train"].class_names) == set(labels)


def test_one_file_has_one_row_however_it_is_written(folder):
    table = pd.read_csv(_table(folder), dtype=str)
    table.loc[8, "path"] = "./cat/../" + table.loc[3, "path"]
    table.to_csv(folder / "labels.csv", index=False)
    with pytest.raises(UserError, match=r"row 9: \./cat/\.\./cat/3\.png stands in row 4 already"):
        CsvTable(str(folder / "labels.csv")).splits()


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("cat\\3.png", r"it is there with / in place of \\: write the paths with /"),
        ("cat/3", "there is 3.png: write the paths with their suffix"),
        ("cat/e\u0301.png", "a file whose name looks the same is there: .* in the form NFC"),
        ("cat/" + "x" * 300 + ".png", "correct the paths or set dataset.root"),
        ("cat", "what has that name is a folder, a pipe or a link to nothing"),
        ("cat/pipe.png", "what has that name is a folder, a pipe or a link to nothing"),
        ("cat/self.png", "what has that name is a folder, a pipe or a link to nothing"),
    ],
)
def test_a_path_without_a_file_is_explained(folder, written, advice):
    _image(folder / "cat" / "\u00e9.png")
    os.mkfifo(folder / "cat" / "pipe.png")
    os.symlink("self.png", folder / "cat" / "self.png")
    table = pd.DataFrame({"path": [written, "cat/1.png", "dog/1.png"], "label": ["a", "a", "b"]})
    table.to_csv(folder / "labels.csv", index=False)
    with pytest.raises(
        UserError, match=rf"row 1: there is no file .* \(1 of 3 are missing\); {advice}"
    ):
        CsvTable(str(folder / "labels.csv")).splits()


def test_lines_without_a_cell_are_counted(folder):
    path = _table(folder)
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:3], "", *rows[3:], ",,"]) + "\n")
    source = CsvTable(str(path))
    source.splits()
    assert source.left_out == {"lines without a cell": ["line 4", "line 63"]}


@pytest.mark.parametrize("labels", [
    pd.array([10, 9, 2, 1, 11, 100], dtype="Int64"),
    np.array([10, 9, 2, 1, 11, 100], dtype=np.float64),
    np.array([b"10", b"9", b"2", b"1", b"11", b"100"], dtype=object),
    pd.Categorical(["10", "9", "2", "1", "11", "100"]),
])  # fmt: skip
def test_the_type_of_a_column_changes_no_class(folder, labels):
    path = _table(folder, "labels.parquet", label=labels.repeat(10))
    names = CsvTable(str(path)).splits()["train"].class_names
    assert names == ["1", "2", "9", "10", "11", "100"]


def test_words_for_splits_are_read_in_any_case(folder):
    parts = (["Training"] * 6 + ["VALID"] * 2 + ["Test"] * 2) * 6
    splits = CsvTable(str(_table(folder, split=parts))).splits()
    assert {n: len(s) for n, s in splits.items()} == {"train": 36, "val": 12, "test": 12}


def test_lab_pictures_are_seen_as_colours(tmp_path):
    lab = np.array([[[255, 0, 0], [0, 0, 0], [136, 80, 67]]], dtype=np.uint8)
    seen = _seen(tmp_path, Image.fromarray(lab, mode="LAB"), suffix="tif")[0].astype(int)
    assert np.abs(seen[:2] - [[255] * 3, [0] * 3]).max() < 3
    assert seen[2, 0] > 200 > 120 > seen[2, 1:].max()


@pytest.mark.parametrize("cell", ["['{0}', 'pet']", '["{0}", "pet"]', "{0};pet", "{0} | pet"])
def test_lists_of_labels_are_read_as_they_are_written(folder, cell):
    path = _table(folder)
    table = pd.read_csv(path)
    table["labels"] = [cell.format(label) for label in table.pop("label")]
    table.loc[0, "labels"] = "[]" if "[" in cell else ""
    table.to_csv(path, index=False)
    train = CsvTable(str(path)).splits()["train"]
    assert train.class_names == ["cat", "dog", "eel", "fox", "gnu", "hen", "pet"]
    assert set(train.labels.sum(axis=1)) <= {0, 2}
