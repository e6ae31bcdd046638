"""The evaluator of judged images: released scores, ways to rank, distractors as they come."""

import functools
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import paths, vectors
from support.ranks import run_ranks
from support.vectors import close

from noisyml.errors import UserError
from noisyml.metrics.instances.evaluator import InstanceEvaluator
from noisyml.metrics.instances.reranking import diffused, expanded_queries, pca_whitening
from noisyml.metrics.instances.scores import Judged, places_in
from noisyml.targets.judgements import EASY, HARD, JUNK, Judgements

load = functools.partial(vectors.tensors, paths.GOLDEN / "insclr")


def lists_of(case, name):
    offsets = case[f"{name}_offsets"].tolist()
    return [case[f"{name}_flat"][a:b].tolist() for a, b in itertools.pairwise(offsets)]


def judgements(lists, n_images, protocol, parts=None):
    n = len(next(iter(lists.values())))
    names = [f"q{i}" for i in range(n)], [f"d{i}" for i in range(n_images)]
    return Judgements.of_lists(*names, lists, protocol, parts)


def revisited(case):
    grades = {"easy": EASY, "hard": HARD, "junk": JUNK}
    lists = {grade: lists_of(case, name) for name, grade in grades.items()}
    return judgements(lists, len(case["database"]), "revisited")


def shown(evaluator, known, query, gallery, distractors=(), size=7):
    evaluator.know([], known)
    parts = {"query": query, "gallery": gallery, "distractors": distractors}
    for role, rows in parts.items():
        for index in torch.arange(len(rows)).split(size) if len(rows) else ():
            evaluator.update({"embeddings": rows[index]}, index * 0, index, role)
    return evaluator.compute()


@pytest.mark.parametrize("name", ["map", "map_distractors"])
def test_oxford_and_paris_score_as_released(name, monkeypatch):
    monkeypatch.setattr("noisyml.metrics.instances.evaluator.DISTRACTORS_AT_ONCE", 20)
    case = load(f"revisitop_{name}")
    evaluator = InstanceEvaluator(precision_at=case["kappas"].tolist())
    more = case.get("distractors", ())
    found = shown(evaluator, revisited(case), case["query"], case["database"], more)
    for setup in ("easy", "medium", "hard"):
        letter = setup[0].upper()
        assert found[f"map_{setup}"] == pytest.approx(float(case[f"map_{letter}"]), abs=1e-6)
        for column, k in enumerate(case["kappas"].tolist()):
            expected = float(case[f"mp_{letter}"][column])
            assert found[f"mp_{setup}_at_{k}"] == pytest.approx(expected, abs=1e-6)
    assert evaluator.headline == "map_medium"


def test_landmarks_score_as_released_by_part():
    case = load("gldv2_map")
    public = case["is_public"].numpy()
    parts = {"public": public, "private": ~public}
    known = judgements({HARD: lists_of(case, "gt")}, len(case["index"]), "landmarks", parts)
    evaluator = InstanceEvaluator()
    found = shown(evaluator, known, case["query"], case["index"])
    column = case["ks"].tolist().index(100)
    for name in parts:
        expected = float(case[f"map_{name}"][column])
        assert found[f"map_at_100_{name}"] == pytest.approx(expected, abs=1e-6)
    assert evaluator.headline == "map_at_100"


def test_instre_scores_as_released_with_and_without_whitening(tmp_path):
    case = load("instre_map")
    known = judgements({HARD: lists_of(case, "gt")}, len(case["index"]), "instances")
    found = shown(InstanceEvaluator(metric="ip"), known, case["query"], case["index"])
    assert found == {"map": pytest.approx(float(case["map"]), abs=1e-6)}
    np.save(tmp_path / "other.npy", case["index"].numpy())
    for whitening in ("gallery", str(tmp_path / "other.npy")):
        for number, dims in enumerate(case["pca_dims"].tolist()):
            evaluator = InstanceEvaluator(metric="ip", whitening=whitening, whitening_dims=dims)
            found = shown(evaluator, known, case["query"], case["index"])
            assert found["map"] == pytest.approx(float(case["map_pca"][number]), abs=1e-4)


def test_what_a_query_expansion_adds():
    generator = torch.Generator().manual_seed(0)
    query, gallery = (F.normalize(torch.randn(n, 6, generator=generator)) for n in (4, 30))
    found = expanded_queries(query, gallery, 3, alpha=2.0)
    for row, expanded in zip(query, found, strict=True):
        similarities = gallery @ row
        best = similarities.argsort(descending=True)[:3]
        total = row + sum(max(0.0, float(similarities[i])) ** 2 * gallery[i] for i in best)
        close(expanded, total / total.norm(), atol=1e-6, rtol=1e-5)
    average = expanded_queries(query, gallery, 1, alpha=0.0)
    nearest = gallery[(query @ gallery.T).argmax(dim=1)]
    close(average, F.normalize(query + nearest), atol=1e-6, rtol=1e-5)


def test_diffusion_solves_the_equation_of_the_paper():
    generator = torch.Generator().manual_seed(1)
    query, gallery = (F.normalize(torch.randn(n, 4, generator=generator)) for n in (3, 40))
    k, start, gamma, alpha = 6, 4, 3.0, 0.9
    similarities = (gallery @ gallery.T).double().fill_diagonal_(-1)
    near = torch.zeros(40, 40, dtype=torch.bool)
    near.scatter_(1, similarities.topk(k).indices, True)
    graph = torch.where(near & near.T, similarities.clamp(min=0) ** gamma, 0.0)
    scale = torch.where(graph.sum(1) > 0, graph.sum(1).rsqrt(), 0.0)
    walk = scale[:, None] * graph * scale
    asked = (query @ gallery.T).double()
    best = asked.topk(start)
    seeds = torch.zeros(3, 40, dtype=torch.float64)
    seeds.scatter_(1, best.indices, best.values.clamp(min=0) ** gamma)
    system = torch.eye(40, dtype=torch.float64) - alpha * walk
    solved = torch.linalg.solve(system, seeds.T).T
    (found,) = diffused(query, gallery, k, start, gamma, alpha)
    for q in range(3):
        reached = int((solved[q] > 1e-9).sum())
        order = found.order[q]
        assert torch.equal(order[:reached], solved[q].argsort(descending=True)[:reached])
        # Images that the walk does not reach follow by similarity.
        rest = asked[q][order[reached:]]
        assert torch.equal(rest, rest.sort(descending=True).values)


def test_ways_to_rank_can_be_combined_and_help_on_lines():
    """Two half circles: neighbours of neighbours belong together, far ends do not look alike."""
    angle = torch.linspace(0, 2.6, 60)
    upper = torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, 0.6)], dim=1)
    rows = F.normalize(torch.cat([upper, upper * torch.tensor([1.0, 1.0, -1.0])]))
    lists = [[j for j in range(120) if j // 60 == q] for q in range(2)]
    query = F.normalize(rows[[0, 60]] + torch.tensor([0.0, -0.01, 0.0]))
    known = judgements({HARD: lists}, 120, "instances")
    plain = shown(InstanceEvaluator(), known, query, rows)["map"]
    expanded = shown(InstanceEvaluator(expansion=5), known, query, rows)["map"]
    walked = shown(InstanceEvaluator(diffusion=4), known, query, rows)["map"]
    both = shown(InstanceEvaluator(diffusion=4, expansion=2), known, query, rows)["map"]
    assert plain < expanded < walked
    assert walked == both == 1.0


@pytest.mark.parametrize("settings", [{"expansion": 3}, {"diffusion": 5}])
def test_distractors_join_the_gallery_of_expansion_and_diffusion(settings):
    case = load("revisitop_map_distractors")
    query, more = case["query"], case["distractors"]
    joined = torch.cat([case["database"], more])
    known = revisited(case)
    found = shown(InstanceEvaluator(**settings), known, query, case["database"], more)
    names = [f"d{i}" for i in range(len(joined))]
    wide = Judgements(known.query_ids, names, known.query, known.document, known.grade, "revisited")
    assert found == pytest.approx(shown(InstanceEvaluator(**settings), wide, query, joined))


def test_rankings_are_written_for_other_tools():
    rows = torch.eye(3)
    known = judgements({EASY: [[2], [0]], JUNK: [[1], []]}, 3, "revisited")
    evaluator = InstanceEvaluator(run_depth=2)
    query = torch.tensor([[0.0, 0.6, 0.8], [1.0, 0.0, 0.0]])
    shown(evaluator, known, query, rows)
    files = {artefact.file: artefact.content for artefact in evaluator.artefacts()}
    assert files["run.trec.txt"].splitlines() == [
        "q0 Q0 d2 1 0.80000001 noisyml",
        "q0 Q0 d1 2 0.60000002 noisyml",
        "q1 Q0 d0 1 1 noisyml",
        "q1 Q0 d1 2 0 noisyml",
    ]
    assert files["qrels.trec.txt"] == "q0 0 d2 2\nq1 0 d0 2\nq0 0 d1 -1\n"


def test_images_that_the_gallery_lacks_are_never_found():
    known = judgements({HARD: [[0, -1]]}, 2, "instances")
    found = shown(InstanceEvaluator(), known, torch.eye(2)[:1], torch.eye(2))
    assert found["map"] == 0.5


def _share(rank, world, alone):
    case = load("revisitop_map_distractors")
    evaluator = InstanceEvaluator()
    evaluator.know([], revisited(case))
    parts = {"query": case["query"], "gallery": case["database"]}
    parts["distractors"] = case["distractors"]
    for role, rows in parts.items():
        mine = torch.arange(len(rows)).tensor_split(world)[rank]
        # A sampler that pads repeats the first one.
        for index in torch.cat([mine, mine[:1], torch.tensor([0])]).split(9):
            evaluator.update({"embeddings": rows[index]}, index * 0, index, role)
    assert evaluator.compute() == pytest.approx(alone, abs=1e-9)


def test_two_processes_count_what_one_counts(tmp_path):
    case = load("revisitop_map_distractors")
    alone = shown(
        InstanceEvaluator(), revisited(case), case["query"], case["database"], case["distractors"]
    )
    run_ranks(_share, 2, tmp_path, alone)


def test_mistakes_are_named(tmp_path):
    known = judgements({HARD: [[0]]}, 2, "instances")
    with pytest.raises(UserError, match="take powers of cosines"):
        InstanceEvaluator(metric="ip", expansion=2)
    with pytest.raises(UserError, match="needs lists of judged images"):
        shown(InstanceEvaluator(), None, torch.eye(2), torch.eye(2))
    with pytest.raises(UserError, match="needs queries and a gallery with judgements"):
        InstanceEvaluator().update({"embeddings": torch.eye(2)}, torch.zeros(2), torch.arange(2))
    with pytest.raises(UserError, match="1 of 2 gallery images were embedded"):
        shown(InstanceEvaluator(), known, torch.eye(2)[:1], torch.eye(2)[:1])
    np.save(tmp_path / "w.npy", np.ones((9, 5), np.float32))
    with pytest.raises(UserError, match="has 5 columns, and the embeddings have 2"):
        shown(
            InstanceEvaluator(whitening=str(tmp_path / "w.npy")),
            known,
            torch.eye(2)[:1],
            torch.eye(2),
        )
    with pytest.raises(UserError, match="whitening of 9 dimensions"):
        pca_whitening(np.ones((4, 3), np.float32), 9)
    with pytest.raises(ValueError, match="no rankings"):
        places_in([], Judged.of([[0]]))
