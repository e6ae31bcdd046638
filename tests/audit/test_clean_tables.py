"""Rows, flags, tables, doors and the gallery of an audit, on 160 drawn pictures."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from noisyml.audit import doors
from noisyml.audit.flags import mixed_classes, near_duplicates, remarks_on, unlike_any_class
from noisyml.audit.gallery import content, write_gallery
from noisyml.audit.issues import (
    checked_reviews,
    cleaned,
    compared,
    decide,
    with_reviews,
)
from noisyml.audit.report import (
    KINDS,
    AuditSettings,
    apply_reviews,
    audit,
    read_reviews,
    read_table,
    reviews_in,
    write_audit,
)
from noisyml.audit.rows import StackedRows, collect_rows
from noisyml.data.base import Split
from noisyml.data.inputs import FileImages
from noisyml.errors import UserError


def known_classes(data, reviews, source):
    return KINDS["single"].known(data, checked_reviews(reviews, source), source, data.paths)


CLASSES = ["<b>disc</b>", "square", "stripe"]
SETTINGS = AuditSettings(neighbours=8, folds=4, gallery_rows=20)


def drawn(kind, rng):
    picture = Image.new("L", (24, 24), 10)
    pen = ImageDraw.Draw(picture)
    x, y = rng.integers(2, 8, 2).tolist()
    box = (x, y, x + 13, y + 13)
    if kind == 0:
        pen.ellipse(box, fill=230)
    elif kind == 1:
        pen.rectangle(box, fill=230)
    else:
        for step in range(0, 24, 6):
            pen.line((0, step + y % 4, 24, step + y % 4), fill=230, width=2)
    return picture


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two splits of pictures; one in eight labels is wrong, one picture is there twice."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    true = np.arange(160) % 3
    labels = true.copy()
    wrong = rng.choice(160, 20, replace=False)
    labels[wrong] = (true[wrong] + rng.integers(1, 3, 20)) % 3
    paths, pixels = [], []
    for i, kind in enumerate(true):
        picture = drawn(kind, rng)
        if i == 150:
            picture = Image.open(root / paths[3]).convert("L")
        if i == 151:
            picture = Image.new("L", (24, 24))
        paths.append(f"{i:03d}=x.png")
        picture.save(root / paths[-1])
        pixels.append(np.asarray(picture, dtype=np.float32).ravel() + 1)
    pixels = np.stack(pixels)
    splits = {}
    for name, part in (("train", np.arange(110)), ("test", np.arange(110, 160))):
        own = [paths[i] for i in part]
        inputs = FileImages(own, str(root))
        splits[name] = Split(name, inputs, labels[part], CLASSES, own, name)
    lost = {"train": np.array([7]), "test": np.array([], dtype=np.int64)}
    features = {"train": pixels[:110], "test": pixels[110:]}
    found = collect_rows(splits, lambda split: (features[split.name], lost[split.name]))
    return found, np.delete(true, 7)


@pytest.fixture(scope="module")
def found(rows, tmp_path_factory):
    return audit(rows[0], SETTINGS, tmp_path_factory.mktemp("audit"))


def test_all_rows_of_all_splits_are_there_but_broken_ones(rows):
    data, _ = rows
    assert len(data) == 159
    assert data.broken == [("train", "007=x.png")]
    assert data.split[108] == "train"
    assert data.split[109] == "test"
    assert data.place[109] == 0
    assert data.paths[109].endswith("110=x.png")
    assert data.digest() != replace(data, labels=data.labels[::-1]).digest()


def test_matrices_are_read_as_if_they_lay_one_below_the_other():
    parts = [np.arange(8.0).reshape(4, 2), np.ones((1, 2)), -np.arange(6.0).reshape(3, 2)]
    whole, stacked = np.concatenate(parts), StackedRows(parts)
    assert (stacked.shape, len(stacked)) == ((8, 2), 8)
    np.testing.assert_array_equal(stacked[3:7], whole[3:7])
    np.testing.assert_array_equal(stacked[6:99], whole[6:99])
    some = np.array([7, 0, 4, 4, 3])
    np.testing.assert_array_equal(stacked[some], whole[some])


def test_one_class_or_another_kind_of_labels_cannot_be_judged(rows):
    data, _ = rows
    inputs = data.inputs["test"]
    one = Split("train", inputs, np.zeros(50, np.int64), CLASSES, inputs.paths, "x")
    with pytest.raises(UserError, match="All rows have the label '<b>disc</b>'"):
        collect_rows({"train": one}, lambda split: (np.ones((50, 2)), np.array([], int)))


@pytest.mark.long
def test_every_row_has_a_line_with_reasons_and_the_wrong_ones_come_first(rows, found):
    data, true = rows
    issues = found.issues
    assert sorted(issues["row"]) == list(range(159))
    wrong = data.labels != true
    first = issues["row"].to_numpy()[: wrong.sum()]
    assert wrong[first].mean() > 0.7
    assert (np.diff(issues["p_wrong"]) <= 0).all()
    top = issues.iloc[0]
    assert re.match(r"\d of 8 nearest rows say .*, \d .*; a classifier", top["reasons"])
    summary = found.summary
    assert summary["rows"] == 159
    assert summary["splits"] == {"train": 109, "test": 50}
    assert summary["noise_rate"] == pytest.approx(wrong.mean(), abs=0.06)
    assert "errors planted on purpose" in summary["planted_check"]
    assert summary["trustworthy"] is True


def test_twins_and_oddities_are_flagged(rows, found):
    data, _ = rows
    twin = data.keys.index("150=x.png")
    pairs = found.duplicates
    pair = pairs[(pairs["first"] == 3) & (pairs["second"] == twin)].iloc[0]
    assert pair["splits_differ"]
    assert pair["similarity"] == pytest.approx(1, abs=1e-5)
    reason = found.issues.set_index("row")["reasons"]
    assert "nearly the same as 003=x.png" in reason[twin]
    assert "nearly black" in reason[data.keys.index("151=x.png")]


def test_flags_by_hand():
    index = np.array([[1], [0], [1]])
    similarity = np.array([[0.999], [0.999], [0.5]])
    split = np.array(["train", "test", "test"], dtype=object)
    table = near_duplicates(index, similarity, np.array([0, 1, 1]), split, 0.99)
    assert table.to_dict("records") == [
        {
            "first": 0,
            "second": 1,
            "similarity": 0.999,
            "labels_differ": True,
            "splits_differ": True,
        }
    ]
    distance, far = unlike_any_class(np.r_[np.linspace(0.9, 0.95, 50), 0.1][:, None])
    assert far.nonzero()[0].tolist() == [50]
    assert distance[50] == pytest.approx(0.9)
    table = mixed_classes(
        np.array([[90.0, 10], [1, 99]]), np.array([[80.0, 5], [0, 90]]), ["a", "b"]
    )
    assert table.to_dict("records") == [{"true": "a", "label": "b", "rows": 10.0, "share": 0.1}]
    assert remarks_on(Image.new("RGB", (100, 100), "white")) == ["nearly white"]
    assert remarks_on(Image.new("RGB", (100, 100), "grey")) == ["nearly of one colour"]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90), dtype=np.uint8))
    assert remarks_on(noise) == []
    assert remarks_on(noise.resize((8, 8))) == ["only 8 x 8 pixels"]
    ramp = Image.fromarray(np.tile(np.linspace(0, 60, 900).astype(np.uint8), (900, 1)))
    assert remarks_on(ramp) == ["blurred"]


def test_files_are_written_and_a_review_is_applied(rows, found, tmp_path):
    data, _ = rows
    write_audit(found, tmp_path, SETTINGS)
    issues = read_table(tmp_path / "issues.csv")
    assert issues["path"].tolist() == found.issues["path"].tolist()
    np.testing.assert_allclose(issues["p_wrong"], found.issues["p_wrong"], atol=1e-5)
    stored = pd.read_parquet(tmp_path / "issues.parquet")
    np.testing.assert_array_equal(stored["p_wrong"], found.issues["p_wrong"])
    labels = read_table(tmp_path / "cleaned.csv")
    made = found.summary["decisions"]
    assert len(labels) == made["keep"] + made["relabel"] == 159 - made["drop"]
    assert set(labels) == {"path", "label", "split"}
    assert json.loads((tmp_path / "summary.json").read_text())["rows"] == 159
    paths = data.paths
    review = tmp_path / "decisions.csv"
    pd.DataFrame(
        {
            "path": [paths[0], paths[1], paths[2]],
            "decision": ["drop", "relabel", "keep"],
            "label": ["", "stripe", ""],
        }
    ).to_csv(review, index=False)
    file, _, dropped = apply_reviews(tmp_path, review)
    after = read_table(file).set_index("path")["label"]
    assert paths[0] not in after.index
    assert after[paths[1]] == "stripe"
    assert after[paths[2]] == CLASSES[data.labels[2]]
    assert dropped >= 1
    known = known_classes(data, *read_reviews(review))
    assert known[:4].tolist() == [-1, 2, data.labels[2], -1]


def test_thresholds_may_be_switched_off(found):
    assert set(decide(found.issues, None, None)["decision"]) == {"keep"}
    assert len(cleaned(decide(found.issues, None, None))) == 159
    assert "relabel" not in set(decide(found.issues, None, 0.5)["decision"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"file": ["a"]}, "has no column 'path'; it has: file"),
        ({"path": ["a"], "decision": ["kep"]}, "has the decision 'kep'. Did you mean 'keep'?"),
        ({"path": ["a"], "decision": ["relabel"]}, "relabels a without saying as what"),
        ({"path": ["a"], "decision": ["keep"]}, "decides on a, which is not among the rows"),
    ],
)
def test_decisions_that_do_not_fit_are_a_sentence(found, columns, message):
    decisions = decide(found.issues)
    with pytest.raises(UserError, match=re.escape(message)):
        with_reviews(decisions, pd.DataFrame(columns), "mine.csv")


def test_unknown_labels_and_other_folders_are_a_sentence(rows, tmp_path):
    data, _ = rows
    table = pd.DataFrame({"path": [data.paths[0]], "decision": ["relabel"], "label": ["sqare"]})
    with pytest.raises(UserError, match=r"a class that no row has\. Did you mean 'square'"):
        known_classes(data, table, "mine.csv")
    with pytest.raises(UserError, match="holds no audit"):
        apply_reviews(tmp_path, tmp_path / "decisions.csv")


def test_another_table_is_compared_by_path(found):
    other = found.issues[["path", "given"]].rename(columns={"given": "label"}).copy()
    other.loc[0, "label"] = found.issues.loc[0, "suggested"]
    other["path"] = other["path"].str.rsplit("/", n=1).str[-1]
    table = compared(found.issues, other, "other.csv")
    assert len(table) == 1
    assert table["agrees"].tolist() == [True]
    with pytest.raises(UserError, match="have no path in common"):
        compared(found.issues, other.assign(path="x"), "other.csv")


def test_the_doors_write_what_other_tools_read_and_read_their_reviews(rows, found, tmp_path):
    data, _ = rows
    wanted = ["cleanlab", "fiftyone", "label_studio", "cvat", "embedding_atlas"]
    files = doors.write_doors(wanted, tmp_path, found.issues, data, found.judged)
    assert all(file.is_file() for file in files)
    frame = read_table(tmp_path / "cleanlab_issues.csv")
    assert frame["given_label"].tolist() == [CLASSES[label] for label in data.labels]
    back = doors.from_cleanlab(frame, data.paths)
    assert len(back) == int((found.judged.p_wrong > 0.5).sum())
    known = known_classes(data, back, "frame")
    np.testing.assert_array_equal(known >= 0, found.judged.p_wrong > 0.5)
    samples = json.loads((tmp_path / "fiftyone" / "samples.json").read_text())["samples"]
    assert samples[0]["ground_truth"]["label"] == found.issues["given"][0]
    tasks = json.loads((tmp_path / "label_studio_tasks.json").read_text())
    for task, choice, cancelled in zip(
        tasks[:3], ("stripe", None, "square"), (False, False, True), strict=True
    ):
        value = {"from_name": "label", "value": {"choices": [choice]}}
        task["annotations"] = [{"result": [value], "was_cancelled": cancelled}] if choice else []
    export = tmp_path / "export.json"
    export.write_text(json.dumps(tasks[:3]))
    read = reviews_in(export)
    expected = "keep" if tasks[0]["data"]["given"] == "stripe" else "relabel"
    assert read["decision"].tolist() == [expected]
    with pytest.raises(UserError, match="is no export of tasks that noisyml wrote"):
        doors.from_label_studio([{"data": {}}], "export.json")
    with pytest.raises(UserError, match="has no column 'is_label_issue'"):
        doors.from_cleanlab(pd.DataFrame({"x": [1]}))
    atlas = pd.read_parquet(tmp_path / "embedding_atlas.parquet")
    assert {"x", "y", "neighbors", "path"} <= set(atlas)
    assert list(atlas["neighbors"][0]["ids"]) == data_neighbours(found, 0)
    assert len(read_table(tmp_path / "cvat.csv")) == 159


def data_neighbours(found, row):
    return found.judged.index[row, :10].tolist()


def test_the_gallery_is_one_file_that_escapes_what_it_shows(found, tmp_path):
    file = tmp_path / "gallery.html"
    write_gallery(found, file, rows=20)
    page = file.read_text()
    assert "__DATA__" not in page
    assert "<b>disc" not in page
    assert "http://" not in page
    assert "https://" not in page
    told = re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1)
    shown = json.loads(told)
    assert shown == json.loads(json.dumps(content(found, 20)))
    assert len(shown["items"]) == 20
    item = shown["items"][0]
    assert item["picture"].startswith("data:image/jpeg;base64,")
    assert item["p_wrong"] == pytest.approx(found.issues["p_wrong"][0], abs=1e-4)
    assert all(twin["picture"] in shown["pictures"] for twin in item["beside"])
    assert set(shown["classes"]) == set(CLASSES)
