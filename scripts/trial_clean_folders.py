"""Wrong labels in two folders of pictures: drawn charts, and emoji of an npm package.

A fifth of the labels is wrong, half of them as any other class, half as a similar one. ``noisyml
clean`` is typed once; its ranking is compared with weighted votes of the neighbours and with
cleanlab's normalised margin on the same features, neighbours and out-of-fold probabilities.

    npm pack emoji-datasource-twitter && tar xzf emoji-datasource-twitter-*.tgz
    python scripts/trial_clean_folders.py --emoji package --out outputs/folders
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from noisyml.audit.scores.confident import normalised_margin
from noisyml.audit.scores.folds import out_of_fold_probabilities
from noisyml.audit.scores.labels import own_share
from noisyml.metrics.label_trust import auroc, average_precision, precision_at_k
from noisyml.storage.files import write_atomically

#: Share of wrong labels.
WRONG = 0.2
#: Inverse penalties of the regression that is given true labels.
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
#: Probabilities of a suggestion above which suggestions are counted.
LIKELY = (0.5, 0.7, 0.9)
#: Charts in an order in which neighbours are alike.
CHARTS = (
    "bar", "histogram", "stacked bar", "horizontal bar", "line", "steps", "area", "error bars",
    "stem", "scatter", "bubbles", "box plot", "violin plot", "pie", "ring", "heat map",
    "contours", "arrows",
)  # fmt: skip
#: Classes of emoji, likewise: the groups of the package that each is made of.
EMOJI = {
    "mammal": ["animal-mammal"],
    "bird or reptile": ["animal-bird", "animal-reptile", "animal-amphibian"],
    "sea animal or insect": ["animal-marine", "animal-bug"],
    "plant": ["plant-other", "plant-flower"],
    "fruit or vegetable": ["food-fruit", "food-vegetable"],
    "prepared food": ["food-prepared", "food-asian", "food-sweet"],
    "face": ["face-smiling", "face-concerned", "face-neutral-skeptical", "face-affection"],
    "person at work": ["person-role"],
    "person in sport": ["person-sport", "person-activity"],
    "clothing": ["clothing"],
    "tool or household": ["tool", "household"],
    "office or computer": ["office", "computer", "book-paper", "mail"],
    "land vehicle": ["transport-ground"],
    "building or place": ["place-building", "place-other", "place-religious"],
    "sky": ["sky & weather", "time"],
    "flag": ["country-flag"],
}


def chart(kind: str, rng: np.random.Generator, file: Path) -> None:
    """Draw a chart of random numbers in a random style."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    style = rng.choice(["default", "ggplot", "bmh", "dark_background", "grayscale", "classic"])
    with plt.style.context(str(style)):
        side = (rng.uniform(2.2, 3.4), rng.uniform(2.2, 3.0))
        figure, axes = plt.subplots(figsize=side, dpi=50)
        n = int(rng.integers(4, 12))
        x, y = np.arange(n), rng.gamma(2, 2, n) + 0.3
        wave = np.cumsum(rng.normal(size=40))
        colour = tuple(rng.uniform(0.1, 0.9, 3).tolist())
        many = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 2))
        grid = rng.normal(size=(12, 12)).cumsum(axis=0).cumsum(axis=1)
        draw = {
            "bar": lambda: axes.bar(x, y, color=colour, width=rng.uniform(0.5, 0.8)),
            "histogram": lambda: axes.hist(rng.normal(size=300), bins=n + 8, color=colour),
            "stacked bar": lambda: [
                axes.bar(x, y, color=colour),
                axes.bar(x, rng.gamma(2, 1, n), bottom=y, color=colour[::-1]),
            ],
            "horizontal bar": lambda: axes.barh(x, y, color=colour),
            "line": lambda: axes.plot(wave, color=colour, lw=rng.uniform(1, 3)),
            "steps": lambda: axes.step(x, y, color=colour, lw=rng.uniform(1, 3)),
            "area": lambda: axes.fill_between(np.arange(40), wave, wave.min() - 1, color=colour),
            "error bars": lambda: axes.errorbar(x, y, y / 4, color=colour, capsize=3),
            "stem": lambda: axes.stem(x, y),
            "scatter": lambda: axes.scatter(*many.T, color=colour, s=rng.uniform(5, 25)),
            "bubbles": lambda: axes.scatter(
                *many[:20].T, s=rng.uniform(30, 500, 20), color=colour, alpha=0.5
            ),
            "box plot": lambda: axes.boxplot([rng.normal(size=30) for _ in x]),
            "violin plot": lambda: axes.violinplot([rng.normal(size=30) for _ in x]),
            "pie": lambda: axes.pie(y),
            "ring": lambda: axes.pie(y, wedgeprops={"width": rng.uniform(0.3, 0.5)}),
            "heat map": lambda: axes.imshow(
                grid, cmap=str(rng.choice(["viridis", "hot", "coolwarm", "gray"]))
            ),
            "contours": lambda: axes.contour(grid, levels=n),
            "arrows": lambda: axes.quiver(*rng.normal(size=(4, 30)), color=colour),
        }
        draw[kind]()
        if rng.random() < 0.5:
            axes.set_title(str(rng.choice(["results", "Figure 1", "run 7", "A"])))
        if rng.random() < 0.3:
            axes.set_axis_off()
        figure.savefig(file)
        plt.close(figure)


def emoji(source: Path, rng: np.random.Generator) -> list[tuple[str, Image.Image]]:
    """Emoji of every class on coloured ground, turned and scaled."""
    listed = json.loads((source / "emoji.json").read_text(encoding="utf-8"))
    found = []
    for name, groups in EMOJI.items():
        own = [e for e in listed if e["subcategory"] in groups and e.get("has_img_twitter")]
        for entry in [own[i] for i in rng.permutation(len(own))[:60]]:
            picture = Image.open(source / "img" / "twitter" / "64" / entry["image"]).convert("RGBA")
            side = int(rng.integers(64, 110))
            angle = float(rng.uniform(-25, 25))
            picture = picture.resize((side, side)).rotate(angle, expand=True)
            ground = Image.new("RGBA", (128, 128), (*rng.integers(60, 256, 3).tolist(), 255))
            place = rng.integers(0, max(1, 128 - picture.width), 2).tolist()
            ground.alpha_composite(picture, (place[0], min(place[1], 128 - picture.height)))
            found.append((name, ground.convert("RGB")))
    return found


def wrong_labels(
    true: NDArray[np.int64], classes: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """A fifth of the labels wrong: half as any class, half as a neighbour in the list."""
    labels = true.copy()
    chosen = rng.choice(len(true), round(WRONG * len(true)), replace=False)
    near, far = chosen[::2], chosen[1::2]
    step = np.where(true[near] == classes - 1, -1, 1)
    labels[near] = true[near] + step
    labels[far] = (true[far] + rng.integers(1, classes, len(far))) % classes
    return labels


def make(kind: str, folder: Path, per_class: int, source: Path | None) -> None:
    """Write a folder of pictures in folders of classes, and the truth beside it."""
    rng = np.random.default_rng(0)
    names = list(CHARTS if kind == "charts" else EMOJI)
    if kind == "charts":
        scratch = folder.with_name("drawn.png")
        true = np.repeat(np.arange(len(names)), per_class)
        pictures = None
    else:
        assert source is not None
        drawn = emoji(source, rng)
        true = np.asarray([names.index(name) for name, _ in drawn])
        pictures = [picture for _, picture in drawn]
    labels = wrong_labels(true, len(names), rng)
    truth = {}
    for number, place in enumerate(rng.permutation(len(true)).tolist()):
        file = folder / names[labels[place]] / f"{number:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if pictures is None:
            chart(names[true[place]], rng, scratch)
            os.replace(scratch, file)
        else:
            pictures[place].save(file)
        truth[str(file.absolute())] = names[true[place]]
    folder.with_suffix(".json").write_text(json.dumps(truth))


def figures(run: Path, truth: dict[str, str]) -> dict[str, float]:
    """Figures of an audit and of two other rankings on what it computed."""
    issues = pd.read_parquet(run / "issues.parquet").sort_values("row")
    true = issues["path"].map(truth).to_numpy()
    wrong = torch.from_numpy(true != issues["given"].to_numpy())
    names = sorted(truth_names(truth))
    labels = issues["given"].map({n: i for i, n in enumerate(names)}).to_numpy()
    probabilities = np.stack(issues["out_of_fold"].to_numpy())
    with np.load(run / "steps" / "neighbours.npz") as stored:
        index, similarity = stored["index"], stored["similarity"]
    power = np.exp((similarity - similarity[:, :1]) / 0.1)
    votes = np.zeros((len(labels), len(names)))
    for place in range(index.shape[1]):
        np.add.at(votes, (np.arange(len(labels)), labels[index[:, place]]), power[:, place])
    votes /= votes.sum(axis=1, keepdims=True)
    count = int(wrong.sum())
    found: dict[str, float] = {"rows": len(issues), "wrong": count / len(issues)}
    for name, trust in {
        "noisyml": 1 - issues["p_wrong"].to_numpy(),
        "weighted kNN": own_share(votes, labels),
        "normalised margin": normalised_margin(probabilities, labels),
    }.items():
        values = torch.from_numpy(np.asarray(trust, dtype=np.float64))
        found[f"{name}: AUROC"] = auroc(values, ~wrong)
        found[f"{name}: precision at N"] = precision_at_k(values, wrong, count)
        found[f"{name}: average precision"] = average_precision(values, wrong)
    flagged = (issues["p_wrong"] > 0.5).to_numpy() & wrong.numpy()
    right = issues["suggested"].to_numpy() == true
    found["flagged"] = int((issues["p_wrong"] > 0.5).sum())
    found["right suggestion of flagged wrong ones"] = float(right[flagged].mean())
    found["right suggestion of all wrong ones"] = float(right[wrong.numpy()].mean())
    for least in LIKELY:
        likely = (issues["p_suggested"] >= least).to_numpy()
        found[f"suggestions of probability {least} or more"] = int(likely.sum())
        found[f"right label by them, of {least} or more"] = float(right[likely].mean())
        found[f"right suggestion of wrong ones, of {least} or more"] = float(
            right[likely & wrong.numpy()].mean()
        )
    summary = json.loads((run / "summary.json").read_text())
    found["estimated rate"] = summary["noise_rate"]
    return found


def named_at_best(truth: dict[str, str], run: Path, size: int = 192) -> dict[str, float]:
    """What the features know: share of the rows with wrong labels whose class a regression names
    out of fold, if it is given the true labels and the penalty that suits these rows best; of all
    such rows and of those that an audit flagged.

    Backbone and size of pictures are those that ``noisyml clean`` takes if no words say otherwise.
    """
    from noisyml.models.backbones.from_timm import efficientnet_lite0

    network = efficientnet_lite0(weights="imagenet").eval()
    paths, parts = sorted(truth), []
    with torch.inference_mode():
        for start in range(0, len(paths), 64):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + 64]]
            pixels = np.stack([np.asarray(image.resize((size, size))) for image in images])
            parts.append(network.raw_features(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    rows = torch.cat(parts).numpy()
    true = np.unique([truth[path] for path in paths], return_inverse=True)[1]
    wrong = np.array([Path(path).parent.name != truth[path] for path in paths])
    p_wrong = pd.read_parquet(run / "issues.parquet").set_index("path")["p_wrong"].loc[paths]
    named = [
        out_of_fold_probabilities(rows, true, true.max() + 1, strength=strength).argmax(1) == true
        for strength in STRENGTHS
    ]
    return {
        f"named at best of {whose}": max(float(right[chosen].mean()) for right in named)
        for whose, chosen in {
            "all wrong ones": wrong,
            "flagged wrong ones": wrong & (p_wrong > 0.5).to_numpy(),
        }.items()
    }


def truth_names(truth: dict[str, str]) -> set[str]:
    """Classes that some label has: those of the folders."""
    return {Path(path).parent.name for path in truth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of pictures and results")
    parser.add_argument("--emoji", type=Path, help="the unpacked package; none: charts alone")
    parser.add_argument("--per-class", type=int, default=47, help="charts of each class")
    parser.add_argument("words", nargs="*", help="further words of the command")
    options = parser.parse_args()
    results = {}
    for kind in ["charts"] + (["emoji"] if options.emoji else []):
        folder = (options.out / kind).absolute()
        if not folder.with_suffix(".json").is_file():
            make(kind, folder, options.per_class, options.emoji)
        run = (options.out / f"audit-{kind}").absolute()
        typed = ["clean", "dataset=image_folder", f"dataset.path={folder}"]
        typed += [f"hydra.run.dir={run}", *options.words]
        began = time.perf_counter()
        before = os.times()
        subprocess.run([sys.executable, "-m", "noisyml", *typed], check=True)
        after = os.times()
        truth = json.loads(folder.with_suffix(".json").read_text())
        found = figures(run, truth)
        found["seconds"] = time.perf_counter() - began
        used = (after.children_user - before.children_user) + (
            after.children_system - before.children_system
        )
        found["processor seconds"] = used
        found |= named_at_best(truth, run)
        results[kind] = found
        write_atomically(options.out / "folders.json", json.dumps(results, indent=1) + "\n")
    print(pd.DataFrame(results).round(3).to_string())


if __name__ == "__main__":
    main()
