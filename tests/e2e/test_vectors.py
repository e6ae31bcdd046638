"""Runs on vectors: without labels, on images, and what is said where parts do not fit."""

import json

import numpy as np
import pytest


def test_vectors_without_labels_are_reduced_and_judged_by_their_neighbours(shell):
    rows = np.random.default_rng(0).normal(size=(300, 3)) @ np.random.default_rng(1).normal(
        size=(3, 12)
    )
    np.save(shell.folder / "rows.npy", rows.astype(np.float32))
    tiny = ["dataset=vectors", "dataset.path=rows.npy", "head.out_features=3", "report=false"]
    tiny += ["sampler.batch_size=64", "trainer.max_epochs=2"]
    status, said = shell("train", "method=pca", *tiny)
    assert status == 2
    assert "the data set has none: choose evaluator=neighbours" in said
    status, said = shell(
        "train", "method=pca", "evaluator=neighbours", "evaluators.neighbours.metric=l2", *tiny
    )
    assert status == 0, said
    run = shell.runs()[-1]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test/neighbours_kept_at_10"] == pytest.approx(1, abs=0.02)
    status, said = shell("train", "method=tldr", "dataset=digits", "backbone=mlp")
    assert status == 2
    assert "TLDR reduces vectors, and these are images" in said
    status, said = shell("train", "method=prism", "dataset=digit_vectors")
    assert status == 2
    assert "The data set gives vectors, and the backbone takes images" in said
