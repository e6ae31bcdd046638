"""Texts that a spreadsheet would calculate."""

from __future__ import annotations

import io

import pandas as pd

from noisyml.runs.artefacts import Artefact, save_artefacts
from noisyml.runs.folder import RunFolder
from noisyml.storage.tables import table_from_spreadsheet

LABELS = ["=1+1", "+x", "-cat", "@home", "\tx", "'=x", "''-y", "cat", "it's", "-1.5", "", None]


def test_labels_are_written_as_text_and_read_back_unchanged(tmp_path):
    table = pd.DataFrame({"label": LABELS, "p_clean": [-0.5] * len(LABELS)})
    save_artefacts(RunFolder(tmp_path), [Artefact("suspects.csv", table, "Suspects")])
    text = (tmp_path / "suspects.csv").read_text()
    written = pd.read_csv(io.StringIO(text), dtype={"label": str}, keep_default_na=False)
    assert [label for label in written["label"] if label[:1] in tuple("=+@\t")] == []
    assert "'-cat" in list(written["label"])
    assert list(written["p_clean"]) == [-0.5] * len(LABELS)
    back = table_from_spreadsheet(written)
    assert list(back["label"]) == [label or "" for label in LABELS]
