"""Accuracy after a share of the labels was looked at, in three orders: ours, cleanlab's, by chance.

A simulated reviewer corrects the rows that a ranking of the training labels puts first. After each
share a logistic regression is trained on the labels as they are then, and tested on labels that
nobody changed. ``noisyml, twice`` ranks again after the first tenth, with what was seen as known.
Sets and features are those of ``scripts/bench_clean.py``, whose cache is used.

    python scripts/trial_review.py --sets digits,fashion_mnist --out outputs/review
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from bench_clean import digits, noisy, pictures
from numpy.typing import NDArray

from noisyml.audit.judging import judge_labels
from noisyml.audit.scores.confident import normalised_margin
from noisyml.audit.scores.folds import logistic_regression, predicted, projected_rows
from noisyml.storage.files import atomic, write_atomically

#: Shares of the rows that are looked at, and the one after which rows are ranked again.
SHARES, AGAIN_AT = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4), 0.1


def accuracy(
    rows: torch.Tensor,
    labels: NDArray[np.int64],
    classes: int,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    true: NDArray[np.int64],
) -> float:
    """Share of the test rows that a regression on some labels names rightly."""
    target = torch.from_numpy(labels)
    matrix = logistic_regression(
        rows[torch.from_numpy(train)], target, classes, torch.ones(len(train)), max_iterations=60
    )
    return float((predicted(rows, test, matrix).argmax(axis=1) == true[test]).mean())


def review(
    rows: NDArray[np.float64], true: NDArray[np.int64], noise: str, seed: int
) -> dict[str, list[float]]:
    """Accuracy over shares by order, and that of labels without noise."""
    classes = int(true.max()) + 1
    order = np.random.default_rng(seed).permutation(len(true))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    labels = noisy(noise, rows[train], true[train], seed)
    short = projected_rows(rows, seed=seed)
    judged = judge_labels(rows[train], labels, classes, seed=seed, replicates=1)
    first = np.argsort(-judged.p_wrong, kind="stable")
    known = np.full(len(train), -1, dtype=np.int64)
    seen = first[: round(AGAIN_AT * len(train))]
    known[seen] = true[train][seen]
    again = judge_labels(rows[train], labels, classes, seed=seed, replicates=1, known=known)
    rest = np.where(known >= 0, -1.0, again.p_wrong)
    orders = {
        "noisyml": first,
        "noisyml, twice": np.concatenate(
            [seen, np.argsort(-rest, kind="stable")[: len(train) - len(seen)]]
        ),
        "cleanlab's margin": np.argsort(
            normalised_margin(judged.probabilities, labels), kind="stable"
        ),
        "at random": np.random.default_rng(seed + 1).permutation(len(train)),
    }
    found: dict[str, list[float]] = {}
    for name, ranking in orders.items():
        found[name] = []
        for share in SHARES:
            corrected = labels.copy()
            looked = ranking[: round(share * len(train))]
            corrected[looked] = true[train][looked]
            found[name].append(accuracy(short, corrected, classes, train, test, true))
    found["no noise"] = [accuracy(short, true[train], classes, train, test, true)]
    found["wrong"] = [float((labels != true[train]).mean())]
    return found


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Share of the lost accuracy that is won back, as Markdown."""
    shown = [f"{share:.0%}" for share in SHARES[1:]]
    lines = ["| data, noise | no noise | with it | order | " + " | ".join(shown) + " |"]
    lines.append("|---|---:|---:|---|" + "---:|" * len(shown))
    for key, found in results.items():
        whole = found["no noise"][0]
        for name, values in found.items():
            if len(values) != len(SHARES):
                continue
            won = [(v - values[0]) / (whole - values[0]) for v in values[1:]]
            lines.append(
                f"| {key} | {whole:.3f} | {values[0]:.3f} | {name} | "
                + " | ".join(f"{w:.0%}" for w in won)
                + " |"
            )
    return "\n".join(lines)


def plot(results: dict[str, dict[str, list[float]]], file: Path) -> None:
    """Accuracy over the share looked at, a panel for each set and noise."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    size = (3.4 * len(results), 3.0)
    figure, panels = plt.subplots(1, len(results), figsize=size, squeeze=False)
    looks = {"noisyml": "o-", "noisyml, twice": "s--", "cleanlab's margin": "^-", "at random": "x:"}
    for panel, (key, found) in zip(panels[0], results.items(), strict=True):
        for name, look in looks.items():
            panel.plot([100 * s for s in SHARES], found[name], look, label=name, markersize=4)
        panel.axhline(found["no noise"][0], color="grey", lw=1)
        panel.set_title(f"{key} ({found['wrong'][0]:.0%} wrong)", fontsize=9)
        panel.set_xlabel("% of the labels looked at")
    panels[0][0].set_ylabel("test accuracy")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    with atomic(file, sole_writer=True) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default="digits,fashion_mnist")
    parser.add_argument("--noises", default="symmetric_20,pair_20")
    parser.add_argument("--rows", type=int, default=10_000, help="of each set, at most")
    parser.add_argument("--cache", type=Path, help="folder of cached features; none: the results'")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args()
    file = options.out / "review.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    for name in options.sets.split(","):
        cache = (options.cache or options.out) / f"{name}-10000-64.npz"
        if cache.is_file():
            with np.load(cache) as stored:
                rows, true = stored["rows"], stored["labels"]
        else:
            rows, true = digits() if name == "digits" else pictures(name, 10_000, 64)
            cache.parent.mkdir(parents=True, exist_ok=True)
            np.savez(cache, rows=rows, labels=true)
        for noise in options.noises.split(","):
            key = f"{name}, {noise.replace('_', ' ')} %"
            if key not in results:
                results[key] = review(rows[: options.rows], true[: options.rows], noise, 0)
                write_atomically(file, json.dumps(results, indent=1) + "\n")
                print(key, flush=True)
    plot(results, options.out / "review.png")
    print(table(results))


if __name__ == "__main__":
    main()
