"""Sweeps: jobs that compose, values that an experiment brings, and searches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from noisyml.command.hydra import run_jobs
from noisyml.command.sweeps import sweep_settings
from noisyml.errors import UserError


@pytest.fixture
def jobs(tmp_path, monkeypatch, capsys):
    """Run a command with a task that only notes what each job is; the notes and what was said."""
    monkeypatch.chdir(tmp_path)

    def run(*typed, value=lambda config: 0.0, key="val/map_at_r"):
        seen = []

        def task(config):
            overrides = list(HydraConfig.get().overrides.task)
            seen.append((overrides, OmegaConf.to_container(config, resolve=False)))
            return {key: value(config)}

        outcome = run_jobs(task, "train", "train", list(typed))
        captured = capsys.readouterr()
        run.outcome = outcome
        return seen, captured.out + captured.err

    return run


@pytest.mark.long
def test_a_setting_that_some_jobs_have_is_set_there_and_said_once(jobs):
    seen, said = jobs("-m", "selector=keep_all,prism_vmf", "selector.noise_rate=.2,.3")
    assert [overrides for overrides, _ in seen] == [
        ["selector=keep_all"],
        ["selector=prism_vmf", "selector.noise_rate=0.2"],
        ["selector=prism_vmf", "selector.noise_rate=0.3"],
    ]
    assert [config["selector"].get("noise_rate") for _, config in seen] == [None, 0.2, 0.3]
    assert said.count("selector.noise_rate is set where it exists: not with selector=keep_all") == 1
    assert "1 of 4 jobs would repeat another" in said


@pytest.mark.long
def test_settings_of_a_swept_recipe_are_found(jobs):
    seen, _ = jobs("-m", "recipe=jocor,co_teaching", "method.noise_rate=.2")
    assert [config["method"]["noise_rate"] for _, config in seen] == [0.2, 0.2]


@pytest.mark.long
def test_a_setting_that_no_job_has_is_refused(jobs):
    with pytest.raises(UserError, match="noise_rate"):
        jobs("-m", "selector=keep_all", "selector.noise_rate=.2,.3")


@pytest.mark.long
def test_a_misspelt_setting_of_a_sweep_is_refused(jobs):
    with pytest.raises(UserError, match=r"There is no setting 'nose.rate'. Did you mean"):
        jobs("-m", "seed=0,1", "nose.rate=.2")


@pytest.mark.long
def test_the_flag_of_a_sweep_stands_anywhere(jobs):
    seen, _ = jobs("seed=0,1", "-m", "dataset=digits", "name=x")
    assert [config["seed"] for _, config in seen] == [0, 1]
    assert {config["name"] for _, config in seen} == {"x"}


@pytest.mark.long
def test_values_of_an_experiment_stay_and_are_said(jobs):
    seen, said = jobs("-m", "experiment=demo", "noise.rate=0.3,0.5")
    assert len(seen) == 6
    assert "The configuration brings values for selector (3 values)" in said


@pytest.mark.parametrize(
    ("typed", "number", "sentence"),
    [
        (["experiment=noisy_labels_leaderboard", "method=bare"], 3, "method was typed"),
        (["experiment=demo", "noise=none"], 3, "no job has it"),
        (["experiment=demo", "method=co_teaching"], 3, "method=co_teaching asks no selector"),
    ],
)
@pytest.mark.long
def test_values_that_a_choice_makes_senseless_are_dropped(jobs, typed, number, sentence):
    seen, said = jobs("-m", *typed)
    assert len(seen) == number
    assert sentence in said


@pytest.mark.long
def test_an_experiment_does_not_inherit_the_sweep_it_is_built_on(tmp_path, jobs):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - demo\nname: mine\n"
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.write_text(text)
    seen, said = jobs("-m", "--config-dir", "conf", "experiment=mine")
    assert len(seen) == 1
    assert "selector=keep_all,prism_avg,prism_vmf belongs to what experiment=mine is built" in said
    file.write_text(text + "hydra:\n  sweeper:\n    params:\n      noise.rate: 0.1,0.2\n")
    seen, _ = jobs("-m", "--config-dir", "conf", "experiment=mine")
    assert [config["noise"]["rate"] for _, config in seen] == [0.1, 0.2]


def test_intervals_need_a_search(jobs):
    with pytest.raises(UserError, match="search it with hydra/sweeper=optuna"):
        jobs("-m", "optimizer.lr=interval(1e-4,1e-1)")


SEARCH = [
    "-m",
    "hydra/sweeper=optuna",
    "hydra.sweeper.n_trials=8",
    "optimizer.lr=tag(log, interval(1e-4, 1e-1))",
    "head=linear,mlp",
    "hydra.sweep.dir=search",
]


def peak(config):
    """Best at a learning rate of 1e-2 with head=mlp."""
    import math

    return -abs(math.log10(config.optimizer.lr) + 2) + ("hidden" in str(config.head))


@pytest.mark.long
def test_a_search_finds_the_best_value_and_goes_on_after_a_kill(jobs, tmp_path):
    pytest.importorskip("optuna")
    seen, said = jobs(*SEARCH, value=peak)
    values = [peak(OmegaConf.create(config)) for _, config in seen]
    assert len(values) == 8
    best = json.loads((tmp_path / "search" / "best.json").read_text())
    assert best["objective"] == "val/map_at_r"
    assert best["value"] == max(values)
    assert best["job"] == values.index(max(values))
    assert f"best val/map_at_r {max(values):.4f} of 8 jobs" in said

    class Killed(BaseException):
        pass

    count = 0

    def dying(config):
        nonlocal count
        count += 1
        if count == 4:
            raise Killed
        return peak(config)

    elsewhere = [*SEARCH[:-1], "hydra.sweep.dir=again"]
    with pytest.raises(Killed):
        jobs(*elsewhere, value=dying)
    rest, _ = jobs(*elsewhere, value=peak)
    assert len(rest) == 5  # the one under way is run again, the three before it are not
    assert [overrides for overrides, _ in rest] == [overrides for overrides, _ in seen[3:]]
    again = json.loads((tmp_path / "again" / "best.json").read_text())
    assert again == best


@pytest.mark.parametrize("name", ["search_metric_learning", "search_noisy_labels"])
@pytest.mark.long
def test_experiments_that_search_draw_from_what_they_say(jobs, name):
    pytest.importorskip("optuna")
    typed = [f"experiment={name}", "hydra.sweeper.n_trials=1", "seed=3", "hydra.sweep.dir=x"]
    key = "val/map_at_r" if name == "search_metric_learning" else "val/accuracy"
    ((overrides, config),), said = jobs("-m", *typed, key=key)
    assert "The configuration searches optimizer.lr, loss." in said
    assert 1e-4 <= config["optimizer"]["lr"] <= 1e-1
    assert len(overrides) == 2 + 4


def test_a_search_without_optuna_names_the_extra(jobs, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "optuna" else found(name, *a)
    )
    with pytest.raises(UserError, match=r"A search needs optuna: pip install 'noisyml\[search\]'"):
        jobs(*SEARCH[:4])


@pytest.mark.long
def test_a_search_chooses_nothing_on_test_data_unless_that_is_said(jobs, tmp_path):
    pytest.importorskip("optuna")
    typed = [*SEARCH, "hydra.sweeper.objective=test/map_at_r", "hydra.sweeper.n_trials=2"]
    with pytest.raises(UserError, match="test/map_at_r is no metric of validation data"):
        jobs(*typed, key="test/map_at_r")
    _, said = jobs(*typed, "hydra.sweeper.on_test=true", value=peak, key="test/map_at_r")
    assert "CHOSEN ON test/map_at_r" in said
    assert json.loads((tmp_path / "search" / "search.json").read_text())["on_test"] is True


@pytest.mark.long
def test_a_search_of_errors_looks_for_the_lowest(jobs, tmp_path):
    pytest.importorskip("optuna")
    typed = [*SEARCH, "recipe=cross_entropy", "hydra.sweeper.objective=val/nll"]
    jobs(*typed, "hydra.sweeper.n_trials=2", value=peak, key="val/nll")
    results = json.loads((tmp_path / "search" / "search.json").read_text())
    best = json.loads((tmp_path / "search" / "best.json").read_text())
    assert results["direction"] == best["direction"] == "minimize"
    assert best["value"] == min(trial["value"] for trial in results["trials"])


@pytest.mark.long
def test_a_search_goes_by_a_metric_of_the_jobs(jobs):
    pytest.importorskip("optuna")
    with pytest.raises(UserError, match=r"val/nothing is no metric of the jobs; these are"):
        jobs(*SEARCH[:4], "hydra.sweeper.objective=val/nothing")


@pytest.mark.long
def test_paths_and_names_stay_as_typed(jobs, tmp_path):
    name = "Fotos Müller (1) & it's = a,b"
    seen, _ = jobs("dataset=csv", f"dataset.path={name}", "name=2024")
    ((_, config),) = seen
    assert config["dataset"]["path"] == name
    assert config["name"] == "2024"
    typed = ["-m", "dataset=csv", "dataset.path=Größe a,Größe b"]
    seen, _ = jobs(*typed)
    assert [config["dataset"]["path"] for _, config in seen] == ["Größe a", "Größe b"]


def test_the_folder_is_named_after_what_is_varied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = sweep_settings("train", ["-m", "dataset=digits,glyphs", "seed=0,1"], print)
    assert sweep.home.parent == Path.cwd() / "outputs" / "train" / "prism-digits+glyphs"
    assert sweep.varied() == {"dataset": 2, "seed": 2}
