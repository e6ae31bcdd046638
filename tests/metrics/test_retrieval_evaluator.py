"""The retrieval evaluator: batches in any order, roles of a split, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import yaml
from support import paths
from support.clusters import clusters
from torch import Tensor

from noisyml.errors import UserError
from noisyml.metrics.retrieval import retrieval_metrics
from noisyml.metrics.retrieval_evaluator import RetrievalEvaluator


def feed(evaluator: RetrievalEvaluator, x: Tensor, y: Tensor, **role: str) -> None:
    for part in torch.arange(len(x)).split(17):
        evaluator.update({"embeddings": x[part]}, y[part], part, **role)


def test_the_evaluator_counts_repeated_samples_once() -> None:
    x, y = clusters(100, 20)
    evaluator = RetrievalEvaluator(metrics=("precision_at_1", "map"), recall_at=(1, 10))
    feed(evaluator, x, y)
    evaluator.update({"embeddings": x[:30]}, y[:30], torch.arange(30))
    expected = retrieval_metrics(x, y, metrics=("precision_at_1", "map"), recall_at=(1, 10))
    assert evaluator.compute() == expected
    assert evaluator.compute() == expected
    evaluator.reset()
    feed(evaluator, x[:50], y[:50])
    assert evaluator.compute()["queries"] == 50


def test_the_evaluator_keeps_query_and_gallery_apart() -> None:
    x, y = clusters(100, 10)
    evaluator = RetrievalEvaluator()
    feed(evaluator, x[:40], y[:40], role="query")
    feed(evaluator, x[40:], y[40:], role="gallery")
    found = evaluator.compute()
    assert found == retrieval_metrics(x[:40], y[:40], x[40:], y[40:], recall_at=(1, 2, 4, 8))


def test_the_evaluator_adds_distractors_to_a_pool() -> None:
    x, y = clusters(100, 10)
    evaluator = RetrievalEvaluator()
    feed(evaluator, x[:40], y[:40])
    feed(evaluator, x[40:], y[40:], role="gallery")
    expected = retrieval_metrics(x[:40], y[:40], x, y, exclude_self=True, recall_at=(1, 2, 4, 8))
    assert evaluator.compute() == expected


def test_the_evaluator_clusters_on_request() -> None:
    x, y = clusters(200, 5, noise=0.1)
    evaluator = RetrievalEvaluator(clustering=True)
    feed(evaluator, x, y)
    found = evaluator.compute()
    assert found["nmi"] > 0.85
    assert found["ami"] > 0.8
    assert evaluator.compute() == found


def test_the_evaluator_says_what_it_lacks() -> None:
    x, y = clusters(10, 3)
    index = torch.arange(10)
    evaluator = RetrievalEvaluator()
    with pytest.raises(UserError, match="evaluates embeddings, but the method gives logits"):
        evaluator.update({"logits": x}, y, index)
    with pytest.raises(UserError, match="one integer label per sample"):
        evaluator.update({"embeddings": x}, torch.ones(10, 4), index)
    with pytest.raises(ValueError, match="same length"):
        evaluator.update({"embeddings": x}, y, index[:3])
    with pytest.raises(UserError, match="has nothing"):
        evaluator.compute()
    evaluator.update({"embeddings": x}, y, index, role="query")
    with pytest.raises(UserError, match="has query;"):
        evaluator.compute()
    with pytest.raises(UserError, match="Unknown retrieval metric"):
        RetrievalEvaluator(metrics=["precision"])


def test_the_config_names_every_argument_with_its_default() -> None:
    path = paths.CONF / "evaluator" / "retrieval.yaml"
    config = yaml.safe_load(path.read_text())
    assert config.pop("_target_") == "noisyml.metrics.retrieval_evaluator.RetrievalEvaluator"
    configured, default = RetrievalEvaluator(**config), RetrievalEvaluator()
    assert vars(configured) == vars(default)
    assert set(config) | {"_shards"} == set(vars(default))


def test_the_headline_is_a_metric_that_is_measured() -> None:
    assert RetrievalEvaluator().headline == "map_at_r"
    assert RetrievalEvaluator(metrics=["mrr", "map"]).headline == "mrr"
    assert RetrievalEvaluator(metrics=[], recall_at=[5]).headline == "recall_at_5"
    assert RetrievalEvaluator(headline="recall_at_1").headline == "recall_at_1"
    with pytest.raises(UserError, match="measures nothing"):
        RetrievalEvaluator(metrics=[], recall_at=[])
