"""What PRISM's selection costs per training step, against the step of the network itself.

At the size of Stanford Online Products (11,318 classes, bank of 59,551 rows, D = 512, batches of
64) it times, in one process and in turn:

* AvgSim and vMF-Sim as `noisyml` computes them, for banks of several sizes,
* the loop form of the released code (one matrix-vector product and one read-back per sample, one
  pass over the bank per class refreshed), written anew for this comparison,
* forward, backward and Adam step of a ResNet-50 at 224 x 224.

Only the ratios carry over to other machines. Variants take turns, and each ratio is the median over
the rounds; on a CPU seconds are processor time summed over threads.

    python scripts/bench_prism.py --out outputs/bench/prism.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from noisyml.selectors.base import Evidence
from noisyml.selectors.prism import PrismAverage, PrismSelector, PrismVonMisesFisher
from noisyml.similarity.memory_bank import MemoryBank

Batch = tuple[Tensor, Tensor]


def batches(count: int, size: int, dim: int, classes: int, device: torch.device) -> list[Batch]:
    """Unit embeddings and labels, `size` / 4 classes of 4 samples each."""
    found = []
    for _ in range(count):
        labels = torch.randperm(classes)[: size // 4].repeat_interleave(4).to(device)
        rows = torch.randn(size, dim, device=device)
        found.append((torch.nn.functional.normalize(rows, dim=1), labels))
    return found


def filled_bank(size: int, dim: int, classes: int, device: torch.device) -> MemoryBank:
    bank = MemoryBank(size, dim, classes).to(device)
    for start in range(0, size, 8192):
        q = min(8192, size - start)
        rows = torch.nn.functional.normalize(torch.randn(q, dim, device=device), dim=1)
        labels = torch.randint(classes, (q,), device=device)
        bank.enqueue(rows, labels, labels)
    return bank


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: processor time on a CPU, so that other processes do not count."""
    if device.type == "cpu":
        start = time.process_time()
        action()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


class NoisymlForm:
    """One of our selectors with a bank of its own."""

    def __init__(self, selector: PrismSelector, bank: MemoryBank) -> None:
        self.selector = selector
        self.bank = bank

    def step(self, rows: Tensor, labels: Tensor) -> None:
        """Select and enqueue."""
        evidence = Evidence(labels, labels, embeddings=rows, memory=self.bank)
        keep = self.selector.select(evidence).keep
        self.bank.enqueue(rows[keep], labels[keep], labels[keep])


class LoopForm:
    """AvgSim with the loops of the released code; the arithmetic is that of `prism_avg_scores`."""

    def __init__(self, bank: MemoryBank, noise_rate: float) -> None:
        self.bank = bank
        self.noise_rate = noise_rate
        self.last_kept = torch.empty(0, dtype=torch.int64)
        self.centres = bank.class_sums.float() / bank.class_counts.clamp(min=1)[:, None]

    def select(self, rows: Tensor, labels: Tensor) -> Tensor:
        """The mask of kept samples."""
        stored = self.bank.filled()
        for label in self.last_kept.unique().tolist():
            self.centres[label] = stored.embeddings[stored.labels == label].mean(dim=0)
        p = []
        for row, label in zip(rows, labels.tolist(), strict=True):
            affinity = torch.exp(self.centres @ row)
            p.append((affinity[label] / affinity.sum()).item())
        scores = torch.tensor(p)
        cut = scores.sort().values[int(self.noise_rate * len(p)) - 1]
        keep = (scores > cut).to(rows.device)
        self.last_kept = labels[keep]
        return keep

    def step(self, rows: Tensor, labels: Tensor) -> None:
        """Select and enqueue."""
        keep = self.select(rows, labels)
        self.bank.enqueue(rows[keep], labels[keep], labels[keep])


class Backbone:
    """A ResNet-50 with a 512-dimensional head."""

    def __init__(self, batch: int, device: torch.device) -> None:
        import torchvision

        self.model = torchvision.models.resnet50(weights=None, num_classes=512).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-5)
        self.images = torch.randn(batch, 3, 224, 224, device=device)

    def step(self) -> None:
        """Forward, backward, Adam."""
        self.optimizer.zero_grad()
        self.model(self.images).square().mean().backward()
        self.optimizer.step()


def median_ratio(above: list[float], below: list[float]) -> float:
    """Median over the rounds in which both were timed; neighbours in time share disturbances."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--classes", type=int, default=11_318)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--bank", type=int, default=59_551, help="rows for the main comparison")
    parser.add_argument("--bank-sizes", type=int, nargs="+", default=[6_000, 60_000, 600_000])
    parser.add_argument("--batch", type=int, default=64, help="batch of the selector")
    parser.add_argument(
        "--backbone-batch",
        type=int,
        default=64,
        help="batch of the ResNet-50 step; its time is scaled linearly to --batch",
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds over all variants")
    parser.add_argument("--backbone-rounds", type=int, default=5, help="of these with the ResNet")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if not 1 <= options.backbone_rounds <= options.rounds:
        parser.error("--backbone-rounds must lie between 1 and --rounds")
    device = torch.device(options.device)
    torch.manual_seed(0)

    sizes = sorted({options.bank, *options.bank_sizes})
    kinds: dict[str, Callable[[], PrismSelector]] = {
        "avg": lambda: PrismAverage(0.5),
        "vmf": lambda: PrismVonMisesFisher(0.5),
    }

    def bank(size: int) -> MemoryBank:
        return filled_bank(size, options.dim, options.classes, device)

    variants: dict[str, NoisymlForm | LoopForm] = {
        f"{kind} {size}": NoisymlForm(make(), bank(size))
        for kind, make in kinds.items()
        for size in sizes
    }
    variants[f"loop {options.bank}"] = LoopForm(bank(options.bank), 0.5)
    backbone = Backbone(options.backbone_batch, device)

    warm_up = 2
    seconds: dict[str, list[float]] = {name: [] for name in [*variants, "resnet50"]}
    data = batches(warm_up + options.rounds, options.batch, options.dim, options.classes, device)
    for round_, (rows, labels) in enumerate(data):
        for name, variant in variants.items():
            seconds[name].append(timed(partial(variant.step, rows, labels), device))
        if round_ < warm_up + options.backbone_rounds:
            scale = options.batch / options.backbone_batch
            seconds["resnet50"].append(timed(backbone.step, device) * scale)
        print(f"round {round_ + 1} of {len(data)}", flush=True)
    seconds = {name: values[warm_up:] for name, values in seconds.items()}

    def ratios(kind: str) -> dict[str, float]:
        ours = seconds[f"{kind} {options.bank}"]
        smallest, largest = seconds[f"{kind} {sizes[0]}"], seconds[f"{kind} {sizes[-1]}"]
        return {
            "share_of_resnet50_step": median_ratio(
                ours[: options.backbone_rounds], seconds["resnet50"]
            ),
            "loop_form_over_this": median_ratio(seconds[f"loop {options.bank}"], ours),
            "largest_over_smallest_bank": median_ratio(largest, smallest),
        }

    report = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "setting": {key: str(v) if key == "out" else v for key, v in vars(options).items()},
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "least_seconds": {name: min(values) for name, values in seconds.items()},
        "ratios": {kind: ratios(kind) for kind in kinds},
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
