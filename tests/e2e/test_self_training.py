"""Self-training from the command line: stages, their record, kills anywhere, honest labels."""

import json
import signal

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from noisyml.data.datasets.embedded.digits import Digits
from noisyml.runs.folder import RunFolder
from noisyml.runs.metric_names import COSTS

DIGITS = [
    *("train", "method=self_training", "dataset=digits", "backbone=mlp"),
    *("backbone.hidden_features=[32]", "data.labelled_size=60", "sampler.batch_size=16"),
    *("sampler.batches_per_epoch=4", "trainer.max_epochs=2", "report=false"),
    *("callbacks.history.every_n_steps=1", "callbacks.checkpoint.every_n_steps=2"),
    "data.eval_batch_size=300",
]
PAGES = [
    *("train", "method=segmentation", "backbone.widths=[8,16]", "backbone.halve_after=[1]"),
    *("segmenter=deeplab_v2", "method.segmenter.rates=[1,2]", "dataset.side=32"),
    *("dataset.letter_side=[16,24]", "dataset.num_train=16", "dataset.num_val=6"),
    *("dataset.num_test=6", "data.labelled_fraction=0.5", "sampler.batch_size=4"),
    *("sampler.batches_per_epoch=4", "trainer.max_epochs=2", "report=false"),
    *("callbacks.history.every_n_steps=1", "callbacks.checkpoint.every_n_steps=2"),
    *("stages.select_on=val", "data.eval_batch_size=4"),
]
OWN = """
# Greedy, and mortal
_target_: support.policies.MortalGist
count: {count}
beams: 1
first: []
overrides: []
max_steps: null
select_on: holdout
holdout_fraction: 0.2
metric: null
"""


def the_run(shell, name):
    return next(run for run in shell.runs() if run.parent.name == name)


def state(run, which="last"):
    return torch.load(run / "checkpoints" / f"{which}.ckpt", weights_only=True)["state_dict"]


def config(run):
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.mark.parametrize(
    ("typed", "count", "written"),
    [
        pytest.param(DIGITS, 2, 2, id="digits"),
        pytest.param(PAGES, 4, 7, id="pages", marks=pytest.mark.slow),
    ],
)
def test_killed_in_training_labelling_and_choosing_it_ends_with_the_same_bits(
    shell, typed, count, written
):
    own = shell.folder / "own" / "stages"
    own.mkdir(parents=True)
    (own / "mortal.yaml").write_text(OWN.format(count=count).lstrip())
    typed = [typed[0], "--config-dir", "own", "stages=mortal", *typed[1:]]
    status, said = shell(*typed, "name=whole")
    assert status == 0, said
    whole = the_run(shell, "whole")

    trained = "step: 5, name: stage_1-p, marker: struck_training"
    labelled = f"writes: {written}, name: %s, marker: struck_labelling"
    second = next(p.name for p in (whole / "stages").iterdir() if p.name.startswith("stage_2"))
    victims = [
        f"+callbacks.first={{_target_: support.saboteur.KillOnceIn, {trained}}}",
        "+callbacks.second={_target_: support.saboteur.KillWhileLabelling, "
        f"{labelled % (second[:-1] + 'p')}}}",
    ]
    said = [shell.apart(*typed, "name=killed", *victims)]
    broken = the_run(shell, "killed")
    assert (shell.folder / "struck_training").exists(), said[-1].stderr
    assert not (broken / "stages" / "stage_1-p" / "metrics.json").exists()
    said.append(shell.apart("train", f"resume={broken}"))
    assert (shell.folder / "struck_labelling").exists(), said[-1].stderr
    halfway = broken / "stages" / (second[:-1] + "p") / "pseudo_labels"
    assert halfway.is_dir()
    assert not (halfway / "manifest.json").exists()
    said.append(shell.apart("train", f"resume={broken}", DIE_BEFORE_CHOOSING="1"))
    assert [end.returncode for end in said] == [-signal.SIGKILL] * 3, said[-1].stderr
    assert RunFolder(broken).status().get("state") != "finished"
    status, last = shell("train", f"resume={broken}")
    assert status == 0, last

    for which in ("last", "best"):
        expected, found = state(whole, which), state(broken, which)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            if isinstance(tensor, torch.Tensor):
                assert torch.equal(tensor, found[name]), name
    metrics = [
        {k: v for k, v in RunFolder(run).metrics().items() if not k.startswith(COSTS)}
        for run in (whole, broken)
    ]
    assert str(metrics[0]) == str(metrics[1])
    records = [
        json.loads((run / "stages.json").read_text().replace(str(run), "RUN"))
        for run in (whole, broken)
    ]
    assert records[0] == records[1]


def test_a_run_tells_its_stages_and_adopts_the_last_and_the_best(shell):
    status, said = shell(
        *DIGITS, "stages=path", "stages.path=[1,0.5]", "method.pseudo.threshold=0.1", "report=true"
    )
    assert status == 0, said
    run = next(r for r in shell.runs() if "stages" not in r.parts)
    stages = [run / "stages" / name for name in ("stage_0", "stage_1-p", "stage_2-pm0.5")]
    assert sorted(p.name for p in (run / "stages").iterdir()) == [p.name for p in stages]
    settings = [config(stage) for stage in stages]
    assert [s["method"]["alpha"] for s in settings] == [0.0, 1.0, 0.5]
    assert [s["data"]["labelled_holdout"] for s in settings] == [0.2] * 3
    sources = [s["method"]["pseudo"]["source"] for s in settings]
    assert sources == [None, str(stages[0]), str(stages[1])]
    # Each stage starts from the model before it, and its pseudo-labels say who made them.
    manifest = json.loads((stages[1] / "pseudo_labels" / "manifest.json").read_text())
    assert manifest["checkpoint"] == str(stages[0] / "checkpoints" / "last.ckpt")
    assert manifest["settings"] == {"threshold": 0.1, "soft": False}
    assert not (stages[0] / "pseudo_labels").exists()
    scores = [RunFolder(stage).metrics() for stage in stages]
    assert 0 < scores[1]["pseudo/accuracy"] <= 1
    assert 0 <= scores[1]["pseudo/ignored"] < 1
    metrics = RunFolder(run).metrics()
    best = max(range(3), key=lambda i: scores[i]["val/accuracy"])
    assert metrics["stage"] == 2
    assert metrics["best/stage"] == best
    assert metrics["test/accuracy"] == pytest.approx(scores[2]["test/accuracy"])
    assert metrics["best/test/accuracy"] == pytest.approx(scores[best]["test/accuracy"])
    table = pd.read_csv(run / "self_training.csv")
    assert table["choices"].fillna("").tolist() == ["", "p", "pm0.5"]
    page = (run / "report.html").read_text()
    assert "Stages of self-training" in page
    status, said = shell("evaluate", f"checkpoint={run}", "which=best")
    assert status == 0, said
    assert f'"test/accuracy": {metrics["best/test/accuracy"]}' in said


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_labels_of_unlabelled_samples_teach_nothing(shell, alpha):
    status, said = shell(*DIGITS, "name=first")
    assert status == 0, said
    first = the_run(shell, "first")
    second = [f"method.alpha={alpha}", f"method.pseudo.source={first}"]
    assert shell(*DIGITS, *second, "name=honest")[0] == 0
    own = shell.folder / "own" / "dataset"
    own.mkdir(parents=True)
    (own / "lying.yaml").write_text(
        "# Digits with other labels\n_target_: support.lying.LyingDigits\n"
    )
    keys = shell.folder / "keys.txt"
    train = Digits().splits()["train"]
    from noisyml.data.labelled import LabelledPart

    marks = LabelledPart(size=60).apply({"train": train})["train"].labelled
    keys.write_text("\n".join(np.array(train.keys)[marks]) + "\n")
    lie = ["--config-dir", "own", "dataset=lying"]
    typed = [
        DIGITS[0],
        *lie,
        *[t for t in DIGITS[1:] if not t.startswith(("dataset=", "data.lab"))],
    ]
    status, said = shell(*typed, f"data.labelled_keys={keys}", *second, "name=lying")
    assert status == 0, said
    honest, lying = state(the_run(shell, "honest")), state(the_run(shell, "lying"))
    for name, tensor in honest.items():
        assert torch.equal(tensor, lying[name]), name


def test_masks_lie_beside_their_manifest_as_numbers(shell):
    status, said = shell(*PAGES[:-2], "data.eval_batch_size=4", "name=first")
    assert status == 0, said
    second = ["method.alpha=1.0", f"method.pseudo.source={the_run(shell, 'first')}"]
    soft = ["method.pseudo.soft=true", "method.pseudo.threshold=0.15"]
    status, said = shell(*PAGES[:-2], "data.eval_batch_size=4", *second, *soft, "name=second")
    assert status == 0, said
    run = the_run(shell, "second")
    folder = run / "pseudo_labels"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["samples"] == 8
    for at in manifest["index"]:
        with Image.open(folder / "labels" / f"{at:06d}.png") as image:
            assert image.mode == "L"
            labels = np.asarray(image)
        assert labels.shape == (32, 32)
        assert set(np.unique(labels)) <= {*range(7), 255}
        with Image.open(folder / "confidence" / f"{at:06d}.png") as image:
            certain = np.asarray(image) / 255
        assert (certain[labels != 255] > 0.145).all()
        with Image.open(folder / "soft" / f"{at:06d}.png") as image:
            planes = np.asarray(image).reshape(7, 32, 32)
        assert abs(planes.sum(0).astype(int) - 255).max() <= 4
        kept = labels != 255
        chosen = np.take_along_axis(planes, np.where(kept, labels, 0)[None].astype(int), 0)[0]
        assert (chosen[kept] == planes.max(0)[kept]).all()
    # What was changed since is noticed.
    one = folder / "labels" / f"{manifest['index'][0]:06d}.png"
    Image.fromarray(np.full((32, 32), 3, dtype=np.uint8)).save(one)
    (run / "status.json").unlink()
    (run / "metrics.json").unlink()
    status, said = shell("train", f"resume={run}")
    assert status == 2
    assert "not what the manifest says" in said


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["method.alpha=1.0"], "no model gives any"),
        (["method.alpha=1.0", "sampler=balanced"], "sampler"),
        (["stages=rist", "stages.holdout_fraction=0"], "holdout_fraction"),
        (["data.labelled_fraction=0.1"], "labelled_size and data.labelled_fraction"),
        (["stages=gist", "stages.count=1", "stages.metric=miou"], "stages.metric"),
    ],
)
def test_mistakes_are_answered_with_one_sentence(shell, typed, told):
    status, said = shell(*DIGITS, *typed)
    assert status == 2, said
    assert told in said
    assert "Traceback" not in said


def test_settings_of_an_unlabelled_pool_need_unlabelled_samples(shell):
    typed = [word for word in DIGITS if not word.startswith("data.labelled")]
    status, said = shell(*typed, "method.alpha=1.0")
    assert status == 2, said
    assert "data.labelled_fraction=0.1" in said
