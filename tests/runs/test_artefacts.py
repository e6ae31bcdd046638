"""Artefacts of a run: their files, and the list of what is to be said about them."""

import numpy as np
import pandas as pd
import pytest

from noisyml.runs.artefacts import Artefact, list_artefacts, save_artefacts
from noisyml.runs.folder import RunFolder


def offered():
    table = pd.DataFrame({"label": ["a", "b"], "share": [1 / 3, 0.5]})
    pixels = np.zeros((2, 4, 5), dtype=np.uint8)
    return [
        Artefact("confusion.parquet", table, "Confusion", "After assignment."),
        Artefact("list.csv", table),
        Artefact("overlays.npz", {"images": pixels, "text": np.array(["x", "y"])}, "Overlays"),
        Artefact("maps.npz", {"images": pixels, "maps": np.ones((2, 3, 3))}, "Maps"),
    ]


def test_artefacts_are_written_and_listed_in_order(tmp_path):
    run = RunFolder(tmp_path / "run")
    save_artefacts(run, offered())
    listed = list_artefacts(run)
    assert [(entry.file, entry.kind) for entry in listed] == [
        ("confusion.parquet", "table"),
        ("list.csv", "table"),
        ("overlays.npz", "pictures"),
        ("maps.npz", "arrays"),
    ]
    assert (listed[0].title, listed[0].caption) == ("Confusion", "After assignment.")
    assert (run.path / "list.csv").read_text() == "label,share\na,0.333333\nb,0.5\n"
    assert pd.read_parquet(run.path / "confusion.parquet")["share"].tolist() == [1 / 3, 0.5]
    with np.load(run.path / "maps.npz") as arrays:
        assert arrays["maps"].shape == (2, 3, 3)
    assert not list(run.path.glob("*.tmp"))


def test_a_later_artefact_of_the_same_file_replaces_the_earlier(tmp_path):
    run = RunFolder(tmp_path)
    save_artefacts(run, offered())
    newer = Artefact("list.csv", pd.DataFrame({"n": [1]}), "Now with a title")
    save_artefacts(run, [newer])
    assert [entry.file for entry in list_artefacts(run)][1] == "list.csv"
    assert list_artefacts(run)[1].title == "Now with a title"
    assert (run.path / "list.csv").read_text() == "n\n1\n"


def test_without_artefacts_there_is_no_list(tmp_path):
    run = RunFolder(tmp_path)
    save_artefacts(run, [])
    assert list_artefacts(run) == []
    assert not run.artefacts_file.exists()


@pytest.mark.parametrize("text", ["{", '[{"file": "a.csv"}]', "[1]"])
def test_a_broken_list_is_a_value_error(tmp_path, text):
    run = RunFolder(tmp_path)
    run.artefacts_file.write_text(text)
    with pytest.raises(ValueError):
        list_artefacts(run)


@pytest.mark.parametrize("file", ["a.npz", "folder/a.csv", "a"])
def test_file_and_content_must_fit(file):
    with pytest.raises(ValueError, match=r"NAME\.parquet or NAME\.csv"):
        Artefact(file, pd.DataFrame())


def test_objects_are_never_pickled(tmp_path):
    with pytest.raises(ValueError):
        save_artefacts(
            RunFolder(tmp_path), [Artefact("a.npz", {"x": np.array([{}], dtype=object)})]
        )
    assert not (tmp_path / "a.npz").exists()
