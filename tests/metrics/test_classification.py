"""Classification metrics against scikit-learn, plain sorting, and themselves cut differently."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    log_loss,
    top_k_accuracy_score,
)
from support import paths
from support.ranks import run_ranks

from noisyml.errors import UserError
from noisyml.metrics.classification import ClassificationEvaluator, class_ranks

N, C = 300, 12
#: Where each rank's share ends: uneven, and one rank has nothing.
ENDS = (110, 110, N)


def sample(seed=0, classes=range(C)):
    """Scores with ties among them, and labels from `classes` only."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.choice(list(classes), N))
    logits = torch.from_numpy(rng.normal(size=(N, C)).astype(np.float32))
    logits[torch.arange(N), labels] += 1.0
    logits[: N // 3] = logits[: N // 3].round()
    return logits, labels


def evaluate(logits, labels, batches, class_names=None, **arguments):
    evaluator = ClassificationEvaluator(**arguments)
    evaluator.class_names = class_names
    for rows in batches:
        evaluator.update({"logits": logits[rows]}, labels[rows], rows)
    return evaluator.compute()


def whole():
    return [torch.arange(N)]


@pytest.mark.parametrize("classes", [range(C), [0, 3, 7, 11]], ids=["all", "some absent"])
def test_values_of_scikit_learn(classes):
    logits, labels = sample(1, classes)
    logits += torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    found = evaluate(logits, labels, whole(), top_k=[2, 5])
    y, scores = labels.numpy(), logits.double().numpy()
    every = np.arange(C)
    expected = {
        "accuracy": accuracy_score(y, scores.argmax(1)),
        "accuracy_top2": top_k_accuracy_score(y, scores, k=2, labels=every),
        "accuracy_top5": top_k_accuracy_score(y, scores, k=5, labels=every),
        "nll": log_loss(y, torch.from_numpy(scores).softmax(1).numpy(), labels=every),
    }
    answers = scores.argmax(1)
    if classes == range(C):
        expected["accuracy_per_class"] = balanced_accuracy_score(y, answers)
    else:  # scikit-learn warns of absent classes that were answered, and leaves them out alike
        per_class = [np.mean(answers[y == c] == c) for c in classes]
        expected["accuracy_per_class"] = np.mean(per_class)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
    names = [f"class {c}" for c in every]
    more = evaluate(logits, labels, whole(), top_k=[2, 5], per_class=True, class_names=names)
    assert set(more) - set(found) == {f"accuracy/class {c}" for c in classes}
    for c in classes:
        assert more[f"accuracy/class {c}"] == pytest.approx(np.mean(answers[y == c] == c))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=4, max_size=4), min_size=1, max_size=8),
    st.integers(0, 3),
)
def test_equal_scores_rank_by_class_number(rows, label):
    logits = torch.tensor(rows, dtype=torch.float32)
    labels = torch.full((len(rows),), label)
    for i, row in enumerate(rows):
        order = sorted(range(4), key=lambda c, row=row: (-row[c], c))
        assert int(class_ranks(logits, labels)[i]) == order.index(label)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(N)), st.integers(1, 120), st.integers(0, 40))
@pytest.mark.long
def test_order_cuts_and_repetitions_change_no_bit(order, size, repeated):
    logits, labels = sample()
    rows = torch.tensor([*order, *order[:repeated]])
    expected = evaluate(logits, labels, whole())
    assert evaluate(logits, labels, rows.split(size)) == expected


def test_top_k_is_left_out_unless_there_are_more_classes():
    logits, labels = torch.eye(5), torch.arange(5)
    rows = [torch.arange(5)]
    assert set(evaluate(logits, labels, rows)) == {"accuracy", "accuracy_per_class", "nll"}
    assert evaluate(logits, labels, rows, top_k=[4])["accuracy_top4"] == 1.0
    six = torch.cat([torch.eye(5), torch.zeros(5, 1)], dim=1)
    assert evaluate(six, labels, rows)["accuracy_top5"] == 1.0


def test_half_precision_scores_are_scored_in_single():
    logits, labels = sample()
    found = evaluate(logits.bfloat16(), labels, whole())
    expected = evaluate(logits.bfloat16().float(), labels, whole())
    assert found == expected


def test_only_four_numbers_per_sample_are_kept():
    logits, labels = sample()
    evaluator = ClassificationEvaluator()
    evaluator.update({"logits": logits}, labels, torch.arange(N))
    kept = [tensor for part in vars(evaluator._shard).values() for tensor in part]
    assert sum(tensor.numel() for tensor in kept) == 4 * N
    assert len({tensor.untyped_storage().data_ptr() for tensor in kept}) == 4


def test_reset_forgets():
    logits, labels = sample()
    evaluator = ClassificationEvaluator()
    evaluator.update({"logits": logits[:, :6]}, labels, torch.arange(N))
    evaluator.reset()
    evaluator.update({"logits": logits}, labels, torch.arange(N))
    assert evaluator.compute() == evaluate(logits, labels, whole())


def broken(**change):
    logits, labels = sample()
    given = {"outputs": {"logits": logits}, "targets": labels, "index": torch.arange(N)} | change
    evaluator = ClassificationEvaluator()
    evaluator.update(**given)
    evaluator.compute()


def with_value(place, value):
    logits, labels = sample()
    changed = logits if place == "logits" else labels
    changed[3] = value
    return {"outputs": {"logits": logits}, "targets": labels}


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: broken(**with_value("logits", torch.nan)), "of 1 of 300 samples are NaN"),
        (lambda: broken(**with_value("logits", torch.inf)), "of 1 of 300 samples are NaN"),
        (lambda: broken(**with_value("labels", C)), "has the label 12, but the classifier knows"),
        (lambda: broken(**with_value("labels", -1)), "has the label -1, but"),
        (lambda: broken(outputs={}), "evaluates logits, but the method gives nothing"),
        (lambda: broken(targets=torch.zeros(N, C)), "one integer label per sample"),
        (lambda: broken(role="gallery"), "choose evaluator=retrieval"),
        (lambda: ClassificationEvaluator().compute(), "has seen no sample"),
        (lambda: ClassificationEvaluator(top_k=[1]), "must be a whole number of at least 2"),
        (lambda: ClassificationEvaluator(top_k=[2.5]), "must be a whole number of at least 2"),
    ],
)
def test_mistakes_end_in_a_sentence(act, sentence):
    with pytest.raises(UserError, match=sentence):
        act()


def test_batches_of_different_width_or_length_are_refused():
    logits, labels = sample()
    evaluator = ClassificationEvaluator()
    with pytest.raises(ValueError, match="same length"):
        evaluator.update({"logits": logits}, labels, torch.arange(3))
    evaluator.update({"logits": logits}, labels, torch.arange(N))
    with pytest.raises(ValueError, match="11 classes after batches of 12"):
        evaluator.update({"logits": logits[:, :11]}, labels, torch.arange(N))


def _share(rank):
    """Contiguous rows, and some that other ranks hold too, as a padding sampler deals them."""
    rows = torch.arange(ENDS[rank - 1] if rank else 0, ENDS[rank])
    padding = torch.arange(10 * rank, 10 * rank + 30) if rank != 1 else torch.arange(0)
    return [part for part in torch.cat([rows, padding]).split(64) if len(part)]


def _worker(rank, world, folder):
    logits, labels = sample()
    found = evaluate(logits, labels, _share(rank))
    # A rank that sees nothing wrong itself must not be left waiting for one that does.
    logits[5] = torch.nan
    try:
        evaluate(logits, labels, _share(rank))
    except UserError as error:
        found["said"] = str(error)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def test_ranks_equal_one_process(tmp_path):
    world = len(ENDS)
    run_ranks(_worker, world, tmp_path, str(tmp_path))
    alone = evaluate(*sample(), whole())
    for rank in range(world):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert "of 1 of 300 samples are NaN" in found.pop("said")
        assert found == alone, rank


def test_reference_metrics_of_few_classes_and_of_two():
    v = {k: torch.from_numpy(x) for k, x in np.load(paths.GOLDEN / "ael" / "metrics.npz").items()}
    metric = ClassificationEvaluator()
    metric.update({"logits": v["logits"]}, v["labels"], torch.arange(len(v["labels"])))
    found = metric.compute()
    assert found["accuracy"] == pytest.approx(float(v["accuracy"]), rel=1e-9)
    assert found["accuracy_per_class"] == pytest.approx(float(v["balanced_accuracy"]), rel=1e-9)
    of_two = ClassificationEvaluator(auc=True)
    scores = v["score_binary"]
    logits = torch.stack([torch.zeros_like(scores), scores], dim=1)
    of_two.update({"logits": logits}, v["labels_binary"], torch.arange(len(scores)))
    assert of_two.compute()["auc"] == pytest.approx(float(v["auc"]), rel=1e-6)
