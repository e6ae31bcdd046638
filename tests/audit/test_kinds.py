"""Audits of several labels per row and of captions, and what others say of rows."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from noisyml.audit import doors
from noisyml.audit.gallery import content
from noisyml.audit.issues import cleaned, compared, decide
from noisyml.audit.kinds.captions import exchanged, judge_pairs, share_of_wrong
from noisyml.audit.kinds.entries import judge_entries
from noisyml.audit.outside import read_probabilities
from noisyml.audit.report import AuditSettings, apply_reviews, audit, read_table, write_audit
from noisyml.audit.rows import Rows
from noisyml.audit.scores.entries import fit_entry_channels
from noisyml.audit.scores.folds import logistic_regression
from noisyml.audit.scores.watched import watched_scores
from noisyml.data.vectors import VectorInputs, VectorRows
from noisyml.errors import UserError
from noisyml.metrics.label_trust import auroc

SETTINGS = AuditSettings(neighbours=10, folds=4, look_at_images=False, scores=[])
NAMES = ["ant", "bee", "cat"]


def score(values, wrong):
    import torch

    return auroc(torch.from_numpy(np.asarray(values, float)), torch.from_numpy(wrong))


def as_rows(features, labels, names):
    n = len(features)
    return Rows(
        keys=[f"row{i}" for i in range(n)],
        labels=labels,
        class_names=names,
        split=np.full(n, "train", dtype=object),
        place=np.arange(n),
        features=features,
        inputs={"train": VectorInputs(VectorRows(features))},
        broken=[],
    )


@pytest.fixture(scope="module")
def several():
    """300 rows of three classes that may go together; one entry in twelve is wrong."""
    rng = np.random.default_rng(0)
    true = (rng.random((300, 3)) < 0.4).astype(np.uint8)
    middle = rng.normal(size=(3, 12)) * 3
    features = (true @ middle + rng.normal(size=(300, 12)) + 6).astype(np.float32)
    wrong = rng.random(true.shape) < 1 / 12
    return as_rows(features, np.where(wrong, 1 - true, true).astype(np.uint8), NAMES), wrong


@pytest.fixture(scope="module")
def entries(several, tmp_path_factory):
    return audit(several[0], SETTINGS, tmp_path_factory.mktemp("entries"))


@pytest.fixture(scope="module")
def pairs():
    """300 images of six things with captions that name them; one in six was exchanged."""
    rng = np.random.default_rng(1)
    things = ["red disc", "blue disc", "red square", "blue square", "green star", "grey star"]
    kind = rng.integers(0, 6, 300)
    features = rng.normal(size=(6, 16))[kind] * 2 + rng.normal(size=(300, 16))
    captions = [
        f"{rng.choice(['a', 'one', 'the'])} {things[k]} {rng.choice(['here', 'there'])}"
        for k in kind
    ]
    captions = np.asarray(captions, dtype=object)
    chosen = rng.choice(300, 50, replace=False)
    observed = captions.copy()
    observed[chosen] = captions[np.roll(chosen, 1)]
    wrong = np.asarray([things[k] not in text for k, text in zip(kind, observed, strict=True)])
    return as_rows(features.astype(np.float32), observed, []), wrong, [things[k] for k in kind]


def test_one_regression_per_class_is_scikit_learns():
    import torch

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 4)).astype(np.float32)
    marks = (rows[:, :2] + rng.normal(size=(80, 2)) > 0).astype(np.float32)
    found = logistic_regression(
        torch.from_numpy(rows), torch.from_numpy(marks), 2, torch.ones(80), exclusive=False
    )
    for label in range(2):
        other = LogisticRegression(tol=1e-8).fit(rows, marks[:, label])
        np.testing.assert_allclose(found[:-1, label], other.coef_[0], atol=2e-3)
        np.testing.assert_allclose(found[-1, label], other.intercept_[0], atol=2e-3)


def test_a_channel_of_entries_is_bayes_rule_of_its_shares():
    rng = np.random.default_rng(0)
    q = rng.random((50, 2))
    labels = (rng.random((50, 2)) < q).astype(int)
    found = fit_entry_channels(q, labels)
    has = q * np.where(labels, 1 - found.flips[1], found.flips[1])
    not_ = (1 - q) * np.where(labels, found.flips[0], 1 - found.flips[0])
    np.testing.assert_allclose(found.posterior, has / (has + not_), atol=1e-5)
    known = np.full((50, 2), -1)
    known[3] = [1, 0]
    np.testing.assert_array_equal(fit_entry_channels(q, labels, known=known).posterior[3], [1, 0])


@pytest.mark.long
def test_wrong_entries_are_found_and_named(several, entries):
    rows, wrong = several
    judged = entries.judged
    values = judged.wide["p_wrong_by_class"]
    assert score(values.ravel(), wrong.ravel()) > 0.93
    assert judged.noise_rate.value == pytest.approx(wrong.mean(), abs=0.02)
    assert judged.noise_rate.low < judged.noise_rate.value < judged.noise_rate.high
    assert score(judged.p_wrong, wrong.any(axis=1)) > 0.9
    first = entries.issues.iloc[0]
    assert first["missing"] or first["superfluous"]
    assert "may be" in first["reasons"]
    table = judged.tables["entries.csv"]
    assert set(table["issue"]) == {"missing", "superfluous"}
    assert ((table["issue"] == "superfluous") == (table["given"] == 1)).all()
    row = rows.keys.index(table["path"][0])
    assert wrong[row, NAMES.index(table["label"][0])]
    assert entries.check is not None
    assert not entries.check.near_chance


def test_labels_of_several_are_decided_by_entry_and_written_for_training(
    several, entries, tmp_path
):
    _, wrong = several
    write_audit(entries, tmp_path, SETTINGS)
    labels = read_table(tmp_path / "cleaned.csv")
    assert set(labels) == {"path", "labels", "split"}
    plan = decide(entries.issues, 0.9, None, entries.judged.decide)
    sure = entries.judged.wide["p_wrong_by_class"] >= 0.9
    assert (plan["decision"] == "relabel").sum() == sure.any(axis=1).sum()
    assert wrong[sure].mean() > 0.8
    assert list(cleaned(plan, "labels")) == ["path", "labels", "split"]
    stored = pd.read_parquet(tmp_path / "issues.parquet")
    assert len(stored["p_wrong_by_class"][0]) == 3
    review = tmp_path / "decisions.csv"
    pd.DataFrame(
        {"path": ["row0", "row1"], "decision": ["relabel"] * 2, "label": ["cat; ant", ""]}
    ).to_csv(review, index=False)
    file, _, _ = apply_reviews(tmp_path, review)
    after = read_table(file)
    assert after.set_index("path")["labels"][["row0", "row1"]].tolist() == ["cat; ant", ""]
    assert len(compared(entries.issues, after, "x")) > 0


def test_doors_hold_several_labels(entries):
    issues = entries.issues[entries.issues["given"].str.contains("; ")].iloc[:1]
    given = issues["given"].iloc[0].split("; ")
    sample = doors.to_fiftyone(issues, several=True)["samples"][0]
    assert [c["label"] for c in sample["ground_truth"]["classifications"]] == given
    task = doors.to_label_studio(issues, several=True)[0]
    for chosen, expected in ((given[::-1], ("keep", "")), (["cat"], ("relabel", "cat"))):
        value = {"from_name": "label", "value": {"choices": chosen}}
        export = [{**task, "annotations": [{"result": [value]}]}]
        table = doors.from_label_studio(export, "x")
        assert tuple(table.iloc[0][["decision", "label"]]) == expected


def test_reviewed_entries_are_known(several):
    rows, _ = several
    known = np.full(rows.labels.shape, -1)
    known[:5] = rows.labels[:5]
    found = judge_entries(rows.features, rows.labels, neighbours=10, folds=4, known=known)
    assert not found["p_wrong"][:5].any()


def test_exchanged_captions_differ():
    captions = np.asarray(["a", "a", "b", "c"], dtype=object)
    other = exchanged(captions, 0)
    assert (captions[other] != captions).all()


def test_the_share_of_a_known_component_is_found():
    rng = np.random.default_rng(0)
    null = rng.normal(-1.5, 1, 4000)
    given = np.concatenate([rng.normal(-1.5, 1, 800), rng.normal(1.5, 1, 3200)])
    assert share_of_wrong(given, null) == pytest.approx(0.2, abs=0.03)


@pytest.mark.long
def test_wrong_captions_are_found_and_others_suggested(pairs, tmp_path):
    rows, wrong, truth = pairs
    found = audit(rows, SETTINGS, tmp_path)
    assert score(found.judged.p_wrong, wrong) > 0.95
    assert found.judged.noise_rate.value == pytest.approx(wrong.mean(), abs=0.05)
    right = [text in new for text, new in zip(truth, found.judged.suggested, strict=True)]
    assert np.mean(np.asarray(right)[wrong]) > 0.9
    assert found.check is not None
    assert not found.check.near_chance
    write_audit(found, tmp_path, SETTINGS)
    assert set(read_table(tmp_path / "cleaned.csv")) == {"path", "caption", "split"}
    # A caption of another image is proposed and never taken by a threshold.
    assert "relabel" not in set(read_table(tmp_path / "plan.csv")["decision"])
    review = pd.DataFrame({"path": ["row3"], "decision": ["relabel"], "label": ["a cow"]})
    again = audit(rows, SETTINGS, tmp_path / "again", (review, "mine.csv"))
    assert again.judged.p_wrong[3] == 1.0
    assert again.judged.suggested[3] == "a cow"


def test_pairs_of_chance_look_like_wrong_ones():
    rng = np.random.default_rng(0)
    captions = np.asarray([f"thing {i % 9} of {i % 7}" for i in range(200)], dtype=object)
    found = judge_pairs(rng.normal(size=(200, 8)), captions, neighbours=10, folds=4)
    assert found["rate"] > 0.8


def test_a_watched_training_finds_wrong_labels():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 300)
    features = rng.normal(size=(3, 10))[true] * 2 + rng.normal(size=(300, 10))
    labels = np.where(rng.random(300) < 0.2, (true + 1) % 3, true)
    found = watched_scores(features, labels, 3, epochs=8)
    again = watched_scores(features, labels, 3, epochs=8)
    assert set(found) == {"aum", "learnt", "forgetting", "loss_mixture"}
    for name, values in found.items():
        np.testing.assert_array_equal(values, again[name])
        least = 0.6 if name == "forgetting" else 0.9
        assert score(values, labels == true) > least, name


@pytest.mark.long
def test_probabilities_of_others_are_read_by_path_or_order(several, tmp_path):
    rows, _ = several
    rows = replace(rows, labels=np.arange(300) % 3)
    given = np.random.default_rng(0).dirichlet(np.ones(3), 300)
    np.save(tmp_path / "p.npy", given)
    np.testing.assert_allclose(read_probabilities(tmp_path / "p.npy", rows), given, atol=1e-6)
    back = np.arange(300)[::-1]
    keys = np.asarray([rows.keys[i] for i in back])
    np.savez(tmp_path / "p.npz", keys=keys, probabilities=given[back])
    np.testing.assert_allclose(read_probabilities(tmp_path / "p.npz", rows), given, atol=1e-6)
    table = pd.DataFrame(given, columns=NAMES).assign(path=rows.keys)
    table.to_csv(tmp_path / "p.csv", index=False)
    np.testing.assert_allclose(read_probabilities(tmp_path / "p.csv", rows), given, atol=1e-6)
    # Rows of a carved file are read by their place in it.
    matrix = VectorRows(np.asarray(rows.features), back)
    carved = replace(rows, inputs={"train": VectorInputs(matrix)})
    np.testing.assert_allclose(
        read_probabilities(tmp_path / "p.npy", carved), given[back], atol=1e-6
    )
    np.save(tmp_path / "few.npy", given[:9])
    with pytest.raises(UserError, match="has 9 lines without paths"):
        read_probabilities(tmp_path / "few.npy", rows)
    np.save(tmp_path / "odd.npy", given * 2)
    with pytest.raises(UserError, match="no probabilities"):
        read_probabilities(tmp_path / "odd.npy", rows)
    np.save(tmp_path / "wide.npy", given[:, :2])
    with pytest.raises(UserError, match="a column for each of the 3 classes"):
        read_probabilities(tmp_path / "wide.npy", rows)
    found = audit(rows, replace(SETTINGS, planted_errors=0.0), tmp_path / "a", probabilities=given)
    stored = found.judged.wide["out_of_fold"]
    np.testing.assert_allclose(stored, given, atol=1e-6)


def test_the_gallery_of_several_labels_says_so(entries):
    rows = entries.rows
    shown = content(replace(entries, rows=replace(rows, inputs={"train": Pictures()})), 5)
    assert shown["several"]
    assert shown["classes"] == NAMES
    assert len(shown["items"]) == 5


class Pictures:
    kind = "images"

    def load(self, index):
        from PIL import Image

        return Image.new("RGB", (8, 8))
