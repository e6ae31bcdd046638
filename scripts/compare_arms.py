"""Table and plot of a sweep that compares arms: ways of self-training, what was learnt first.

Runs are read from the folders of `noisyml train -m`. Seeds are paired: beside each mean stands that
of the difference from the first arm, with a 95 % interval of Student's t.

    python scripts/compare_arms.py outputs/digits --arms human_only fist rist gist \
        --metric test/accuracy --over-stages --plot digits.png
    python scripts/compare_arms.py outputs/weak --arms none weak_ce weak_proxynca \
        --metric test/accuracy --over data.labelled_fraction --plot weak.png
    python scripts/compare_arms.py outputs/resolution --arm transform.input_resolution \
        --metric test/accuracy --over transform.image_resolution --plot resolution.png
    python scripts/compare_arms.py outputs/noise --arms weak_ce weak_proxynca \
        --metric test/accuracy --over stages.weak.also/noise.rate --plot noise.png

`--over KEY/NAME` takes the value of NAME among the overrides that KEY lists, 0 where it lists none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from noisyml.command.words import Word
from noisyml.reports.plots import Line, Panel, dots_figure, lines_figure, save_png

ARMS = {
    "human_only": "human labels alone",
    "pseudo_only": "pseudo-labels alone",
    "fist": "FIST",
    "rist": "RIST",
    "gist": "GIST",
    "none": "few labels alone",
    "weak_ce": "after weak labels (cross-entropy)",
    "weak_proxynca": "after weak labels (ProxyNCA++)",
    "masks": "after full masks",
    "scribbles": "after scribbles",
    "letters": "after letters",
}


def setting(run: Path, key: str) -> Any:
    """What a run was told about a key or a group."""
    typed = yaml.safe_load((run / "overrides.yaml").read_text())
    for word in map(Word.parse, typed):
        if word.key == key and word.value is not None:
            return word.value if word.value.startswith("[") else yaml.safe_load(word.value)
    choices = yaml.safe_load((run / "choices.yaml").read_text())
    if key in choices:
        return choices[key]
    node = yaml.safe_load((run / "config.yaml").read_text())
    for part in key.split("."):
        node = node[part]
    return node


def along(run: Path, over: str | None) -> Any:
    """What a run was told about a key, or of ``KEY/NAME`` about NAME in the list that KEY holds."""
    key, _, name = (over or "").partition("/")
    if not name:
        return setting(run, key) if key else ""
    found = setting(run, key)
    listed = yaml.safe_load(found) if isinstance(found, str) else found
    (value,) = [word.value for word in map(Word.parse, listed) if word.key == name] or ["0"]
    return yaml.safe_load(str(value))


def read(folders: Sequence[Path], arm: str, over: str | None, metric: str) -> pd.DataFrame:
    """A row per finished run: arm, x, seed, score; and per stage those of `self_training.csv`."""
    rows = []
    for file in sorted(path for folder in folders for path in folder.glob("*/metrics.json")):
        run = file.parent
        common = {
            "arm": str(setting(run, arm)),
            "x": along(run, over),
            "seed": int(setting(run, "seed")),
        }
        rows.append({**common, "stage": -1, "score": json.loads(file.read_text())[metric]})
        table = run / "self_training.csv"
        if table.is_file():
            found = pd.read_csv(table)
            found["choices"] = found["choices"].fillna("").astype(str)
            (last,) = found[found["adopted"].fillna("").str.contains("last")]["choices"]
            way = found[[last.startswith(choices) for choices in found["choices"]]]
            for number, score in zip(way["number"], way[metric], strict=True):
                rows.append({**common, "stage": int(number), "score": float(score)})
            rows[-1 - len(way)]["path"] = last
    return pd.DataFrame(rows)


def interval(differences: pd.Series) -> str:
    """Mean of paired differences and its 95 % interval."""
    n = len(differences)
    if n < 2:
        return f"{differences.mean():+.3f}"
    half = stats.t.ppf(0.975, n - 1) * differences.std() / np.sqrt(n)
    return f"{differences.mean():+.3f} ± {half:.3f}"


def table(scores: pd.DataFrame, arms: Sequence[str], over: str | None) -> str:
    """A Markdown table: a row per arm and x, its seeds, their mean, the paired difference."""
    whole = scores[scores["stage"] < 0]
    seeds = sorted(whole["seed"].unique())
    head = [*([over] if over else []), "", *(f"seed {s}" for s in seeds), "mean", f"- {arms[0]}"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for x, part in whole.groupby("x", sort=True):
        wide = part.pivot_table(index="seed", columns="arm", values="score")
        for arm in (a for a in arms if a in wide):
            cells = [*([f"{x}"] if over else []), ARMS.get(arm, arm)]
            cells += [f"{wide[arm].get(seed, np.nan):.3f}" for seed in seeds]
            paired = (wide[arm] - wide[arms[0]]).dropna() if arms[0] in wide else pd.Series()
            cells += [f"{wide[arm].mean():.3f}"]
            cells += ["" if arm == arms[0] or paired.empty else interval(paired)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def line(rows: pd.DataFrame, by: str, label: str) -> Line:
    """Mean and spread over seeds of the scores of an arm."""
    found = rows.groupby(by)["score"].agg(["mean", "std"]).sort_index()
    x = found.index.to_numpy(dtype=float)
    return Line(label, x, found["mean"].to_numpy(), found["std"].to_numpy())


def since_first_stage(stages: pd.DataFrame) -> pd.DataFrame:
    """Scores of stages less that of the same run's first one."""
    run = ["arm", "x", "seed"]
    first = stages[stages["stage"] == 0].set_index(run)["score"].rename("first")
    joined = stages.join(first, on=run)
    return joined.assign(score=joined["score"] - joined["first"])


def main() -> None:
    """Print the table and draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--arm", default="stages", help="setting that tells the arms apart")
    parser.add_argument("--arms", nargs="*", help="in this order; by default all")
    parser.add_argument("--metric", default="test/accuracy")
    parser.add_argument("--over", help="setting on the x axis")
    parser.add_argument("--over-stages", action="store_true", help="stages on the x axis")
    parser.add_argument("--plot", type=Path)
    told = parser.parse_args()
    scores = read(told.folders, told.arm, told.over, told.metric)
    arms = told.arms or sorted(scores["arm"].unique(), key=lambda arm: (len(arm), arm))
    print(table(scores, arms, told.over))
    if "path" in scores:
        for row in scores.dropna(subset=["path"]).itertuples():
            print(row.x, row.arm, f"seed {row.seed}:", row.path)
    if told.plot is None:
        return
    kind = "" if told.arm == "stages" else told.arm.rpartition(".")[2].replace("_", " ") + " "
    labels = [ARMS.get(arm, kind + arm) for arm in arms]
    name = told.metric.replace("/", " ").replace("miou", "mIoU")
    if told.over_stages:
        stages = since_first_stage(scores[scores["stage"] >= 0])
        panels = [
            Panel(
                f"{told.over} = {x}" if told.over else "",
                "stage",
                f"{name}, change since stage 0",
                tuple(
                    line(part[part["arm"] == arm], "stage", label)
                    for arm, label in zip(arms, labels, strict=True)
                ),
            )
            for x, part in stages.groupby("x")
        ]
    else:
        whole = scores[scores["stage"] < 0]
        by = "x" if told.over else "constant"
        whole = whole.assign(constant=0)
        lines = tuple(
            line(whole[whole["arm"] == arm], by, label)
            for arm, label in zip(arms, labels, strict=True)
        )
        if not told.over:
            save_png(dots_figure([Panel("", name, "", lines)], labels), told.plot)
            return
        panels = [Panel("", told.over.rpartition("/")[2], name, lines)]
    save_png(lines_figure([panels], labels, markers=True, faceted=False), told.plot)


if __name__ == "__main__":
    main()
