"""Data sets of images and captions, on small trees of the published form."""

import numpy as np
import pandas as pd
import pytest
from support.shards import drawn_from, encoded, write_shard

from noisyml.data.datasets.captions.cc3m import CC3M, WIT
from noisyml.data.datasets.captions.composed import ComposedCaptions
from noisyml.data.datasets.captions.webdataset import WebDatasetShards, shard_records
from noisyml.data.datasets.captions.yfcc15m import YFCC15M
from noisyml.data.datasets.embedded.digits import Digits
from noisyml.data.datasets.own.csv_table import CsvTable
from noisyml.data.inputs import BrokenImage
from noisyml.errors import UserError
from noisyml.targets import PAIRS

NUMBER = 40


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(NUMBER):
        (folder / f"{i}.png").write_bytes(encoded(i))
    return tmp_path


def check(splits, caption_of, grey_of):
    """Every image has its caption, and every sample is in one split."""
    assert set(splits) == {"train", "val", "test"}
    assert sum(map(len, splits.values())) == NUMBER
    assert len({key for split in splits.values() for key in split.keys}) == NUMBER
    for split in splits.values():
        assert split.target is PAIRS
        for i, key in enumerate(split.keys):
            assert split.labels[i] == caption_of(key)
            assert split.images.load(i).getpixel((0, 0))[0] == grey_of(key)


def number_in(key):
    return int(key.rpartition("/")[2].partition(".")[0])


def test_conceptual_captions(images):
    table = pd.DataFrame(
        {
            "filename": [f"images/{i}.png" for i in range(NUMBER)],
            "caption": [f'photo, "number" {i}' for i in range(NUMBER)],
        }
    )
    table.to_csv(images / "processed_labels.csv")
    splits = CC3M(str(images), 0.2, 0.2).splits()
    check(splits, lambda key: f'photo, "number" {number_in(key)}', number_in)
    (images / "processed_labels.csv").write_text("filename\tcaption\na\tb\n")
    with pytest.raises(UserError, match=r"first line is 'filename.tcaption', read as 'filename"):
        CC3M(str(images)).splits()
    with pytest.raises(UserError, match="fetch Train-GCC-training"):
        CC3M(str(images / "no")).splits()


@pytest.mark.parametrize("released", [False, True])
def test_wit(images, released):
    lines = [f"images/{i}.png\tone {i}\ttwo\n" for i in range(NUMBER)]
    (images / "process_labels.csv").write_text("".join(lines))
    splits = WIT(str(images), 0.2, 0.2, released_captions=released).splits()
    joint, end = ("", "\n") if released else (" ", "")
    check(splits, lambda key: f"one {number_in(key)}{joint}two{end}", number_in)


def test_yfcc_records_are_read_one_by_one(tmp_path, monkeypatch):
    msgpack = pytest.importorskip("msgpack")
    for shard in range(2):
        with (tmp_path / f"{shard}.msgpack").open("wb") as file:
            for i in range(shard * 20, shard * 20 + 20):
                record = {"image": encoded(i), "title": f"Title+{i}", "description": "A%21"}
                file.write(msgpack.packb({"key": str(i), **record}))
    source = YFCC15M(str(tmp_path), 0.2, 0.2, cache_dir=str(tmp_path / "cache"))

    def position(key):
        shard, _, number = key.partition("/")
        return 20 * int(shard.partition(".")[0]) + int(number)

    check(source.splits(), lambda key: f"Title {position(key)}. A!", position)
    # The second time no file is gone through.
    monkeypatch.setattr(msgpack, "Unpacker", None)
    check(source.splits(), lambda key: f"Title {position(key)}. A!", position)
    (tmp_path / "2.msgpack").write_bytes(msgpack.packb({"image": b""}))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"2\.msgpack: record 0 is not one of image, title"):
        source.splits()


def test_shards_of_webdataset(tmp_path):
    write_shard(tmp_path / "0.tar", range(25))
    write_shard(tmp_path / "1.tar", range(25, NUMBER), "json")
    source = WebDatasetShards(str(tmp_path), 0.2, 0.2)
    splits = source.splits()
    check(splits, lambda key: f"shot {number_in(key)}", number_in)
    again = WebDatasetShards(str(tmp_path), 0.2, 0.2, seed=1).splits()
    assert splits["test"].keys != again["test"].keys
    assert splits["train"].fingerprint != again["train"].fingerprint
    with (tmp_path / "0.tar").open("r+b") as file:
        file.seek(int(splits["train"].inputs.offset[0]))
        file.write(b"broken")
    with pytest.raises(BrokenImage, match=r"0\.tar"):
        splits["train"].images.load(0)
    (tmp_path / "2.tar").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"2\.tar cannot be read"):
        source.splits()


@pytest.mark.long
def test_shards_are_shared_by_ranks_and_workers_and_go_on_at_any_batch(tmp_path):
    write_shard(tmp_path / "0.tar", range(25))
    write_shard(tmp_path / "1.tar", range(25, NUMBER))
    split = WebDatasetShards(str(tmp_path), 0.2, 0.2).splits()["train"]
    whole_epoch = drawn_from(split)
    seen = [text for batch in whole_epoch for text, _ in batch]
    assert len(seen) == len(set(seen)) == len(split) // 8 * 8
    assert all(text == f"shot {grey}" for batch in whole_epoch for text, grey in batch)
    # Workers read files of their own, and each rank reads its part of every batch.
    ranks = [drawn_from(split, rank, 2, workers=1) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole_epoch
    assert drawn_from(split, start=1, workers=2) == whole_epoch[1:]


def test_shards_hold_what_the_library_reads_in_them(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    write_shard(tmp_path / "0.tar", range(6))
    theirs = list(webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False))
    mine = list(shard_records(tmp_path / "0.tar"))
    content = (tmp_path / "0.tar").read_bytes()
    assert [(s["__key__"], s["txt"].decode(), s["png"]) for s in theirs] == [
        (r.key, r.caption, content[r.offset : r.offset + r.size]) for r in mine
    ]


def test_a_table_with_captions(images):
    table = pd.DataFrame(
        {
            "path": [f"images/{i}.png" for i in range(NUMBER)],
            "caption": [f"a thing; {i}" for i in range(NUMBER)],
        }
    )
    table.to_csv(images / "t.csv", index=False, sep=";")
    settings = {"caption_column": "caption", "val_fraction": 0.2}
    splits = CsvTable(str(images / "t.csv"), **settings).splits()
    check(splits, lambda key: f"a thing; {number_in(key)}", number_in)
    table["split"] = ["train"] * 30 + ["test"] * 10
    table.to_csv(images / "t.csv", index=False)
    given = CsvTable(str(images / "t.csv"), **settings).splits()
    assert len(given["test"]) == 10
    check(given, lambda key: f"a thing; {number_in(key)}", number_in)


def test_captions_composed_from_classes():
    source = Digits()
    plain = source.splits()
    templates = ["a photo of {}", "{} by hand", "somebody wrote {}"]
    splits = ComposedCaptions(source, templates, list("zOTtfFsSen")).splits()
    assert splits.keys() == plain.keys()
    for name, split in splits.items():
        assert split.target is PAIRS
        assert split.fingerprint == plain[name].fingerprint
        said = [list("zOTtfFsSen")[label] for label in plain[name].labels]
        if name == "train":
            number = [
                [t.replace("{}", own) for t in templates].index(text)
                for text, own in zip(split.labels, said, strict=True)
            ]
            assert min(np.bincount(number)) > len(number) / 4
        else:
            assert split.labels.tolist() == said
    again = ComposedCaptions(source, templates, list("zOTtfFsSen"), seed=1).splits()
    assert (again["train"].labels != splits["train"].labels).any()
    names = ComposedCaptions(source, ["{}"]).splits()["test"].labels
    assert set(names) == set(plain["test"].class_names)
    with pytest.raises(UserError, match="has 2 names, and the data set has 10 classes: 0"):
        ComposedCaptions(source, templates, ["a", "b"]).splits()
    with pytest.raises(UserError, match=r"'a photo' has no \{\}"):
        ComposedCaptions(source, ["a photo"])
    with pytest.raises(UserError, match="composes no caption"):
        ComposedCaptions(source, [])


def test_a_table_that_is_off_is_shown(images):
    path = images / "t.csv"
    source = CsvTable(str(path), caption_column="caption")
    path.write_text("images/0.png,a thing\n")
    with pytest.raises(UserError, match=r"first line 'images/0.png,a thing', read as 2 columns"):
        source.splits()
    path.write_text("path:caption\nimages/0.png:a thing\n")
    with pytest.raises(UserError, match=r"read as 1 column.*but: path:caption"):
        source.splits()
    path.write_bytes("path,caption\nimages/0.png,a café\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"not UTF-8 text.*: line 2 is 'images/0.png,a caf"):
        source.splits()
    path.write_text("path,caption\nimages/0.png,\n")
    with pytest.raises(UserError, match="row 1: the column 'caption' is empty"):
        source.splits()
    assert np.array_equal(PAIRS.checked(["a"], 0), ["a"])
