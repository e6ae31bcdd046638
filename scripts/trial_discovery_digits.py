"""Category discovery on digits, in minutes: every method on the same batches and clusters.

Digits 0 to 4 are old, half of their images labelled; views are shifted by up to a pixel; a
perceptron of two layers, 64 images a batch, memory of 512, 10 neighbours, quantile 0.5, every other
row of the memory a negative. GCD and SimGCD train 32 epochs; PromptCAL's first stage 20, its second
12 from the same weights: without affinity, with plain neighbours, with the graph. All are scored by
semi-supervised k-means (SimGCD also by its classifier) on the unlabelled images.

    python scripts/trial_discovery_digits.py --seeds 0 1 2 --out outputs/trials/discovery.json
    python scripts/trial_discovery_digits.py --seeds 0 1 2 --noise 0.3 --out ...
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from noisyml.data.datamodule import DataModule
from noisyml.data.datasets.discovery.source import CategoryDiscovery
from noisyml.data.datasets.embedded.digits import Digits
from noisyml.data.samplers.mixture import Mixture
from noisyml.data.transforms.image import ImageTransform
from noisyml.methods.discovery.gcd import GCD
from noisyml.methods.discovery.promptcal import PromptCAL
from noisyml.methods.discovery.simgcd import SimGCD
from noisyml.methods.parts import Parts, Sizes
from noisyml.metrics.discovery.evaluator import DiscoveryEvaluator, ParametricDiscoveryEvaluator
from noisyml.models.backbones.small import mlp
from noisyml.models.ema import EMATeacher
from noisyml.models.encoder import Encoder
from noisyml.models.heads import IdentityHead
from noisyml.models.projection import ProjectionHead
from noisyml.noise import NoNoise, Symmetric
from noisyml.optim import cosine_epochs
from noisyml.selectors.quota import SmallLoss
from noisyml.similarity.memory_bank import MemoryBank

BATCH, RATE = 64, 0.02
WHOLE, FIRST, SECOND = 32, 20, 12
SCORES = ("all", "old", "new")


class Digit:
    """Images, labels as training sees them, and true ones.

    Args:
        seed: of the noise.
        noise: share of wrong labels among the labelled.
    """

    def __init__(self, seed: int, noise: float) -> None:
        source = CategoryDiscovery(Digits(val_fraction=0.0, test_fraction=0.2))
        injector = Symmetric(rate=noise, seed=seed) if noise else NoNoise()
        with tempfile.TemporaryDirectory() as folder:
            data = DataModule(
                source,
                injector,
                ImageTransform(),
                lambda labels, seed: Mixture(labels, seed, batch_size=BATCH),
                seed=seed,
                cache_dir=folder,
            )
            manifest = data.prepare_labels()
        images = data.splits["train"].images
        pixels = [np.array(images.load(row)) for row in range(len(manifest))]
        self.images = torch.from_numpy(np.stack(pixels))[:, None]
        self.observed = torch.from_numpy(manifest.observed.copy())
        self.clean = torch.from_numpy(manifest.clean.copy())
        self.names, self.known = data.class_names, data.known_classes.tolist()
        self.plan = Mixture(manifest.observed, seed, batch_size=BATCH)

    def batches(self, epoch: int, seed: int) -> Any:
        """Batches of two shifted views of an epoch."""
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        padded = F.pad(self.images, (1, 1, 1, 1))
        windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)
        for rows in torch.from_numpy(self.plan.epoch(epoch)):
            shifts = torch.randint(3, (2, 2, len(rows)), generator=generator)
            views = [windows[rows, :, down, right] for down, right in shifts]
            labels = self.observed[rows]
            yield {"views": torch.stack(views, dim=1), "label": labels, "index": rows}

    def score(self, method: Any, by: str = "embeddings") -> list[float]:
        """Accuracy on all, old and new unlabelled images, in percent."""
        kind: Any = DiscoveryEvaluator if by == "embeddings" else ParametricDiscoveryEvaluator
        evaluator = kind()
        evaluator.class_names, evaluator.known_classes = self.names, self.known
        method.eval()
        with torch.no_grad():
            found = method.outputs({"image": self.images}, {by})
        method.train()
        for role, chosen, labels in (
            ("query", self.observed < 0, self.clean),
            ("gallery", self.observed >= 0, self.observed),
        ):
            index = chosen.nonzero().flatten()
            evaluator.update({by: found[by][index]}, labels[index], index, role)
        values = evaluator.compute()
        return [round(100 * values[f"clustering_accuracy_{part}"], 1) for part in SCORES]


def made(kind: Any, data: Digit, seed: int, selector: Any = None, **settings: Any) -> Any:
    """A method on a perceptron of its own."""
    torch.manual_seed(seed)
    encoder = Encoder(mlp(8, hidden_features=[256, 256]), IdentityHead(256))
    sizes = Sizes(len(data.names), 256, len(data.images), data.names)
    parts = Parts(
        encoder=encoder,
        another_encoder=lambda: encoder,
        optimizer=lambda groups: groups,
        scheduler=None,
        evaluators={"discovery": DiscoveryEvaluator()},
        sizes=sizes,
        param_groups={},
        selector=selector,
    )
    return kind(parts, **settings)


def trained(method: Any, data: Digit, epochs: int, seed: int) -> Any:
    """The method after training, its steps those of a run."""
    length = len(data.plan)
    trainable = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=RATE, momentum=0.9, weight_decay=5e-5)
    schedule = cosine_epochs(
        optimizer, total_steps=epochs * length, epochs=epochs, final_share=0.001
    )
    for epoch in range(epochs):
        for number, batch in enumerate(data.batches(epoch, seed)):
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


def trial(seed: int, noise: float, selected: bool) -> dict[str, list[float]]:
    """Scores of every method for a seed."""
    data = Digit(seed, noise)
    head = functools.partial(ProjectionHead, out_features=1024, bottleneck=64, layers=1)

    def selector() -> Any:
        warmup = 4 * len(data.plan)
        return SmallLoss(noise_rate=noise, warmup_steps=warmup) if selected else None

    found: dict[str, list[float]] = {}

    def note(name: str, scores: list[float]) -> None:
        found[name] = scores
        print(seed, name, scores, flush=True)

    note("k-means", data.score(made(GCD, data, seed, projection=head)))
    first = trained(made(GCD, data, seed, selector(), projection=head), data, FIRST, seed)
    note("stage 1", data.score(first))
    variants = {
        "stage 2, graph": {},
        "stage 2, no affinity": {"affinity_weight": 0.0},
        "stage 2, neighbours": {"edges": "neighbours"},
    }
    for name, settings in variants.items():
        second = made(
            PromptCAL,
            data,
            seed,
            selector(),
            projection=head,
            prompt_weight=0.0,
            num_negatives=None,
            teacher=functools.partial(EMATeacher, warmup=False),
            bank=functools.partial(MemoryBank, size=512),
            **settings,
        )
        second.encoder.load_state_dict(first.encoder.state_dict())
        second.projections.load_state_dict(first.projections.state_dict())
        second.teacher.restart(second._student())
        note(name, data.score(trained(second, data, SECOND, seed)))
    simgcd = made(SimGCD, data, seed, selector(), projection_size=64, projection_layers=1)
    simgcd = trained(simgcd, data, WHOLE, seed)
    note("SimGCD", data.score(simgcd, "logits"))
    gcd = trained(made(GCD, data, seed, selector(), projection=head), data, WHOLE, seed)
    note("GCD", data.score(gcd))
    return found


def main() -> int:
    """Run the trials and write or print their JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--selector", action="store_true", help="small loss doubts labels")
    parser.add_argument("--out", type=Path)
    typed = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for seed in typed.seeds:
        start = time.process_time()
        found = trial(seed, typed.noise, typed.selector)
        results.append({"seed": seed, "scores": found})
        print(json.dumps(results[-1]), f"{time.process_time() - start:.0f} s", flush=True)
    means = {
        name: [
            [round(mean, 1), round(math.sqrt(spread), 1)]
            for column in zip(*(r["scores"][name] for r in results), strict=True)
            for mean, spread in [(np.mean(column), np.var(column, ddof=min(1, len(column) - 1)))]
        ]
        for name in results[0]["scores"]
    }
    report = {"noise": typed.noise, "selector": typed.selector, "results": results, "means": means}
    text = json.dumps(report, indent=2) + "\n"
    if typed.out is None:
        print(text, end="")
    else:
        typed.out.parent.mkdir(parents=True, exist_ok=True)
        typed.out.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
