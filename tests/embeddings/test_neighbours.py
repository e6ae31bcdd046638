"""Neighbours on disk: what is written is what is read, and damage is said in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from noisyml.checks import ArgumentError
from noisyml.embeddings.neighbours import read_neighbours, write_neighbours
from noisyml.errors import UserError
from noisyml.similarity.approximate import search as approximate
from noisyml.storage import unfinished


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)


def test_neighbours_are_read_as_they_were_written(tmp_path: Path, rows: np.ndarray) -> None:
    write_neighbours(rows, tmp_path, k=3, metric="l2")
    found = read_neighbours(tmp_path)
    squares = ((rows[:, None].astype(np.float64) - rows) ** 2).sum(2)
    np.fill_diagonal(squares, np.inf)
    expected = squares.argsort(1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found.index, expected)
    np.testing.assert_allclose(found.scores, -np.take_along_axis(squares, expected, 1), rtol=1e-6)
    assert (len(found), found.gallery_rows, found.facts["metric"]) == (40, 40, "l2")
    assert isinstance(found.index, np.memmap)


def test_a_gallery_has_its_own_numbers(tmp_path: Path, rows: np.ndarray) -> None:
    write_neighbours(rows[:4], tmp_path, k=1, gallery=rows)
    found = read_neighbours(str(tmp_path))
    assert found.index.tolist() == [[0], [1], [2], [3]]
    assert (len(found), found.gallery_rows) == (4, 40)


def test_a_folder_without_neighbours_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no neighbours: give the folder that `noisyml knn`"):
        read_neighbours(tmp_path)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "index.json").write_text("{"), "index.json cannot be read"),
        (lambda folder: (folder / "index.json").write_text("{}"), "index.json cannot be read"),
        (lambda folder: (folder / "scores.npy").unlink(), "scores.npy cannot be read"),
        (lambda folder: (folder / "neighbours.npy").write_bytes(b"no"), "neighbours.npy cannot be"),
        (
            lambda folder: np.save(folder / "scores.npy", np.zeros((40, 2), np.float32)),
            r"has shape \[40, 2\], but index.json beside it says \[40, 3\]",
        ),
    ],
)
def test_damage_is_one_sentence(tmp_path: Path, rows: np.ndarray, damage, sentence: str) -> None:
    write_neighbours(rows, tmp_path, k=3)
    damage(tmp_path)
    with pytest.raises(UserError, match=sentence):
        read_neighbours(tmp_path)


def test_another_format_is_refused(tmp_path: Path, rows: np.ndarray) -> None:
    write_neighbours(rows, tmp_path, k=3)
    facts = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(UserError, match="format 99, but this version of noisyml reads format 1"):
        read_neighbours(tmp_path)


def test_values_that_no_search_can_have_are_refused(tmp_path: Path, rows: np.ndarray) -> None:
    with pytest.raises(ArgumentError, match="index=ivff must be exact, ivf, ivfpq or hnsw"):
        write_neighbours(rows, tmp_path, k=3, index="ivff")
    with pytest.raises(ArgumentError, match="k=0 must be a whole number of at least 1"):
        write_neighbours(rows, tmp_path, k=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("gallery", [False, True])
def test_an_approximate_search_that_was_killed_goes_on(tmp_path, monkeypatch, gallery):
    monkeypatch.setattr(unfinished, "_SAVE_EVERY", 0.0)
    monkeypatch.setattr(unfinished, "_SAVE_SHARE", 0.0)
    monkeypatch.setattr(approximate, "_QUERIES_AT_ONCE", {"torch": 50, "faiss": 50})
    rows = np.random.default_rng(3).normal(size=(400, 6)).astype(np.float32)
    asked = {"k": 3, "index": "ivf", "gallery": rows[100:] if gallery else None}
    write_neighbours(rows, tmp_path / "whole", **asked)
    save, saves = unfinished.Unfinished.save, []

    def killed_after_saving(self, arrays):
        save(self, arrays)
        saves.append(int(arrays["done"]))
        if len(saves) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(unfinished.Unfinished, "save", killed_after_saving)
        with pytest.raises(KeyboardInterrupt):
            write_neighbours(rows, tmp_path / "killed", **asked)
    assert [file.name for file in (tmp_path / "killed").iterdir()] == ["search.npz"]
    saves.clear()
    monkeypatch.setattr(unfinished.Unfinished, "save", killed_after_saving)
    with pytest.raises(KeyboardInterrupt):
        write_neighbours(rows, tmp_path / "killed", **asked)
    assert saves == [200, 250, 300]
    monkeypatch.setattr(unfinished.Unfinished, "save", save)
    write_neighbours(rows, tmp_path / "killed", **asked)
    found, whole = (read_neighbours(tmp_path / name) for name in ("killed", "whole"))
    np.testing.assert_array_equal(found.index, whole.index)
    np.testing.assert_array_equal(found.scores, whole.scores)
    assert found.facts["recall"] == whole.facts["recall"]
    assert found.facts["backend"] == "faiss"
