"""Multi-label metrics: reference values, scikit-learn, plain loops, and themselves cut up."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    coverage_error,
    f1_score,
    hamming_loss,
    label_ranking_average_precision_score,
    label_ranking_loss,
    precision_score,
    recall_score,
)
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.metrics.label_trust import (
    entry_selection_metrics,
    selection_by_class,
    selection_metrics,
)
from noisyml.metrics.multilabel import (
    MultiLabelEvaluator,
    average_precisions,
    f1_scores,
    multi_label_metrics,
    ranking_metrics,
)

GOLDEN = paths.GOLDEN


@pytest.mark.parametrize("case", ["metrics", "metrics_absent_class"])
def test_values_of_the_released_collection(case):
    vector = vectors.arrays(GOLDEN / "mlnoise", case)
    labels, prob = vector["labels"], vector["prob"]
    np.testing.assert_allclose(average_precisions(prob, labels), vector["APclasses"], atol=1e-6)
    f1 = f1_scores(prob > 0.5, labels)
    np.testing.assert_allclose(f1, vector["f1classes"], atol=1e-6)
    found = ranking_metrics(torch.from_numpy(prob), torch.from_numpy(labels))
    for name in ("coverage", "lrap", "ranking_loss", "one_error"):
        assert found[name] == pytest.approx(float(vector[f"derived_{name}"]), abs=1e-12), name

    logits = torch.from_numpy(prob).logit()
    metrics = multi_label_metrics(logits, torch.from_numpy(labels))
    for name, key in (
        ("map_macro", "APmac"),
        ("map_micro", "APmic"),
        ("f1_macro", "f1mac"),
        ("f1_micro", "f1mic"),
    ):
        assert metrics[name] == pytest.approx(float(vector[key]), abs=1e-6), name
    # The reference counts a probability of exactly 0.5 as present here.
    wide = multi_label_metrics(logits, torch.from_numpy(labels), strict=False)
    assert wide["hamming"] == pytest.approx(float(vector["derived_hamming"]), abs=1e-12)


def test_values_of_the_released_evaluation():
    vector = vectors.arrays(GOLDEN / "rcml", "metrics")
    labels, threshold = torch.from_numpy(vector["y"]), float(vector["threshold"])
    logits = torch.from_numpy(vector["prob"]).logit()
    names = list("abcdef")
    metrics = multi_label_metrics(
        logits, labels, threshold=threshold, strict=False, class_names=names
    )
    expected = {f"ap/{n}": v for n, v in zip(names, vector["ap_per_class"], strict=True)}
    expected |= {"map_macro": vector["ap_macro"], "map_micro": vector["ap_micro"]}
    expected |= {f"f1/{n}": v for n, v in zip(names, vector["f1_none"], strict=True)}
    expected |= {f"f1_{kind}": vector[f"f1_{kind}"] for kind in ("macro", "micro", "weighted")}
    expected |= {f"{kind}_micro": vector[kind] for kind in ("precision", "recall")}
    expected["hamming"] = 1 - vector["element_accuracy"]
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), abs=1e-6), name
    present = vector["y"].any(axis=0)
    assert not present[-1]
    assert metrics["map_macro_present"] == pytest.approx(vector["ap_per_class"][present].mean())


def sample(seed, n=40, classes=5):
    """Rounded scores, so that there are ties; some samples without a label, or with all."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=(n, classes)), 1)
    labels = rng.random((n, classes)) < rng.random((n, 1))
    labels[0], labels[1, 1:], labels[1, 0] = True, False, True
    return torch.from_numpy(logits), torch.from_numpy(labels)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
@pytest.mark.long
def test_values_of_scikit_learn_and_of_plain_loops(seed):
    logits, labels = sample(seed)
    metrics = multi_label_metrics(logits, labels)
    y, z = labels.numpy(), logits.numpy()
    for average in ("macro", "micro", "weighted"):
        expected = average_precision_score(y, z, average=average)
        assert metrics[f"map_{average}"] == pytest.approx(expected)
    for average in ("macro", "micro", "weighted", "samples"):
        expected = f1_score(y, z > 0, average=average, zero_division=0)
        assert metrics[f"f1_{average}"] == pytest.approx(expected)
    for name, score in (("precision", precision_score), ("recall", recall_score)):
        assert metrics[f"{name}_micro"] == pytest.approx(score(y, z > 0, average="micro"))
    assert metrics["hamming"] == pytest.approx(hamming_loss(y, z > 0))
    some = y.any(axis=1)
    y, z = y[some], z[some]
    assert metrics["lrap"] == pytest.approx(label_ranking_average_precision_score(y, z))
    assert metrics["lrap"] == pytest.approx(average_precision_score(y, z, average="samples"))
    assert metrics["coverage"] == pytest.approx(coverage_error(y, z))
    # For lists without ties there is a second opinion.
    untied = torch.from_numpy(z + np.random.default_rng(seed).normal(scale=1e-6, size=z.shape))
    second = label_ranking_loss(y, untied.numpy())
    assert ranking_metrics(untied, torch.from_numpy(y))["ranking_loss"] == pytest.approx(second)
    wrong, first = [], []
    for row, scores in zip(y, z, strict=True):
        pairs = [a <= b for a in scores[row] for b in scores[~row]]
        wrong.append(np.mean(pairs) if pairs else 0.0)
        first.append(not row[scores.argmax()])
    assert metrics["ranking_loss"] == pytest.approx(np.mean(wrong))
    assert metrics["one_error"] == pytest.approx(np.mean(first))


def test_scores_beyond_the_precision_of_probabilities_still_rank():
    logits = torch.tensor([[40.0], [50.0], [60.0]])
    assert multi_label_metrics(logits, torch.tensor([[0], [0], [1]]))["map_macro"] == 1.0


def test_samples_without_labels_leave_rankings_undefined():
    metrics = multi_label_metrics(torch.zeros(3, 2), torch.zeros(3, 2))
    undefined = ("lrap", "ranking_loss", "coverage", "one_error", "map_macro_present")
    assert all(np.isnan(metrics[name]) for name in undefined)
    zero = ("map_macro", "f1_macro", "f1_weighted", "f1_samples", "precision_micro", "recall_micro")
    assert all(metrics[name] == 0.0 for name in zero)


def evaluate(logits, labels, batches, **arguments):
    evaluator = MultiLabelEvaluator(**arguments)
    evaluator.class_names = [f"c{i}" for i in range(logits.shape[1])]
    for rows in batches:
        rows = torch.as_tensor(rows)
        evaluator.update({"logits": logits[rows].float()}, labels[rows].float(), rows)
    return evaluator.compute()


def test_batches_order_and_repetitions_do_not_matter():
    logits, labels = sample(0)
    logits = logits.float().double()
    whole = evaluate(logits, labels, [range(40)], per_class=True)
    assert whole == multi_label_metrics(logits, labels, class_names=["c0", "c1", "c2", "c3", "c4"])
    again = evaluate(logits, labels, [range(20, 40), [3, 21, 3], range(20)], per_class=True)
    assert again == whole
    assert "ap/c3" in whole
    assert "ap/c3" not in evaluate(logits, labels, [range(40)])


def test_what_cannot_be_evaluated_is_said():
    evaluator = MultiLabelEvaluator()
    index = torch.arange(2)
    with pytest.raises(UserError, match="evaluates logits, but the method gives emb"):
        evaluator.update({"embeddings": torch.zeros(2, 3)}, torch.zeros(2, 3), index)
    with pytest.raises(UserError, match="choose evaluator=classification"):
        evaluator.update({"logits": torch.zeros(2, 3)}, torch.zeros(2), index)
    with pytest.raises(UserError, match="has seen no sample"):
        evaluator.compute()
    evaluator.update({"logits": torch.full((2, 3), torch.nan)}, torch.zeros(2, 3), index)
    with pytest.raises(UserError, match="2 of 2 samples are NaN"):
        evaluator.compute()
    with pytest.raises(UserError, match="must be a number from 0 to 1"):
        MultiLabelEvaluator(threshold=35)


def test_selections_of_entries():
    generator = torch.Generator().manual_seed(0)
    keep, wrong = (torch.rand(50, 3, generator=generator) < 0.5 for _ in range(2))
    wrong[:, 2] = False
    p_clean = torch.rand(50, 3, generator=generator)
    scores = entry_selection_metrics(keep, p_clean, wrong)
    flat = selection_metrics(keep.flatten(), p_clean.flatten(), wrong.flatten())
    assert {name: scores[name] for name in flat} == flat
    by_class = selection_by_class(keep, p_clean, wrong)
    for i in range(3):
        expected = selection_metrics(keep[:, i], p_clean[:, i], wrong[:, i])
        for name, value in expected.items():
            np.testing.assert_equal(by_class[name][i], value)
    assert np.isnan(by_class["auroc"][2])
    assert scores["auroc_macro"] == pytest.approx(np.mean(by_class["auroc"][:2]), abs=1e-6)
