"""Rankings of wrong labels under six kinds of noise, on the same features and probabilities.

Every rule sees the same features, the same neighbours and the same out-of-fold probabilities.
Finished cells lie in the output file and are not computed again.

    python scripts/bench_clean.py --out outputs/bench/clean.json

Where cleanlab is installed its own functions give its rankings, else those of
`noisyml.audit.scores.confident`, which agree with it. Labels of mosaics are several per picture,
and what is ranked there are entries.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from noisyml.audit.judging import judge_labels, mean_rank_of_margins, nearest_rows
from noisyml.audit.kinds.entries import judge_entries
from noisyml.audit.scores.confident import (
    confident_issues,
    confident_joint,
    confident_noise_rate,
    normalised_margin,
    self_confidence,
)
from noisyml.audit.scores.density import density_log_odds
from noisyml.audit.scores.folds import out_of_fold_probabilities, unit_rows
from noisyml.audit.scores.labels import label_margin, own_share
from noisyml.audit.scores.neighbours import neighbour_votes, simifeat, wann_votes
from noisyml.audit.steps import Arrays, Steps
from noisyml.metrics.label_trust import auroc, average_precision, fnr_at_budget, precision_at_k
from noisyml.noise import Matrix, MultiLabelMixed, MultiLabelUniform, Pair, Symmetric
from noisyml.noise.injectors.instance import PartDependent
from noisyml.storage.files import write_atomically

Array = NDArray[np.float64]
NOISES = ("symmetric_10", "symmetric_20", "symmetric_40", "pair_30", "instance_30", "confusion_30")
#: Of several labels: a share of each class's labels is lost and as many are added; or one of these
#: alone; or entries are flipped.
ENTRY_NOISES = ("mixed_10", "mixed_20", "mixed_40", "missing_30", "added_30", "flipped_10")
#: Labels as they are: what is estimated there is in the data already.
AS_IT_IS = "none_0"
#: Probability of a suggestion from which ``noisyml clean`` takes it.
RELABEL_ABOVE = 0.9
#: Bins of the calibration error.
BINS = 10


def digits() -> tuple[Array, NDArray[np.int64]]:
    """1,797 digits of 8 x 8 pixels; features are the pixels."""
    rows, labels = load_digits(return_X_y=True)
    return rows, labels.astype(np.int64)


def pictures(name: str, rows: int, size: int) -> tuple[Array, NDArray[np.int64]]:
    """Features of EfficientNet-Lite0 of the first rows of a data set."""
    from noisyml.data.datasets.embedded.glyphs import Glyphs
    from noisyml.data.datasets.embedded.mosaic import Mosaic
    from noisyml.data.datasets.small_images.fashion_mnist import FashionMNIST
    from noisyml.models.backbones.from_timm import efficientnet_lite0

    fashion = FashionMNIST(root="data")
    sources = {
        "glyphs": lambda: Glyphs(split="closed_set", num_train_classes=30),
        "mosaics": lambda: Mosaic(fashion, num_train=rows, num_val=0, num_test=10),
    }
    # All 60,000 pictures that the training split has.
    source = sources.get(name, lambda: FashionMNIST(root="data", val_fraction=0.0))()
    split = source.splits()["test" if name == "fashion_mnist" and rows <= 10_000 else "train"]
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
    if labels.ndim > 1:
        return np.concatenate(parts), labels.astype(np.int64)
    return np.concatenate(parts), np.unique(labels, return_inverse=True)[1].astype(np.int64)


def noisy(name: str, rows: Array, labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Labels under one of `NOISES`."""
    kind, _, percent = name.partition("_")
    rate = int(percent) / 100
    if name == AS_IT_IS:
        return labels
    if labels.ndim > 1:
        add, sub = (0.0 if kind == "missing" else rate), (0.0 if kind == "added" else rate)
        change = MultiLabelMixed(rate_add=add, rate_sub=sub, seed=seed)
        if kind == "flipped":
            change = MultiLabelUniform(rate=rate, seed=seed)
        return change.inject(labels, labels.shape[1]).observed.astype(np.int64)
    classes = int(labels.max()) + 1
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


def forget_peak() -> None:
    """Let the peak of this process's memory begin anew (Linux; elsewhere it is that of all)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The peak of this process's memory, features and libraries included, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Neighbours(Steps):
    """Neighbours of a data set: no noise changes them, so they are found once.

    What finding them took is counted in every cell.

    Args:
        rows: features [N, D].
    """

    def __init__(self, rows: Array) -> None:
        forget_peak()
        began, used = time.perf_counter(), time.process_time()
        self.arrays = nearest_rows(rows, min(30, len(rows) - 1), Steps(), lambda what, share: None)
        self.seconds = time.perf_counter() - began
        self.processor = time.process_time() - used
        self.peak = peak_mib()

    def __call__(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The neighbours; other steps are computed."""
        return self.arrays if name == "neighbours" else compute()


def nearest_of_both(
    rows: Array, labels: NDArray[np.int64], index: NDArray[np.int64], cosine: NDArray[np.float32]
) -> Array:
    """SelfClean's score of labels [N], low for wrong ones: the nearest row with the label matters.

    Groeger et al., "Intrinsic Self-Supervision for Data Quality Audits" (arXiv 2305.17048): of the
    distances d and e to the nearest row with the same and with another label, ``e² / (d² + e²)``.
    Only rows all of whose neighbours [N, k] are of one sort are compared with all others.
    """
    same = labels[index] == labels[:, None]
    at = np.arange(len(labels))
    own = 1 - cosine[at, same.argmax(axis=1)]
    other = 1 - cosine[at, (~same).argmax(axis=1)]
    unit, given = torch.from_numpy(unit_rows(rows)), torch.from_numpy(labels.copy())
    lacking = torch.from_numpy(np.flatnonzero(same.all(axis=1) | ~same.any(axis=1)))
    for part in lacking.split(2048):
        near = unit[part] @ unit.T
        near[torch.arange(len(part)), part] = -2
        alike = given[part, None] == given[None, :]
        own[part] = 1 - torch.where(alike, near, -2).amax(dim=1)
        other[part] = 1 - torch.where(alike, -2, near).amax(dim=1)
    score = other.astype(np.float64) ** 2
    return score / np.maximum(own.astype(np.float64) ** 2 + score, 1e-12)


def cleanlab_scores(p: Array, labels: NDArray[np.int64]) -> dict[str, Array]:
    """Cleanlab's scores [N] by name, low for wrong labels."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        own, margin = self_confidence(p, labels), normalised_margin(p, labels)
        issues = confident_issues(p, labels)
    else:
        exact = p.astype(np.float64)
        exact /= exact.sum(axis=1, keepdims=True)
        own = get_label_quality_scores(labels, exact, method="self_confidence")
        margin = get_label_quality_scores(labels, exact, method="normalized_margin")
        issues = find_label_issues(labels, exact, filter_by="confident_learning", n_jobs=1)
    # What confident learning calls wrong comes first, each part by self-confidence.
    return {
        "self-confidence": own,
        "normalised margin": margin,
        "confident learning": own - 2.0 * issues,
    }


def several_cell(rows: Array, true: NDArray[np.int64], noise: str, seed: int) -> dict[str, object]:
    """Figures of every rule under one noise of several labels per row; entries are ranked."""
    labels = noisy(noise, rows, true, seed)
    wrong = (labels != true).ravel()
    forget_peak()
    began, used = time.perf_counter(), time.process_time()
    found = judge_entries(rows, labels, seed=seed)
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    peak = peak_mib()
    p, votes, index = found["probabilities"], found["votes"], found["index"]
    flat = labels.ravel()
    peers = {"self-confidence": [], "confident learning": []}
    for label in range(labels.shape[1]):
        both = np.stack([1 - p[:, label], p[:, label]], axis=1)
        scores = cleanlab_scores(both, labels[:, label])
        for name, values in peers.items():
            values.append(scores[name])
    near = labels[index[:, :10]].mean(axis=1)
    rules: dict[str, Array] = {
        "noisyml": -found["p_wrong"].ravel(),
        "mean of both": np.where(flat, (p + votes).ravel(), (2 - p - votes).ravel()),
        "self-confidence": np.stack(peers["self-confidence"], axis=1).ravel(),
        "confident learning": np.stack(peers["confident learning"], axis=1).ravel(),
        "kNN, 10 votes": np.where(flat, near.ravel(), 1 - near.ravel()),
        "kNN, 30 votes": np.where(flat, votes.ravel(), 1 - votes.ravel()),
    }
    share = float(wrong.mean())
    return {
        "rules": scored(rules, wrong),
        "rate": share,
        "rate_error": float(found["p_wrong"].mean()) - share,
        "rate_error_confident_learning": float("nan"),
        "ece": calibration_error(found["p_wrong"].ravel(), wrong),
        "right_suggestion": 1.0,
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_mib": peak,
    }


def scored(rules: dict[str, Array], wrong: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Figures of rankings by name."""
    target = torch.from_numpy(wrong)
    figures = {}
    for name, score in rules.items():
        trust = torch.from_numpy(np.asarray(score, dtype=np.float64))
        figures[name] = {
            "fnr_at_budget": fnr_at_budget(trust, target),
            "average_precision": average_precision(trust, target),
            "precision_at_100": precision_at_k(trust, target, 100),
            "auroc": auroc(trust, ~target),
        }
    return figures


def cell(
    rows: Array, true: NDArray[np.int64], near: Neighbours, noise: str, seed: int
) -> dict[str, object]:
    """Figures of every rule under one noise."""
    classes = int(true.max()) + 1
    labels = noisy(noise, rows, true, seed)
    wrong = labels != true
    forget_peak()
    began, used = time.perf_counter(), time.process_time()
    judged = judge_labels(rows, labels, classes, seed=seed, steps=near)
    seconds = near.seconds + time.perf_counter() - began
    processor = near.processor + time.process_time() - used
    peak = max(near.peak, peak_mib())
    p, index = judged.probabilities, judged.index
    joint = confident_joint(p, labels)
    share = 1 - joint.diagonal() / np.maximum(joint.sum(axis=1), 1)
    ten = neighbour_votes(index[:, :10], labels, classes)
    # The penalty that scikit-learn takes unless told otherwise.
    usual = out_of_fold_probabilities(rows, labels, classes, strength=1.0, seed=seed)
    sure = judged.p_suggested >= RELABEL_ABOVE
    rules: dict[str, Array] = {
        "noisyml": -judged.p_wrong,
        "mean rank of margins": mean_rank_of_margins(judged.votes, p, labels),
        **cleanlab_scores(p, labels),
        "confident learning, C = 1": cleanlab_scores(usual, labels)["confident learning"],
        "kNN, 10 votes": own_share(ten, labels),
        "kNN, margin of 30": label_margin(judged.votes, labels),
        "SimiFeat": simifeat(ten, labels, "rank", share)[0],
        "SelfClean": nearest_of_both(rows, labels, index, judged.similarity),
        "WANN": label_margin(wann_votes(index, labels, classes), labels),
        "class density": density_log_odds(rows, labels, classes),
    }
    return {
        "rules": scored(rules, wrong),
        "rate": float(wrong.mean()),
        "rate_error": judged.noise_rate.value - float(wrong.mean()),
        "rate_error_confident_learning": confident_noise_rate(p, labels) - float(wrong.mean()),
        "ece": calibration_error(judged.p_wrong, wrong),
        "right_suggestion": float((judged.suggested == true)[wrong].mean()) if wrong.any() else 1.0,
        "relabelled": float(sure.mean()),
        "relabelled_right": float((judged.suggested == true)[sure].mean()) if sure.any() else 1.0,
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_mib": peak,
    }


def table(cells: dict[str, dict]) -> str:
    """FNR at budget of every rule in every cell (means over seeds), as Markdown.

    Cells of one label and of several stand in tables of their own: other rules apply.
    """
    kinds: dict[tuple[str, ...], dict[str, dict]] = {}
    for key, value in cells.items():
        if f"/{AS_IT_IS}/" not in key:
            kinds.setdefault(tuple(value["rules"]), {})[key] = value
    parts = [_ranks(group) for group in kinds.values()]
    lines = ["| data, noise | rate | rate error | by confident learning | ECE | right suggestion "
             "| relabelled | of these right | CPU s | MiB |",
             "|---" + "|---:" * 9 + "|"]  # fmt: skip
    for group, values in _groups(cells).items():
        row = [
            np.mean([v[k] for v in values])
            for k in ("rate", "rate_error", "rate_error_confident_learning", "ece")
        ]
        for k in ("right_suggestion", "relabelled", "relabelled_right"):
            row += [np.mean([v.get(k, np.nan) for v in values])]
        seconds = np.mean([v["processor_seconds"] for v in values])
        shown = " | ".join(f"{x:.3f}" for x in row)
        peak = np.mean([v["peak_mib"] for v in values])
        lines.append(f"| {group.replace('/', ', ')} | {shown} | {seconds:.1f} | {peak:.0f} |")
    return "\n\n".join([*parts, "\n".join(lines)])


def lines(cells: dict[str, dict]) -> str:
    """Every cell and rule as CSV."""
    found = ["data,noise,seed,rule,fnr_at_budget,average_precision,precision_at_100,auroc,rate,"
             "rate_error,ece,right_suggestion,relabelled,relabelled_right,cpu_seconds,"
             "peak_mib"]  # fmt: skip
    for key, cell in cells.items():
        own = [cell.get(k, float("nan")) for k in ("rate", "rate_error", "ece", "right_suggestion",
               "relabelled", "relabelled_right", "processor_seconds", "peak_mib")]  # fmt: skip
        for name, figures in cell["rules"].items():
            of_it = own if name == "noisyml" else own[:1]
            numbers = [*figures.values(), *of_it]
            rest = "," * (len(own) - len(of_it))
            shown = ",".join(f"{x:.4g}" for x in numbers)
            found.append(f'{key.replace("/", ",")},"{name}",{shown}{rest}')
    return "\n".join(found) + "\n"


def _groups(cells: dict[str, dict]) -> dict[str, list[dict]]:
    """Cells by data and noise: one for each seed."""
    groups: dict[str, list[dict]] = {}
    for key, value in cells.items():
        groups.setdefault(key.rpartition("/")[0], []).append(value)
    return groups


def _ranks(cells: dict[str, dict]) -> str:
    """A table of FNR at budget with means and mean ranks."""
    from scipy.stats import rankdata

    names = list(next(iter(cells.values()))["rules"])
    lines = ["| data, noise | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    means = []
    for group, values in _groups(cells).items():
        row = [np.mean([v["rules"][n]["fnr_at_budget"] for v in values]) for n in names]
        means.append(row)
        best = min(row)
        shown = [f"**{x:.3f}**" if x == best else f"{x:.3f}" for x in row]
        lines.append(f"| {group.replace('/', ', ')} ({len(values)}) | " + " | ".join(shown) + " |")
    ranks = np.mean([rankdata(row) for row in means], axis=0)
    lines.append("| mean | " + " | ".join(f"{x:.3f}" for x in np.mean(means, axis=0)) + " |")
    lines.append("| mean rank | " + " | ".join(f"{x:.1f}" for x in ranks) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default="digits,glyphs,mosaics,fashion_mnist")
    parser.add_argument("--noises", help="of NOISES or ENTRY_NOISES; none: all that apply")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000, help="of each set, at most")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--csv", type=Path, help="file for every cell and rule")
    options = parser.parse_args()
    cells = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for name in options.sets.split(","):
        data = None
        all_of_them = ENTRY_NOISES if name == "mosaics" else NOISES
        wanted = options.noises.split(",") if options.noises else [*all_of_them, AS_IT_IS]
        for noise in wanted:
            for seed in range(1 if noise == AS_IT_IS else options.seeds):
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
                    several = data[1].ndim > 1
                    near = None if several else Neighbours(data[0])
                cells[key] = (
                    several_cell(*data, noise, seed)
                    if near is None
                    else cell(*data, near, noise, seed)
                )
                write_atomically(options.out, json.dumps(cells, indent=1) + "\n")
                print(key, f"{cells[key]['processor_seconds']:.1f} CPU s", flush=True)
    if options.csv:
        write_atomically(options.csv, lines(cells))
    print(table(cells))


if __name__ == "__main__":
    main()
