"""Self-training: searches over choices, paths, and whole stages with a softmax regression."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support import paths

from noisyml.errors import UserError
from noisyml.losses.segmentation.pixels import mixed, pixel_cross_entropy, pseudo_labels
from noisyml.metrics.segmentation.evaluator import mean_iou, pixel_statistics
from noisyml.runs.folder import RunFolder
from noisyml.stages.plan import StageResult
from noisyml.stages.self_training import (
    Fist,
    FixedPath,
    Gist,
    Rist,
    Scored,
    best_beams,
    path_of,
    random_path,
    stage_name,
)

GOLDEN = paths.GOLDEN / "gist_rist"


def oracle():
    v = dict(np.load(GOLDEN / "stage_search.npz"))
    known = {
        tuple(float(c) for c in path[:length]): float(score)
        for path, length, score in zip(v["paths"], v["path_length"], v["scores"], strict=True)
    }
    return v, known


class Trained:
    """Stages of a policy as folders, "trained" by writing a score that follows from their name."""

    def __init__(self, folder: Path, policy, score):
        self.policy, self.score, self.folder = policy, score, folder
        self.done: list[StageResult] = []

    def run(self):
        while (plan := self.policy.next(self.done)) is not None:
            run = RunFolder(self.folder / plan.name)
            run.path.mkdir(parents=True)
            run.write_metrics({"val/miou": self.score(path_of(plan.name))})
            run.write_status("finished")
            self.done.append(StageResult(run.path))
            yield plan


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_search_visits_what_the_reference_visits(tmp_path, width):
    v, known = oracle()
    policy = Gist(count=int(v["stages"]), beams=width)
    run = Trained(tmp_path, policy, known.__getitem__)
    plans = list(run.run())
    # The reference does not count the model before the first stage.
    assert len(plans) - 1 == int(v[f"gist_k{width}_trained_models"])
    visited = {path_of(plan.name): known[path_of(plan.name)] for plan in plans}
    beams, left = policy.search(visited)
    assert not left
    final = [tuple(map(float, path)) for path in v[f"gist_k{width}_final_beams"]]
    assert beams == final
    assert [known[path] for path in beams] == v[f"gist_k{width}_final_scores"].tolist()
    best = best_beams([Scored(*item) for item in visited.items()], 1)[0]
    expected = [float(c) for c in v[f"gist_k{width}_best_path"] if c >= 0]
    assert list(best) == expected
    assert known[best] == float(v[f"gist_k{width}_best_score"])
    given = policy.hand_over(run.done).settings["adopt"]
    assert Path(given["last"]).name == stage_name(final[0])
    assert Path(given["best"]).name == stage_name(best)


def test_paths_that_were_drawn_are_walked(tmp_path):
    v, known = oracle()
    for number, (choices, scores) in enumerate(
        zip(v["rist_choices"], v["rist_scores"], strict=True)
    ):
        policy = FixedPath(path=choices.astype(float).tolist())
        plans = list(Trained(tmp_path / str(number), policy, known.__getitem__).run())
        walked = [known[path_of(plan.name)] for plan in plans[1:]]
        assert walked == scores.tolist()
        for before, plan in itertools.pairwise(plans):
            source = plan.settings["method.pseudo.source"]
            assert Path(source).name == before.name
            assert plan.settings["method.alpha"] == path_of(plan.name)[-1]


def test_random_paths_are_drawn_up_front_and_differ_by_seed():
    assert Rist(count=12, seed=3).path == tuple(random_path(12, 3))
    drawn = {tuple(random_path(12, seed)) for seed in range(8)}
    assert len(drawn) == 8
    share = np.mean([random_path(100, seed) for seed in range(20)])
    assert 0.45 < share < 0.55
    assert Fist(count=3, alpha=0.25).path == (0.25,) * 3


def test_a_score_that_is_no_number_loses():
    found = [Scored((0.0,), math.nan), Scored((1.0,), 0.1)]
    assert best_beams(found, 1) == [(1.0,)]


@pytest.mark.parametrize("path", [(), (0.0, 1.0, 1.0), (0.5, 0.25), (1.0, 0.125, 0.0)])
def test_names_of_stages_tell_their_choices(path):
    assert path_of(stage_name(path)) == path


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match="holdout_fraction"):
        Gist(holdout_fraction=0.0)
    with pytest.raises(UserError, match="path is empty"):
        FixedPath(path=[])


def test_without_a_score_there_is_nothing_to_choose_by(tmp_path):
    policy = Gist(count=1)
    run = RunFolder(tmp_path / "stage_0")
    run.path.mkdir()
    run.write_metrics({"test/miou": 0.5})
    run.write_status("finished")
    with pytest.raises(UserError, match=r"stages\.metric"):
        policy.next([StageResult(run.path)])


class Softmax:
    """The reference's model: softmax regression, heavy ball, all samples in each step."""

    def __init__(self, v):
        self.v = {k: torch.from_numpy(np.asarray(x)) for k, x in v.items()}

    def train(self, start, alpha, pseudo):
        v = self.v
        weights = [start[0].clone().requires_grad_(), start[1].clone().requires_grad_()]
        rate, momentum = float(v["lr"]), float(v["momentum"])
        optimizer = torch.optim.SGD(weights, lr=rate, momentum=momentum)
        for _ in range(int(v["steps"])):
            loss = mixed(
                self._loss(weights, v["Xh"], v["Yh"]), self._loss(weights, v["Xu"], pseudo), alpha
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [w.detach() for w in weights], float(loss.detach())

    def _loss(self, weights, x, y):
        # Samples as the pixels of one picture.
        scores = self.scores(weights, x)[None, :, :, None]
        return pixel_cross_entropy(scores, y[None, :, None]).mean()

    def scores(self, weights, x):
        return (x @ weights[0] + weights[1]).T

    def labels(self, weights, x):
        return pseudo_labels(self.scores(weights, x)[None]).labels[0]

    def miou(self, weights):
        predicted = self.labels(weights, self.v["Xv"])[None, :, None]
        statistics = pixel_statistics(predicted, self.v["Yv"][None, :, None], 4)
        return mean_iou(statistics.sum(0))


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["path", "fist", "pseudo_only", "human_only"])
def test_a_whole_run_follows_the_reference(name):
    v = dict(np.load(GOLDEN / "selftrain_run.npz"))
    model = Softmax(v)
    weights = [torch.from_numpy(v["W0"]), torch.from_numpy(v["b0"])]
    close(model.miou(weights), v["miou0"])
    policy = FixedPath(path=v[f"{name}_alphas"].tolist())
    for stage, alpha in enumerate(policy.path):
        pseudo = model.labels(weights, model.v["Xu"])
        assert np.array_equal(pseudo, v[f"{name}_pseudo"][stage])
        weights, loss = model.train(weights, alpha, pseudo)
        close(weights[0], v[f"{name}_W"][stage])
        close(weights[1], v[f"{name}_b"][stage])
        close(model.miou(weights), v[f"{name}_val_miou"][stage])
        close(loss, v[f"{name}_last_loss"][stage])


def test_a_whole_greedy_run_follows_the_reference():
    v = dict(np.load(GOLDEN / "selftrain_run.npz"))
    model = Softmax(v)
    policy = Gist(count=int(v["stages"]))
    trained = {(): [torch.from_numpy(v["W0"]), torch.from_numpy(v["b0"])]}
    scores = {(): model.miou(trained[()])}
    while True:
        beams, wanted = policy.search(scores)
        if not wanted:
            break
        stage = len(wanted[0]) - 1
        for path in wanted:
            start = trained[path[:-1]]
            pseudo = model.labels(start, model.v["Xu"])
            trained[path], _ = model.train(start, path[-1], pseudo)
            scores[path] = model.miou(trained[path])
        close([scores[path] for path in wanted], v["gist_candidate_miou"][stage])
    assert list(beams[0]) == v["gist_alphas"].tolist()
    close(trained[beams[0]][0], v["gist_W"])
    close(trained[beams[0]][1], v["gist_b"])
