"""Runs made of stages: decisions, their record, and what an interruption leaves behind."""

import json
from pathlib import Path

import pytest
from support.policies import BetterOfTwo, RandomPath, TwoStages

from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder
from noisyml.stages.controller import StageController, possible_handovers
from noisyml.stages.plan import Handover, Policy, StagePlan, StageResult
from noisyml.stages.policies import Continued, FixedStages


class PowerCutError(Exception):
    """The end of the process."""


class FakeRun:
    """A run whose stages are trained by writing a score that follows from their overrides."""

    def __init__(self, path, policy):
        self.folder = RunFolder(path)
        self.policy = policy
        self.trained = []
        #: Steps until the power is cut; None: never.
        self.left = None
        self.steps = 0

    def step(self):
        self.steps += 1
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise PowerCutError

    def controller(self):
        return StageController(self.folder, self.policy, prepare=self.prepare, apply=self.apply)

    def prepare(self, stage, plan):
        self.step()
        stage.path.mkdir(parents=True, exist_ok=True)
        rate = float(plan.overrides[0].partition("=")[2]) if "lr=" in plan.overrides[0] else 0.0
        start = None if plan.init_from is None else str(plan.init_from)
        text = json.dumps({"optimizer": {"lr": rate}, "init_from": start})
        stage.config_file.write_text(text)
        self.step()

    def apply(self, given):
        self.step()
        self.folder.config_file.write_text(json.dumps(str(given)))
        self.step()

    def begin(self):
        self.controller().begin({"config_name": "train"})
        self.folder.config_file.write_text("{}")

    def go_on(self):
        for stage in self.controller().pending():
            self.step()
            start, rate = stage.config()["init_from"], stage.config()["optimizer"]["lr"]
            before = RunFolder(Path(start)).metrics()["score"] if start else 0.0
            stage.write_metrics({"score": before + rate})
            self.step()
            stage.write_status("finished")
            self.trained.append(stage.path.name)
            self.step()

    def record(self):
        return json.loads(self.folder.stages_file.read_text())


POLICIES = {
    "greedy": lambda: BetterOfTwo([[0.1, 0.3], [0.02, 0.01]], metric="score"),
    "random": lambda: RandomPath(["lr=1", "lr=2", "lr=3"], length=4, seed=0),
    "two-stages": TwoStages,
    "fixed": lambda: FixedStages({"a": {"overrides": ["lr=1"], "repeat": 2}}),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_an_interruption_anywhere_changes_no_decision(policy, tmp_path, monkeypatch):
    from noisyml.stages import controller

    def made(path):
        run = FakeRun(path, POLICIES[policy]())

        def write(file, text):
            run.step()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            run.step()

        monkeypatch.setattr(controller, "write_atomically", write)
        return run

    def relative(run):
        config = run.folder.config_file.read_text()
        return json.loads(json.dumps([run.record(), config]).replace(str(run.folder.path), "RUN"))

    whole = made(tmp_path / "whole")
    whole.begin()
    whole.steps = 0
    whole.go_on()
    expected = relative(whole)
    assert whole.record()["applied"]
    assert whole.steps > 8
    for cut in range(whole.steps):
        run = made(tmp_path / str(cut))
        run.begin()
        run.left = cut
        with pytest.raises(PowerCutError):
            run.go_on()
        run.left = None
        run.go_on()
        assert relative(run) == expected, cut
        assert len(run.trained) <= len(whole.trained), "a finished stage is not trained again"


def test_the_better_candidates_go_on(tmp_path):
    run = FakeRun(tmp_path / "run", POLICIES["greedy"]())
    run.begin()
    assert [result.name for result in run.controller().results()] == ["round_1_a", "round_1_b"]
    assert possible_handovers(run.folder) == [Handover()]
    run.go_on()
    assert run.trained == ["round_1_a", "round_1_b", "round_2_a", "round_2_b"]
    stages = run.folder.path / "stages"
    assert RunFolder(stages / "round_2_b").config()["init_from"] == str(stages / "round_1_b")
    (given,) = possible_handovers(run.folder)
    best = stages / "round_2_a"
    assert given == Handover(previous=best, init_from=best, settings={"optimizer.lr": 0.02})


def test_what_needs_no_results_is_planned_before_anything_is_trained(tmp_path):
    run = FakeRun(tmp_path / "run", POLICIES["fixed"]())
    run.begin()
    plans = run.record()["stages"]
    assert [plan["name"] for plan in plans] == ["a_1", "a_2"]
    assert plans[1]["previous"] == str(run.folder.path / "stages" / "a_1")
    assert run.record()["run"]["previous"] == str(run.folder.path / "stages" / "a_2")


def test_a_run_of_an_earlier_version_is_not_resumed(tmp_path):
    run = FakeRun(tmp_path / "run", POLICIES["fixed"]())
    with pytest.raises(UserError, match=r"no stages.json: an earlier version .* start it anew"):
        run.go_on()


class Stubborn(Policy):
    """Plans the same stage for ever."""

    def next(self, done):
        """The same again."""
        return StagePlan(name="again", overrides=["lr=1"])


def test_continued_stages_start_from_the_weights_of_the_one_before(tmp_path):
    policy = Continued({"a": {"overrides": ["lr=1"], "repeat": 2}})
    done = []
    for name, start in (("a_1", None), ("a_2", tmp_path / "a_1")):
        plan = policy.next(done)
        assert (plan.name, plan.init_from) == (name, start)
        done.append(StageResult(tmp_path / name))
    assert policy.next(done) is None
    assert policy.hand_over(done).init_from == tmp_path / "a_2"
    assert policy.hand_over([]) == Handover()


def test_every_stage_has_a_name_of_its_own(tmp_path):
    with pytest.raises(UserError, match="Stubborn plans a second stage 'again'"):
        FakeRun(tmp_path / "run", Stubborn()).begin()
    with pytest.raises(UserError, match="cannot be called 'up/and/away'"):
        StagePlan(name="up/and/away")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (None, "stages.teacher must be a mapping with overrides"),
        ({"repeat": 2}, "stages.teacher must be a mapping with overrides"),
        ({"overrides": [], "repeats": 2}, "stages.teacher must be a mapping with overrides"),
        ({"overrides": [], "repeat": -1}, "stages.teacher.repeat=-1 must be a whole number"),
        ({"overrides": "method=prism"}, "stages.teacher.overrides=method=prism must be a list"),
    ],
)
def test_an_entry_of_a_fixed_list_is_checked(entry, said):
    with pytest.raises(UserError, match=said):
        FixedStages({"teacher": entry})


def test_a_stage_may_differ_in_more_than_its_own_list():
    entry = {"overrides": ["dataset=digit_groups"], "also": ["noise=symmetric"]}
    (plan,) = FixedStages({"weak": entry}).plans
    assert plan.overrides == ["dataset=digit_groups", "noise=symmetric"]
    assert FixedStages({}).plans == []
