"""Scores of instance retrieval by lists of judged images, beside the released codes."""

import functools
import itertools

import pytest
import torch
from support import paths, vectors
from support.vectors import close

from noisyml.metrics.instances.scores import (
    Judged,
    mean_precision_at,
    places,
    precision_at_depth,
    revisited_scores,
    trapezoid_precision,
    without_ignored,
)

#: A place that no ranking reaches.
NEVER = 10**6
load = functools.partial(vectors.tensors, paths.GOLDEN / "insclr")


def lists(case, name):
    offsets = case[f"{name}_offsets"].tolist()
    flat = case[f"{name}_flat"]
    return Judged.of([flat[a:b] for a, b in itertools.pairwise(offsets)])


@pytest.mark.parametrize("name", ["map", "map_distractors", "map_truncated"])
def test_revisited_oxford_and_paris(name):
    case = load(f"revisitop_{name}")
    judged = {kind: lists(case, kind) for kind in ("easy", "hard", "junk")}
    distractors = case["distractors"].split(40) if "distractors" in case else ()
    place = {
        kind: places(case["query"], case["database"], judged[kind], distractors) for kind in judged
    }
    for kind, found in place.items():
        for image, query, at in zip(judged[kind].images, judged[kind].query, found, strict=True):
            if at < len(case["ranks"]):
                assert case["ranks"][at, query] == image
    depth = len(case["ranks"]) if name == "map_truncated" else None
    kappas = case["kappas"].tolist()
    scores = revisited_scores(place, judged, kappas, depth)
    for setup in ("easy", "medium", "hard"):
        letter = setup[0].upper()
        close(scores[f"map_{setup}"], case[f"ap_{letter}"], equal_nan=True)
        close(scores[f"map_{setup}"].nanmean(), case[f"map_{letter}"])
        for column, k in enumerate(kappas):
            found = scores[f"mp_{setup}_at_{k}"]
            close(found, case[f"p_{letter}"][:, column], equal_nan=True)
            close(found.nanmean(), case[f"mp_{letter}"][column])


def test_average_precision_by_hand():
    case = load("revisitop_ap_hand")
    ranked = lists(case, "positions")
    wanted = [
        [*ranked.images[ranked.query == query].tolist(), *[NEVER] * int(n)][: int(n)]
        for query, n in enumerate(case["n_relevant"])
    ]
    judged = Judged.of(wanted)
    close(trapezoid_precision(judged.images, judged, NEVER), case["ap"])


def test_landmarks():
    case = load("gldv2_map")
    judged = lists(case, "gt")
    place = places(case["query"], case["index"], judged)
    for k, public, private in zip(
        case["ks"].tolist(), case["map_public"], case["map_private"], strict=True
    ):
        found = precision_at_depth(place, judged, k)
        close(found[case["is_public"]].nanmean(), public)
        close(found[~case["is_public"]].nanmean(), private)


def test_a_repeated_prediction_keeps_its_rank():
    # Predictions x x y z y for a query with truth {x, y, w}, none for a query with truth {q}.
    judged = Judged.of([[0, 1, 2], [3]])
    found = precision_at_depth(torch.tensor([0, 2, NEVER, NEVER]), judged, 100)
    close(found.mean(), load("gldv2_map")["duplicate_case_map"])


def test_instre():
    from sklearn.decomposition import PCA

    case = load("instre_map")
    judged = lists(case, "gt")
    found = trapezoid_precision(places(case["query"], case["index"], judged), judged)
    close(found, case["ap"], equal_nan=True)
    close(found.nanmean(), case["map"])
    for number, dim in enumerate(case["pca_dims"].tolist()):
        whitening = PCA(dim, whiten=True).fit(case["index"].numpy())
        rows = [torch.from_numpy(whitening.transform(case[key])) for key in ("query", "index")]
        found = trapezoid_precision(places(*rows, judged), judged)
        close(found.nanmean(), case["map_pca"][number])


def test_places_of_equal_scores_and_of_blocks(monkeypatch):
    gallery = torch.ones(5, 2)
    judged = Judged.of([[4, 0], [], [2]])
    queries = torch.ones(3, 2)
    assert places(queries, gallery, judged, [torch.ones(3, 2)]).tolist() == [4, 0, 2]
    monkeypatch.setattr("noisyml.metrics.instances.scores._SCORES_AT_ONCE", 5)
    assert places(queries, gallery, judged, [2 * torch.ones(3, 2)]).tolist() == [7, 3, 5]


def test_ignored_images_move_the_others_up():
    judged, ignored = Judged.of([[0, 1], [2]]), Judged.of([[], [3, 4]])
    moved = without_ignored(torch.tensor([3, 9, 5]), judged, torch.tensor([4, 6]), ignored)
    assert moved.tolist() == [3, 9, 4]


def test_precision_stops_at_the_last_positive():
    judged = Judged.of([[0, 1], [], [2]])
    found = mean_precision_at(torch.tensor([0, 3, 50]), judged, 10)
    close(found, torch.tensor([0.5, torch.nan, 0.0], dtype=torch.float64), equal_nan=True)
