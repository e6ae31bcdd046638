"""Relevance given for each query, beside labels and plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.metrics.retrieval import retrieval_metrics

METRICS = [
    *("precision_at_1", "precision_at_5", "precision_capped_at_5", "map", "map_at_5"),
    *("map_capped_at_5", "map_trapezoid", "r_precision", "map_at_r", "mrr", "recall_margin_at_2"),
]
REVISITED = paths.GOLDEN / "insclr"
SETUPS = {
    "E": (("easy",), ("junk", "hard")),
    "M": (("easy", "hard"), ("junk",)),
    "H": (("hard",), ("junk", "easy")),
}


def rows(n, seed, dim=6):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, dim)))


@pytest.mark.parametrize("name", ["revisitop_map.npz", "revisitop_map_distractors.npz"])
@pytest.mark.parametrize("setup", SETUPS)
def test_the_revisited_protocol_in_one_call(name, setup):
    case = vectors.arrays(REVISITED, name)
    query, gallery = case["query"], case["database"]
    if "distractors" in case:
        gallery = np.concatenate([gallery, case["distractors"]])

    def listed(groups):
        parts = [np.split(case[f"{g}_flat"], case[f"{g}_offsets"][1:-1]) for g in groups]
        return [np.concatenate(own).tolist() for own in zip(*parts, strict=True)]

    positive, ignored = map(listed, SETUPS[setup])
    names = ["map_trapezoid", *(f"precision_capped_at_{k}" for k in case["kappas"].tolist())]
    means, each = retrieval_metrics(
        query,
        gallery=gallery,
        relevant=positive,
        junk=ignored,
        metrics=names,
        recall_at=(),
        return_per_query=True,
    )
    np.testing.assert_allclose(each["map_trapezoid"], case[f"ap_{setup}"], rtol=0, atol=1e-12)
    assert means["map_trapezoid"] == pytest.approx(float(case[f"map_{setup}"]), abs=1e-12)
    for k, expected in zip(case["kappas"].tolist(), case[f"mp_{setup}"], strict=True):
        assert means[f"precision_capped_at_{k}"] == pytest.approx(float(expected), abs=1e-12)


def test_lists_that_span_the_same_stretch_may_leave_gaps():
    query = torch.tensor([[0.9, 0.5, 0.1, 0.0], [0.8, 0.6, 0.05, 0.5]])
    _, each = retrieval_metrics(
        query,
        gallery=torch.eye(4),
        relevant=[[0, 1, 2], [0, 2]],
        metrics=["map"],
        recall_at=(),
        return_per_query=True,
    )
    # The second ranks 0, 1, 3, 2: (1 + 2 / 4) / 2.
    assert each["map"].tolist() == [1.0, 0.75]


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), metric=st.sampled_from(["cosine", "l2"]), ties=st.booleans())
@pytest.mark.long
def test_lists_of_the_items_of_a_label_are_the_label(seed, metric, ties):
    generator = np.random.default_rng(seed)
    query, gallery = rows(17, seed), rows(90, seed + 1)
    if ties:
        gallery[10:20] = gallery[0]
    labels, others = generator.integers(0, 7, 17), generator.integers(0, 7, 90)
    junk = [generator.choice(90, 4, replace=False).tolist() for _ in range(17)]
    options = {"metrics": METRICS, "metric": metric, "junk": junk, "return_per_query": True}
    means, each = retrieval_metrics(query, labels, gallery, others, **options)
    lists = [np.flatnonzero(others == label).tolist() for label in labels]
    mask = torch.from_numpy(others[None] == labels[:, None])
    flat = np.concatenate(lists), np.cumsum([0, *map(len, lists)])
    for relevant in (lists, mask, mask.numpy(), flat):
        again, found = retrieval_metrics(query, gallery=gallery, relevant=relevant, **options)
        assert again == pytest.approx(means, nan_ok=True, abs=0)
        for name, values in each.items():
            assert torch.equal(found[name].nan_to_num(-1), values.nan_to_num(-1)), name


def test_queries_that_are_their_own_gallery_leave_themselves_out():
    x = rows(60, 3)
    labels = torch.arange(60) % 9
    same = labels[:, None] == labels
    expected = retrieval_metrics(x, labels, metrics=METRICS)
    assert retrieval_metrics(x, relevant=same, metrics=METRICS) == expected
    macro = retrieval_metrics(x, labels, relevant=same, metrics=METRICS, average="macro")
    assert macro == retrieval_metrics(x, labels, metrics=METRICS, average="macro")


@pytest.mark.long
def test_large_galleries_and_small_budgets_change_nothing():
    query, gallery = rows(300, 1, 16).float(), rows(5000, 2, 16).float()
    generator = np.random.default_rng(0)
    lists = [generator.choice(5000, generator.integers(0, 30), replace=False) for _ in range(300)]
    options = {"gallery": gallery, "metrics": METRICS, "return_per_query": True}
    means, each = retrieval_metrics(query, relevant=lists, memory_budget_bytes=2**20, **options)
    again, found = retrieval_metrics(query, relevant=lists, **options)
    assert means == again
    assert means["lone_queries"] == sum(not len(own) for own in lists) > 0
    scores = torch.nn.functional.normalize(query.double(), dim=1)
    scores = scores @ torch.nn.functional.normalize(gallery.double(), dim=1).T
    order = scores.argsort(dim=1, descending=True, stable=True)
    for i in range(0, 300, 17):
        if len(lists[i]):
            hits = np.flatnonzero(np.isin(order[i].numpy(), lists[i])) + 1
            expected = (np.arange(1, len(hits) + 1) / hits).mean()
            assert each["map"][i] == pytest.approx(expected, abs=1e-12)
            assert torch.equal(each["map"][i], found["map"][i])


def test_where_nothing_can_be_found_nothing_is_measured():
    x = rows(5, 0)
    found = retrieval_metrics(x, torch.arange(5), metrics=METRICS)
    assert found.pop("queries") == found.pop("lone_queries") == 5
    assert all(np.isnan(value) for value in found.values())
    half = retrieval_metrics(x, torch.tensor([0, 0, 1, 2, 3]), lone="zero")
    assert half["recall_at_1"] <= 0.4


def test_wrong_lists_are_refused():
    x = rows(4, 0)
    with pytest.raises(ValueError, match="lists items for 3 queries, and there are 4"):
        retrieval_metrics(x, relevant=[[1], [2], [3]])
    with pytest.raises(ValueError, match=r"relevant numbers must lie in 0 \.\. 3"):
        retrieval_metrics(x, relevant=[[1], [2], [3], [4]])
    with pytest.raises(ValueError, match="query_labels are needed"):
        retrieval_metrics(x)
    with pytest.raises(ValueError, match="query_labels are needed"):
        retrieval_metrics(x, relevant=[[1], [2], [3], [0]], average="macro")
    with pytest.raises(UserError, match="Unknown retrieval metric"):
        retrieval_metrics(x, relevant=[[1], [2], [3], [0]], metrics=["map_at_0"])
