"""Methods that learn from a clean validation split: what it tells them, and where they refuse."""

import pandas as pd

GLYPHS = [
    "dataset=glyphs",
    "dataset.split=closed_set",
    "dataset.num_train_classes=8",
    "dataset.min_faces=16",
    "noise=symmetric",
    "noise.rate=0.4",
    "backbone.image_size=32",
]


FEW = ["dataset.num_val_classes=2", "dataset.num_test_classes=2", "evaluator=retrieval"]


def test_trusted_labels_tell_right_from_wrong(shell):
    typed = ["method=meta_reweighting", "method.trusted_batch_size=null", "backbone=mlp"]
    settings = ["backbone.hidden_features=[64]", "optimizer.lr=0.01", "trainer.max_epochs=18"]
    status, said = shell("train", *GLYPHS, *typed, *settings, "report=false")
    assert status == 0, said
    (run,) = shell.runs()
    precision = pd.read_csv(run / "history.csv")["selection/precision"].dropna().tolist()
    # By chance it is the share of right labels, about 0.6.
    assert sum(precision[-5:]) / 5 > 0.7, precision
    judged = pd.read_parquet(run / "selection.parquet")
    assert (judged["kept"] == (judged["p_clean"] > 0)).all()
    assert judged["p_clean"].max() == 1
    assert not (run / "checkpoints" / "best.ckpt").exists()


def test_what_cannot_be_trusted_is_refused_in_a_sentence(shell):
    for typed, sentence in (
        (["dataset=digits", "backbone.image_size=8"], "Digits brings no clean validation split"),
        ([*GLYPHS, "data.noisy_val=true"], "data.noisy_val=true makes"),
        ([*GLYPHS, "model_choice=[last,best]"], "leave best out of model_choice"),
        ([*GLYPHS, "dataset.split=zero_shot", *FEW], "are not those of training"),
        ([*GLYPHS, "method.trusted_batch_size=5000"], "trusted samples"),
        ([*GLYPHS, "selector=bare"], "asks no selector"),
    ):
        status, said = shell("train", "method=meta_weight_net", "backbone=mlp", *typed)
        assert status == 2, said
        assert sentence in said
        assert len(said.strip().splitlines()) <= 3, said
