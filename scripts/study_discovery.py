"""Category discovery on three data sets, with and without wrong labels, in minutes.

Half of the classes are old, half of their images labelled. ``digits``: pixels, views shifted by up
to a pixel, a perceptron of two layers. ``fashion_mnist`` (10,000 images) and ``glyphs`` (100
classes of 20 images): features of a frozen EfficientNet-Lite0 on their 256 principal components,
computed once for each image and three random views of it, and a perceptron of one layer on them.
All are scored by semi-supervised k-means (SimGCD by its classifier) on the unlabelled images.

GCD and SimGCD train as long as both stages of PromptCAL together. The second stage begins with the
weights of the first: without affinity, with plain neighbours, with the graph. For a seed all
methods see the same batches and views, so that differences are paired. Results are written as they
come, and what is there is not done again.

    python scripts/study_discovery.py --out outputs/discovery
    python scripts/study_discovery.py --out outputs/discovery --noise 0.3
    python scripts/study_discovery.py --out outputs/discovery --noise 0.3 --selector
    python scripts/study_discovery.py --out outputs/discovery --table --plot discovery.png
    python scripts/study_discovery.py --out outputs/discovery --maps maps.png
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from noisyml.data.datamodule import DataModule
from noisyml.data.datasets.discovery.source import CategoryDiscovery
from noisyml.data.datasets.embedded.digits import Digits
from noisyml.data.datasets.embedded.glyphs import Glyphs
from noisyml.data.datasets.small_images.fashion_mnist import FashionMNIST
from noisyml.data.samplers.mixture import Mixture
from noisyml.data.transforms.image import ImageTransform
from noisyml.methods.discovery.gcd import GCD
from noisyml.methods.discovery.promptcal import PromptCAL
from noisyml.methods.discovery.simgcd import SimGCD
from noisyml.methods.parts import Parts, Sizes
from noisyml.metrics.discovery.evaluator import DiscoveryEvaluator, ParametricDiscoveryEvaluator
from noisyml.models.backbones.from_timm import efficientnet_lite0
from noisyml.models.backbones.small import mlp
from noisyml.models.ema import EMATeacher
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead
from noisyml.models.projection import ProjectionHead
from noisyml.noise import NoNoise, Symmetric
from noisyml.optim import cosine_epochs
from noisyml.selectors.quota import SmallLoss
from noisyml.similarity.memory_bank import MemoryBank
from noisyml.storage.files import write_atomically

SCORES = ("all", "old", "new")
#: Arms in the order of the tables, with the words for them there.
ARMS = {
    "k-means": "k-means on features as they are",
    "stage 1": "first stage",
    "GCD": "GCD, as long as both stages",
    "SimGCD": "SimGCD, as long",
    "stage 2, no affinity": "both stages, no affinity",
    "stage 2, neighbours": "both stages, plain neighbours",
    "stage 2, graph": "both stages, diffused graph",
}
SECOND_STAGE: dict[str, dict[str, Any]] = {
    "stage 2, graph": {},
    "stage 2, neighbours": {"edges": "neighbours"},
    "stage 2, no affinity": {"affinity_weight": 0.0},
}
#: Pairs of arms whose difference is told with its interval.
PAIRS = (
    ("stage 2, graph", "stage 2, no affinity"),
    ("stage 2, graph", "stage 2, neighbours"),
    ("stage 2, graph", "GCD"),
    ("SimGCD", "GCD"),
    ("GCD", "k-means"),
)
COMPONENTS, VIEWS = 256, 3


@dataclass(frozen=True)
class Task:
    """A data set and the length of training on it.

    Attributes:
        source: makes the data set.
        hidden: widths of the perceptron.
        batch: images, two views each.
        first: epochs of the first stage.
        second: of the second.
        rows: of the memory.
        neighbours: of a node.
        size: images of the training split; None: all.
        views: makes the random views whose features are cached; None: pixels are shifted.
    """

    source: Callable[[], Any]
    hidden: tuple[int, ...]
    batch: int
    first: int
    second: int
    rows: int
    neighbours: int
    size: int | None = None
    views: Callable[[], ImageTransform] | None = None
    rate: float = 0.02


TASKS = {
    "digits": Task(
        lambda: Digits(val_fraction=0.0, test_fraction=0.2), (256, 256), 64, 20, 12, 512, 10
    ),
    "fashion_mnist": Task(
        lambda: FashionMNIST("data", val_fraction=0.0),
        (256,),
        128,
        10,
        6,
        1024,
        10,
        10_000,
        lambda: ImageTransform(size=28, crop="random", padding=3, horizontal_flip=0.5),
    ),
    "glyphs": Task(
        lambda: Glyphs(split="closed_set", val_fraction=0.0, distortions=2),
        (256,),
        128,
        10,
        6,
        1024,
        4,
        2000,
        lambda: ImageTransform(size=32, crop="random", padding=3),
    ),
}


class Study:
    """Inputs of a data set, labels as training sees them, and true ones.

    Args:
        name: of the task.
        seed: of the noise and of the batches.
        noise: share of wrong labels among the labelled.
        cache: folder of features.
        size: images of the training split; None: those of the task.
    """

    def __init__(
        self, name: str, seed: int, noise: float, cache: Path, size: int | None = None
    ) -> None:
        self.task, self.seed = TASKS[name], seed
        size = self.task.size if size is None else size
        injector = Symmetric(rate=noise, seed=seed) if noise else NoNoise()
        with tempfile.TemporaryDirectory() as folder:
            data = DataModule(
                CategoryDiscovery(self.task.source()),
                injector,
                ImageTransform(),
                lambda labels, seed: Mixture(labels, seed, batch_size=self.task.batch),
                seed=seed,
                cache_dir=folder,
                train_size=size,
            )
            manifest = data.prepare_labels()
        images = data.splits["train"].images
        pictures = [images.load(row) for row in range(len(manifest))]
        self.observed = torch.from_numpy(manifest.observed.copy())
        self.clean = torch.from_numpy(manifest.clean.copy())
        self.names, self.known = data.class_names, data.known_classes.tolist()
        self.plan = Mixture(manifest.observed, seed, batch_size=self.task.batch)
        if self.task.views is None:
            pixels = torch.from_numpy(np.stack([np.array(picture) for picture in pictures]))
            self.inputs = pixels[:, None]
        else:
            file = cache / f"features-{name}-{len(pictures)}.npz"
            if not file.exists():
                write_features(file, pictures, self.task.views())
            stored = np.load(file)
            self.views = torch.from_numpy(stored["views"])[:, :, None, None]
            self.inputs = torch.from_numpy(stored["plain"])[:, None, None]

    def backbone(self) -> Any:
        """A perceptron with random weights; features pass its normalisation as they are."""
        hidden, shape = list(self.task.hidden), tuple(self.inputs.shape[2:])
        if self.task.views is None:
            return mlp(shape, hidden_features=hidden)
        return mlp(shape, hidden_features=hidden, mean=(0.0,), std=(1 / 255,))

    def batches(self, epoch: int) -> Any:
        """Batches of two views of an epoch."""
        generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
        for rows in torch.from_numpy(self.plan.epoch(epoch)):
            if self.task.views is None:
                padded = F.pad(self.inputs[rows], (1, 1, 1, 1))
                side = self.inputs.shape[-1]
                windows = padded.unfold(2, side, 1).unfold(3, side, 1)
                shifts = torch.randint(3, (2, 2, len(rows)), generator=generator)
                here = torch.arange(len(rows))
                views = torch.stack([windows[here, :, down, right] for down, right in shifts], 1)
            else:
                drawn = torch.rand(len(rows), VIEWS, generator=generator).argsort(dim=1)[:, :2]
                views = self.views[rows[:, None], drawn]
            yield {"views": views, "label": self.observed[rows], "index": rows}

    def score(self, rows: Tensor, by: str = "embeddings") -> list[float]:
        """Accuracy on all, old and new unlabelled images, in percent, of outputs of all images."""
        kind: Any = DiscoveryEvaluator if by == "embeddings" else ParametricDiscoveryEvaluator
        evaluator = kind()
        evaluator.class_names, evaluator.known_classes = self.names, self.known
        for role, chosen, labels in (
            ("query", self.observed < 0, self.clean),
            ("gallery", self.observed >= 0, self.observed),
        ):
            index = chosen.nonzero().flatten()
            evaluator.update({by: rows[index]}, labels[index], index, role)
        values = evaluator.compute()
        return [round(100 * values[f"clustering_accuracy_{part}"], 1) for part in SCORES]


@torch.no_grad()
def write_features(file: Path, pictures: list[Any], transform: ImageTransform) -> None:
    """Standardised principal components of pretrained features: ``plain`` and ``views`` float32."""
    network = efficientnet_lite0().eval()
    made = [transform.evaluate(p) for p in pictures]
    for view in range(VIEWS):
        made += [transform.train(p, VIEWS * row + view) for row, p in enumerate(pictures)]
    found = []
    for start in range(0, len(made), 100):
        images = torch.stack(made[start : start + 100]).float()
        images = F.interpolate(images, size=(64, 64), mode="bilinear", align_corners=False)
        found.append(network(images.round().to(torch.uint8)))
    rows = torch.cat(found).double().unflatten(0, (VIEWS + 1, len(pictures)))
    centred = rows - rows[0].mean(dim=0)
    _, _, axes = torch.linalg.svd(centred[0], full_matrices=False)
    rows = centred @ axes[:COMPONENTS].T
    rows = (rows / rows[0].std()).float()
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as out:
        np.savez(out, plain=rows[0].numpy(), views=rows[1:].transpose(0, 1).contiguous().numpy())


def outputs(study: Study, method: Any, by: str = "embeddings") -> Tensor:
    """Outputs of a method for all images, by name."""
    method.eval()
    with torch.no_grad():
        found: Tensor = method.outputs({"image": study.inputs}, {by})[by]
    method.train()
    return found


def made(kind: Any, study: Study, selector: Any = None, **settings: Any) -> Any:
    """A method on a perceptron of its own."""
    torch.manual_seed(study.seed)
    backbone = study.backbone()
    encoder = Encoder(backbone, IdentityHead(backbone.out_features))
    parts = Parts(
        encoder=encoder,
        another_encoder=lambda: encoder,
        optimizer=lambda groups: groups,
        scheduler=None,
        evaluators={"discovery": DiscoveryEvaluator()},
        sizes=Sizes(len(study.names), backbone.out_features, len(study.inputs), study.names),
        param_groups={},
        selector=selector,
    )
    return kind(parts, **settings)


def trained(method: Any, study: Study, epochs: int) -> Any:
    """The method after training, its steps those of a run."""
    length = len(study.plan)
    trainable = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=study.task.rate, momentum=0.9, weight_decay=5e-5)
    schedule = cosine_epochs(
        optimizer, total_steps=epochs * length, epochs=epochs, final_share=0.001
    )
    for epoch in range(epochs):
        for number, batch in enumerate(study.batches(epoch)):
            method._trainer = SimpleNamespace(
                current_epoch=epoch,
                global_step=epoch * length + number,
                num_training_batches=length,
                accumulate_grad_batches=1,
            )
            loss = method.training_step(batch, number)["loss"]
            optimizer.zero_grad()
            loss.backward()
            method.after_backward()
            optimizer.step()
            schedule.step()
    return method


def trial(
    study: Study, noise: float, selected: bool, known: dict[str, Any], note: Callable[..., None]
) -> None:
    """Train what is not known yet, and note its scores.

    Args:
        study: data of a seed.
        noise: share of wrong labels that the selector is told.
        selected: whether a selector doubts labels.
        known: results by arm.
        note: takes an arm, its scores and the embeddings.
    """
    task = study.task
    head = functools.partial(ProjectionHead, out_features=1024, bottleneck=64, layers=1)

    def selector() -> Any:
        warmup = 4 * len(study.plan)
        return SmallLoss(noise_rate=noise, warmup_steps=warmup) if selected else None

    def scored(name: str, method: Any) -> None:
        rows = outputs(study, method)
        note(name, study.score(rows), rows)

    if "k-means" not in known:
        plain = study.inputs.flatten(1).float()
        note("k-means", study.score(plain), plain)
    if {"stage 1", *SECOND_STAGE} - set(known):
        first = trained(made(GCD, study, selector(), projection=head), study, task.first)
        scored("stage 1", first)
    for name, settings in SECOND_STAGE.items():
        if name in known:
            continue
        second = made(
            PromptCAL,
            study,
            selector(),
            projection=head,
            prompt_weight=0.0,
            num_negatives=None,
            neighbours=task.neighbours,
            teacher=functools.partial(EMATeacher, warmup=False),
            bank=functools.partial(MemoryBank, size=task.rows),
            **settings,
        )
        second.encoder.load_state_dict(first.encoder.state_dict())
        second.projections.load_state_dict(first.projections.state_dict())
        second.teacher.restart(second._student())
        scored(name, trained(second, study, task.second))
    whole = task.first + task.second
    if "SimGCD" not in known:
        simgcd = made(SimGCD, study, selector(), projection_size=64, projection_layers=1)
        simgcd = trained(simgcd, study, whole)
        note(
            "SimGCD",
            study.score(outputs(study, simgcd, "logits"), "logits"),
            outputs(study, simgcd),
        )
    if "GCD" not in known:
        scored("GCD", trained(made(GCD, study, selector(), projection=head), study, whole))


def condition(noise: float, selected: bool) -> str:
    """Words for the labels of a trial."""
    return f"{noise:.0%} wrong{', selector' if selected else ''}" if noise else "clean"


def run(typed: argparse.Namespace) -> None:
    """All trials that are asked for, those that are there left out."""
    for seed in typed.seeds:
        for name in typed.data:
            words = condition(typed.noise, typed.selector)
            file = typed.out / f"{name} {words} {seed}.json"
            record = json.loads(file.read_text()) if file.exists() else {}
            record |= {"data": name, "labels": words, "seed": seed}
            scores = record.setdefault("scores", {})
            if not set(ARMS) - set(scores):
                continue
            start = time.process_time()
            study = Study(name, seed, typed.noise, typed.out, typed.size)

            def note(
                arm: str,
                found: list[float],
                rows: Tensor,
                record: dict[str, Any] = record,
                file: Path = file,
                study: Study = study,
            ) -> None:
                record["scores"][arm] = found
                write_atomically(file, json.dumps(record, indent=2) + "\n")
                print(record["data"], record["labels"], record["seed"], arm, found, flush=True)
                if record["seed"] == 0 and record["labels"] == "clean":
                    embeddings = typed.out / f"embeddings {record['data']} {arm}.npz"
                    with open(embeddings, "wb") as out:
                        np.savez(
                            out,
                            rows=F.normalize(rows, dim=1).half().numpy(),
                            clean=study.clean.numpy(),
                            observed=study.observed.numpy(),
                        )

            trial(study, typed.noise, typed.selector, scores, note)
            print(f"{name} {words} {seed}: {time.process_time() - start:.0f} s", flush=True)


def read(folder: Path) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Scores [seeds, 3] of each arm by data set and kind of labels; arms with all seeds alone."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text())
        if {"data", "labels", "scores"} <= set(record):
            grouped.setdefault((record["data"], record["labels"]), []).append(record)
    return {
        key: {
            arm: np.array([r["scores"][arm] for r in records])
            for arm in ARMS
            if all(arm in r["scores"] for r in records)
        }
        for key, records in sorted(grouped.items())
    }


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean and half the width of the 95 % interval of paired differences [n], by Student's t."""
    from scipy.stats import t

    n = len(differences)
    half = math.nan if n < 2 else float(t.ppf(0.975, n - 1)) * differences.std(ddof=1) / n**0.5
    return float(differences.mean()), half


def table(folder: Path) -> None:
    """Print means over the seeds, and paired differences with their intervals."""
    for (name, labels), arms in read(folder).items():
        seeds = max((len(values) for values in arms.values()), default=0)
        words = f"{seeds} seeds" if seeds > 1 else "one seed"
        print(f"\n{name}, {labels}, {words}\n\n| | All | Old | New |\n|---|---:|---:|---:|")
        for arm, values in arms.items():
            spread = values.std(axis=0, ddof=1) if seeds > 1 else np.full(3, math.nan)
            cells = (_with(*pair) for pair in zip(values.mean(axis=0), spread, strict=True))
            print(f"| {ARMS[arm]} | {' | '.join(cells)} |")
        print()
        for one, other in PAIRS:
            if one in arms and other in arms:
                parts = (interval(arms[one][:, i] - arms[other][:, i]) for i in range(3))
                said = " / ".join(_with(mean, half, "+") for mean, half in parts)
                print(f"{one} - {other}: {said}")


def _with(value: float, around: float, sign: str = "") -> str:
    """A number and what may be added to or taken from it, where that is known."""
    return f"{value:{sign}.1f}" + ("" if math.isnan(around) else f" ± {around:.1f}")


def plot(folder: Path, file: Path) -> None:
    """Accuracy on all images by arm, data set and kind of labels, as a picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    found = read(folder)
    names = [name for name in TASKS if any(key[0] == name for key in found)]
    figure, panels = pyplot.subplots(
        1, len(names), figsize=(3.6 * len(names), 3.4), sharey=True, squeeze=False
    )
    for panel, name in zip(panels[0], names, strict=True):
        kinds = [labels for data, labels in found if data == name]
        kinds = [*(k for k in kinds if k == "clean"), *(k for k in kinds if k != "clean")]
        for place, labels in enumerate(kinds):
            arms = found[name, labels]
            for i, arm in enumerate(ARMS):
                if arm in arms:
                    values = arms[arm][:, 0]
                    at = np.full(len(values), i + 0.22 * (place - (len(kinds) - 1) / 2))
                    panel.plot(at, values, ".", color=f"C{place}", alpha=0.5)
                    label = labels if arm == next(iter(arms)) else None
                    panel.plot(
                        at[:1], values.mean(), "_", color=f"C{place}", markersize=9, label=label
                    )
        panel.set_xticks(range(len(ARMS)), list(ARMS), rotation=60, ha="right", fontsize=8)
        panel.set_title(name, fontsize=10)
        panel.grid(axis="y", alpha=0.3)
    panels[0][0].set_ylabel("All, %")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def maps(folder: Path, file: Path) -> None:
    """Embeddings of seed 0 by t-SNE, old and new classes apart, as a picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from sklearn.manifold import TSNE

    names = [n for n in TASKS if (folder / f"embeddings {n} GCD.npz").exists()]
    arms = ("k-means", "GCD", "stage 2, graph")
    figure, panels = pyplot.subplots(
        len(names), len(arms), figsize=(3 * len(arms), 3 * len(names)), squeeze=False
    )
    for line, name in zip(panels, names, strict=True):
        for panel, arm in zip(line, arms, strict=True):
            stored = np.load(folder / f"embeddings {name} {arm}.npz")
            chosen = np.random.default_rng(0).permutation(len(stored["rows"]))[:800]
            rows = stored["rows"][chosen].astype(np.float32)
            clean, observed = stored["clean"][chosen], stored["observed"][chosen]
            points = TSNE(perplexity=30, max_iter=500, random_state=0).fit_transform(rows)
            old = clean < (stored["clean"].max() + 1) // 2
            for kind, chosen_rows, marker in (
                ("old, labelled", observed >= 0, "s"),
                ("old", old & (observed < 0), "o"),
                ("new", ~old, "x"),
            ):
                panel.scatter(
                    *points[chosen_rows].T,
                    s=9,
                    marker=marker,
                    c=clean[chosen_rows] % 20,
                    cmap="tab20",
                    vmin=0,
                    vmax=19,
                    linewidths=0.7,
                    label=kind,
                )
            panel.set_xticks([])
            panel.set_yticks([])
            panel.set_title(f"{name}: {'features' if arm == 'k-means' else arm}", fontsize=9)
    panels[0][0].legend(fontsize=7, loc="best")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> int:
    """Run the trials, or show what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--selector", action="store_true", help="small loss doubts labels")
    parser.add_argument("--size", type=int, help="images, other than those of the task")
    parser.add_argument("--out", type=Path, default=Path("outputs/discovery"))
    parser.add_argument("--table", action="store_true", help="print the results that are there")
    parser.add_argument("--plot", type=Path, help="draw them")
    parser.add_argument("--maps", type=Path, help="draw embeddings of seed 0")
    typed = parser.parse_args()
    torch.set_num_threads(1)
    typed.out.mkdir(parents=True, exist_ok=True)
    if typed.table:
        table(typed.out)
    if typed.plot is not None:
        plot(typed.out, typed.plot)
    if typed.maps is not None:
        maps(typed.out, typed.maps)
    if not (typed.table or typed.plot or typed.maps):
        run(typed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
