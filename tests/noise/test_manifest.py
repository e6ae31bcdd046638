"""The record of a corruption: round trip, tampering, wrong splits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noisyml.errors import UserError
from noisyml.noise import (
    Asymmetric,
    FromManifest,
    Matrix,
    NoiseManifest,
    NoNoise,
    OpenSet,
    SampleState,
    SmallCluster,
    Symmetric,
)
from noisyml.noise.random import GENERATOR

LABELS = np.random.default_rng(0).integers(0, 6, 120)
KEYS = [f"images/{i}.png" for i in range(120)]
FEATURES = np.random.default_rng(1).normal(size=(120, 4))


def manifests() -> list[NoiseManifest]:
    return [
        NoNoise().inject(LABELS, 6),
        Symmetric(rate=0.3, seed=4).inject(LABELS, 6, keys=KEYS),
        Asymmetric(rate=0.3, map={0: 1, 2: 5}).inject(LABELS, 6),
        Matrix(matrix=np.eye(6), seed=2).inject(LABELS, 6),
        OpenSet(rate=0.4, source_size=500).inject(LABELS, 6, keys=KEYS),
        SmallCluster(rate=0.5).inject(LABELS, 6, features=FEATURES),
        NoNoise().inject(LABELS, 6, keys=KEYS).with_unknown_truth(),
        NoNoise().inject([], 6),
    ]


@pytest.mark.parametrize("manifest", manifests(), ids=lambda m: m.injector)
def test_round_trip(manifest: NoiseManifest, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "noise.parquet"
    manifest.save(path)
    assert [p.name for p in path.parent.iterdir()] == ["noise.parquet"]
    loaded = NoiseManifest.load(path)
    for name in ("index", "observed", "clean", "changed", "source_index", "class_source", "state"):
        before, after = getattr(manifest, name), getattr(loaded, name)
        assert (before is None) == (after is None), name
        if before is not None:
            np.testing.assert_array_equal(before, after)
            assert before.dtype == after.dtype
    assert loaded.keys == manifest.keys
    assert loaded.summary() == manifest.summary()
    np.testing.assert_array_equal(loaded.count_matrix(), manifest.count_matrix())


def test_record_names_what_the_draws_depend_on(tmp_path: Path) -> None:
    Symmetric(rate=0.3, seed=4).inject(LABELS, 6).save(tmp_path / "noise.parquet")
    metadata = pq.read_schema(tmp_path / "noise.parquet").metadata[b"noisyml.noise"]
    record = json.loads(metadata)
    assert record["injector"] == "symmetric"
    assert record["params"] == {
        "rate": 0.3,
        "seed": 4,
        "include_true": False,
        "count": "bernoulli",
        "legacy": "multinomial",
    }
    assert record["generator"] == GENERATOR
    assert {"numpy", "python", "scipy", "scikit-learn", "noisyml"} == set(record["versions"])
    assert record["nominal_rate"] == 0.3
    assert 0.15 < record["actual_rate"] < 0.45


def edit(path: Path, column: str, values: object) -> None:
    table = pq.read_table(path)
    i = table.column_names.index(column)
    pq.write_table(table.set_column(i, column, pa.array(values)), path)


@pytest.mark.parametrize("column", ["observed", "clean", "changed", "source_index", "key", "index"])
def test_altered_samples_are_detected(column: str, tmp_path: Path) -> None:
    path = tmp_path / "noise.parquet"
    OpenSet(rate=0.4, source_size=500).inject(LABELS, 6, keys=KEYS).save(path)
    values = pq.read_table(path)[column].to_pylist()
    values[3] = (
        not values[3]
        if column == "changed"
        else "other"
        if column == "key"
        else (values[3] + 1) % 6
    )
    edit(path, column, values)
    with pytest.raises(UserError, match="altered after it was written"):
        NoiseManifest.load(path)


def test_altered_class_sources_are_detected(tmp_path: Path) -> None:
    path = tmp_path / "noise.parquet"
    features = np.random.default_rng(0).normal(size=(len(LABELS), 4))
    made = SmallCluster(rate=0.3).inject(LABELS, 6, features=features)
    made.save(path)
    assert NoiseManifest.load(path).sha256 == made.sha256
    table = pq.read_table(path)
    record = json.loads(table.schema.metadata[b"noisyml.noise"])
    record["class_source"].reverse()
    metadata = {b"noisyml.noise": json.dumps(record).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(UserError, match="altered after it was written"):
        NoiseManifest.load(path)


def test_rows_out_of_order_or_out_of_range_are_detected(tmp_path: Path) -> None:
    path = tmp_path / "noise.parquet"
    Symmetric(rate=0.3).inject(LABELS, 6).save(path)
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array(np.arange(120)[::-1])), path)
    with pytest.raises(UserError, match="altered"):
        NoiseManifest.load(path)
    pq.write_table(table, path)
    edit(path, "observed", [99] * 120)
    with pytest.raises(UserError, match="cannot be read"):
        NoiseManifest.load(path)


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no noise manifest"):
        NoiseManifest.load(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match=r"text\.parquet cannot be read"):
        NoiseManifest.load(tmp_path / "text.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="no noise manifest"):
        NoiseManifest.load(tmp_path / "other.parquet")
    Symmetric(rate=0.3).inject(LABELS, 6).save(tmp_path / "old.parquet")
    table = pq.read_table(tmp_path / "old.parquet")
    record = json.loads(table.schema.metadata[b"noisyml.noise"])
    for change, words in [
        ({"format": 0}, "manifest format 0"),
        ({"params": None}, "it lacks .params."),
    ]:
        changed = {key: value for key, value in {**record, **change}.items() if value is not None}
        metadata = {b"noisyml.noise": json.dumps(changed).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "old.parquet")
        with pytest.raises(UserError, match=words):
            NoiseManifest.load(tmp_path / "old.parquet")


def test_manifest_in_place_of_an_injector(tmp_path: Path) -> None:
    path = tmp_path / "noise.parquet"
    made = Symmetric(rate=0.3, seed=4).inject(LABELS, 6, keys=KEYS)
    made.save(path)
    again = FromManifest(path=str(path)).inject(LABELS, 6, keys=KEYS)
    assert again.sha256 == made.sha256
    assert again.injector == "symmetric"


def test_other_splits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.parquet"
    Symmetric(rate=0.3).inject(LABELS, 6, keys=KEYS).save(path)
    stored = FromManifest(path=str(path))
    with pytest.raises(UserError, match="describes 120 samples but the training split has 60"):
        stored.inject(LABELS[:60], 6, keys=KEYS[:60])
    other = LABELS.copy()
    other[7] = (other[7] + 1) % 6
    with pytest.raises(UserError, match=r"1 of \d+ differ, the first at sample 7"):
        stored.inject(other, 6, keys=KEYS)
    with pytest.raises(UserError, match="other samples: sample 0"):
        stored.inject(LABELS, 6, keys=KEYS[::-1])
    with pytest.raises(UserError, match="made for 6 classes but the data set has 7"):
        stored.inject(LABELS, 7, keys=KEYS)


def test_states_and_counts() -> None:
    manifest = NoiseManifest(
        observed=[0, 1, 1, 0, 1],
        clean=[0, 0, -1, -1, 1],
        changed=[False, True, True, False, False],
        source_index=[-1, -1, 17, -1, -1],
        num_classes=2,
        injector="test",
    )
    state = SampleState
    assert manifest.state.tolist() == [
        state.CLEAN,
        state.CLOSED,
        state.OPEN,
        state.UNKNOWN,
        state.CLEAN,
    ]
    assert not manifest.truth_known
    assert np.isnan(manifest.actual_rate)
    assert manifest.count_matrix().tolist() == [[1, 1], [0, 1]]
    part = manifest.take(np.array([4, 2]))
    assert part.observed.tolist() == [1, 1]
    assert part.source_index.tolist() == [-1, 17]
    assert part.index.tolist() == [0, 1]
    assert part.actual_rate == 0.5
    unknown = part.with_unknown_truth()
    assert unknown.observed.tolist() == [1, 1]
    assert not unknown.truth_known


def test_arrays_are_read_only_copies() -> None:
    labels = LABELS.copy()
    manifest = NoNoise().inject(labels, 6)
    labels[0] = (labels[0] + 1) % 6
    assert manifest.observed[0] == LABELS[0]
    with pytest.raises(ValueError, match="read-only"):
        manifest.observed[0] = 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clean": [0]}, "differ in length"),
        ({"keys": ["a"]}, "differ in length"),
        ({"observed": [0, 2]}, "observed label"),
        ({"clean": [0, 2]}, "clean label"),
        ({"class_source": [1]}, "class sources"),
        ({"params": {"a": object()}}, "cannot be recorded"),
    ],
)
def test_inconsistent_manifests_are_refused(change: dict, words: str) -> None:
    good = {
        "observed": [0, 1],
        "clean": [0, 1],
        "changed": [False, False],
        "num_classes": 2,
        "injector": "test",
    }
    NoiseManifest(**good)
    with pytest.raises((ValueError, TypeError), match=words):
        NoiseManifest(**{**good, **change})
