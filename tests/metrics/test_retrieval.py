"""The retrieval metrics against plain loops, the peer library, and themselves cut differently."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from support import paths, vectors
from support.clusters import clusters
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from noisyml.errors import UserError
from noisyml.metrics.retrieval import DEFAULT_METRICS as DEFAULT
from noisyml.metrics.retrieval import retrieval_metrics
from noisyml.similarity.exact import kernels
from noisyml.similarity.exact import quantised as coarse
from noisyml.similarity.ranks import block, opening, walk
from noisyml.similarity.ranks.task import ranking_task

ALL = (
    "precision_at_1",
    "precision_at_3",
    "r_precision",
    "map_at_r",
    "map",
    "map_at_5",
    "mrr",
    "recall_margin_at_2",
    "mean_precision_1_to_100",
    "map_trapezoid",
)
SMALLEST_BUDGET = 2**20


def loop_metrics(
    scores: np.ndarray,
    query_labels: np.ndarray,
    labels: np.ndarray,
    own: np.ndarray,
    ties: str,
    junk: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Per-query metrics from a full float64 score matrix, one query at a time."""
    rows: dict[str, list[float]] = {}
    for i, y in enumerate(query_labels):
        ignored = {own[i]} if junk is None else {own[i], *np.flatnonzero(junk[i])}
        others = np.array([j for j in range(len(labels)) if j not in ignored], dtype=int)
        relevant = labels[others] == y
        second = {"index": others, "optimistic": ~relevant, "pessimistic": relevant}[ties]
        order = np.lexsort((second, -scores[i, others]))
        hit = relevant[order].astype(float)
        r, n = int(hit.sum()), len(hit)
        precision = np.cumsum(hit) / np.arange(1, n + 1)
        if r == 0:
            values = dict.fromkeys([*ALL, "recall_at_1", "recall_at_4"], np.nan)
        else:
            first = int(np.argmax(hit))
            best = scores[i, others][relevant].max()
            values = {
                "precision_at_1": hit[0],
                "precision_at_3": hit[:3].sum() / 3,
                "r_precision": precision[r - 1],
                "map_at_r": (precision * hit)[:r].sum() / r,
                "map": (precision * hit).sum() / r,
                "map_at_5": (precision * hit)[:5].sum() / r,
                "mrr": 1 / (first + 1),
                "recall_margin_at_2": float((scores[i, others][~relevant] > best).sum() < 2),
                "mean_precision_1_to_100": precision[:100].mean() if n >= 100 else np.nan,
                "map_trapezoid": trapezoid_average_precision(np.flatnonzero(hit)),
                "recall_at_1": hit[0],
                "recall_at_4": float(hit[:4].any()),
            }
        for name, value in values.items():
            rows.setdefault(name, []).append(float(value))
    return {name: np.array(column) for name, column in rows.items()}


def trapezoid_average_precision(positions: np.ndarray) -> float:
    """From the places of the relevant items, counted from 0."""
    total = 0.0
    for m, r in enumerate(positions):
        total += ((1.0 if r == 0 else m / r) + (m + 1) / (r + 1)) / 2
    return total / len(positions)


def compare_with_loop(
    per_query: dict[str, Tensor],
    scores: np.ndarray,
    *rest: np.ndarray,
    junk: np.ndarray | None = None,
) -> None:
    for ties in ("index", "optimistic", "pessimistic"):
        expected = loop_metrics(scores, *rest, ties, junk)
        for name, column in expected.items():
            if ties != "index" and name.startswith("recall_margin"):
                continue
            ours = name if ties == "index" else f"{name}_{ties}"
            np.testing.assert_allclose(
                per_query[ours].numpy(), column, rtol=0, atol=1e-12, err_msg=ours
            )


def squared_distance_scores(query: Tensor, gallery: Tensor) -> np.ndarray:
    difference = query.double().numpy()[:, None] - gallery.double().numpy()[None]
    return -(difference**2).sum(2)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 40),
    classes=st.integers(1, 12),
    values=st.integers(1, 4),
    double=st.booleans(),
)
@pytest.mark.long
def test_self_search_with_many_ties_equals_loops(
    seed: int, n: int, classes: int, values: int, double: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(-values, values + 1, (n, 3))).to(
        torch.float64 if double else torch.float32
    )
    y = torch.from_numpy(rng.integers(0, classes, n))
    _, per_query = retrieval_metrics(
        x, y, metrics=ALL, recall_at=(1, 4), metric="l2", tie_bounds=True, return_per_query=True
    )
    compare_with_loop(per_query, squared_distance_scores(x, x), y.numpy(), y.numpy(), np.arange(n))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_query=st.integers(1, 20),
    n_gallery=st.integers(1, 60),
    classes=st.integers(1, 9),
)
@pytest.mark.long
def test_separate_gallery_with_own_numbers_equals_loops(
    seed: int, n_query: int, n_gallery: int, classes: int
) -> None:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(-2, 3, (n_query, 2))).float()
    g = torch.from_numpy(rng.integers(-2, 3, (n_gallery, 2))).float()
    y, z = (torch.from_numpy(rng.integers(0, classes, k)) for k in (n_query, n_gallery))
    # -1: not in the gallery; the item left out need not even carry the query's label.
    own = torch.from_numpy(rng.integers(-1, n_gallery, n_query))
    _, per_query = retrieval_metrics(
        x,
        y,
        g,
        z,
        metrics=ALL,
        recall_at=(1, 4),
        metric="l2",
        query_index_in_gallery=own,
        tie_bounds=True,
        return_per_query=True,
    )
    compare_with_loop(per_query, squared_distance_scores(x, g), y.numpy(), z.numpy(), own.numpy())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_query=st.integers(1, 20),
    n_gallery=st.integers(1, 60),
    classes=st.integers(1, 6),
    share=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    as_mask=st.booleans(),
    alone=st.booleans(),
)
@pytest.mark.long
def test_junk_equals_loops(
    seed: int,
    n_query: int,
    n_gallery: int,
    classes: int,
    share: float,
    as_mask: bool,
    alone: bool,
) -> None:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(-2, 3, (n_query, 2))).float()
    y = torch.from_numpy(rng.integers(0, classes, n_query))
    g, z, own = x, y, np.arange(n_query)
    if not alone:
        g = torch.from_numpy(rng.integers(-2, 3, (n_gallery, 2))).float()
        z = torch.from_numpy(rng.integers(0, classes, n_gallery))
        own = rng.integers(-1, n_gallery, n_query)
    mask = rng.random((len(x), len(g))) < share
    junk = torch.from_numpy(mask) if as_mask else ragged(mask, rng)
    sets = (x, y) if alone else (x, y, g, z)
    _, per_query = retrieval_metrics(
        *sets,
        metrics=ALL,
        recall_at=(1, 4),
        metric="l2",
        query_index_in_gallery=None if alone else torch.from_numpy(own),
        junk=junk,
        tie_bounds=True,
        return_per_query=True,
    )
    compare_with_loop(
        per_query, squared_distance_scores(x, g), y.numpy(), z.numpy(), own, junk=mask
    )


def ragged(mask: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Lists in any order, with repetitions."""
    lists = [np.flatnonzero(row) for row in mask]
    lists = [rng.permutation(np.concatenate([items, items[:2]])) for items in lists]
    offsets = np.cumsum([0, *(len(items) for items in lists)])
    return torch.from_numpy(np.concatenate(lists)), torch.from_numpy(offsets)


@pytest.mark.long
def test_junk_over_several_tiles_equals_loops_and_a_gallery_without_it() -> None:
    x, y = clusters(700, 90)
    rng = np.random.default_rng(0)
    mask = rng.random((700, 700)) < 0.2
    options = {
        "metrics": ALL,
        "recall_at": (1, 4),
        "memory_budget_bytes": SMALLEST_BUDGET,
        "tie_bounds": True,
        "return_per_query": True,
    }
    _, per_query = retrieval_metrics(x, y, junk=ragged(mask, rng), **options)
    unit = (x.double() / x.double().norm(dim=1, keepdim=True)).numpy()
    scores = unit @ unit.T
    compare_with_loop(per_query, scores, y.numpy(), y.numpy(), np.arange(700), junk=mask)

    # What is junk for everyone might as well not be in the gallery.
    mask = np.tile(rng.random(300) < 0.3, (400, 1))
    kept = torch.from_numpy(~mask[0])
    gallery, labels = x[400:], y[400:]
    means, _ = retrieval_metrics(
        x[:400], y[:400], gallery, labels, junk=torch.from_numpy(mask), **options
    )
    without, _ = retrieval_metrics(x[:400], y[:400], gallery[kept], labels[kept], **options)
    assert means == without


def test_wrong_junk_is_a_programming_error() -> None:
    x, y = clusters(4, 2)
    offsets = torch.tensor([0, 1, 1, 1, 2])
    with pytest.raises(ValueError, match=r"bool \[4, 4\]"):
        retrieval_metrics(x, y, junk=torch.zeros(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="bool"):
        retrieval_metrics(x, y, junk=torch.zeros(4, 4))
    for wrong in (offsets[:-1], offsets + 1, torch.tensor([0, 2, 1, 1, 2]), offsets * 2):
        with pytest.raises(ValueError, match="ascending from 0 to J"):
            retrieval_metrics(x, y, junk=(torch.tensor([1, 2]), wrong))
    for numbers in ([1, 4], [-1, 2]):
        with pytest.raises(ValueError, match=r"0 \.\. 3"):
            retrieval_metrics(x, y, junk=(torch.tensor(numbers), offsets))


REVISITED = paths.GOLDEN / "insclr"


@pytest.mark.parametrize("name", ["revisitop_map.npz", "revisitop_map_distractors.npz"])
@pytest.mark.parametrize(
    ("setup", "positive", "ignored"),
    [
        ("E", ("easy",), ("junk", "hard")),
        ("M", ("easy", "hard"), ("junk",)),
        ("H", ("hard",), ("junk", "easy")),
    ],
)
def test_revisited_oxford_protocol_equals_the_official_code(
    name: str, setup: str, positive: tuple[str, ...], ignored: tuple[str, ...]
) -> None:
    case = vectors.arrays(REVISITED, name)
    query, gallery = torch.from_numpy(case["query"]), torch.from_numpy(case["database"])
    if "distractors" in case:
        gallery = torch.cat([gallery, torch.from_numpy(case["distractors"])])

    def listed(groups: tuple[str, ...], i: int) -> np.ndarray:
        parts = []
        for group in groups:
            start, stop = case[f"{group}_offsets"][i : i + 2]
            parts.append(case[f"{group}_flat"][start:stop])
        return np.concatenate(parts)

    found = []
    for i in range(len(query)):
        labels = torch.zeros(len(gallery), dtype=torch.int64)
        labels[listed(positive, i)] = 1
        junk = torch.from_numpy(listed(ignored, i))
        means = retrieval_metrics(
            query[i : i + 1],
            torch.tensor([1]),
            gallery,
            labels,
            metrics=["map_trapezoid"],
            junk=(junk, torch.tensor([0, len(junk)])),
        )
        found.append(means["map_trapezoid"])
    np.testing.assert_allclose(found, case[f"ap_{setup}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.long
def test_cosine_over_several_tiles_equals_loops(dtype: torch.dtype) -> None:
    x, y = clusters(600, 90)
    x = x.to(dtype)
    _, per_query = retrieval_metrics(
        x,
        y,
        metrics=ALL,
        recall_at=(1, 4),
        memory_budget_bytes=SMALLEST_BUDGET,
        tie_bounds=True,
        return_per_query=True,
    )
    unit = (x.double() / x.double().norm(dim=1, keepdim=True)).numpy()
    compare_with_loop(per_query, unit @ unit.T, y.numpy(), y.numpy(), np.arange(len(x)))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("classes", [3, 400])
@pytest.mark.long
def test_block_size_and_path_do_not_change_a_bit(classes: int, metric: str) -> None:
    # Three classes of 300 do not fit a small budget at once: queries are then taken block by block.
    x, y = clusters(900, classes, noise=1.5)
    x[100:200] = x[500:600]
    options = {
        "metrics": ALL,
        "recall_at": (1, 10),
        "metric": metric,
        "tie_bounds": True,
        "return_per_query": True,
    }
    means, reference = retrieval_metrics(x, y, **options)
    for other in (
        retrieval_metrics(x, y, memory_budget_bytes=SMALLEST_BUDGET, **options),
        retrieval_metrics(x, y, x.clone(), y.clone(), exclude_self=True, **options),
    ):
        assert other[0] == means
        for name, values in reference.items():
            assert torch.equal(other[1][name].nan_to_num(-1), values.nan_to_num(-1)), name


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_permuting_the_gallery_changes_no_bound(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, (30, 4), generator=generator).float()
    g = torch.randint(-2, 3, (80, 4), generator=generator).float()
    y, z = (torch.randint(6, (n,), generator=generator) for n in (30, 80))
    order = torch.randperm(80, generator=generator)
    options = {"metrics": ("r_precision", "map_at_r", "map"), "metric": "l2", "tie_bounds": True}
    one = retrieval_metrics(x, y, g, z, **options)
    two = retrieval_metrics(x, y, g[order], z[order], **options)
    for name, value in one.items():
        if name.endswith("tic"):
            assert two[name] == value, name
        elif f"{name}_optimistic" in one:
            assert one[f"{name}_pessimistic"] <= value <= one[f"{name}_optimistic"]


@pytest.mark.parametrize("average", ["micro", "macro"])
@pytest.mark.parametrize("protocol", ["self", "separate", "distractors"])
def test_agrees_with_the_installed_accuracy_calculator(protocol: str, average: str) -> None:
    x, y = clusters(300, 60, seed=3)
    x = torch.nn.functional.normalize(x, dim=1)
    names = {
        "precision_at_1": "precision_at_1",
        "r_precision": "r_precision",
        "map_at_r": "mean_average_precision_at_r",
        "map": "mean_average_precision",
        "mrr": "mean_reciprocal_rank",
    }
    peer = AccuracyCalculator(
        include=tuple(names.values()),
        avg_of_avgs=average == "macro",
        device=torch.device("cpu"),
    )
    if protocol == "self":
        expected = peer.get_accuracy(x, y)
        found = retrieval_metrics(x, y, metrics=list(names), average=average)
    elif protocol == "separate":
        expected = peer.get_accuracy(x[:100], y[:100], x[100:], y[100:])
        found = retrieval_metrics(
            x[:100], y[:100], x[100:], y[100:], metrics=list(names), average=average
        )
    else:
        expected = peer.get_accuracy(x[:100], y[:100], x, y, ref_includes_query=True)
        found = retrieval_metrics(
            x[:100], y[:100], x, y, exclude_self=True, metrics=list(names), average=average
        )
    for ours, theirs in names.items():
        assert found[ours] == pytest.approx(expected[theirs], abs=1e-6), ours


def test_average_precision_at_k_agrees_with_the_installed_accuracy_calculator() -> None:
    x, y = clusters(200, 20, seed=4)
    x = torch.nn.functional.normalize(x, dim=1)
    peer = AccuracyCalculator(
        include=("mean_average_precision",), k=7, device=torch.device("cpu")
    ).get_accuracy(x, y)
    found = retrieval_metrics(x, y, metrics=["map_at_7"])
    assert found["map_at_7"] == pytest.approx(peer["mean_average_precision"], abs=1e-6)


@pytest.mark.parametrize("compiled", [True, False])
def test_several_tie_rules_count_clear_cases_once(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled and not kernels.available():
        pytest.skip("no compiled loops here")
    if not compiled:
        monkeypatch.setattr(kernels, "available", lambda: False)
    where, name = (kernels, "count_between") if compiled else (block.QueryBlock, "_increase")
    real, cost = getattr(where, name), []

    def counted(*given: object) -> object:
        cost.append(sum(len(part) for part in given if isinstance(part, Tensor) and part.ndim == 1))
        return real(*given)

    monkeypatch.setattr(where, name, counted)
    x, y = clusters(600, 30, seed=2)
    one_rule = retrieval_metrics(x, y)
    alone = list(cost)
    cost.clear()
    three_rules = retrieval_metrics(x, y, tie_bounds=True)
    assert alone
    assert cost == alone
    assert {key: three_rules[key] for key in one_rule} == one_rule
    assert three_rules["map_at_r_pessimistic"] == one_rule["map_at_r"]


@pytest.mark.long
def test_collapsed_embeddings_tie_exactly_and_rank_by_number() -> None:
    y = torch.arange(700) % 7
    x = torch.full((700, 5), 0.3)
    found = retrieval_metrics(x, y, tie_bounds=True, memory_budget_bytes=SMALLEST_BUDGET)
    assert found["precision_at_1_optimistic"] == found["map_at_r_optimistic"] == 1.0
    assert found["precision_at_1_pessimistic"] == found["map_at_r_pessimistic"] == 0.0
    # Everyone's first neighbour is item 0 of class 0, whose own is item 1.
    assert found["precision_at_1"] == pytest.approx(99 / 700)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_nearly_collapsed_embeddings_equal_loops(metric: str) -> None:
    # All scores lie within the rounding error of a float32 product.
    generator = torch.Generator().manual_seed(0)
    x = 1 + 1e-4 * torch.randn(150, 8, generator=generator)
    y = torch.randint(10, (150,), generator=generator)
    _, per_query = retrieval_metrics(
        x, y, metrics=("map",), metric=metric, return_per_query=True, recall_at=()
    )
    rows = x.double()
    if metric == "cosine":
        rows = rows / rows.norm(dim=1, keepdim=True)
    expected = loop_metrics(
        squared_distance_scores(rows, rows), y.numpy(), y.numpy(), np.arange(150), "index"
    )
    np.testing.assert_allclose(per_query["map"].numpy(), expected["map"], rtol=0, atol=1e-12)


@pytest.mark.long
def test_items_dropped_too_early_are_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Classes this large are ranked against samples of the gallery first. Without any caution many
    # relevant items are dropped wrongly; the result must not notice.
    x, y = clusters(900, 3, noise=3.0)
    options = {"memory_budget_bytes": SMALLEST_BUDGET, "return_per_query": True}
    _, cautious = retrieval_metrics(x, y, **options)
    again = []

    def unsettled(queries: block.QueryBlock) -> Tensor:
        found = original(queries)
        again.append(int(found.sum()))
        return found

    original = block.QueryBlock.unsettled
    monkeypatch.setattr(block.QueryBlock, "unsettled", unsettled)
    monkeypatch.setattr(block, "_CAUTION", -8.0)
    _, careless = retrieval_metrics(x, y, **options)
    assert sum(again) > 100
    for name, values in cautious.items():
        assert torch.equal(careless[name], values), name
    unit = (x.double() / x.double().norm(dim=1, keepdim=True)).numpy()
    expected = loop_metrics(unit @ unit.T, y.numpy(), y.numpy(), np.arange(900), "index")
    np.testing.assert_allclose(cautious["map_at_r"], expected["map_at_r"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("number_format", ["int8_loops", "int8_onednn", "bfloat16"])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("classes", [3, 250])
@pytest.mark.long
def test_a_cheap_filter_before_the_float32_one_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, classes: int, metric: str, number_format: str
) -> None:
    if number_format == "int8_onednn" and not coarse.int8_works():
        pytest.skip("no 8-bit products here")
    if number_format == "int8_loops" and not kernels.available():
        pytest.skip("no compiled loops here")
    x, y = clusters(700, classes, dim=24, noise=1.2)
    x[100:180] = x[500]
    x[200:220] = 0
    x[300] *= 40
    options = {"metric": metric, "metrics": DEFAULT, "recall_at": (1, 5), "tie_bounds": True}
    queries = torch.arange(0, 700, 3)
    inputs = ((x, y), (x[queries], y[queries], x, y))
    extra = ({}, {"query_index_in_gallery": queries})
    expected = [
        retrieval_metrics(*some, **options, **more, return_per_query=True)
        for some, more in zip(inputs, extra, strict=True)
    ]
    served = []
    way = "hits" if number_format == "int8_loops" else "products"
    cheap = getattr(coarse.CoarseFilter, way)

    def counted(self: coarse.CoarseFilter, *arguments: object) -> object:
        found = cheap(self, *arguments)
        served.append(found is not None)
        return found

    monkeypatch.setattr(coarse.CoarseFilter, way, counted)
    monkeypatch.setattr(coarse, "number_format_of", lambda device: number_format)
    monkeypatch.setattr(coarse, "LEAST_WORK", 0)
    monkeypatch.setattr(coarse, "_AXES_WORK", 0)
    monkeypatch.setattr(coarse, "_CANDIDATE_COST", {number_format: 1})
    monkeypatch.setattr(walk, "_FIRST_ROWS", 64)
    # The smallest budget has many tiles, and no room for rounded rows of all of them.
    for budget in (SMALLEST_BUDGET, 2**27):
        if budget == 2**27:  # no tile has too many candidates
            monkeypatch.setattr(coarse, "_MOST_LOOKS", 1.0)
        for some, more, (means, per_query) in zip(inputs, extra, expected, strict=True):
            served.clear()
            found = retrieval_metrics(
                *some, **options, **more, memory_budget_bytes=budget, return_per_query=True
            )
            if number_format == "int8_loops":
                assert served
                assert budget == SMALLEST_BUDGET or all(served)
            else:
                assert len(served) > 2  # the trial takes two products of its own
            assert found[0] == means
            for name, values in per_query.items():
                assert torch.equal(found[1][name].nan_to_num(-1), values.nan_to_num(-1)), name


def test_float64_embeddings_are_told_apart_below_float32() -> None:
    angle = torch.tensor([0.5, 0.5 + 1e-11], dtype=torch.float64)
    gallery = torch.stack([angle.cos(), angle.sin()], dim=1)
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for labels, hit in (([0, 1], 1.0), ([1, 0], 0.0)):
        found = retrieval_metrics(
            query, torch.tensor([0]), gallery, torch.tensor(labels), tie_bounds=True
        )
        assert found["precision_at_1_pessimistic"] == found["precision_at_1_optimistic"] == hit


def test_a_lower_matmul_precision_does_not_change_the_metrics() -> None:
    x, y = clusters(400, 80)
    reference = retrieval_metrics(x, y)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("high", "medium"):
            torch.set_float32_matmul_precision(precision)
            assert retrieval_metrics(x, y) == reference
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_outlier_does_not_blur_the_other_distances() -> None:
    x, y = clusters(300, 30, seed=5)
    alone = retrieval_metrics(x, y, metric="l2")
    with_outlier = retrieval_metrics(
        torch.cat([x, torch.full((1, 16), 1e6)]),
        torch.cat([y, torch.tensor([99])]),
        metric="l2",
    )
    assert with_outlier.pop("lone_queries") == alone.pop("lone_queries") + 1
    assert with_outlier.pop("queries") == alone.pop("queries") + 1
    assert with_outlier == alone


def test_labels_beyond_float32_stay_apart() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
    y = torch.tensor([16_777_216, 16_777_217, 16_777_217, 16_777_216])
    assert retrieval_metrics(x, y)["precision_at_1"] == 0.0


def test_half_precision_embeddings_are_read_as_they_are() -> None:
    x, y = clusters(200, 40)
    half = x.to(torch.bfloat16)
    assert retrieval_metrics(half, y) == retrieval_metrics(half.float(), y)


def test_a_zero_row_is_as_far_as_orthogonal_under_cosine() -> None:
    gallery = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    found = retrieval_metrics(
        torch.tensor([[1.0, 0.0]]), torch.tensor([0]), gallery, torch.tensor([0, 1, 2]),
        metrics=("mrr",),
    )  # fmt: skip
    assert found["mrr"] == 0.5


def test_the_query_may_stay_in_the_gallery_if_asked() -> None:
    x, y = clusters(50, 10)
    assert retrieval_metrics(x, y, exclude_self=False)["precision_at_1"] == 1.0
    assert retrieval_metrics(x, y)["precision_at_1"] < 1.0


def test_empty_sets_give_nan() -> None:
    x, y = clusters(5, 2)
    nobody = retrieval_metrics(x[:0], y[:0])
    assert np.isnan(nobody["precision_at_1"])
    assert nobody["queries"] == nobody["lone_queries"] == 0
    nothing = retrieval_metrics(x, y, x[:0], y[:0])
    assert np.isnan(nothing["map_at_r"])
    assert nothing["lone_queries"] == 5


class _LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return out


@pytest.mark.long
def test_no_tensor_grows_with_the_square_of_the_set() -> None:
    x, y = clusters(3000, 700, dim=4)
    with _LargestTensor() as largest:
        retrieval_metrics(x, y, memory_budget_bytes=SMALLEST_BUDGET)
    assert 0 < largest.numel < 3000**2 / 30


def test_asking_for_nothing_is_a_sentence():
    with pytest.raises(UserError, match="No retrieval metric is asked for"):
        retrieval_metrics(torch.eye(3), [0, 0, 1], metrics=(), recall_at=())


def test_broken_embeddings_are_named() -> None:
    x, y = clusters(10, 3)
    x[4, 2] = torch.nan
    with pytest.raises(UserError, match="1 of 10 query embeddings hold NaN"):
        retrieval_metrics(x, y)
    good, _ = clusters(10, 3)
    with pytest.raises(UserError, match="gallery embeddings"):
        retrieval_metrics(good, y, x, y)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": ["map@r"]}, "Unknown retrieval metric 'map@r'"),
        ({"recall_at": [0]}, r"recall_at\[0\]=0 must be a whole number of at least 1"),
        ({"metric": "dot"}, "metric=dot must be cosine or l2"),
        ({"lone": "drop"}, "lone=drop must be exclude or zero"),
        ({"average": "mean"}, "average=mean must be micro or macro"),
        (
            {"memory_budget_bytes": 10},
            "memory_budget_bytes=10 must be a whole number of at least 1048576",
        ),
    ],
)
def test_wrong_options_get_one_sentence(options: dict, words: str) -> None:
    x, y = clusters(10, 3)
    with pytest.raises(UserError, match=words) as caught:
        retrieval_metrics(x, y, **options)
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_programming_errors() -> None:
    x, y = clusters(10, 3)
    with pytest.raises(TypeError, match="labels must be integers"):
        retrieval_metrics(x, y.float())
    with pytest.raises(TypeError, match="floating point"):
        retrieval_metrics(x.long(), y)
    with pytest.raises(ValueError, match=r"must be \[N, D\] and \[N\]"):
        retrieval_metrics(x, y[:5])
    with pytest.raises(ValueError, match="together"):
        retrieval_metrics(x, y, x)
    with pytest.raises(ValueError, match="dimensions"):
        retrieval_metrics(x, y, x[:, :3], y)
    with pytest.raises(ValueError, match="begins with the queries"):
        retrieval_metrics(x, y, x[:5], y[:5], exclude_self=True)
    with pytest.raises(ValueError, match="behind the end"):
        retrieval_metrics(x, y, x[:5], y[:5], query_index_in_gallery=torch.arange(10))


def test_a_part_of_a_block_does_not_begin_in_one_large_class_and_end_in_another() -> None:
    sizes = [2, 1, 8, 9, 3, 2, 7]
    labels = torch.repeat_interleave(torch.tensor(sizes))
    nobody = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    task = ranking_task(torch.randn(len(labels), 4), labels, None, None, nobody, "cosine")
    parts = task.parts_of(torch.arange(len(labels)), 6, large=7)
    found = [(part.start, part.stop) for part in parts]
    # The small ones together, the large ones each for itself, none longer than 6.
    assert found == [(0, 3), (3, 9), (9, 11), (11, 17), (17, 20), (20, 25), (25, 31), (31, 32)]
    assert task.parts_of(torch.arange(0), 6, large=7) == []


def test_large_classes_are_ranked_alike_in_parts_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(90, 6, generator=torch.Generator().manual_seed(5))
    labels = torch.repeat_interleave(torch.tensor([30, 3, 25, 32]))
    whole = retrieval_metrics(x, labels)
    monkeypatch.setattr(opening, "_LONG_RUN", 8)
    monkeypatch.setattr(opening, "_RUN", 4)
    monkeypatch.setattr(opening, "_ENTRIES_AT_ONCE", 300)
    assert retrieval_metrics(x, labels) == whole
