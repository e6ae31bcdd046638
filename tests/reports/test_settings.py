"""Which settings were varied."""

from __future__ import annotations

import yaml
from support.synthetic_runs import RunMaker

from noisyml.reports.settings import Settings, repetitions, values_of, varied_keys
from noisyml.runs.folder import RunFolder


def read(*runs: RunFolder) -> list[Settings]:
    return [Settings.read(run) for run in runs]


def test_the_typed_settings_that_differ_are_found_and_seeds_and_folders_are_not(
    maker: RunMaker,
) -> None:
    runs = read(
        maker.run("a", "prism_avg", 0.3, 0, files=False),
        maker.run("b", "prism_vmf", 0.3, 1, files=False),
        maker.run("c", "prism_vmf", 0.5, 2, files=False),
    )
    # The selector's class and its warm-up differ too, but follow from the selector's name.
    assert varied_keys(runs) == ["noise.rate", "selector"]
    assert values_of("noise.rate", runs) == [0.3, 0.3, 0.5]
    assert values_of("selector", runs) == ["prism_avg", "prism_vmf", "prism_vmf"]


def test_a_setting_that_only_the_configuration_tells_is_found(maker: RunMaker) -> None:
    one = {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}}
    two = {"optimizer": {"_target_": "torch.optim.Adam", "lr": 0.1}}
    three = {"optimizer": {"_target_": "torch.optim.Adam", "lr": 0.2}}
    runs = read(
        *(
            maker.run(name, extra_config=config, files=False)
            for name, config in (("a", one), ("b", two), ("c", three))
        )
    )
    assert varied_keys(runs) == ["optimizer", "optimizer.lr"]
    assert values_of("optimizer", runs) == ["SGD", "Adam", "Adam"]


def test_a_default_choice_takes_the_name_typed_for_it_elsewhere(maker: RunMaker) -> None:
    typed = maker.run("a", "prism_avg", seed=0, files=False)
    default = maker.run("b", "prism_avg", seed=1, files=False)
    default.overrides_file.write_text("- seed=1\n")  # without experiment=demo, too
    other = maker.run("c", "keep_all", seed=0, files=False)
    runs = read(typed, default, other)
    assert values_of("selector", runs) == ["prism_avg", "prism_avg", "keep_all"]
    assert varied_keys(runs) == ["selector"]


def test_files_inside_the_run_folder_are_no_variation(maker: RunMaker) -> None:
    runs = [maker.run(name, files=False) for name in ("a", "b")]
    for run in runs:
        text = run.config_file.read_text()
        run.config_file.write_text(f"{text}\nhistory:\n  file: {run.path}/history.csv\n")
    assert varied_keys(read(*runs)) == []


def test_a_noise_seed_of_its_own_is_part_of_the_repetition(maker: RunMaker) -> None:
    follows = read(maker.run("a", seed=0, files=False), maker.run("b", seed=1, files=False))
    assert repetitions(follows) == ["0", "1"]
    free = [maker.run(name, seed=0, files=False) for name in ("c", "d")]
    free[1].config_file.write_text(
        free[1].config_file.read_text().replace("rate: 0.5\n  seed: 0", "rate: 0.5\n  seed: 7")
    )
    assert repetitions(read(*free)) == ["0, noise.seed=0", "0, noise.seed=7"]


def test_a_choice_of_experiment_stands_for_all_it_changes(maker: RunMaker) -> None:
    runs = [maker.run("a", "prism_avg", 0.3, files=False), maker.run("b", rate=0.5, files=False)]
    for run, name in zip(runs, ("small", "large"), strict=True):
        run.overrides_file.write_text(f"- experiment={name}\n- seed=0\n")
    assert varied_keys(read(*runs)) == ["experiment"]


def choose(run: RunFolder, **choices: str) -> RunFolder:
    """Add the file of choices as the train verb writes it."""
    (run.path / "choices.yaml").write_text(yaml.safe_dump(choices))
    return run


def test_choices_name_the_options_whether_typed_or_not(maker: RunMaker) -> None:
    runs = [maker.run("a", "x", files=False), maker.run("b", "y", files=False)]
    for run in runs:
        run.overrides_file.write_text("- seed=1\n")
    old = read(*runs)
    assert values_of("selector", old) == ["X", "Y"]
    new = read(choose(runs[0], selector="prism_vmf"), choose(runs[1], selector="prism_avg"))
    assert values_of("selector", new) == ["prism_vmf", "prism_avg"]
    assert varied_keys(new) == ["selector"]


def test_an_older_run_takes_the_name_from_a_newer_one(maker: RunMaker) -> None:
    runs = [maker.run("a", "x", files=False), maker.run("b", "x", 0.3, files=False)]
    for run in runs:
        run.overrides_file.write_text("- seed=1\n")
    assert values_of("selector", read(choose(runs[0], selector="small_loss"), runs[1])) == [
        "small_loss",
        "small_loss",
    ]


def test_settings_that_follow_from_the_choice_of_their_group_are_left_out(
    maker: RunMaker,
) -> None:
    runs = []
    for name, dataset, classes, warmup in (
        ("a", "glyphs", 10, 1),
        ("b", "glyphs", 10, 2),
        ("c", "digits", 5, 1),
    ):
        typed = (f"dataset={dataset}", f"dataset.classes={classes}", f"selector.warmup={warmup}")
        tree = {
            "dataset": {"_target_": f"x.{dataset}", "classes": classes},
            "selector": {"_target_": "x.Prism", "warmup": warmup},
        }
        run = maker.run(
            name, rate=0.1 * classes, files=False, extra_config=tree, extra_overrides=typed
        )
        runs.append(choose(run, dataset=dataset, selector="prism_avg", noise="symmetric"))
    # The rate follows from the data set, too, but is what tables are sorted and plotted by.
    assert varied_keys(read(*runs)) == ["dataset", "noise.rate", "selector.warmup"]


def test_a_part_that_some_runs_lack_makes_no_more_seeds_of_them(maker: RunMaker) -> None:
    noisy = {"noise": {"seed": 0, "rate": 0.3}}
    clean = {"noise": {"_target_": "noisyml.noise.NoNoise"}}
    runs = [
        maker.run(f"{kind}_{seed}", seed=seed, extra_config=config, files=False)
        for kind, config in (("noisy", noisy), ("clean", clean))
        for seed in (0, 1)
    ]
    assert repetitions(read(*runs)) == ["0", "1", "0", "1"]
    other = maker.run("other", seed=1, extra_config={"noise": {"seed": 7}}, files=False)
    told = repetitions(read(*runs, other))
    assert told == ["0, noise.seed=0", "1, noise.seed=0", "0", "1", "1, noise.seed=7"]
