"""Auditing labels, as typed."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from support.browser import PROGRAM, Browser
from support.shell import TINY

from noisyml.apps import clean
from noisyml.audit.steps import StoredSteps

#: Seconds of work: pixels of a perceptron with random weights, few folds.
SMALL = [
    "backbone=mlp",
    "backbone.hidden_features=[64]",
    "transform.size=8",
    "transform.colour=grey",
    "folds=4",
    "neighbours=10",
    "gallery_rows=30",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """240 digits in folders of classes, one in six wrong; its name says the truth."""
    root = tmp_path_factory.mktemp("digits")
    rows, true = load_digits(n_class=4, return_X_y=True)
    rng = np.random.default_rng(0)
    labels = true[:240].copy()
    wrong = rng.choice(240, 40, replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 4, 40)) % 4
    for i, label in enumerate(labels):
        file = root / f"digit_{label}" / f"{true[i]}-{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray((rows[i].reshape(8, 8) * 15).astype(np.uint8)).save(file)
    (root / "digit_0" / "broken.png").write_bytes(b"no picture")
    return root


def test_a_folder_is_judged_reviewed_and_trained_on(shell, folder):
    command = ["clean", "dataset=image_folder", f"dataset.path={folder}", *SMALL]
    run = shell.folder / "audit"
    status, out = shell(*command, f"hydra.run.dir={run}", "export=[cleanlab]")
    assert status == 0, out
    assert "240 rows of 4 classes judged" in out
    assert "1 images that cannot be decoded" in out
    issues = pd.read_csv(run / "issues.csv")
    assert len(issues) == 240
    assert set(issues["split"]) == {"train", "val", "test"}
    truth = issues["path"].str.extract(r"/(\d)-\d+\.png$")[0]
    wrong = "digit_" + truth != issues["given"]
    assert wrong.sum() == 40
    assert wrong[:40].mean() > 0.7
    assert ("digit_" + truth == issues["suggested"])[wrong].mean() > 0.8
    summary = json.loads((run / "summary.json").read_text())
    assert abs(summary["noise_rate"] - 1 / 6) < 0.06
    assert (run / "gallery.html").is_file()
    assert (run / "cleanlab_issues.csv").is_file()
    # A finished audit is left as it is.
    status, out = shell("clean", f"resume={run}")
    assert status == 0
    assert "is finished already" in out

    review = shell.folder / "decisions.csv"
    pd.DataFrame(
        {"path": issues["path"][:2], "decision": ["drop", "relabel"], "label": ["", "digit_3"]}
    ).to_csv(review, index=False)
    status, out = shell("clean", "apply", f"decisions={review}", f"run={run}")
    assert status == 0, out
    assert "train on it: noisyml train dataset=csv" in out
    labels = pd.read_csv(run / "cleaned.csv").set_index("path")["label"]
    assert issues["path"][0] not in labels.index
    assert labels[issues["path"][1]] == "digit_3"
    tiny = [word for word in TINY if not word.startswith(("noise", "dataset"))]
    train = [*tiny, "dataset=csv", f"dataset.path={run / 'cleaned.csv'}", "trainer.max_epochs=1"]
    status, out = shell("train", *train, "noise=none", "transform=square", "transform.size=8")
    assert status == 0, out

    # What was reviewed is known in a second round, and another table is compared.
    again = shell.folder / "again"
    more = [f"decisions={review}", f"against={run / 'cleaned.csv'}", "gallery_rows=0"]
    status, out = shell(*command, f"hydra.run.dir={again}", *more)
    assert status == 0, out
    second = pd.read_csv(again / "issues.csv").set_index("path")
    expected = 0.0 if issues["given"][1] == "digit_3" else 1.0
    assert second["p_wrong"][issues["path"][1]] == expected
    assert (again / "against.csv").is_file()
    assert not (again / "gallery.html").exists()


def test_features_that_tell_nothing_are_warned_of(shell, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(160):
        file = tmp_path / f"class_{i % 4}" / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
    run = shell.folder / "nothing"
    command = ["clean", "dataset=image_folder", f"dataset.path={tmp_path}", *SMALL, "scores=null"]
    status, out = shell(*command, f"hydra.run.dir={run}")
    assert status == 0, out
    assert "near chance: do not trust this list" in out
    assert json.loads((run / "summary.json").read_text())["trustworthy"] is False
    assert '"warn": true' in (run / "gallery.html").read_text()


def test_a_killed_audit_goes_on(shell, folder, monkeypatch):
    run = shell.folder / "audit"
    command = ["clean", f"dataset.path={folder}", *SMALL, f"hydra.run.dir={run}"]
    compute = StoredSteps.__call__
    seen = []

    def stop(self, name, make):
        seen.append(name)
        if name == "round_2":
            raise KeyboardInterrupt
        return compute(self, name, make)

    with monkeypatch.context() as patch:
        patch.setattr(StoredSteps, "__call__", stop)
        assert shell(*command)[0] == 130
    made = {file.stem: file.stat().st_mtime_ns for file in (run / "steps").iterdir()}
    assert set(made) == {"neighbours", "round_1"}
    status, out = shell("clean", f"resume={run}")
    assert status == 0, out
    after = {file.stem: file.stat().st_mtime_ns for file in (run / "steps").iterdir()}
    assert {name: after[name] for name in made} == made
    assert (run / "issues.csv").is_file()


def test_several_labels_and_captions_of_a_table_are_judged(shell, folder):
    """Digits with a class and a parity each, and with a caption; some of both are wrong."""
    files = sorted(folder.glob("*/*-*.png"))
    truth = [int(file.name[0]) for file in files]
    rng = np.random.default_rng(0)
    wrong = rng.choice(240, 30, replace=False)
    said = np.array(truth)
    said[wrong] = (said[wrong] + rng.integers(1, 4, 30)) % 4
    words = ("naught", "one", "two", "three")
    table = pd.DataFrame(
        {
            "path": [str(file) for file in files],
            "labels": [
                f"{words[d]};{('even', 'odd')[t % 2]}" for d, t in zip(said, truth, strict=True)
            ],
            "caption": [f"a drawn {words[d]} on paper {i % 3}" for i, d in enumerate(said)],
        }
    )
    table.to_csv(shell.folder / "table.csv", index=False)
    for kind, column in (("csv", "labels"), ("csv_captions", "caption")):
        run = shell.folder / kind
        command = ["clean", f"dataset={kind}", f"dataset.path={shell.folder / 'table.csv'}"]
        status, out = shell(*command, *SMALL, f"hydra.run.dir={run}")
        assert status == 0, out
        assert "240 rows" in out
        issues = pd.read_csv(run / "issues.csv", keep_default_na=False)
        marked = issues["path"].isin(table["path"][wrong])
        assert marked[:30].mean() > 0.6
        assert set(pd.read_csv(run / "cleaned.csv")) == {"path", column, "split"}
        page = (run / "gallery.html").read_text()
        assert f'"several": {"true" if column == "labels" else "false"}' in page
    entries = pd.read_csv(shell.folder / "csv" / "entries.csv")
    assert set(entries["issue"]) == {"missing", "superfluous"}


def test_scores_of_others_become_columns(shell, folder):
    files = sorted(folder.glob("*/*-*.png"))
    table = pd.DataFrame({"path": [str(f) for f in files], "label": [f.parent.name for f in files]})
    table.to_csv(shell.folder / "table.csv", index=False)
    data = ["dataset=csv", f"dataset.path={shell.folder / 'table.csv'}"]
    tiny = [word for word in TINY if not word.startswith(("noise", "dataset", "head"))]
    run = shell.folder / "trained"
    more = ["method=classification", "selector=aum", "selector.warmup_epochs=1", "noise=none"]
    more += ["trainer.max_epochs=2", "transform=square", "transform.size=8"]
    status, out = shell("train", *tiny, *data, *more, f"hydra.run.dir={run}")
    assert status == 0, out
    names = sorted({f.parent.name for f in files})
    given = np.eye(4)[[names.index(f.parent.name) for f in files]] * 0.6 + 0.1
    own = pd.DataFrame(given, columns=names).assign(path=table["path"])
    own.to_csv(shell.folder / "p.csv", index=False)
    audit = shell.folder / "audit"
    words = [f"trained={run}", f"probabilities={shell.folder / 'p.csv'}", "rank_by=aum"]
    words += ["planted_errors=0", "gallery_rows=0"]
    status, out = shell("clean", *data, *SMALL, *words, f"hydra.run.dir={audit}")
    assert status == 0, out
    issues = pd.read_csv(audit / "issues.csv")
    assert {"aum", "learnt", "forgetting", "loss_mixture", "wann", "simifeat"} <= set(issues)
    assert (np.diff(issues["aum"]) >= 0).all()
    assert set(issues["split"][issues["trained"].notna()]) == {"train"}
    assert issues["self_confidence"].to_numpy() == pytest.approx(0.7)
    status, out = shell("clean", *data, *SMALL, "rank_by=amu", f"hydra.run.dir={audit}2")
    assert status == 2
    assert "rank_by=amu is no score of this audit. Did you mean 'aum'?" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["drop_above=2"], "drop_above=2 must be a number from 0 to 1"),
        (["folds=1"], "folds=1"),
        (["export=[clenlab]"], "clenlab"),
        (["decisions=nothing.csv"], "There is no nothing.csv: decisions= is a file."),
        (["splits=[tset]"], "has no split 'tset'. Did you mean 'test'?"),
        (["dataset.path=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_told_in_one_sentence(shell, folder, words, message):
    status, out = shell("clean", f"dataset.path={folder}", *SMALL, *words)
    assert status == 2
    assert message in out


def test_apply_tells_what_it_needs(shell):
    status, out = shell("clean", "apply")
    assert status == 2
    assert "needs decisions=FILE" in out
    status, out = shell("clean", "apply", "decision=x")
    assert status == 2
    assert "does not know 'decision=x'. Did you mean 'decisions'?" in out


def test_applying_says_what_it_takes(capsys):
    assert clean.main(["apply", "--help"]) == 0
    assert "decisions=FILE [run=DIR] [out=FILE]" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="there is no browser")
def test_a_review_by_keyboard_is_saved_applied_and_trained_on(shell, folder):
    run, saved = shell.folder / "reviewed", shell.folder / "saved"
    wide = [word for word in SMALL if not word.startswith("gallery_rows")]
    command = ["clean", "dataset=image_folder", f"dataset.path={folder}", *wide]
    status, out = shell(*command, f"hydra.run.dir={run}", "gallery_rows=60")
    assert status == 0, out
    browser = Browser(run / "gallery.html", 1280, 900)
    try:
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(saved))
        items = browser.ask("data.items.map((i) => [i.path, i.given, i.suggested])")
        assert len(items) == 60
        found = 0
        for path, given, suggested in items:
            truth = "digit_" + path.split("/")[-1][0]
            found += given != truth
            if given == truth:
                browser.key("k", 75)
            elif suggested == truth:
                browser.key("Enter", 13)
            else:
                browser.key("d", 68)
        browser.key("s", 83)
        browser.ask("new Promise((r) => setTimeout(r, 1500))")
        assert browser.errors == []
    finally:
        browser.close()
    review = saved / "decisions.csv"
    assert list(pd.read_csv(review)["path"]) == [path for path, *_ in items]

    status, out = shell("clean", "apply", f"decisions={review}", f"run={run}")
    assert status == 0, out
    labels = pd.read_csv(run / "cleaned.csv").set_index("path")["label"]
    truths = "digit_" + labels.index.str.extract(r"/(\d)-\d+\.png$")[0].to_numpy()
    # Of the 40 wrong labels those are left that the first 60 rows did not show.
    assert found >= 36
    assert (labels.to_numpy() != truths).sum() == 40 - found
    tiny = [word for word in TINY if not word.startswith(("noise", "dataset"))]
    train = [*tiny, "dataset=csv", f"dataset.path={run / 'cleaned.csv'}", "trainer.max_epochs=1"]
    status, out = shell("train", *train, "noise=none", "transform=square", "transform.size=8")
    assert status == 0, out
