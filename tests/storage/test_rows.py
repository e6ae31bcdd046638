"""Rows on disk: a file of NumPy, or what `noisyml embed` wrote."""

import numpy as np
import pytest

from noisyml.errors import UserError
from noisyml.storage.rows import read_rows


def split(folder, rows):
    folder.mkdir(parents=True)
    (folder / "index.json").write_text("{}")
    for number, part in enumerate(np.array_split(rows, 3)):
        np.save(folder / f"{number:05}.npy", part)


def test_rows_come_from_files_and_folders(tmp_path):
    rows = np.arange(24, dtype=np.float32).reshape(8, 3)
    np.save(tmp_path / "rows.npy", rows)
    assert np.array_equal(read_rows(tmp_path / "rows.npy"), rows)
    split(tmp_path / "embeddings" / "test", rows.astype(np.float16))
    for folder in (tmp_path, tmp_path / "embeddings", tmp_path / "embeddings" / "test"):
        assert np.array_equal(read_rows(folder), rows)
    split(tmp_path / "embeddings" / "train", rows + 1)
    assert np.array_equal(read_rows(tmp_path), rows + 1)


def test_what_holds_no_rows_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no whole split"):
        read_rows(tmp_path)
    np.save(tmp_path / "rows.npy", np.arange(3))
    with pytest.raises(UserError, match=r"holds int64 \[3\], and rows of floats"):
        read_rows(tmp_path / "rows.npy")
    for name in ("val", "test"):
        split(tmp_path / "embeddings" / name, np.ones((3, 2), np.float32))
    with pytest.raises(UserError, match="holds the splits test, val: name the folder"):
        read_rows(tmp_path)
