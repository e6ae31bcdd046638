"""Every golden vector of the retrieval and clustering metrics."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from support import paths, vectors

from noisyml.metrics.clustering import ami, nmi
from noisyml.metrics.retrieval import retrieval_metrics

GOLDEN = paths.GOLDEN / "retrieval_metrics"
METRICS = ("precision_at_1", "r_precision", "map_at_r", "map", "mrr", "mean_precision_1_to_100")
RECALL_AT = (1, 2, 4, 8, 10)
#: Our name -> the golden field's.
FIELDS = {
    "precision_at_1": "precision_at_1",
    "r_precision": "r_precision",
    "map_at_r": "map_at_r",
    "map": "map_full",
    "mrr": "reciprocal_rank",
    "mean_precision_1_to_100": "mean_precision_1_to_100",
    **{f"recall_at_{k}": f"recall_at_{k}" for k in RECALL_AT},
}
PML_FIELDS = {
    "precision_at_1": ("precision_at_1", 1e-12),
    "r_precision": ("r_precision", 1e-12),
    "map_at_r": ("mean_average_precision_at_r", 1e-12),
    "map": ("mean_average_precision", 1e-12),
    "mrr": ("mean_reciprocal_rank", 1e-6),
}
CASES = (
    "all_lone.npz",
    "query_gallery_missing_class.npz",
    "reference_contains_queries.npz",
    "self_gallery.npz",
    "self_gallery_lone_classes.npz",
    "self_gallery_over_100.npz",
    "unnormalised_cosine.npz",
    "unnormalised_l2.npz",
)
load = functools.partial(vectors.arrays, GOLDEN)


def arguments(case: dict[str, np.ndarray], dtype: torch.dtype = torch.float64) -> dict:
    query, gallery = (torch.from_numpy(case[key]).to(dtype) for key in ("query", "gallery"))
    labels = torch.from_numpy(case["query_labels"])
    metric = {"cos": "cosine", "l2": "l2"}[str(case["metric"])]
    if torch.equal(query, gallery) and bool(case["self_excluded"]):
        return {"query": query, "query_labels": labels, "metric": metric}
    return {
        "query": query,
        "query_labels": labels,
        "gallery": gallery,
        "gallery_labels": torch.from_numpy(case["gallery_labels"]),
        "metric": metric,
        "exclude_self": bool(case["self_excluded"]),
    }


def same(value: float, reference: np.ndarray, tolerance: float = 1e-12) -> bool:
    return bool(np.isclose(value, float(reference), rtol=0, atol=tolerance, equal_nan=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_means_and_values_per_query(name: str, dtype: torch.dtype) -> None:
    case = load(name)
    means, per_query = retrieval_metrics(
        **arguments(case, dtype), metrics=METRICS, recall_at=RECALL_AT, return_per_query=True
    )
    assert means["queries"] == len(case["query"])
    assert means["lone_queries"] == int(case["n_lone_queries"])
    for ours, field in FIELDS.items():
        assert same(means[ours], case[f"mean_{field}"]), ours
        np.testing.assert_allclose(
            per_query[ours].numpy(), case[f"per_query_{field}"], rtol=0, atol=1e-12, err_msg=ours
        )


@pytest.mark.parametrize("name", CASES)
def test_macro_average_and_lone_as_zero(name: str) -> None:
    case = load(name)
    macro = retrieval_metrics(**arguments(case), average="macro")
    zero = retrieval_metrics(**arguments(case), lone="zero")
    for field in ("precision_at_1", "r_precision", "map_at_r"):
        assert same(macro[field], case[f"macro_{field}"]), field
        assert same(zero[field], case[f"mean_lone_as_zero_{field}"]), field


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_pytorch_metric_learning(name: str) -> None:
    case = load(name)
    micro = retrieval_metrics(**arguments(case), metrics=METRICS)
    macro = retrieval_metrics(**arguments(case), metrics=METRICS, average="macro")
    for ours, (field, tolerance) in PML_FIELDS.items():
        assert same(micro[ours], case[f"pml_{field}"], tolerance), ours
        assert same(macro[ours], case[f"pml_avg_of_avgs_{field}"], tolerance), ours


@pytest.mark.parametrize(
    "name", ["self_gallery.npz", "self_gallery_over_100.npz", "unnormalised_l2.npz"]
)
def test_agrees_with_the_prism_repository_without_lone_queries(name: str) -> None:
    case = load(name)
    found = retrieval_metrics(**arguments(case), metrics=METRICS)
    fields = {
        "precision_at_1": "precision_at_1",
        "r_precision": "r_precision",
        "map_at_r": "mean_average_precision_at_r",
        "mean_precision_1_to_100": "mean_average_precision_at_100",
    }
    for ours, field in fields.items():
        if f"prismrepo_{field}" in case:
            assert same(found[ours], case[f"prismrepo_{field}"]), ours
    assert ("prismrepo_mean_average_precision_at_100" in case) == (len(case["query"]) > 100)


@pytest.mark.parametrize(
    "name", ["all_lone.npz", "query_gallery_missing_class.npz", "self_gallery_lone_classes.npz"]
)
def test_the_prism_repository_scores_lone_queries_zero(name: str) -> None:
    case = load(name)
    zero = retrieval_metrics(**arguments(case), lone="zero")
    assert same(zero["precision_at_1"], case["prismrepo_precision_at_1"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ties(dtype: torch.dtype) -> None:
    case = load("ties.npz")
    found, per_query = retrieval_metrics(
        torch.from_numpy(case["query"]).to(dtype),
        torch.from_numpy(case["query_labels"]),
        metric="l2",
        recall_at=(2, 4),
        tie_bounds=True,
        return_per_query=True,
    )
    for metric in ("precision_at_1", "r_precision", "map_at_r", "recall_at_2", "recall_at_4"):
        assert same(found[metric], case[f"stable_{metric}"]), metric
        np.testing.assert_allclose(
            per_query[metric].numpy(), case[f"stable_per_query_{metric}"], rtol=0, atol=1e-12
        )
        for bound in ("optimistic", "pessimistic"):
            assert same(found[f"{metric}_{bound}"], case[f"{bound}_{metric}"]), (metric, bound)
    assert same(found["precision_at_1"], case["pml_precision_at_1"])
    assert same(found["r_precision"], case["pml_r_precision"])
    assert same(found["map_at_r"], case["pml_mean_average_precision_at_r"])
    # Dropping the first column instead of the query itself counts exact duplicates as hits.
    assert found["precision_at_1"] < float(case["prismrepo_precision_at_1"])


def test_margin_form_of_recall() -> None:
    case = load("recall_margin_form.npz")
    ks = (1, 2, 4, 8, 10)
    found = retrieval_metrics(
        torch.from_numpy(case["feats"]),
        torch.from_numpy(case["labels"]),
        metrics=[f"recall_margin_at_{k}" for k in ks],
        recall_at=ks,
    )
    for k in ks:
        assert same(found[f"recall_margin_at_{k}"], case[f"released_recall_{k}"])
        assert same(found[f"recall_at_{k}"], case[f"reference_recall_{k}"])


@pytest.mark.parametrize(
    "name",
    [
        "identical",
        "relabelled",
        "random",
        "partly",
        "one_cluster",
        "all_singletons",
        "both_constant",
    ],
)
def test_mutual_information(name: str) -> None:
    case = load("nmi.npz")
    assert name in case["cases"]
    labels = torch.from_numpy(case[f"{name}_labels"])
    clusters = torch.from_numpy(case[f"{name}_clusters"])
    assert same(nmi(labels, clusters), case[f"{name}_nmi"])
    assert same(nmi(labels, clusters), case[f"{name}_nmi_sklearn"])
    assert same(nmi(labels, clusters, "max"), case[f"{name}_nmi_max"])
    assert same(nmi(labels, clusters, "geometric"), case[f"{name}_nmi_geometric"])
    assert same(ami(labels, clusters), case[f"{name}_ami_sklearn"])
