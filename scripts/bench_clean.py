"""Rankings of wrong labels under six kinds of noise, on the same features and probabilities.

Every rule sees the same features, the same neighbours and the same out-of-fold probabilities.
Finished cells lie in the output file and are not computed again.

    python scripts/bench_clean.py --sets digits,fashion_mnist --out outputs/bench/clean.json
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from noisyml.audit.judging import judge_labels, mean_rank_of_margins
from noisyml.audit.scores.confident import (
    confident_issues,
    confident_joint,
    confident_noise_rate,
    normalised_margin,
    self_confidence,
)
from noisyml.audit.scores.density import density_log_odds
from noisyml.audit.scores.folds import out_of_fold_probabilities
from noisyml.audit.scores.labels import label_margin, own_share
from noisyml.audit.scores.neighbours import neighbour_votes, simifeat, wann_votes
from noisyml.metrics.label_trust import auroc, average_precision, fnr_at_budget, precision_at_k
from noisyml.noise import Matrix, Pair, Symmetric
from noisyml.noise.injectors.instance import PartDependent
from noisyml.storage.files import write_atomically

Array = NDArray[np.float64]
NOISES = ("symmetric_10", "symmetric_20", "symmetric_40", "pair_30", "instance_30", "confusion_30")
#: Bins of the calibration error.
BINS = 10


def digits() -> tuple[Array, NDArray[np.int64]]:
    """1,797 digits of 8 x 8 pixels; features are the pixels."""
    rows, labels = load_digits(return_X_y=True)
    return rows, labels.astype(np.int64)


def pictures(name: str, rows: int, size: int) -> tuple[Array, NDArray[np.int64]]:
    """Features of EfficientNet-Lite0 of the first rows of a data set."""
    from noisyml.data.datasets.embedded.glyphs import Glyphs
    from noisyml.data.datasets.small_images.fashion_mnist import FashionMNIST
    from noisyml.models.backbones.from_timm import efficientnet_lite0

    source = Glyphs(split="closed_set") if name == "glyphs" else FashionMNIST(root="data")
    split = source.splits()["test" if name == "fashion_mnist" else "train"]
    network = efficientnet_lite0(weights="imagenet").eval()
    chosen = np.random.default_rng(0).permutation(len(split))[:rows]
    parts = []
    with torch.inference_mode():
        for start in range(0, len(chosen), 256):
            images = [split.images.load(int(i)) for i in chosen[start : start + 256]]
            pixels = [np.asarray(i.convert("RGB").resize((size, size))) for i in images]
            batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
            parts.append(network.raw_features(batch).numpy())
    labels = np.asarray(split.labels)[chosen]
    return np.concatenate(parts), np.unique(labels, return_inverse=True)[1].astype(np.int64)


def noisy(name: str, rows: Array, labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Labels under one of `NOISES`."""
    kind, _, percent = name.partition("_")
    rate, classes = int(percent) / 100, int(labels.max()) + 1
    if kind == "symmetric":
        return Symmetric(rate=rate, seed=seed).inject(labels, classes).observed
    if kind == "pair":
        return Pair(rate=rate, seed=seed).inject(labels, classes).observed
    if kind == "instance":
        noise = PartDependent(rate=rate, seed=seed)
        pixels = (rows - rows.mean(axis=0)) / (rows.std(axis=0) + 1e-6)
        return noise.inject(labels, classes, features=pixels).observed
    # Classes are mistaken as a classifier mistakes them, and the rate is the one named.
    found = out_of_fold_probabilities(rows, labels, classes, folds=5, strength=0.01)
    table = np.zeros((classes, classes))
    np.add.at(table, labels, found)
    np.fill_diagonal(table, 0)
    table = rate * table / table.sum(axis=1, keepdims=True)
    np.fill_diagonal(table, 1 - rate)
    return Matrix(matrix=table, seed=seed).inject(labels, classes).observed


def calibration_error(p_wrong: Array, wrong: NDArray[np.bool_]) -> float:
    """Expected calibration error in `BINS` bins of equal width."""
    place = np.minimum((p_wrong * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    gap = np.bincount(place, p_wrong - wrong, minlength=BINS)
    return float(np.abs(gap).sum() / count.sum())


def cell(rows: Array, true: NDArray[np.int64], noise: str, seed: int) -> dict[str, object]:
    """Figures of every rule under one noise."""
    classes = int(true.max()) + 1
    labels = noisy(noise, rows, true, seed)
    wrong = labels != true
    began, used = time.perf_counter(), time.process_time()
    judged = judge_labels(rows, labels, classes, seed=seed)
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    p, index = judged.probabilities, judged.index
    joint = confident_joint(p, labels)
    share = 1 - joint.diagonal() / np.maximum(joint.sum(axis=1), 1)
    issues = confident_issues(p, labels)
    rules: dict[str, Callable[[], Array]] = {
        "noisyml": lambda: -judged.p_wrong,
        "mean rank of margins": lambda: mean_rank_of_margins(judged.votes, p, labels),
        "self-confidence": lambda: self_confidence(p, labels),
        "normalised margin": lambda: normalised_margin(p, labels),
        # What confident learning calls wrong first, each part by self-confidence.
        "confident learning": lambda: self_confidence(p, labels) - 2.0 * issues,
        "kNN, 10 votes": lambda: own_share(neighbour_votes(index[:, :10], labels, classes), labels),
        "kNN, margin of 30": lambda: label_margin(judged.votes, labels),
        "SimiFeat": lambda: simifeat(
            neighbour_votes(index[:, :10], labels, classes), labels, "rank", share
        )[0],
        "WANN": lambda: label_margin(wann_votes(index, labels, classes), labels),
        "class density": lambda: density_log_odds(rows, labels, classes),
    }
    target = torch.from_numpy(wrong)
    figures = {}
    for name, score in rules.items():
        trust = torch.from_numpy(np.asarray(score(), dtype=np.float64))
        figures[name] = {
            "fnr_at_budget": fnr_at_budget(trust, target),
            "average_precision": average_precision(trust, target),
            "precision_at_100": precision_at_k(trust, target, 100),
            "auroc": auroc(trust, ~target),
        }
    return {
        "rules": figures,
        "rate": float(wrong.mean()),
        "rate_error": judged.noise_rate.value - float(wrong.mean()),
        "rate_error_confident_learning": confident_noise_rate(p, labels) - float(wrong.mean()),
        "ece": calibration_error(judged.p_wrong, wrong),
        "right_suggestion": float((judged.suggested == true)[wrong].mean()),
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def table(cells: dict[str, dict]) -> str:
    """FNR at budget of every rule in every cell (means over seeds), as Markdown."""
    groups: dict[str, list[dict]] = {}
    for key, value in cells.items():
        groups.setdefault(key.rpartition("/")[0], []).append(value)
    names = list(next(iter(cells.values()))["rules"])
    lines = ["| data, noise | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    means = []
    for group, values in groups.items():
        row = [np.mean([v["rules"][n]["fnr_at_budget"] for v in values]) for n in names]
        means.append(row)
        best = min(row)
        shown = [f"**{x:.3f}**" if x == best else f"{x:.3f}" for x in row]
        lines.append(f"| {group.replace('/', ', ')} | " + " | ".join(shown) + " |")
    from scipy.stats import rankdata

    ranks = np.mean([rankdata(row) for row in means], axis=0)
    lines.append("| mean | " + " | ".join(f"{x:.3f}" for x in np.mean(means, axis=0)) + " |")
    lines.append("| mean rank | " + " | ".join(f"{x:.1f}" for x in ranks) + " |")
    lines += [
        "",
        "| data, noise | rate | rate error | by confident learning | ECE "
        "| right suggestion | CPU s |",
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    keys = ("rate", "rate_error", "rate_error_confident_learning", "ece", "right_suggestion")
    for group, values in groups.items():
        row = [np.mean([v[k] for v in values]) for k in keys]
        seconds = np.mean([v["processor_seconds"] for v in values])
        shown = " | ".join(f"{x:.3f}" for x in row)
        lines.append(f"| {group.replace('/', ', ')} | {shown} | {seconds:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default="digits,fashion_mnist,glyphs")
    parser.add_argument("--noises", default=",".join(NOISES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000, help="of each set, at most")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    cells = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for name in options.sets.split(","):
        data = None
        for noise in options.noises.split(","):
            for seed in range(options.seeds):
                key = f"{name}/{noise}/{seed}"
                if key in cells:
                    continue
                if data is None:
                    cache = options.out.with_name(f"{name}-{options.rows}-{options.size}.npz")
                    if not cache.is_file():
                        found = (
                            digits()
                            if name == "digits"
                            else pictures(name, options.rows, options.size)
                        )
                        cache.parent.mkdir(parents=True, exist_ok=True)
                        np.savez(cache, rows=found[0], labels=found[1])
                    with np.load(cache) as stored:
                        data = stored["rows"], stored["labels"]
                cells[key] = cell(*data, noise, seed)
                write_atomically(options.out, json.dumps(cells, indent=1) + "\n")
                print(key, f"{cells[key]['processor_seconds']:.1f} CPU s", flush=True)
    print(table(cells))


if __name__ == "__main__":
    main()
