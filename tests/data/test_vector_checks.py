"""`noisyml data check` on vectors: values, lengths, copies, columns that say nothing."""

import json
import sys
from pathlib import Path

import numpy as np

from noisyml import cli
from noisyml.data.base import Split
from noisyml.data.vector_checks import check_vectors
from noisyml.data.vectors import VectorInputs, VectorRows


def split(name, rows):
    keys = [f"{name}{i}" for i in range(len(rows))]
    labels = np.zeros(len(rows), dtype=np.int64)
    return Split(name, VectorInputs(VectorRows(rows)), labels, ["c"], keys, name)


def test_what_is_wrong_with_vectors(monkeypatch):
    monkeypatch.setattr("noisyml.data.vector_checks.ROWS_AT_ONCE", 3)
    rows = np.arange(1, 25, dtype=np.float32).reshape(8, 3)
    rows[:, 1] = 5
    rows[2] = 0
    rows[4, 0] = np.nan
    rows[6] = rows[0]
    other = np.stack([rows[1], rows[7] + 1])
    train, test = check_vectors({"train": split("train", rows), "test": split("test", other)})
    assert (train.vectors, train.columns) == (8, 3)
    assert train.not_finite == ["train4"]
    assert train.zero == ["train2"]
    assert train.copies == [["train:train0", "train:train6"]]
    assert test.copies == [["train:train1", "test:test0"]]
    assert train.constant_columns == []
    assert check_vectors({"test": split("test", rows[5:])})[0].constant_columns == [1]
    lengths = np.linalg.norm(np.delete(rows, 4, axis=0), axis=1)
    assert np.allclose(train.lengths, [0, np.median(lengths), lengths.max()])
    seen = []
    check_vectors({"train": split("train", rows)}, seen.append)
    assert seen == [3, 3, 2]


def test_one_file_in_two_splits_is_no_copy():
    whole = split("train", np.eye(4, dtype=np.float32))
    same = Split("gallery", whole.inputs, whole.labels, ["c"], whole.keys, "x")
    assert [r.copies for r in check_vectors({"train": whole, "gallery": same})] == [[], []]


def test_the_verb_tells_and_fails(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.save("good.npy", rows)
    rows[7, 1] = np.inf
    np.save("bad.npy", rows)

    def run(file):
        words = ["noisyml", "data", "check", "dataset=vectors", f"dataset.path={file}"]
        monkeypatch.setattr(sys, "argv", words)
        return cli.main(), capfd.readouterr().out

    status, said = run("good.npy")
    assert status == 0, said
    assert "length: least / median / greatest" in said
    status, said = run("bad.npy")
    assert status == 1
    assert "vectors with entries that are no numbers in" in said
    found = sorted(Path("outputs/data").rglob("check.json"))[-1]
    splits = json.loads(found.read_text())["splits"]
    assert sum(len(part["not_finite"]) for part in splits) == 1
