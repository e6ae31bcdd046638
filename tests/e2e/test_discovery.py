"""Category discovery as users type it: both stages, wrong labels, what the report shows."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch

from noisyml.data.datasets.discovery.source import CategoryDiscovery
from noisyml.data.datasets.embedded.digits import Digits
from noisyml.metrics.discovery.evaluator import DiscoveryEvaluator

HEAD = [
    "method.projection.out_features=32",
    "method.projection.hidden_features=24",
    "method.projection.bottleneck=8",
]
SMALL = ["backbone.width=16", "backbone.depth=2", "backbone.heads=2", "trainer.max_epochs=1"]
FEW = ["trainer.limit_train_batches=3", "sampler.batch_size=32"]


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.usefixtures("undrawn")
def test_one_command_trains_both_stages(shell):
    stage = ["method=promptcal_contrast", *HEAD, "optimizer.lr=0.2"]
    typed = [
        *("train", "method=promptcal", "stages=promptcal", *HEAD, *SMALL, *FEW),
        *("method.bank.size=96", "method.ramp_epochs=0", "optimizer.lr=1e-9"),
        "callbacks.history.every_n_steps=1",
        f"stages.stages.contrast.overrides={stage}",
    ]
    status, said = shell(*typed)
    assert status == 0, said
    run = next(run for run in shell.runs() if run.parent.name != "stages")
    first = run / "stages" / "contrast"
    one, two = weights(first), weights(run)
    # The second stage hardly moved: what it has is the first one's.
    for name in ("encoder.backbone.body.reg_token", "projections.class.mlp.0.weight"):
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6)
    restarted = "projections.prompt.mlp.0.weight"
    assert not torch.allclose(two[restarted], one[restarted], atol=1e-3)
    metrics = json.loads((run / "metrics.json").read_text())
    scores = [metrics[f"test/clustering_accuracy_{part}"] for part in ("all", "old", "new")]
    assert min(scores[1:]) <= scores[0] <= max(scores[1:])
    assert "test/held_out/clustering_accuracy_all" in metrics
    history = (run / "history.csv").read_text().splitlines()[0]
    assert "train/loss_affinity_class" in history
    assert "train/loss_edges_prompt" in history


@pytest.mark.further
def test_the_report_shows_groups_and_doubted_labels(shell):
    typed = [
        *("train", "method=gcd", "backbone=mlp", "backbone.hidden_features=[16]", *HEAD, *FEW),
        *("noise=symmetric", "noise.rate=0.3", "selector=small_loss", "trainer.max_epochs=1"),
    ]
    status, said = shell(*typed)
    assert status == 0, said
    (run,) = shell.runs()
    page = (run / "report.html").read_text()
    for heading in ("Discovered groups", "Pictures of discovered groups", "Confusion after"):
        assert heading in page
    assert (run / "plots" / "discovery_map.png").is_file()
    assert (run / "suspects.csv").is_file()
    assert "labelled training rows were judged" in page


def test_kmeans_clusters_features_as_they_are(shell):
    status, said = shell("train", "method=kmeans", "report=false")
    assert status == 0, said
    (run,) = shell.runs()
    metrics = json.loads((run / "metrics.json").read_text())

    data = CategoryDiscovery(Digits(val_fraction=0.0, test_fraction=0.2)).splits()["train"]
    pixels = np.stack([np.array(data.images.load(row)) for row in range(len(data.labels))])
    rows = torch.from_numpy(pixels.reshape(len(pixels), -1)).float() / 127.5 - 1
    evaluator = DiscoveryEvaluator()
    evaluator.class_names, evaluator.known_classes = data.class_names, list(range(5))
    for role, chosen in (("query", ~data.labelled), ("gallery", data.labelled)):
        index = torch.from_numpy(chosen.nonzero()[0])
        labels = torch.from_numpy(data.labels)[index]
        evaluator.update({"embeddings": rows[index]}, labels, index, role)
    for name, value in evaluator.compute().items():
        assert metrics[f"test/{name}"] == pytest.approx(value, abs=0.01), name


@pytest.mark.slow
def test_defaults_do_not_collapse(shell):
    words = ["method=gcd", "experiment=discovery_digits"]
    typed = ["train", *words, "trainer.max_epochs=8", "report=false"]
    status, said = shell(*typed, "callbacks.history.every_n_steps=1")
    assert status == 0, said
    assert "all alike" not in said
    (run,) = shell.runs()
    losses = pd.read_csv(run / "history.csv")["train/loss_unsupervised_class"].dropna()
    # Where all projections are alike the loss is the logarithm of the number of other rows.
    assert losses.iloc[-10:].mean() < math.log(127) - 0.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=gcd", "dataset=digits"], "learns from one label per image or none"),
        (["method=classification", "dataset=discovery_digits"], "choose another data set or e.g."),
        (["method=gcd", "evaluator=retrieval"], "leave out evaluator"),
        (["method=gcd", "selector=prism_avg"], "which GCD does not provide"),
        (["method=gcd", "transform=plain"], "trains on 2 views"),
        (["method=gcd", "sampler=m_per_class"], "use sampler=mixture"),
        (["method=gcd", "evaluator=discovery_classifier"], "evaluates logits"),
        (["method=promptcal", "backbone=mlp"], r"set method\.prompt_weight=0"),
        (["method=gcd", "noise=open_set"], "open_set_source"),
        (["method=gcd", "dataset.old_classes=birds"], "no list of old classes"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_said(shell, words, message):
    head = [] if "method=classification" in words else HEAD
    status, said = shell("train", *words, *head, "trainer.max_epochs=1")
    assert status == 2
    assert re.search(message, said), said
