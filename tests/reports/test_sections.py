"""Sections about one run: artefacts with a section of their own, and those shown by their kind."""

import json

import numpy as np
import pandas as pd
import pytest
from support.synthetic_runs import RunMaker

from noisyml.reports.report import build_report, write_report
from noisyml.reports.sections.artefacts import run_sections
from noisyml.runs.artefacts import Artefact, save_artefacts


def test_sections_come_in_the_order_of_the_page_and_share_no_file():
    sections = run_sections()
    assert [section.place for section in sections] == [10, 15, 20, 21, 30, 40, 50, 52]
    files = [file for section in sections for file in section.files]
    assert sorted(files) == [
        "class_maps.npz",
        "discovery_map.parquet",
        "embedding_map.parquet",
        "thumbnails.npz",
    ]


@pytest.fixture
def run(maker: RunMaker):
    """A run whose artefacts no section knows."""
    run = maker.run("one", files=False)
    table = pd.DataFrame({"cluster": range(30), "class <b>": [1 / 3] * 30})
    pixels = np.zeros((50, 4, 5, 3), dtype=np.uint8)
    texts = np.array([f"tile {i} <i>" for i in range(50)])
    offered = [
        Artefact("confusion.parquet", table, "After assignment", "Rows are clusters."),
        Artefact("stages.csv", table.head(2), "Stages"),
        Artefact("overlays.npz", {"images": pixels, "text": texts}, "Segmentation"),
        Artefact("weights.npz", {"w": np.ones((3, 4), dtype=np.float32)}, "Weights"),
        Artefact("for_a_spreadsheet.csv", table),
    ]
    save_artefacts(run, offered)
    return run


def test_artefacts_without_a_section_are_shown_by_their_kind(run):
    (detail,) = build_report([run.path]).details
    confusion, stages, weights = detail.tables
    assert confusion.title == "After assignment"
    assert confusion.caption == "Rows are clusters. First 20 of 30 rows."
    assert confusion.headings == ("cluster", "class <b>")
    assert confusion.rows[1] == ("1", "0.3333")
    assert len(confusion.rows) == 20
    assert (stages.caption, len(stages.rows)) == ("", 2)
    assert weights.rows == (("w", "3 × 4", "float32"),)
    (gallery,) = detail.galleries
    assert (gallery.title, gallery.caption) == ("Segmentation", "First 40 of 50 pictures.")
    assert gallery.pictures[0][1] == "tile 0 <i>"
    html = write_report([run.path]).html.read_text()
    assert "<h3>Segmentation</h3>" in html
    assert "tile 0 &lt;i&gt;" in html
    assert '<th scope="col">class &lt;b&gt;</th>' in html
    assert "for_a_spreadsheet" not in html


def test_known_artefacts_are_shown_once(maker: RunMaker):
    run = maker.run("one", files=("class_maps",))
    with np.load(run.path / "class_maps.npz") as arrays:
        save_artefacts(run, [Artefact("class_maps.npz", dict(arrays), "Class activation maps")])
    (detail,) = build_report([run.path]).details
    assert [picture.name for picture in detail.pictures] == ["class_maps"]
    assert not detail.tables


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("confusion.parquet", b"broken", "confusion.parquet cannot be read"),
        ("overlays.npz", b"PK\x03\x04 broken", "overlays.npz cannot be read"),
        ("artefacts.json", b"{", "artefacts.json cannot be read"),
        ("artefacts.json", b'[{"file": "../x", "kind": "table", "title": "t", "caption": ""}]', ""),
    ],
)
def test_a_broken_artefact_is_told_and_the_others_are_shown(run, file, content, says):
    (run.path / file).write_bytes(content)
    report = build_report([run.path])
    assert any((says or "artefacts.json cannot be read") in notice for notice in report.notices)
    if file == "confusion.parquet":
        assert [table.title for table in report.details[0].tables] == ["Stages", "Weights"]


def test_pictures_without_texts_are_told(run):
    np.savez(run.path / "overlays.npz", images=np.zeros((2, 3, 3), dtype=np.uint8))
    assert any("no pictures with a text" in notice for notice in build_report([run.path]).notices)


def test_stages_are_rows_in_the_order_of_their_plans(maker: RunMaker):
    run = maker.run("one", files=False, metrics={"test/map_at_r": 0.5})
    for name, value in (("teacher", 0.4), ("search", 0.3)):
        maker.run(f"one/stages/{name}", files=False, metrics={"test/map_at_r": value})
    failed = maker.run("one/stages/later", files=False, status={"state": "failed"})
    assert not failed.metrics_file.is_file()
    plans = [{"name": name} for name in ("search", "teacher", "not begun")]
    (run.path / "stages.json").write_text(json.dumps({"stages": plans}))
    (table,) = build_report([run.path]).details[0].tables
    assert table.headings == ("stage", "state", "MAP@R (last)")
    assert table.rows == (
        ("search", "finished", "0.3000"),
        ("teacher", "finished", "0.4000"),
        ("later", "failed", "–"),
        ("this run", "finished", "0.5000"),
    )
    (run.path / "stages.json").write_text("[]")
    assert any("stages.json cannot be read" in n for n in build_report([run.path]).notices)
    (run.path / "stages.json").unlink()
    names = [row[0] for row in build_report([run.path]).details[0].tables[0].rows]
    assert names == ["later", "search", "teacher", "this run"]
