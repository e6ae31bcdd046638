"""The table of results: numbers, groups, what is best, what is missing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from support.synthetic_runs import RunMaker

from noisyml.errors import UserError
from noisyml.reports import aggregate, load_runs, result_table
from noisyml.reports.tables import KNOWN_NAMES, Column, default_test_metrics
from noisyml.runs.metric_names import MetricNames

P1 = "test/precision_at_1"


def three_seeds(maker: RunMaker) -> None:
    for seed, value in enumerate((0.70, 0.72, 0.77)):
        maker.run(f"s/{seed}", "prism_avg", 0.3, seed, metrics={P1: value}, files=False)
    maker.run("s/3", "keep_all", 0.3, 0, metrics={P1: 0.61}, files=False)
    maker.run("s/4", "keep_all", 0.5, 0, metrics={P1: None}, files=False)


def test_mean_and_deviation_over_seeds_are_those_computed_by_hand(maker: RunMaker) -> None:
    three_seeds(maker)
    figures = aggregate(load_runs([maker.root / "s"]))
    row = figures.loc[(0.3, "prism_avg")]
    # mean 2.19 / 3; deviations -.03, -.01, .04: variance (.0009 + .0001 + .0016) / 2 = .0013
    assert row[P1, "mean"] == pytest.approx(0.73)
    assert row[P1, "std"] == pytest.approx(math.sqrt(0.0013))
    assert row[P1, "n"] == 3
    single = figures.loc[(0.3, "keep_all")]
    assert single[P1, "mean"] == pytest.approx(0.61)
    assert np.isnan(single[P1, "std"])


def test_the_table_prints_a_lone_seed_without_deviation_and_a_missing_value_as_dash(
    maker: RunMaker,
) -> None:
    three_seeds(maker)
    table = result_table(load_runs([maker.root / "s"]))
    assert table.keys == ("noise.rate", "selector")
    texts = {row.values: (row.runs, *map(str, row.cells)) for row in table.rows}
    assert texts == {
        ("0.3", "prism_avg"): ("3", "0.7300 ± 0.0361"),
        ("0.3", "keep_all"): ("1", "0.6100"),
        ("0.5", "keep_all"): ("1", "–"),
    }


def groups(maker: RunMaker, figures: dict[str, tuple[float | None, ...]], metric: str = P1):
    """A table with a row per selector and a run per figure; names and figures in bold."""
    for selector, values in figures.items():
        for seed, value in enumerate(values):
            where = f"s/{selector}{seed}"
            maker.run(where, selector, 0.3, seed, metrics={metric: value}, files=False)
    table = result_table(load_runs([maker.root / "s"]))
    return table, {row.values[0] for row in table.rows if row.cells[0].best}


@pytest.mark.parametrize(
    ("figures", "bold"),
    [
        # Means .90 and .80, deviations .01: t = .1 / sqrt(2 * .0001 / 3) = 12.2.
        ({"a": (0.89, 0.90, 0.91), "b": (0.79, 0.80, 0.81)}, {"a"}),
        # A near-tie by the third digit: t = .002 / .0082 = .24, and nothing else to tell them from.
        ({"a": (0.892, 0.902, 0.912), "b": (0.89, 0.90, 0.91)}, set()),
        ({"a": (0.892, 0.902, 0.912), "b": (0.89, 0.90, 0.91), "c": (0.5, 0.51, 0.52)}, {"a", "b"}),
        # Welch at 5 %: two seeds each, t = 3 < 4.3 = t(.975, 2), and t = 6.
        ({"a": (0.89, 0.91), "b": (0.859, 0.881)}, set()),
        ({"a": (0.895, 0.905), "b": (0.845, 0.855)}, {"a"}),
        # Seeds that agree to the bit, and groups that print alike.
        ({"a": (0.9, 0.9), "b": (0.8, 0.8)}, {"a"}),
        ({"a": (0.9, 0.9), "b": (0.90000001, 0.90000001), "c": (0.1, 0.1)}, {"a", "b"}),
        # One seed says nothing about the next.
        ({"a": (0.9,), "b": (0.5,)}, set()),
        ({"a": (0.9,), "b": (0.8, 0.8), "c": (0.5, 0.5)}, set()),
        ({"a": (0.7,), "b": (0.8, 0.8), "c": (0.5, 0.5)}, {"b"}),
        # What is undefined never stands out.
        ({"a": (None, None), "b": (0.8, 0.8), "c": (0.5, 0.5)}, {"b"}),
        ({"a": (None, None), "b": (None, None)}, set()),
    ],
)
def test_bold_is_what_the_seeds_tell_from_the_rest(maker: RunMaker, figures, bold) -> None:
    assert groups(maker, figures)[1] == bold


def test_shorter_times_are_better(maker: RunMaker) -> None:
    figures = {"a": (0.03, 0.03), "b": (0.01, 0.01)}
    assert groups(maker, figures, "time/step_seconds")[1] == {"b"}


def test_bold_stays_within_the_same_noise_rate_and_keeping_all_is_no_achievement(
    maker: RunMaker,
) -> None:
    values = {
        ("prism_avg", 0.3): (0.80, 0.9),
        ("prism_vmf", 0.3): (0.70, 0.8),
        ("keep_all", 0.3): (0.75, 1.0),
        ("prism_avg", 0.5): (0.50, 0.9),
        ("keep_all", 0.5): (0.60, 1.0),
    }
    for (selector, rate), (p1, kept) in values.items():
        recall = {1.0: 1.0, 0.9: 0.95, 0.8: 0.85}[kept]
        metrics = {P1: p1, "selection/kept": kept, "selection/recall": recall}
        for seed in (0, 1):
            where = f"s/{selector}{rate}{seed}"
            maker.run(where, selector, rate, seed, metrics=metrics, files=False)
    table = result_table(load_runs([maker.root / "s"]))
    columns = [column.metric for column in table.columns]
    bold = {
        row.values: {m for m, cell in zip(columns, row.cells, strict=True) if cell.best}
        for row in table.rows
    }
    assert bold == {
        ("0.3", "prism_avg"): {P1, "selection/recall"},
        ("0.3", "prism_vmf"): set(),
        ("0.3", "keep_all"): set(),
        ("0.5", "prism_avg"): set(),
        ("0.5", "keep_all"): {P1},
    }


def test_what_all_runs_share_is_no_column(maker: RunMaker) -> None:
    for seed, selector in enumerate(("prism_avg", "keep_all")):
        typed = ("trainer.max_epochs=5", f"optimizer.lr={0.1 * (seed + 1)}")
        tree = {"trainer": {"max_epochs": 5}, "optimizer": {"lr": 0.1 * (seed + 1)}}
        maker.run(
            f"s/{seed}", selector, metrics={P1: 0.5}, extra_config=tree, extra_overrides=typed,
            files=False,
        )  # fmt: skip
    table = result_table(load_runs([maker.root / "s"]))
    assert table.keys == ("selector", "optimizer.lr")
    shared = dict(table.constant)
    assert shared == {
        "method": "Prism",
        "dataset": "Glyphs",
        "noise": "Symmetric",
        "noise.rate": "0.5",
        "experiment": "demo",
        "trainer.max_epochs": "5",
    }
    grouped = result_table(load_runs([maker.root / "s"], by=["selector", "trainer.max_epochs"]))
    assert grouped.keys == ("selector",)
    assert dict(grouped.constant)["trainer.max_epochs"] == "5"


def test_rows_are_sorted_by_noise_rate_then_as_the_sweep_went(sweep: Path) -> None:
    table = result_table(load_runs([sweep]))
    assert [row.values for row in table.rows] == [
        ("0.3", "keep_all"),
        ("0.3", "prism_avg"),
        ("0.5", "keep_all"),
        ("0.5", "prism_avg"),
    ]
    assert [row.block for row in table.rows] == [0, 0, 1, 1]
    assert {row.runs for row in table.rows} == {"3"}


def test_columns_stand_in_a_fixed_order_and_say_how_the_checkpoint_was_chosen(
    maker: RunMaker,
) -> None:
    metrics = {
        "chosen_on_test/test/precision_at_1": 0.9,
        "time/step_seconds": 0.1,
        "best/test/precision_at_1": 0.8,
        P1: 0.7,
        "test/loss": 3.0,
        "noise/nominal_rate": 0.5,
        "noise/actual_rate": 0.48,
        "selection/auroc": 0.9,
    }
    maker.run("a", metrics=metrics, files=False)
    columns = result_table(load_runs([maker.root])).columns
    assert [column.heading for column in columns] == [
        "Noise rate: nominal",
        "Noise rate: realised",
        "P@1 (last)",
        "P@1 (best on validation)",
        "P@1 (CHOSEN ON TEST)",
        "Kept set: AUROC",
        "Time: s / step",
    ]


def test_unfinished_runs_count_nowhere_but_are_not_forgotten(maker: RunMaker) -> None:
    maker.run("s/0", seed=0, metrics={P1: 0.7}, files=False)
    maker.run("s/1", seed=1, status={"state": "failed", "error": "NaN loss"}, files=False)
    maker.run("s/2", seed=2, status={"state": "running"}, files=False)
    broken = maker.run("s/3", seed=3, files=False)
    broken.metrics_file.write_text("{")
    lost = maker.run("s/4", seed=4, files=False)
    lost.metrics_file.unlink()
    runs = load_runs([maker.root / "s"])
    assert runs["state"].tolist() == [
        "finished",
        "failed",
        "running",
        "unreadable",
        "incomplete",
    ]
    assert runs["problem"][1] == "NaN loss"
    table = result_table(runs)
    assert table.rows[0].runs == "1 of 5"
    assert str(table.rows[0].cells[0]) == "0.7000"


def test_grouping_by_other_settings(sweep: Path) -> None:
    table = result_table(load_runs([sweep], by=["selector"]))
    assert [(row.values, row.runs) for row in table.rows] == [
        (("keep_all",), "6"),
        (("prism_avg",), "6"),
    ]


def test_metrics_by_name(sweep: Path) -> None:
    runs = load_runs([sweep])
    table = result_table(runs, metrics=["selection/auroc", "map_at_r"])
    assert [column.metric for column in table.columns] == [
        "selection/auroc",
        "test/map_at_r",
        "best/test/map_at_r",
    ]
    with pytest.raises(UserError, match="No finished run has a metric 'mapr'; there are: test/"):
        result_table(runs, metrics=["mapr"])


def test_an_unknown_setting_to_group_by_is_a_sentence(sweep: Path) -> None:
    with pytest.raises(UserError, match=r"No run has a setting 'noise\.rat' to group by"):
        load_runs([sweep], by=["noise.rat"])


def test_a_broken_configuration_is_a_sentence(maker: RunMaker) -> None:
    run = maker.run("a", files=False)
    run.config_file.write_text("seed: [")
    with pytest.raises(UserError, match=r"config.yaml cannot be read"):
        load_runs([maker.root])


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("test/map_at_r", 0.123456, "0.1235"),
        ("selection/auroc", 0.98765, "0.988"),
        ("time/step_seconds", 0.012345, "0.0123"),
        ("time/step_seconds", 0.081, "0.0810"),
        ("time/train_seconds", 123.6, "124"),
        ("best/epoch", 12.0, "12"),
        ("test/recall_at_10", math.nan, "–"),
    ],
)
def test_digits(metric: str, value: float, text: str) -> None:
    assert Column.of(metric).text(value) == text


def test_names_of_the_field() -> None:
    assert Column.of("test/recall_at_10").label == "R@10"
    assert Column.of("test/precision_at_1").label == "P@1"
    assert Column.of("best/test/map_macro").section == "Test, best on validation"
    assert Column.of("something").label == "something"


def test_of_equal_runs_only_the_newest_counts(maker: RunMaker) -> None:
    for number, (seed, ended, value) in enumerate(((0, 20.0, 0.7), (0, 10.0, 0.1), (1, 5.0, 0.8))):
        run = maker.run(f"s/{number}", seed=seed, metrics={P1: value}, files=False)
        run.write_status("finished", ended=ended)
    maker.run("s/3", seed=0, status={"state": "failed"}, files=False)
    runs = load_runs([maker.root / "s"])
    assert [Path(path).name for path in runs["run"]] == ["0", "2", "3"]
    assert [Path(path).name for path in runs.attrs["left_out"]] == ["1"]
    row = result_table(runs).rows[0]
    assert (row.runs, row.cells[0].mean) == ("2 of 3", "0.7500")


def test_an_interrupted_run_says_how_to_go_on(maker: RunMaker) -> None:
    run = maker.run("a", files=False, status={"state": "interrupted"})
    runs = load_runs([maker.root])
    assert runs["state"].tolist() == ["interrupted"]
    assert runs["problem"][0] == f"Continue with noisyml train resume={run.path}"


def test_named_test_sets_have_columns_after_the_default_one() -> None:
    present = [
        "best/test/map_at_r",
        "best/test/roxford/map_hard",
        "test/map_at_r",
        "test/roxford/map_hard",
        "test/roxford/map_medium",
    ]
    written = MetricNames({"map_medium": "mAP Medium", "map_hard": "mAP Hard"}).joined(KNOWN_NAMES)
    names = default_test_metrics(present, written)
    assert names == [
        "test/map_at_r",
        "test/roxford/map_medium",
        "test/roxford/map_hard",
        "best/test/map_at_r",
        "best/test/roxford/map_medium",
        "best/test/roxford/map_hard",
    ]
    assert Column.of(names[1], written).label == "roxford: mAP Medium"
    assert Column.of("test/roxford/map_hard").label == "roxford/map_hard"
    assert Column.of("test/strange/name").label == "strange/name"
