"""Several evaluators of one run: what they share, and what they refuse."""

import pytest
import torch
from torch import Tensor

from noisyml.errors import UserError
from noisyml.metrics.base import Evaluation, headline, is_lower_better, needed_outputs
from noisyml.metrics.classification import ClassificationEvaluator
from noisyml.metrics.retrieval_evaluator import RetrievalEvaluator


def batch() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "embeddings": torch.randn(20, 4, generator=generator),
        "logits": torch.randn(20, 3, generator=generator),
    }
    return outputs, torch.arange(20) % 3, torch.arange(20)


def test_evaluators_see_the_same_samples_and_stay_as_they_were() -> None:
    evaluators = {"retrieval": RetrievalEvaluator(), "scores": ClassificationEvaluator()}
    outputs, targets, index = batch()
    expected = {}
    for kind in (RetrievalEvaluator, ClassificationEvaluator):
        alone = kind()
        alone.update(outputs, targets, index)
        expected |= alone.compute()
    first, second = Evaluation(evaluators), Evaluation(evaluators)
    first.update(outputs, targets, index, "pool")
    assert first.compute() == expected
    with pytest.raises(UserError, match="has nothing"):
        second.compute()
    with pytest.raises(UserError, match="has nothing"):
        evaluators["retrieval"].compute()


def test_a_run_goes_by_the_headline_of_its_first_evaluator() -> None:
    evaluators = {"retrieval": RetrievalEvaluator(), "scores": ClassificationEvaluator()}
    assert needed_outputs(evaluators) == {"embeddings", "logits"}
    assert headline(evaluators) == "map_at_r"
    assert headline(dict(reversed(evaluators.items()))) == "accuracy"
    assert is_lower_better(evaluators, "nll")
    assert not is_lower_better(evaluators, "accuracy")
    with pytest.raises(UserError, match=r"choose one, e\.g\. evaluator=retrieval"):
        headline({})


def test_a_name_given_twice_is_refused() -> None:
    twice = Evaluation({"cosine": RetrievalEvaluator(), "l2": RetrievalEvaluator(metric="l2")})
    twice.update(*batch(), "pool")
    with pytest.raises(UserError, match="cosine and l2 both measure 'precision_at_1'"):
        twice.compute()
