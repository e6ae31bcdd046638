"""Vectors from files of every format: the same rows, mapped where the format allows."""

import numpy as np
import pandas as pd
import pytest

from noisyml.data.datasets.vectors.digits import DigitVectors
from noisyml.data.datasets.vectors.files import Vectors
from noisyml.data.readers.matrices import open_matrix, read_labels
from noisyml.data.vectors import VectorRows, vector_rows
from noisyml.embeddings.dataset import StoredVectors
from noisyml.embeddings.store import EmbeddingPlan, SplitWriter
from noisyml.errors import UserError

N, D = 40, 6
SOME = [7, 3, 3, 39]


@pytest.fixture
def rows():
    return np.random.default_rng(0).integers(0, 255, (N, D)).astype(np.float32)


def write_vecs(path, rows, kind):
    sizes = np.full((len(rows), 1), rows.shape[1], dtype="<i4").view(np.uint8)
    path.write_bytes(np.hstack([sizes, rows.astype(kind).view(np.uint8)]).tobytes())


def write_h5(path, rows, labels):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["features"] = rows
        file["labels"] = labels


WRITERS = {
    "a.npy": lambda path, x, y: np.save(path, x),
    "a.npz": lambda path, x, y: np.savez(path, features=x, labels=y),
    "lists.parquet": lambda path, x, y: pd.DataFrame({"v": list(x), "label": y}).to_parquet(path),
    "columns.parquet": lambda path, x, y: pd.DataFrame(x).rename(columns=str).assign(
        label=y).to_parquet(path),
    "a.fvecs": lambda path, x, y: write_vecs(path, x, "<f4"),
    "a.bvecs": lambda path, x, y: write_vecs(path, x, np.uint8),
    "a.h5": write_h5,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name, rows, tmp_path):
    labels = np.arange(N) % 4
    WRITERS[name](tmp_path / name, rows, labels)
    found = VectorRows(open_matrix(tmp_path / name))
    assert found.shape == (N, D)
    assert found[:].dtype == np.float32
    assert np.array_equal(found[:], rows)
    assert np.array_equal(found[SOME], rows[SOME])
    assert np.array_equal(found.take(np.array([5, 2]))[1], rows[2])
    inside = read_labels(tmp_path / name, "auto")
    assert (inside is None) == (name in ("a.npy", "a.fvecs", "a.bvecs"))
    if inside is not None:
        assert inside.tolist() == labels.tolist()


@pytest.mark.parametrize("name", ["a.npy", "a.fvecs"])
def test_float_rows_are_mapped_and_a_slice_of_them_is_no_copy(name, rows, tmp_path):
    WRITERS[name](tmp_path / name, rows, None)
    found = VectorRows(open_matrix(tmp_path / name))
    assert isinstance(found.stored, np.memmap)
    assert np.shares_memory(found[3:9], found.stored)


def test_rows_are_centred_and_brought_to_length_one_as_they_are_read(rows):
    plain = VectorRows(rows)
    mean = plain.column_means()
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-6)
    found = plain.prepared(mean, unit_norm=True)
    expected = (rows - mean) / np.linalg.norm(rows - mean, axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-6)
    np.testing.assert_allclose(found[SOME], expected[SOME], atol=1e-6)
    assert np.array_equal(VectorRows(np.zeros((2, 3)), unit_norm=True)[:], np.zeros((2, 3)))


def test_splits_are_carved_by_class_or_come_from_files(rows, tmp_path):
    np.savez(tmp_path / "a.npz", x=rows, labels=np.array(["b", "a"])[np.arange(N) % 2])
    source = Vectors(str(tmp_path / "a.npz"))
    splits = source.splits()
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 28, "val": 4, "test": 8
    }  # fmt: skip
    assert source.has_labels
    assert source.vector_size == D
    assert list(splits["test"].class_names) == ["a", "b"]
    assert splits["test"].class_counts.tolist() == [4, 4]
    row = int(splits["test"].keys[0].split(":")[1])
    assert np.array_equal(splits["test"].inputs.load(0), rows[row])
    own = Vectors(str(tmp_path / "a.npz"), test=str(tmp_path / "a.npz"), val_fraction=0.0)
    assert {name: len(split) for name, split in own.splits().items()} == {"train": N, "test": N}
    assert own.splits()["train"].fingerprint != splits["train"].fingerprint


def test_labels_may_lie_beside_or_be_missing(rows, tmp_path):
    np.save(tmp_path / "a.npy", rows)
    bare = Vectors(str(tmp_path / "a.npy"))
    assert list(bare.splits()["train"].class_names) == ["unlabelled"]
    assert not bare.has_labels
    (tmp_path / "a.labels.txt").write_text("".join(f"class {i % 3}\n" for i in range(N)))
    source = Vectors(str(tmp_path / "a.npy"))
    assert list(source.splits()["train"].class_names) == ["class 0", "class 1", "class 2"]
    np.save(tmp_path / "b.npy", rows)
    with pytest.raises(UserError, match="test vectors have no labels"):
        Vectors(str(tmp_path / "a.npy"), test=str(tmp_path / "b.npy")).splits()


def test_a_store_of_embeddings_is_a_data_set(rows, tmp_path):
    settings = dict.fromkeys(["precision", "data", "labels", "transform", "encoder"], "")
    for name in ("train", "test"):
        plan = EmbeddingPlan(name, N, D, "float16", 16, 1, **settings)
        writer = SplitWriter(tmp_path / "embeddings" / name, plan)
        writer.begin()
        for shard in range(plan.shards):
            writer.write(shard, plan.positions(shard), rows[plan.positions(shard)])
        writer.finish(np.arange(N) % 2, [f"{i}.png" for i in range(N)], ["ant", "bee"])
    source = StoredVectors(str(tmp_path), val_fraction=0.25)
    splits = source.splits()
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 30, "val": 10, "test": N
    }  # fmt: skip
    assert source.vector_size == D
    assert np.array_equal(vector_rows(splits["test"].inputs)[:], rows)
    assert splits["test"].keys[3] == "3.png"
    assert list(splits["test"].class_names) == ["ant", "bee"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"path": "a.txt"}, "must end in .npy"),
        ({"path": "several.npz"}, "Say dataset.key="),
        ({"path": "several.npz", "key": "fist"}, "Did you mean 'first'"),
        ({"path": "a.npy", "key": "x"}, "holds one array"),
        ({"path": "words.npy"}, "vectors are a matrix"),
        ({"path": "a.npy", "labels": "names"}, "has no labels 'names'"),
        ({"path": "broken.fvecs"}, "it is damaged"),
        ({"path": "a.npy", "test": "wide.npy"}, "different numbers of columns: train 6"),
        ({"path": "nowhere.npy"}, "nowhere.npy is missing"),
    ],
)
def test_what_does_not_fit_is_said(settings, sentence, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", rows)
    np.save("wide.npy", np.zeros((5, 7)))
    np.save("words.npy", np.array(["a", "b"]))
    np.savez("several.npz", first=rows, second=rows)
    (tmp_path / "a.txt").write_text("1 2")
    (tmp_path / "broken.fvecs").write_bytes(np.arange(5, dtype="<i4").tobytes() + b"x")
    with pytest.raises(UserError, match=sentence):
        Vectors(**settings).splits()


def test_digits_are_vectors_too():
    splits = DigitVectors().splits()
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 1079, "val": 179, "test": 539
    }  # fmt: skip
    train = vector_rows(splits["train"].inputs)[:]
    np.testing.assert_allclose(np.linalg.norm(train, axis=1), 1, rtol=1e-5)
    assert DigitVectors(gallery="train").test_sets([])["test"]["gallery"] == "train"
