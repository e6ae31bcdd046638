"""Evaluation of discovered classes: clusters, scores, tables, and the number of classes."""

from __future__ import annotations

import math

import pytest
import torch
from support import ranks

from noisyml.errors import UserError
from noisyml.metrics.discovery.class_number import estimate_classes
from noisyml.metrics.discovery.evaluator import (
    DiscoveryEvaluator,
    ParametricDiscoveryEvaluator,
)


def blobs(classes=6, each=30, spread=0.1):
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(classes).repeat(each)
    centres = 3 * torch.randn(classes, 8, generator=generator)
    rows = centres[labels] + spread * torch.randn(len(labels), 8, generator=generator)
    return rows, labels


def evaluator(kind=DiscoveryEvaluator, classes=6, old=3, **settings):
    found = kind(**settings)
    found.class_names = [f"class {i}" for i in range(classes)]
    found.known_classes = list(range(old))
    return found


def shown(found, rows, labels, known=None, size=32):
    """Give an evaluator everything, in batches; the rows where `known` is true are labelled."""
    known = torch.zeros(len(rows), dtype=torch.bool) if known is None else known
    for role, part in (("query" if known.any() else "pool", ~known), ("gallery", known)):
        index = part.nonzero().flatten()
        for at in index.split(size):
            found.update({"embeddings": rows[at], "logits": rows[at]}, labels[at], at, role)
    return found.compute()


def test_separate_classes_are_found():
    rows, labels = blobs()
    known = (labels < 3) & (torch.arange(len(labels)) // 6 % 2 == 0)
    found = evaluator(per_split=True)
    scores = shown(found, rows, labels, known)
    assert scores["clustering_accuracy_all"] == 1
    assert scores["clustering_accuracy_old"] == scores["clustering_accuracy_new"] == 1
    assert scores["split_accuracy_all"] == pytest.approx(1)
    assert scores["nmi"] == pytest.approx(1)
    assert scores["ari"] == 1
    assert scores["clusters"] == 6
    tables = {artefact.file: artefact.content for artefact in found.artefacts()}
    groups = tables["discovered_groups.parquet"]
    assert len(groups) == 6
    assert set(groups["kind"]) == {"old", "new"}
    assert (groups["purity"] == 1).all()
    confusion = tables["discovery_confusion.parquet"]
    counts = confusion.drop(columns=["class", "kind"]).to_numpy()
    assert counts.sum() == int((~known).sum())
    assert (counts == counts.diagonal() * torch.eye(6, dtype=torch.int64).numpy()).all()


def test_held_out_images_are_clustered_without_labels():
    rows, labels = blobs()
    scores = shown(evaluator(), rows, labels)
    assert scores["clustering_accuracy_all"] == 1
    again = shown(evaluator(), rows, labels, size=7)
    assert again == scores


def test_samples_that_come_twice_count_once():
    rows, labels = blobs()
    found = evaluator()
    for _ in range(2):
        found.update({"embeddings": rows[:50]}, labels[:50], torch.arange(50))
    found.update({"embeddings": rows[50:]}, labels[50:], torch.arange(50, len(rows)))
    found.compute()
    tables = {artefact.file: artefact.content for artefact in found.artefacts()}
    assert tables["discovered_groups.parquet"]["samples"].sum() == len(rows)


def test_a_classifier_answers_for_itself():
    scores = torch.eye(4)[torch.tensor([0, 1, 3, 3])]
    found = evaluator(ParametricDiscoveryEvaluator, classes=4, old=2)
    found.update({"logits": scores}, torch.tensor([0, 1, 2, 2]), torch.arange(4))
    values = found.compute()
    assert values["clustering_accuracy_all"] == 1
    assert values["clusters"] == 4
    found.reset()
    found.update({"logits": scores[:2]}, torch.tensor([0, 1]), torch.arange(2))
    assert math.isnan(found.compute()["clustering_accuracy_new"])


@pytest.mark.long
def test_the_number_of_classes_is_estimated():
    rows, labels = blobs(classes=7, each=20)
    known = torch.where((labels < 6) & (torch.arange(len(labels)) // 7 % 2 == 0), labels, -1)
    found = estimate_classes(rows, known, most=10, n_init=5)
    assert found.number == 7
    assert found.tried[7] == 1
    assert set(found.tried) <= set(range(6, 11))
    estimate = evaluator(
        classes=7, old=6, num_clusters="estimate", most_classes=10, normalise=False
    )
    scores = shown(estimate, rows, labels, known >= 0)
    assert scores["clusters"] == 7
    with pytest.raises(UserError, match="there is none"):
        estimate_classes(rows, torch.full_like(known, -1))
    with pytest.raises(UserError, match="allow more than 2"):
        estimate_classes(rows, known, most=2)


def test_nothing_to_score_is_said():
    with pytest.raises(UserError, match="no unlabelled samples"):
        evaluator().compute()
    with pytest.raises(UserError, match="evaluates embeddings"):
        evaluator().update({"logits": torch.eye(2)}, torch.arange(2), torch.arange(2))


def on_a_rank(rank, world, alone):
    rows, labels = blobs()
    # The second of three ranks has nothing.
    index = torch.arange(len(rows))[rank // 2 :: 2] if rank != 1 else torch.arange(0)
    found = evaluator()
    if len(index):
        found.update({"embeddings": rows[index]}, labels[index], index)
    assert found.compute() == pytest.approx(alone)


def test_several_processes_find_what_one_finds(tmp_path):
    rows, labels = blobs()
    ranks.run_ranks(on_a_rank, 3, tmp_path, shown(evaluator(), rows, labels))
