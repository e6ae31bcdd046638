"""EAC as typed: pairs of views, maps in the report, what does not go together, and its claim."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

DIGITS = ["dataset=digits", "dataset.mirrored=true", "noise=symmetric", "noise.rate=0.3"]
SMALL = [*DIGITS, "backbone.widths=[16,32]", "backbone.halve_after=[1]", "trainer.max_epochs=2"]


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def printed(said):
    return json.loads(said[said.index("{") : said.rindex("}") + 1])


def test_train_report_and_evaluate(shell):
    status, said = shell("train", *SMALL, "method=eac", "optimizer.lr=0.01")
    assert status == 0, said
    (run,) = shell.runs()
    history = pd.read_csv(run / "history.csv").dropna(subset="train/loss")
    losses = history["train/loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    weight = yaml.safe_load((run / "config.yaml").read_text())["method"]["consistency_weight"]
    terms = [history[f"train/loss_{name}"] for name in ("classification", "consistency")]
    assert (terms[1] > 0).all()
    np.testing.assert_allclose(terms[0] + weight * terms[1], losses, rtol=1e-5)
    assert yaml.safe_load((run / "config.yaml").read_text())["transform"]["pair_mode"] == (
        "independent"
    )
    # Where the classifier looks, in samples with right and with wrong labels.
    with np.load(run / "class_maps.npz") as maps:
        assert maps["images"].shape == (10, 8, 8)
        assert maps["given_maps"].shape == maps["answer_maps"].shape == (10, 4, 4)
        right = maps["given_name"] == maps["true_name"]
        assert (right == (maps["kind"] == "label right")).all()
        assert right.tolist() == [True] * 5 + [False] * 5
        same = maps["given_name"] == maps["answer_name"]
        equal = (maps["given_maps"] == maps["answer_maps"]).all(axis=(1, 2))
        assert (same == equal).all()
        # The answer has the highest score of all classes, so more than their mean.
        assert (maps["answer_maps"].mean(axis=(1, 2)) > -1).all()
    assert (run / "plots" / "class_maps.png").is_file()
    assert "Where the classifier looks" in (run / "report.html").read_text()

    # Evaluation is of single, whole images, whatever made the views in training.
    for typed in ([], ["transform=plain"]):
        status, said = shell("evaluate", f"checkpoint={run}", *typed)
        assert status == 0, said
        found = printed(said)["test/accuracy"]
        assert abs(found - metrics(run)["test/accuracy"]) < 1e-9


@pytest.mark.further
def test_plain_classifiers_show_maps_too_and_those_without_maps_none(shell):
    # EAC's own loss on labels may be any loss per sample.
    assert shell("train", *SMALL, "method=eac", "loss=elr", "report=false", "name=elr")[0] == 0
    plain = [*SMALL, "method=classification", "trainer.max_epochs=1", "report=false"]
    assert shell("train", *plain, "noise.rate=0", "name=clean")[0] == 0
    assert shell("train", *plain, "backbone.pooling=max", "name=max")[0] == 0
    runs = {run.parent.name: run for run in shell.runs()}
    with np.load(runs["clean"] / "class_maps.npz") as maps:
        # Without a selector a classifier trusts labels by its own margins.
        assert maps["kind"].tolist() == ["trusted most"] * 5 + ["trusted least"] * 5
    assert not (runs["max"] / "class_maps.npz").exists()


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["method=eac", "transform=plain"], "EAC trains on 2 views of each image, and Image"),
        (["method=classification", "transform=eac"], "Classification trains on one view of each"),
        (["method=eac", "backbone=mlp"], "has no feature maps"),
        (["method=eac", "backbone.frozen=true"], "set backbone.frozen=false"),
        (["method=eac", "head=linear"], "use head=identity head.normalise=false"),
        (["method=eac", "backbone.pooling=gem"], "use backbone.pooling=avg"),
        (["method=eac", "loss=triplet"], "EAC trains with a loss on class scores"),
        (["method=eac", "transform.pair_mode=same"], "transform.pair_mode"),
        (["method=eac", "transform.erase_probability=2"], "must be a number from 0 to 1"),
        (["method=eac", "method.consistency_weight=-5"], "consistency_weight=-5"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(shell, typed, sentence):
    status, said = shell("train", *DIGITS, *typed)
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_consistent_attention_withstands_wrong_labels(shell):
    """Mirrored digits, 30 % wrong labels, three seeds: cross-entropy with erasing memorises them.

    Reported is what the paper reports, the mean test accuracy of the last five epochs.
    """
    rows = []
    for seed in range(3):
        status, said = shell(
            "train",
            "-m",
            *DIGITS,
            "method=eac",
            "dataset.val_fraction=0",
            "backbone.halve_after=[2]",
            "optimizer.lr=2e-3",
            "scheduler=exponential",
            "sampler.drop_last=false",
            "trainer.max_epochs=20",
            "model_choice=[last,test]",
            "method.consistency_weight=0,1,5",
            f"seed={seed}",
            f"noise.seed={seed}",
            "report=false",
        )
        assert status == 0, said
    for run in shell.runs():
        config = yaml.safe_load((run / "config.yaml").read_text())
        accuracy = pd.read_csv(run / "history.csv")["on_test/test/accuracy"].dropna()
        rows.append((config["method"]["consistency_weight"], accuracy.tail(5).mean()))
    table = pd.DataFrame(rows, columns=["lambda", "accuracy"])
    summary = table.groupby("lambda")["accuracy"].agg(["mean", "std", "count"])
    print(summary)
    assert (summary["count"] == 3).all()
    assert summary.loc[1, "mean"] > summary.loc[0, "mean"] + 0.05
    assert summary.loc[5, "mean"] > summary.loc[0, "mean"]
