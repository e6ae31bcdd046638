"""Classification as typed: train, evaluate, embed, teach; true labels never steer it."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

DIGITS = [
    "dataset=digits",
    "backbone=mlp",
    "backbone.hidden_features=[64]",
    "noise=symmetric",
    "noise.rate=0.3",
    "optimizer.lr=0.01",
    "trainer.max_epochs=3",
    "report=false",
]


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def config(run):
    return yaml.safe_load((run / "config.yaml").read_text())


def printed(said):
    return json.loads(said[said.index("{") : said.rindex("}") + 1])


def test_train_evaluate_and_embed(shell):
    status, said = shell("train", *DIGITS, "method=classification")
    assert status == 0, said
    (run,) = shell.runs()
    trained = metrics(run)
    assert trained["test/accuracy"] > 0.7
    assert trained["test/accuracy_top5"] > trained["test/accuracy"]
    assert trained["test/nll"] < np.log(10)
    # Validation labels are noisy; the best model follows their accuracy.
    history = pd.read_csv(run / "history.csv")["val/accuracy"].dropna()
    assert trained["best/epoch"] == 1 + int(history.to_numpy().argmax())

    status, said = shell("evaluate", f"checkpoint={run}")
    assert status == 0, said
    repeated = printed(said)
    assert set(repeated) == {name for name in trained if name.startswith("test/")}
    assert all(abs(repeated[name] - trained[name]) < 1e-9 for name in repeated)

    # Embeddings exist, so retrieval can be asked of the same model.
    status, said = shell("evaluate", f"checkpoint={run}", "evaluator=retrieval")
    assert status == 0, said
    assert printed(said)["test/precision_at_1"] > 0.7
    status, said = shell("embed", f"checkpoint={run}", "splits=[test]")
    assert status == 0, said
    assert "539 x 64" in said


def test_bare_tells_how_it_treats_each_class(shell):
    status, said = shell("train", *DIGITS, "method=bare")
    assert status == 0, said
    (run,) = shell.runs()
    measured = metrics(run)
    assert measured["test/accuracy"] > 0.6
    assert measured["selection/precision"] > 0.8
    classes = pd.read_csv(run / "selection_by_class.csv", dtype={"label": str})
    assert classes["label"].tolist() == [str(digit) for digit in range(10)]
    assert classes["recall"].min() == pytest.approx(measured["selection/recall_min_class"], 1e-5)
    judged = pd.read_parquet(run / "selection.parquet")
    assert classes["samples"].sum() == (judged["epoch"] == 2).sum()
    kept = (classes["kept"] * classes["samples"]).sum() / classes["samples"].sum()
    assert kept == pytest.approx(measured["selection/kept"], 1e-4)


@pytest.mark.further
@pytest.mark.usefixtures("undrawn")
def test_the_mean_over_the_last_epochs_is_that_of_their_models(shell):
    typed = ["loss=forward_correction", "loss.estimation_epoch=1", "mean_last_epochs=2"]
    status, said = shell(
        "train", *DIGITS, "method=cdr", "model_choice=[last,mean_last]", "report=true", *typed
    )
    assert status == 0, said
    (run,) = shell.runs()
    measured = metrics(run)
    assert sorted(p.name for p in (run / "checkpoints").glob("epoch_*")) == [
        "epoch_0002.ckpt",
        "epoch_0003.ckpt",
    ]
    found = []
    for which in ("epoch_0002", "epoch_0003"):
        status, said = shell("evaluate", f"checkpoint={run}", f"which={which}")
        assert status == 0, said
        found.append(printed(said))
    assert found[1]["test/nll"] == pytest.approx(measured["test/nll"], abs=1e-9)
    assert found[0]["test/nll"] != found[1]["test/nll"]
    for name, value in found[0].items():
        mean = (value + found[1][name]) / 2
        assert measured[f"mean_last/{name}"] == pytest.approx(mean, abs=1e-9)
    assert "mean of the last epochs" in (run / "report.html").read_text()


def test_a_teacher_is_trained_first_and_its_scores_are_handed_on(shell):
    status, said = shell(
        "train",
        *DIGITS,
        "method=rkd_classification",
        "stages=classification_teacher",
        "distillation=rkd_hinton",
        "method.distillation.weights.hinton=4",
        "method.distillation.weights.angle=0",
        "method.teacher.which=best",
    )
    assert status == 0, said
    run = next(run for run in shell.runs() if "stages" not in run.parts)
    stage = run / "stages" / "teacher"
    assert config(stage)["method"]["_target_"].endswith("Classification")
    assert not {"distillation", "teacher"} & set(config(stage)["method"])
    student = config(run)["method"]
    assert student["teacher"]["checkpoint"] == str(stage)
    assert student["teacher"]["which"] == "best"
    assert student["distillation"]["weights"] == {"distance": 25.0, "angle": 0, "hinton": 4}
    assert metrics(stage)["test/accuracy"] > 0.7
    assert metrics(run)["test/accuracy"] > 0.5
    # A student needs no teacher to be used.
    stage.rename(run / "gone")
    status, said = shell("evaluate", f"checkpoint={run}")
    assert status == 0, said
    assert abs(printed(said)["test/accuracy"] - metrics(run)["test/accuracy"]) < 1e-9


TAUGHT = ["method=rkd_classification", "stages=classification_teacher", "distillation=hinton"]


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["method=classification", "loss=triplet"], "and PMLLoss is none: choose one by loss="),
        (["method=classification", "~loss"], "with a loss on class scores, and there is none"),
        (["loss=elr"], "Prism trains with a loss on embeddings, and EarlyLearningRegularisation"),
        (["method=classification", "loss=sat"], "a plain loss for 60 epochs, and the run has 3"),
        (["method=classification", "loss=elr", "loss.momentum=2"], "loss.momentum=2"),
        (["selector=bare"], "Bare judges samples by logits, which Prism does not provide"),
        (["method=bare", "method.on_empty=stop"], "method.on_empty=stop must be skip or keep_all"),
        (["method=classification", "dataset.split=zero_shot"], "dataset.split=closed_set"),
        (["method=classification", "selector=prism_avg"], "by memory, which Classification does"),
        (["method=classification", "pseudo_labels=kmeans"], "leave out pseudo_labels=..."),
        (["method=classification", "scheduler=plateau"], "There are val/accuracy"),
        (
            ["method=classification", "evaluators.classification.top_k=[0]"],
            "must be a whole number of at least 2",
        ),
        (
            ["method=classification", "noise=small_cluster", "backbone.frozen=true"],
            "renumbers the classes of training",
        ),
        (["evaluator=classification"], "evaluates logits, which Prism does not give"),
        (["method=rkd", "distillation=hinton"], "choose another distillation=... or method=rkd_cl"),
        (["method=rkd_classification"], "a classifier: stages=classification_teacher"),
        (["~loss"], "choose one by loss=..."),
        (["selector=null"], "selector=null is no choice"),
        (["~selector"], "selector=null leaves a part out"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(shell, typed, sentence):
    settings = [s for s in DIGITS if "noise=small_cluster" not in typed or "noise.rate" not in s]
    status, said = shell("train", *settings, *typed)
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.further
def test_a_teacher_that_cannot_teach_is_refused(shell):
    plain = [*DIGITS, "trainer.max_epochs=1", "head.out_features=16"]
    assert shell("train", *plain)[0] == 0
    (ranker,) = shell.runs()
    student = ["train", *DIGITS, "method=rkd_classification", f"method.teacher.checkpoint={ranker}"]
    for typed, sentence in (
        (["distillation=hinton"], "holds an encoder without a classifier"),
        (["backbone.frozen=true"], "A frozen student hands on cached features"),
    ):
        status, said = shell(*student, *typed)
        assert status == 2, said
        assert sentence in said
    # Relations among embeddings need no classifier.
    status, said = shell(*student, "trainer.max_epochs=1")
    assert status == 0, said
