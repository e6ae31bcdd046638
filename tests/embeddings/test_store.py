"""Embeddings on disk: whoever wrote them in whatever order, they read like one array."""

import dataclasses
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisyml.embeddings.store import (
    MAPPED_SHARDS,
    EmbeddedSplit,
    EmbeddingPlan,
    EmbeddingStore,
    SplitWriter,
)
from noisyml.errors import UserError
from noisyml.storage.reading import DamagedFileError

PLAN = EmbeddingPlan(
    split="test",
    samples=10,
    dim=3,
    dtype="float32",
    rows_per_shard=4,
    batch_size=2,
    precision="32-true",
    data="d",
    labels="l",
    transform="t",
    encoder="e",
)


def rows_of(plan, positions):
    return np.arange(plan.samples * plan.dim, dtype=np.float32).reshape(-1, plan.dim)[positions]


def written(folder, plan=PLAN, broken=(), shards=None):
    """A finished split whose row i counts on from 3 i."""
    writer = SplitWriter(folder, plan)
    writer.begin()
    for number in shards if shards is not None else range(plan.shards):
        positions = np.setdiff1d(plan.positions(number), broken)
        writer.write(number, positions, rows_of(plan, positions))
    names = [f"{i}.png" for i in range(plan.samples)]
    writer.finish(np.arange(plan.samples) % 2, names, ["even", "odd"])
    return EmbeddedSplit(folder)


def test_a_split_reads_like_an_array(tmp_path):
    split = written(tmp_path / "test", shards=[2, 0, 1])
    expected = rows_of(PLAN, np.arange(10))
    assert split.shape == (10, 3)
    assert len(split) == 10
    assert split.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(split), expected)
    np.testing.assert_array_equal(np.asarray(split, dtype=np.float64), expected)
    assert split.index.tolist() == list(range(10))
    assert split.labels.tolist() == [0, 1] * 5
    assert split.names.tolist() == [f"{i}.png" for i in range(10)]
    assert split.label_names.tolist() == ["even", "odd"] * 5
    split.check()


def test_text_that_is_damaged_within_the_file_is_a_sentence(tmp_path):
    split = written(tmp_path / "test")
    file = tmp_path / "test" / "samples.parquet"
    pq.write_table(pq.read_table(file), file, compression="none", use_dictionary=False)
    assert split.names[9] == "9.png"
    file.write_bytes(file.read_bytes().replace(b"9.png", b"\xff.png"))
    damaged = EmbeddedSplit(tmp_path / "test")
    assert damaged.index.tolist() == list(range(10))
    with pytest.raises(DamagedFileError, match=r"samples\.parquet cannot be read"):
        _ = damaged.names


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.long
def test_every_kind_of_index_gives_what_numpy_gives(tmp_path_factory, data):
    samples = data.draw(st.integers(1, 25))
    plan = dataclasses.replace(PLAN, samples=samples, rows_per_shard=data.draw(st.integers(1, 9)))
    broken = data.draw(st.lists(st.integers(0, samples - 1), max_size=samples // 2))
    split = written(tmp_path_factory.mktemp("store") / "test", plan, broken)
    kept = np.setdiff1d(np.arange(samples), broken)
    whole = rows_of(plan, kept)
    n = len(whole)
    bound = st.one_of(st.none(), st.integers(-n - 2, n + 2))
    step = st.one_of(st.none(), st.integers(-3, 3).filter(bool))
    key = data.draw(
        st.one_of(
            st.builds(slice, bound, bound, step),
            st.integers(-n, n - 1),
            st.lists(st.integers(-n, n - 1), max_size=2 * n),
            st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
        )
    )
    expected = whole[key]
    np.testing.assert_array_equal(split[key], expected)
    assert split.index.tolist() == kept.tolist()
    assert split.facts["broken"] == sorted(set(broken))


@pytest.mark.parametrize("key", [10, -11, [0, 10], [0.5], np.zeros((2, 2), int), "a"])
def test_rows_that_do_not_exist_are_refused(tmp_path, key):
    split = written(tmp_path / "test")
    with pytest.raises(IndexError):
        split[key]


def test_a_slice_inside_a_shard_is_mapped_and_not_copied(tmp_path):
    split = written(tmp_path / "test")
    inside = split[4:8]
    assert isinstance(inside.base, np.memmap) or isinstance(inside, np.memmap)
    assert np.shares_memory(inside, split[5:6])
    assert not isinstance(split[3:5].base, np.memmap)


def test_many_shards_do_not_exhaust_file_descriptors(tmp_path):
    plan = dataclasses.replace(PLAN, samples=3 * MAPPED_SHARDS, rows_per_shard=1)
    split = written(tmp_path / "test", plan)
    before = len(os.listdir("/proc/self/fd"))
    np.testing.assert_array_equal(split[:], rows_of(plan, np.arange(plan.samples)))
    assert len(os.listdir("/proc/self/fd")) - before <= MAPPED_SHARDS
    np.testing.assert_array_equal(split[[0, -1, 0]], rows_of(plan, [0, -1, 0]))


def test_an_interrupted_writer_knows_what_is_missing(tmp_path):
    folder = tmp_path / "test"
    writer = SplitWriter(folder, PLAN)
    writer.begin()
    assert writer.pending() == [0, 1, 2]
    writer.write(1, PLAN.positions(1), rows_of(PLAN, PLAN.positions(1)))
    # Killed after the rows of a shard, before the line that says they are whole.
    (folder / "00002.npy").write_bytes(b"half of it")
    (folder / ".00000.npy.77.tmp").write_bytes(b"a quarter")
    again = SplitWriter(folder, PLAN)
    again.begin()
    assert again.pending() == [0, 2]
    with pytest.raises(ValueError, match=r"\[0, 2\]"):
        again.finish(np.zeros(10, int), ["x"] * 10, ["a"])
    with pytest.raises(UserError, match="not finished: `noisyml embed resume="):
        EmbeddingStore(tmp_path).split("test")
    split = written(folder, shards=[0, 2])
    np.testing.assert_array_equal(split[:], rows_of(PLAN, np.arange(10)))
    whole = written(tmp_path / "whole" / "test")
    files = sorted(path.name for path in whole.folder.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == files
    assert {name: (folder / name).read_bytes() for name in files} == {
        name: (whole.folder / name).read_bytes() for name in files
    }
    assert again.pending() == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"encoder": "x"}, "weights"),
        ({"data": "x"}, "data"),
        ({"labels": "x"}, "labels"),
        ({"transform": "x"}, "transform"),
        ({"samples": 11}, "number of samples"),
        ({"dim": 4}, "embedding dimension"),
        ({"dtype": "float16"}, "dtype"),
        ({"batch_size": 3}, "batch size"),
        ({"rows_per_shard": 5}, "rows_per_shard"),
        ({"precision": "bf16-mixed"}, "precision"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, change, word):
    SplitWriter(tmp_path, PLAN).begin()
    with pytest.raises(UserError, match=f"embeddings with other {word}; choose another folder"):
        SplitWriter(tmp_path, dataclasses.replace(PLAN, **change)).begin()
    SplitWriter(tmp_path, PLAN).begin()


def test_numbers_that_cannot_be_stored_are_named(tmp_path):
    half = dataclasses.replace(PLAN, dtype="float16")
    writer = SplitWriter(tmp_path, half)
    writer.begin()
    rows = rows_of(PLAN, PLAN.positions(1))
    writer.write(1, PLAN.positions(1), rows)
    assert np.load(tmp_path / "00001.npy", allow_pickle=False).dtype == np.float16
    rows[2, 0] = 1e6
    with pytest.raises(UserError, match="sample 6 of the test split is too large for dtype="):
        writer.write(1, PLAN.positions(1), rows)
    rows[1, 0] = np.nan
    with pytest.raises(UserError, match="sample 5 of the test split is not finite"):
        writer.write(1, PLAN.positions(1), rows)
    with pytest.raises(ValueError, match="do not belong to shard 0"):
        writer.write(0, PLAN.positions(1), rows)
    with pytest.raises(ValueError, match="do not belong to shard 1"):
        writer.write(1, PLAN.positions(1), rows[:, :2])


def test_a_shard_without_any_decodable_sample_is_empty(tmp_path):
    split = written(tmp_path / "test", broken=[4, 5, 6, 7, 9])
    assert [shard["rows"] for shard in split.facts["shards"]] == [4, 0, 1]
    np.testing.assert_array_equal(split[:], rows_of(PLAN, [0, 1, 2, 3, 8]))
    np.testing.assert_array_equal(split[3:5], rows_of(PLAN, [3, 8]))


def test_damage_is_noticed(tmp_path):
    split = written(tmp_path / "test")
    file = split.folder / "00001.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"00001\.npy was changed"):
        split.check()
    np.save(file, np.zeros((3, 3), np.float32))
    with pytest.raises(UserError, match="instead of float32"):
        EmbeddedSplit(split.folder)[4:6]
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        EmbeddedSplit(split.folder)[4:6]
    file.unlink()
    with pytest.raises(UserError, match=r"00001\.npy is missing"):
        EmbeddedSplit(split.folder)


def test_a_label_without_a_class_has_no_name(tmp_path):
    writer = SplitWriter(tmp_path / "test", PLAN)
    writer.begin()
    for number in range(PLAN.shards):
        writer.write(number, PLAN.positions(number), rows_of(PLAN, PLAN.positions(number)))
    writer.finish(np.array([-1, 5] + [0] * 8), [str(i) for i in range(10)], ["a"])
    split = EmbeddedSplit(tmp_path / "test")
    assert split.labels.tolist() == [-1, 5] + [0] * 8
    assert split.label_names.tolist() == [None, None] + ["a"] * 8


def test_a_store_names_its_splits(tmp_path):
    written(tmp_path / "embeddings" / "test")
    written(tmp_path / "embeddings" / "train", dataclasses.replace(PLAN, split="train"))
    for path in (tmp_path, tmp_path / "embeddings", str(tmp_path)):
        store = EmbeddingStore(path)
        assert store.splits == ("test", "train")
        assert store.split("train").name == "train"
    with pytest.raises(UserError, match=r"no split 'tset'. Did you mean 'test'. It has: test, tr"):
        store.split("tset")
    with pytest.raises(UserError, match="holds no embeddings"):
        EmbeddingStore(tmp_path / "nowhere")
    index = tmp_path / "embeddings" / "test" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "format": 99}))
    with pytest.raises(UserError, match="has format 99"):
        store.split("test")


def test_reading_needs_neither_torch_nor_lightning():
    import subprocess
    import sys

    code = (
        "import sys, noisyml.embeddings.store\n"
        "assert not {'torch', 'lightning', 'hydra', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
