"""Runs that go before a run: teachers, generations, a schedule found and replayed."""

import json
import signal

import pandas as pd
import pytest
import torch
import yaml
from support.shell import TINY

ZERO_SHOT = [*TINY, "dataset.split=zero_shot", "callbacks.history.every_n_steps=1"]


def state(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def config(run):
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.mark.further
def test_generations_teach_each_other_and_a_killed_one_goes_on(shell):
    typed = ["train", "method=rkd", "stages=generations", *ZERO_SHOT, "trainer.max_epochs=1"]
    assert shell(*typed, "name=whole")[0] == 0
    whole = next(run for run in shell.runs() if run.parent.name == "whole")
    teacher, generation = whole / "stages" / "teacher", whole / "stages" / "generation"
    assert config(teacher)["method"]["_target_"].endswith("Prism")
    assert config(teacher)["head"]["normalise"] is True
    assert "stages" not in config(teacher)
    assert config(generation)["method"]["teacher"]["checkpoint"] == str(teacher)
    assert config(whole)["method"]["teacher"]["checkpoint"] == str(generation)
    assert config(whole)["head"]["out_features"] == 16
    # The student's size was typed; its teacher's head is one of its own.
    assert config(teacher)["head"]["out_features"] == 512
    taught = state(whole)
    assert not any(name.startswith("teacher.") for name in taught["state_dict"])
    assert taught["teacher"] != state(generation)["teacher"]

    victim = "+callbacks.kill={_target_: support.saboteur.KillAt, step: 9}"
    killed = shell.apart(*typed, "name=killed", victim)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    broken = next(run for run in shell.runs() if run.parent.name == "killed")
    # The teacher's run was struck; nobody must be struck again.
    for path in broken.rglob("config.yaml"):
        if ".hydra" not in path.parts:
            settings = yaml.safe_load(path.read_text())
            settings["callbacks"].pop("kill", None)
            path.write_text(yaml.safe_dump(settings, sort_keys=False))
    assert not (broken / "stages" / "teacher" / "metrics.json").exists()
    status, said = shell("train", f"resume={broken}")
    assert status == 0, said
    for name, tensor in taught["state_dict"].items():
        if isinstance(tensor, torch.Tensor):
            resumed = state(broken)["state_dict"][name]
            torch.testing.assert_close(resumed, tensor, rtol=0, atol=0, equal_nan=True, msg=name)

    # A report compares runs, not a run with its own stages; a student needs no teacher to be used.
    status, said = shell("report", str(whole))
    assert status == 0, said
    assert "2 runs" not in said
    teacher.rename(whole / "gone")
    status, said = shell("evaluate", f"checkpoint={whole}")
    assert status == 0, said


@pytest.mark.further
def test_a_schedule_is_found_and_replayed(shell):
    status, said = shell(
        "train",
        "method=proxynca_pp",
        "stages=development",
        *ZERO_SHOT,
        "trainer.max_epochs=7",
        "sampler.samples_per_class=8",
        "scheduler=plateau",
        'stages.development.overrides=["scheduler.patience=0"]',
    )
    assert status == 0, said
    run = next(r for r in shell.runs() if "stages" not in r.parts)
    found = pd.read_csv(run / "stages" / "development" / "history.csv")
    scores = found.dropna(subset=["val/precision_at_1"]).set_index("epoch")["val/precision_at_1"]
    assert list(scores.index) == list(range(7))
    best = int(scores[1:].idxmax())  # the first epoch is the warm-up
    replayed = pd.read_csv(run / "history.csv")
    assert replayed["epoch"].max() == best
    falls = []
    for rows in (found, replayed):
        rates = rows.dropna(subset=["lr/default"]).groupby("epoch")["lr/default"].last()
        falls.append([int(e) for e in rates.index[1:] if rates[e] < rates[e - 1]])
    assert falls[1] == [epoch for epoch in falls[0] if epoch <= best]


GREEDY = """
# The better of two, twice
_target_: support.policies.BetterOfTwo
rates: [[0.0001, 0.003], [0.003, 0.0001]]
"""


@pytest.mark.further
def test_a_greedy_search_goes_on_with_the_better_candidate_and_survives_kills(shell):
    """Killed in the training of a candidate, and again before a finished round is decided."""
    own = shell.folder / "own" / "stages"
    own.mkdir(parents=True)
    (own / "greedy.yaml").write_text(GREEDY.lstrip())
    typed = ["train", "--config-dir", "own", "stages=greedy", *ZERO_SHOT, "trainer.max_epochs=1"]
    status, said = shell(*typed, "name=whole")
    assert status == 0, said
    whole = next(run for run in shell.runs() if run.parent.name == "whole")
    scores = {}
    for stage in (whole / "stages").iterdir():
        scores[stage.name] = json.loads((stage / "metrics.json").read_text())["val/map_at_r"]
    first = max(("round_1_a", "round_1_b"), key=scores.__getitem__)
    second = max(scores, key=scores.__getitem__)
    assert first == "round_1_b", "the larger rate learns more in one epoch"
    assert config(whole / "stages" / "round_2_a")["init_from"] == str(whole / "stages" / first)
    assert config(whole)["init_from"] == config(whole)["previous_run"]
    assert config(whole)["init_from"] == str(whole / "stages" / second)
    chosen = config(whole / "stages" / second)["optimizer"]["lr"]
    assert config(whole)["optimizer"]["lr"] == chosen

    settings = "step: 9, name: round_1_b, marker: struck"
    victim = f"+callbacks.kill={{_target_: support.saboteur.KillOnceIn, {settings}}}"
    killed = shell.apart(*typed, "name=killed", victim)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    broken = next(run for run in shell.runs() if run.parent.name == "killed")
    assert sorted(stage.name for stage in (broken / "stages").iterdir()) == [
        "round_1_a",
        "round_1_b",
    ]
    undecided = shell.apart("train", f"resume={broken}", DIE_BEFORE_DECIDING="1")
    assert undecided.returncode == -signal.SIGKILL, undecided.stderr
    assert (broken / "stages" / "round_1_b" / "metrics.json").exists()
    assert not (broken / "stages" / "round_2_a").exists()
    status, said = shell("train", f"resume={broken}")
    assert status == 0, said
    for name, tensor in state(whole)["state_dict"].items():
        if isinstance(tensor, torch.Tensor):
            resumed = state(broken)["state_dict"][name]
            torch.testing.assert_close(resumed, tensor, rtol=0, atol=0, equal_nan=True, msg=name)
    decided = [
        json.loads((run / "stages.json").read_text().replace(str(run), "RUN"))
        for run in (whole, broken)
    ]
    assert decided[0] == decided[1]


def test_the_schedule_of_an_earlier_run_is_replayed_and_written_down(shell):
    plateau = ["scheduler=plateau", "scheduler.patience=0", "trainer.max_epochs=3"]
    assert shell("train", *ZERO_SHOT, *plateau, "name=found")[0] == 0
    (found,) = shell.runs()
    rows = pd.read_csv(found / "history.csv").dropna(subset=["val/precision_at_1"])
    best = int(rows.set_index("epoch")["val/precision_at_1"].idxmax())
    replay = ["stages=replay", f"stages.run={found}"]
    assert shell("train", *ZERO_SHOT, *replay, "name=replayed")[0] == 0
    run = next(r for r in shell.runs() if r.parent.name == "replayed")
    assert config(run)["trainer"]["max_epochs"] == config(run)["scheduler"]["epochs"] == best + 1
    assert config(run)["scheduler"]["_target_"] == "noisyml.optim.multistep"
    assert pd.read_csv(run / "history.csv")["epoch"].max() == best
    status, said = shell("train", *ZERO_SHOT, *replay, "name=replayed", f"hydra.run.dir={run}")
    assert status == 0
    assert "finished already" in said, "the same command is known to be the same run"


STUDENT = """
# @package _global_
defaults:
  - override /method: rkd
  - override /stages: teacher
method:
  task_weight: 0.5
  distillation: {weights: {angle: 1.0}}
  teacher: {which: best}
head: {out_features: 8}
optimizer: {lr: 0.002}
stages:
  teacher:
    overrides:
      - method=prism
      - selector=${choice:selector}
      - loss=triplet_sampled
      - head=rkd_teacher
      - head.out_features=24
"""


@pytest.mark.further
def test_an_experiment_is_about_the_run_not_its_teacher(shell):
    """Its settings for a part that the stage replaces stay out; those for other parts hold."""
    own = shell.folder / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "student.yaml").write_text(STUDENT.lstrip())
    tiny = [setting for setting in ZERO_SHOT if not setting.startswith("head.")]
    chosen = ["selector=prism_vmf", "selector.window=7"]
    status, said = shell("train", "--config-dir", "own", "experiment=student", *chosen, *tiny)
    assert status == 0, said
    run = next(r for r in shell.runs() if "stages" not in r.parts)
    student, teacher = config(run), config(run / "stages" / "teacher")
    assert student["method"]["task_weight"] == 0.5
    assert student["head"]["out_features"] == 8
    taught_by = student["method"]["teacher"]
    assert taught_by["checkpoint"] == str(run / "stages" / "teacher")
    assert taught_by["which"] == "best"
    assert "task_weight" not in teacher["method"]
    assert not {"distillation", "teacher"} & set(teacher["method"])
    assert "stages" not in teacher
    assert teacher["head"]["out_features"] == 24
    assert teacher["head"]["normalise"] is True
    assert teacher["optimizer"]["lr"] == student["optimizer"]["lr"] == 0.002
    assert teacher["selector"] == student["selector"]
    assert teacher["selector"]["window"] == 7
    assert teacher["previous_run"] is None


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["method=rkd"], "The student has no teacher"),
        (["method=rkd", "method.teacher.checkpoint=nowhere"], "nowhere belongs to no run folder"),
        (["stages=replay", "stages.run=nowhere"], "nowhere holds no finished run"),
        (["method=iaa", "method.start=0.9"], "lower method.start"),
        (["stages=teacher", "stages.teacher.repeat=-1"], "stages.teacher.repeat=-1 must be"),
        (
            ["method=cbml", "pseudo_labels=kmeans", "method.pseudo_labels.num_clusters=1"],
            "method.pseudo_labels.num_clusters=1 must lie between 2",
        ),
    ],
)
def test_mistakes_end_in_a_sentence(shell, typed, sentence):
    status, said = shell("train", *TINY, "sampler=m_per_class", *typed)
    assert status == 2
    assert sentence in said
    assert "Traceback" not in said
    assert not [r for r in shell.runs() if (r / "metrics.json").exists()]
