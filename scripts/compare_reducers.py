"""Codes of TLDR beside those of PCA, whitened PCA, UMAP and t-SNE, on held-out rows.

Digits (64 pixels), and features of a frozen EfficientNet-Lite0 of glyphs and of Fashion-MNIST,
computed once into a folder. Rows are centred by the training rows and brought to unit length;
every method learns from the training rows without labels, and each test row ranks the training rows
in the space of codes: by cosine, for UMAP and t-SNE by Euclidean distance. A method that is not
installed is left out. With ``--wrong`` a share of TLDR's pairs is exchanged at random, and edges
whose ends share fewer than ``--min-shared`` neighbours are left out or not. Seconds are processor
time. Records are written as they come, and what ``--out`` has already is not measured again.

    python scripts/compare_reducers.py --data digits glyphs fashion_mnist --dims 4 8 16 32 64 \
        --seeds 0 1 2 --out outputs/bench/reducers.json
    python scripts/compare_reducers.py --data digits --dims 8 --wrong 0 0.2 0.4
    python scripts/compare_reducers.py --table outputs/bench/reducers.json --plot reducers.png
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

import noisyml
from noisyml.methods.vectors.pairs import knn_pairs, supported_edges, with_random_edges, without
from noisyml.storage.files import write_atomically

Rows = NDArray[np.float32]
#: Methods whose codes are compared by Euclidean distance.
BY_DISTANCE = ("UMAP", "TorchDR UMAP", "t-SNE")
#: Barnes and Hut's tree has 2^d branches.
MOST_TSNE_DIMS = 4
#: Steps of TLDR by data set: rows of a batch and epochs; the rate is that of the digits.
TLDR_SETTINGS = {
    "digits": {"batch_size": 128, "epochs": 100},
    "glyphs": {"batch_size": 128, "epochs": 30},
    "fashion_mnist": {"batch_size": 128, "epochs": 30},
}
SHARED = {"projector": "mlp-1-512", "warmup_epochs": 10, "learning_rate": 10.0}
#: Neighbours of each row, for every method that asks: a class of glyphs has 16 training rows.
NEIGHBOURS = {"digits": 20, "glyphs": 5, "fashion_mnist": 20}


# -- data ------------------------------------------------------------------------------------------


def features(name: str, folder: Path, size: int) -> tuple[Rows, NDArray[np.int64]]:
    """Features [N, 1280] of a frozen network, and labels."""
    path = folder / f"{name}-{size}.npz"
    if path.is_file():
        kept = np.load(path)
        return kept["rows"], kept["labels"]
    from noisyml.models.backbones.from_timm import efficientnet_lite0

    if name == "glyphs":
        from noisyml.data.datasets.embedded.glyphs import Glyphs

        split = Glyphs(num_train_classes=size // 27, num_val_classes=0, distortions=2).splits()[
            "train"
        ]
    else:
        from noisyml.data.datasets.small_images.fashion_mnist import FashionMNIST

        split = FashionMNIST(str(folder / "FashionMNIST")).splits()["train"]
    chosen = np.sort(np.random.default_rng(0).permutation(len(split))[:size])
    network = efficientnet_lite0(weights="imagenet", frozen=True).eval()
    rows = []
    for part in np.array_split(chosen, max(1, len(chosen) // 64)):
        pictures = [
            np.asarray(split.images.load(int(i)).convert("RGB").resize((64, 64))) for i in part
        ]
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            rows.append(network.raw_features(images).numpy())
    found, labels = np.concatenate(rows), split.labels[chosen]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(path, rows=found, labels=labels)
    return found, labels


def data(name: str, seed: int, folder: Path, size: int) -> tuple[Rows, Rows, Any, Any]:
    """Training and test rows with their labels, 60 to 40, a stratified split by the seed."""
    if name == "digits":
        digits = load_digits()
        rows, labels = digits.data.astype(np.float32), digits.target
    else:
        rows, labels = features(name, folder, size)
    train, test, train_y, test_y = train_test_split(
        rows, labels, test_size=0.4, stratify=labels, random_state=seed
    )
    mean, deviation = train.mean(0), train.std(0) + 1e-6 if name != "digits" else 1.0
    train, test = (train - mean) / deviation, (test - mean) / deviation
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    return train.astype(np.float32), test.astype(np.float32), train_y, test_y


# -- methods ---------------------------------------------------------------------------------------


def reducers(name: str, dims: int, seed: int) -> dict[str, Callable[[], Any]]:
    """Makers of what fits and transforms, by name."""
    near, shared = NEIGHBOURS[name], tldr_settings(name, seed)
    made: dict[str, Callable[[], Any]] = {
        "PCA": lambda: PCA(dims, random_state=seed),
        "PCA whitened": lambda: PCA(dims, whiten=True, random_state=seed),
        "TLDR": lambda: noisyml.TLDR(dims, **shared),
        "TLDR Gaussian": lambda: noisyml.TLDR(dims, gaussian=True, **shared),
        "TLDR mlp": lambda: noisyml.TLDR(dims, encoder="mlp-1-256", **shared),
    }
    if _installed("umap"):
        from umap import UMAP

        made["UMAP"] = lambda: UMAP(n_components=dims, n_neighbors=near, random_state=seed)
    if _installed("torchdr"):
        made["TorchDR UMAP"] = lambda: _TorchDR(dims, near, seed)
    if _installed("openTSNE") and dims <= MOST_TSNE_DIMS:
        made["t-SNE"] = lambda: _TSNE(dims, seed)
    return made


def tldr_settings(name: str, seed: int) -> dict[str, Any]:
    """Arguments of `noisyml.TLDR` but its dimensions."""
    own = {"n_neighbors": NEIGHBOURS[name], "random_state": seed}
    return {**SHARED, **TLDR_SETTINGS[name], **own}


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


class _TSNE:
    """openTSNE with scikit-learn's names; its interpolation knows two dimensions at most."""

    def __init__(self, dims: int, seed: int) -> None:
        from openTSNE import TSNE

        self.tsne = TSNE(dims, negative_gradient_method="bh", random_state=seed)

    def fit(self, rows: Rows) -> _TSNE:
        self.embedding = self.tsne.fit(rows)
        return self

    def transform(self, rows: Rows) -> Rows:
        return np.asarray(self.embedding.transform(rows))

    @property
    def training_codes(self) -> Rows:
        return np.asarray(self.embedding)


class _TorchDR:
    """UMAP of TorchDR, which places new rows beside the training rows that it is given again."""

    def __init__(self, dims: int, near: int, seed: int) -> None:
        from torchdr import UMAP

        self.umap = UMAP(n_neighbors=near, n_components=dims, random_state=seed, device="cpu")

    def fit(self, rows: Rows) -> _TorchDR:
        self.rows = rows
        self.training_codes = np.asarray(self.umap.fit_transform(rows))
        return self

    def transform(self, rows: Rows) -> Rows:
        return np.asarray(self.umap.transform(rows, X_train=self.rows))


def scores(train: Rows, test: Rows, train_y: Any, test_y: Any, metric: str) -> dict[str, float]:
    """mAP and P@1 of test rows that search the training rows, and 20-NN accuracy."""
    if metric == "cosine":
        train, test = (
            x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (train, test)
        )
    found = noisyml.retrieval_metrics(
        torch.tensor(test, dtype=torch.float32),
        torch.tensor(test_y, dtype=torch.int64),
        torch.tensor(train, dtype=torch.float32),
        torch.tensor(train_y, dtype=torch.int64),
        metrics=["map", "precision_at_1"],
        recall_at=[],
        metric=metric,
    )
    near = KNeighborsClassifier(20).fit(train, train_y)
    return {
        "map": found["map"],
        "precision_at_1": found["precision_at_1"],
        "knn_accuracy": float(near.score(test, test_y)),
    }


class Records:
    """Records of what was measured, written as they come.

    Args:
        path: file of an earlier run, whose records are taken over; None: they are not written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        known = path is not None and path.is_file()
        self.all: list[dict[str, Any]] = json.loads(path.read_text()) if known and path else []

    def has(self, **facts: Any) -> bool:
        """True if there is a record of these facts."""
        return any(all(record[key] == facts[key] for key in facts) for record in self.all)

    def keep(self, **record: Any) -> None:
        """Add a record and show it."""
        self.all.append(record)
        print(json.dumps(record), flush=True)
        if self.path is not None:
            write_atomically(self.path, json.dumps(self.all, indent=1) + "\n")


def measure(settings: argparse.Namespace, records: Records) -> None:
    """A record for each data set, seed, dimension and method.

    UMAP comes last: PyTorch was ten times as slow in a process that had run it before.
    """
    _measure(settings, records, lambda method: method != "UMAP")
    _measure(settings, records, lambda method: method == "UMAP")


def _measure(settings: argparse.Namespace, records: Records, wanted: Callable[[str], bool]) -> None:
    warm = set()
    for name in settings.data:
        for seed in settings.seeds:
            train, test, train_y, test_y = data(name, seed, settings.folder, settings.size)
            facts = {"data": name, "seed": seed}
            own = {**facts, "dims": train.shape[1], "method": "inputs"}
            if not records.has(**own):
                found = scores(train, test, train_y, test_y, "cosine")
                records.keep(**own, rows=len(train), fit_s=0.0, transform_s=0.0, **found)
            for dims in settings.dims:
                for method, make in reducers(name, dims, seed).items():
                    if not wanted(method) or method not in (settings.methods or [method]):
                        continue
                    own = {**facts, "dims": dims, "method": method}
                    if records.has(**own):
                        continue
                    if method == "UMAP" and method not in warm:  # compiles at its first use
                        make().fit(train[:200]).transform(test[:50])
                        warm.add(method)
                    found = measured(make, train, test, train_y, test_y, method)
                    records.keep(**own, rows=len(train), **found)


def measured(
    make: Callable[[], Any], train: Rows, test: Rows, train_y: Any, test_y: Any, method: str
) -> dict[str, float]:
    """Times and scores of one fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        model = make().fit(train)
        fitted = time.process_time()
        codes = model.transform(test)
        ended = time.process_time()
        own = getattr(model, "training_codes", None)
        own = model.transform(train) if own is None else own
    metric = "l2" if method in BY_DISTANCE else "cosine"
    times = {"fit_s": fitted - start, "transform_s": ended - fitted}
    return times | scores(own, codes, train_y, test_y, metric)


def measure_wrong_pairs(settings: argparse.Namespace, records: Records) -> None:
    """The same records for TLDR with a share of wrong pairs, and with a choice among them."""
    for name, seed in [(name, seed) for name in settings.data for seed in settings.seeds]:
        train, test, train_y, test_y = data(name, seed, settings.folder, settings.size)
        clean = knn_pairs(train, NEIGHBOURS[name])
        for share in settings.wrong:
            noisy, replaced = with_random_edges(clean, share, seed)
            keep = supported_edges(noisy, settings.min_shared)
            chosen = without(noisy, keep)
            for kind, pairs in (("all pairs", noisy), ("shared neighbours", chosen)):
                for dims in settings.dims:
                    facts = {"data": name, "seed": seed, "dims": dims}
                    facts["method"] = f"{share:.0%} wrong, {kind}"
                    if records.has(**facts):
                        continue
                    start = time.process_time()
                    tldr = noisyml.TLDR(dims, **tldr_settings(name, seed))
                    tldr.fit(train, knn_graph=pairs.index)
                    record = {
                        **facts,
                        "kept": 1.0 if kind == "all pairs" else float(keep.mean()),
                        "wrong_among_kept": float(
                            (replaced if kind == "all pairs" else replaced[keep]).mean()
                        ),
                        "fit_s": time.process_time() - start,
                        "transform_s": 0.0,
                        **scores(
                            tldr.transform(train), tldr.transform(test), train_y, test_y, "cosine"
                        ),
                    }
                    records.keep(**record)


# -- tables ----------------------------------------------------------------------------------------


def grouped(records: list[dict[str, Any]]) -> dict[tuple[str, int, str], dict[str, Any]]:
    """Means and deviations over seeds by data set, dimension and method."""
    keys = {(r["data"], r["dims"], r["method"]): None for r in records}
    found = {}
    for key in keys:
        own = [r for r in records if (r["data"], r["dims"], r["method"]) == key]
        names = ("map", "precision_at_1", "knn_accuracy", "fit_s", "transform_s")
        values = {name: np.array([r[name] for r in own]) for name in names}
        found[key] = {
            name: (x.mean(), x.std(ddof=1) if len(x) > 1 else 0) for name, x in values.items()
        } | {"seeds": len(own)}
    return found


def share(value: float) -> str:
    """A share without its leading zero."""
    return f"{value:.3f}".removeprefix("0")


def table(records: list[dict[str, Any]]) -> str:
    """A Markdown table: mAP / P@1 / 20-NN accuracy, by data set and method, over dimensions."""
    found = grouped(records)
    lines = []
    for name in dict.fromkeys(key[0] for key in found):
        dims = sorted({key[1] for key in found if key[0] == name and key[2] != "inputs"})
        heads = " | ".join(f"d = {d}" for d in dims)
        lines += [f"| {name} | {heads} | seeds | fit | transform |"]
        lines += ["|---|" + "---:|" * (len(dims) + 3)]
        methods = dict.fromkeys(key[2] for key in found if key[0] == name and key[2] != "inputs")
        for method in methods:
            cells = []
            for d in dims:
                value = found.get((name, d, method))
                parts = ("map", "precision_at_1", "knn_accuracy")
                cells.append("" if value is None else " / ".join(share(value[p][0]) for p in parts))
            own = [found[name, d, method] for d in dims if (name, d, method) in found]
            fit, transform = (np.mean([v[t][0] for v in own]) for t in ("fit_s", "transform_s"))
            seeds = min(value["seeds"] for value in own)
            shown = f"{seeds} | {fit:.1f} s | {transform:.2f} s |"
            lines.append(f"| {method} | " + " | ".join(cells) + f" | {shown}")
        raw = next((v for key, v in found.items() if key[0] == name and key[2] == "inputs"), None)
        if raw is None:
            continue
        lines += [
            "",
            f"Inputs themselves: {raw['map'][0]:.3f} / {raw['precision_at_1'][0]:.3f} / "
            f"{raw['knn_accuracy'][0]:.3f}.",
            "",
        ]
    return "\n".join(lines)


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """mAP over dimensions, a panel for each data set."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = grouped(records)
    names = list(dict.fromkeys(key[0] for key in found))
    methods = [m for m in dict.fromkeys(key[2] for key in found) if m != "inputs"]
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for colour, method in enumerate(methods):
            own = sorted(
                (k[1], v["map"]) for k, v in found.items() if k[0] == name and k[2] == method
            )
            if own:
                x, y = [d for d, _ in own], [v for _, v in own]
                axis.errorbar(
                    x, [m for m, _ in y], [s for _, s in y], label=method, marker="o", ms=4,
                    capsize=2, color=f"C{colour}",
                )  # fmt: skip
        raw = next(v["map"][0] for k, v in found.items() if k[0] == name and k[2] == "inputs")
        axis.axhline(raw, color="grey", linestyle=":", label="inputs")
        axis.set(title=name, xscale="log", xlabel="dimensions of the code", ylabel="mAP")
        ticks = sorted({k[1] for k in found if k[0] == name and k[2] != "inputs"})
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    beside = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
    axes[0][-1].legend(frameon=False, fontsize=8, **beside)
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    """Measure, or make table and plot of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(TLDR_SETTINGS), default=["digits"])
    parser.add_argument("--dims", nargs="+", type=int, default=[4, 8, 16, 32, 64])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--wrong", nargs="+", type=float, default=None, help="shares of pairs")
    parser.add_argument("--min-shared", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=None, help="default: all there are")
    parser.add_argument("--size", type=int, default=2500, help="rows of the sets of features")
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench/features"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--table", type=Path, nargs="+", default=None, help="records to show")
    parser.add_argument("--plot", type=Path, default=None)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    if settings.table is None:
        kept = Records(settings.out)
        (measure if settings.wrong is None else measure_wrong_pairs)(settings, kept)
        records = kept.all
    else:
        records = [record for path in settings.table for record in json.loads(path.read_text())]
    print(table(records))
    if settings.plot is not None:
        plot(records, settings.plot)


if __name__ == "__main__":
    main()
