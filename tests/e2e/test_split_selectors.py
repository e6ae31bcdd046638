"""Selectors that judge the whole training split, with methods of several families, as typed."""

import json

import pandas as pd
import pytest

DIGITS = [
    *("dataset=digits", "backbone=mlp", "backbone.hidden_features=[64]", "noise=symmetric"),
    *("noise.rate=0.3", "optimizer.lr=0.01", "trainer.max_epochs=4", "report=false"),
]


@pytest.mark.parametrize(
    "typed",
    [
        ["method=classification", "selector=class_density"],
        ["method=prism", "selector=wann", "selector.source=embeddings"],
    ],
)
def test_labels_are_judged_after_a_warmup_and_again(shell, typed):
    schedule = ["selector.warmup_epochs=2", "selector.every_n_epochs=1"]
    status, said = shell("train", *DIGITS, *typed, *schedule)
    assert status == 0, said
    (run,) = shell.runs()
    judged = pd.read_parquet(run / "selection.parquet")
    before, after = judged[judged["epoch"] < 2], judged[judged["epoch"] >= 2]
    assert before["kept"].all()
    assert before["p_clean"].isna().all()
    assert after["p_clean"].notna().all()
    assert 0.5 < after["kept"].mean() < 0.9
    assert json.loads((run / "metrics.json").read_text())["selection/precision"] > 0.85


def test_a_method_of_other_labels_refuses_them_in_one_sentence(shell):
    status, said = shell("train", "method=multilabel", "dataset=mosaic", "selector=wann")
    assert status == 2
    assert "WeightedNeighbours judges one label per image" in said
    assert "Traceback" not in said
