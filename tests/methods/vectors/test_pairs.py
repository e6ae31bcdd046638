"""Neighbour graphs: the released ones, partners drawn from them, random and supported edges."""

import functools

import numpy as np
import pytest
from support import paths, vectors

from noisyml.embeddings.neighbours import write_neighbours
from noisyml.errors import UserError
from noisyml.methods.vectors.pairs import (
    Pairs,
    given_pairs,
    knn_pairs,
    supported_edges,
    with_random_edges,
    without,
)

load = functools.partial(vectors.arrays, paths.GOLDEN / "tldr")


def rows(n=60, dim=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


@pytest.mark.parametrize(
    ("metric", "name"), [("inner_product_raw", "ip"), ("l2", "l2"), ("cosine", "cos")]
)
def test_released_graphs(metric, name):
    golden = load("knn")
    found = knn_pairs(golden["X"], int(golden["k"]), metric=metric)
    assert np.array_equal(found.index, golden[f"knn_{name}"])
    assert found.recall is None


def test_the_released_graph_lists_rows_as_their_own_neighbours_and_the_default_does_not():
    golden = load("knn")
    own = np.arange(len(golden["X"]))[:, None]
    raw = knn_pairs(golden["X"], int(golden["k"]), metric="inner_product_raw").index
    expected = golden["ip_rows_where_self_still_listed"]
    assert np.array_equal(np.flatnonzero((raw == own).any(axis=1)), expected)
    assert len(expected) == 32
    for metric in ("cosine", "inner_product", "l2"):
        assert not (knn_pairs(golden["X"], 7, metric=metric).index == own).any()
    unit = golden["X"] / np.linalg.norm(golden["X"], axis=1, keepdims=True)
    assert np.array_equal(knn_pairs(unit, 7, metric="inner_product_raw").index,
                          golden["knn_ip_on_unit_rows"])  # fmt: skip


def test_a_duplicate_row_does_not_make_a_row_its_own_neighbour():
    twice = np.concatenate([rows(20), rows(20)])
    assert not (knn_pairs(twice, 3).index == np.arange(40)[:, None]).any()


def test_approximate_graphs_are_as_good_as_the_released_ones_and_say_so():
    golden = load("knn_approximate")
    x, k = golden["X"].astype(np.float32), int(golden["k"])
    found = {
        name: knn_pairs(x, k, metric="inner_product", knn_approximation=name).recall
        for name in ("medium", "high")
    }
    for name, recall in found.items():
        assert recall == pytest.approx(float(golden[f"overlap_at_10_{name}"]), abs=0.1)
    assert found["medium"] > found["high"]
    with pytest.raises(UserError, match="32 parts, which do not divide their 16 columns"):
        knn_pairs(x, k, knn_approximation="low")
    with pytest.raises(UserError, match="too few for its 256 codes"):
        knn_pairs(x[:500], k, knn_approximation="high")


def test_more_neighbours_than_rows():
    with pytest.raises(UserError, match="more neighbours than the 4 other rows"):
        knn_pairs(rows(5), 5)


def test_partners_are_drawn_evenly_from_the_neighbours_that_are_there():
    pairs = Pairs(np.array([[1, 2, 3], [-1, 0, -1], [-1, -1, -1], [0, -1, 1]]))
    asked = np.repeat(np.arange(4), 6)
    drawn = pairs.partners(asked, np.tile(np.arange(6, dtype=np.uint64), 4)).reshape(4, 6)
    assert [sorted(set(row)) for row in drawn.tolist()] == [[1, 2, 3], [0], [2], [0, 1]]
    assert np.bincount(drawn[0], minlength=4).tolist() == [0, 2, 2, 2]
    huge = np.full(4, 2**64 - 1, dtype=np.uint64)
    assert (pairs.partners(np.arange(4), huge) >= 0).all()


def test_a_graph_from_anywhere(tmp_path):
    x = rows()
    expected = knn_pairs(x, 4).index
    write_neighbours(x, tmp_path / "knn", k=4)
    np.save(tmp_path / "graph.npy", expected)
    ways = [
        tmp_path / "knn",
        str(tmp_path / "graph.npy"),
        expected,
        {row: list(one) for row, one in enumerate(expected)},
        expected.tolist(),
    ]
    for graph in ways:
        assert np.array_equal(given_pairs(graph, 60).index, expected)
    assert np.array_equal(given_pairs(expected, 60, 2).index, expected[:, :2])
    assert given_pairs({0: [1], 1: [0, 2], 2: []}, 3).index.tolist() == [[1, -1], [0, 2], [-1, -1]]


def test_graphs_that_do_not_fit(tmp_path):
    x = rows()
    index = knn_pairs(x, 4).index
    write_neighbours(x, tmp_path / "other", k=4, gallery=rows(70, seed=1))
    (tmp_path / "no.npy").write_text("nothing")
    for graph, sentence in [
        (index[:50], "has 50 rows, and there are 60 vectors"),
        (np.where(index == 3, 60, index), "names row 60: numbers run from 0 to 59"),
        (index.astype(float), "matrix .* of whole numbers"),
        (tmp_path / "other", "rows of a gallery"),
        (tmp_path / "nowhere", "There is no"),
        (tmp_path / "no.npy", "is not a .npy file"),
        ({1: [0]}, "a list for each row"),
    ]:
        with pytest.raises(UserError, match=sentence):
            given_pairs(graph, 60)
    with pytest.raises(UserError, match="lists 4 neighbours of each row, and n_neighbors=5"):
        given_pairs(index, 60, 5)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_random_edges_are_as_many_as_asked_for_and_lead_elsewhere(share):
    pairs = knn_pairs(rows(), 5)
    wrong, replaced = with_random_edges(pairs, share, seed=1)
    assert replaced.sum() == round(share * 300)
    assert np.array_equal(wrong.index[~replaced], pairs.index[~replaced])
    assert not (wrong.index == np.arange(60)[:, None]).any()
    again, _ = with_random_edges(pairs, share, seed=1)
    assert np.array_equal(again.index, wrong.index)


def by_definition(index, least):
    closed = [{row, *one} - {-1} for row, one in enumerate(index.tolist())]
    return [
        [j >= 0 and len(closed[row] & closed[j]) - 1 >= least for j in one]
        for row, one in enumerate(index.tolist())
    ]


@pytest.mark.parametrize("least", [0, 1, 2, 3])
def test_supported_edges_share_neighbours(least, monkeypatch):
    index = knn_pairs(rows(80, 3), 5).index.copy()
    index[::7, 2] = -1
    expected = by_definition(index, least)
    assert supported_edges(Pairs(index), least).tolist() == expected
    monkeypatch.setattr("noisyml.methods.vectors.pairs.ROWS_AT_ONCE", 16)
    assert supported_edges(Pairs(index), least).tolist() == expected


def test_support_tells_random_edges_from_true_ones():
    centres = rows(20, 8, seed=2) * 4
    x = np.repeat(centres, 20, axis=0) + rows(400, 8)
    wrong, replaced = with_random_edges(knn_pairs(x, 8), 0.3)
    keep = supported_edges(wrong, 2)
    assert keep[replaced].mean() < 0.1
    assert keep[~replaced].mean() > 0.8
    assert (without(wrong, keep).index >= 0).sum() == keep.sum()
