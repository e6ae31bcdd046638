"""What the framework costs beyond the network itself, in training and in embedding.

In one process and in turn, on the same data, weights and batches, it times

* ``training``: the loop of `noisyml train` (trainer, callbacks, `keep_all`, memory) against
  a hand-written loop with the same encoder, loss, memory, optimiser and schedule, and against
  Lightning's trainer alone around the same step, which tells its share of the cost from ours;
* ``embedding``: the loop of `noisyml embed` (trainer, shards hashed and written to disk) against a
  bare PyTorch loop over the same loader that keeps the rows in memory.

Each for a ResNet-18 on photographs (random pixels, drawn beforehand), and for a small head on
cached features, where a step takes about two milliseconds and every hook shows.

The ratios are shares of the hand-written loop's throughput: 1 is no overhead, 0.97 is 3 % lost. In
training the loops take turns step by step (a callback of the trainer's makes the hand-written step
between two of its own), and the ratio is the median over such pairs; in embedding they take turns
pass by pass. Start-up and the end of epochs are not timed. On a CPU the ratios are of processor
time of all threads, so that other processes on the machine do not count; those of wall time are
given as well. That all trained the same is checked: their weights must be equal at the end.

    python scripts/bench_training.py --out outputs/bench/training.json
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import lightning
import numpy as np
import torch
from lightning import Callback, LightningModule
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from noisyml.apps._common.quiet import quiet
from noisyml.apps._common.trainer import leave_out_idle_hooks, make_trainer
from noisyml.assembly.build import Assembly, assemble
from noisyml.assembly.nodes import build
from noisyml.command.config import compose
from noisyml.data.base import DatasetSource, Split
from noisyml.data.inputs import ArrayImages
from noisyml.embeddings.extraction import Extractor, ShardLoaders, ShardWriting
from noisyml.embeddings.store import EmbeddingPlan, SplitWriter


class RandomPhotos(DatasetSource):
    """Random pixels with random labels, in memory."""

    description: ClassVar[str] = "random pixels"

    def __init__(self, samples: int, side: int, channels: int, classes: int) -> None:
        self.samples, self.side, self.channels, self.classes = samples, side, channels, classes

    def missing(self) -> str | None:
        """Nothing is."""
        return None

    def splits(self) -> dict[str, Split]:
        """A training and a test split."""
        rng = np.random.default_rng(0)
        names = [str(number) for number in range(self.classes)]
        shape = (self.samples, self.side, self.side, self.channels)
        pixels = rng.integers(0, 256, shape[: 3 if self.channels == 1 else 4], dtype=np.uint8)
        labels = np.arange(self.samples, dtype=np.int64) % self.classes
        keys = [f"{number:06d}" for number in range(self.samples)]
        return {
            name: Split(name, ArrayImages(pixels), labels, names, keys, f"random-{self.samples}")
            for name in ("train", "test")
        }


@dataclass(frozen=True)
class Case:
    """One size at which the loops are compared."""

    name: str
    overrides: list[str]
    data: dict[str, int]
    #: Timed steps of training, after so many untimed ones.
    steps: int
    warm_up: int


@dataclass
class Times:
    """Seconds per step, or per pass, of one contender."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


class Clock:
    """Wall and processor time between `start` and `stop`."""

    def start(self) -> None:
        """Begin."""
        synchronise()
        self._began = time.perf_counter(), time.process_time()

    def stop(self, times: Times) -> None:
        """End, and keep both times."""
        synchronise()
        wall, processor = time.perf_counter(), time.process_time()
        times.wall.append(wall - self._began[0])
        times.processor.append(processor - self._began[1])


#: Asked once: where there is no driver, each question looks for its library again.
CUDA = torch.cuda.is_available()


def synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()


class Turns(Callback):
    """Lets a hand-written loop make a step after each of the trainer's, and times both.

    Placed last among the callbacks: what lies between two of its calls is all of a trainer's step.
    """

    def __init__(self, by_hand: Iterator[None], warm_up: int, own: Times, hand: Times) -> None:
        self.by_hand, self.warm_up, self.own, self.hand = by_hand, warm_up, own, hand
        self.clock = Clock()

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        """The hand-written loop's turn."""
        timed = trainer.global_step > self.warm_up
        if timed:
            self.clock.stop(self.own)
        self.clock.start()
        next(self.by_hand)
        if timed:
            self.clock.stop(self.hand)
        self.clock.start()


class TimedPasses(Callback):
    """Times embedding from its first batch to its last shard."""

    def __init__(self, times: Times) -> None:
        self.times, self.clock = times, Clock()

    def on_predict_batch_start(
        self, trainer: Any, module: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        """Start the clock."""
        if batch_idx == 0:
            self.clock.start()

    def on_predict_end(self, *arguments: Any) -> None:
        """Stop it."""
        self.clock.stop(self.times)


class PlainModule(LightningModule):
    """The hand-written step inside Lightning's trainer, with nothing else around it."""

    def __init__(self, parts: nn.ModuleDict, optimizer: Any, scheduler: Any) -> None:
        super().__init__()
        self.parts, self.optimizer, self.scheduler = parts, optimizer, scheduler

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        self.rows = self.parts["encoder"](batch)
        return self.parts["loss"](self.rows, batch["label"], memory=self.parts["memory"])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The memory takes the batch."""
        self.parts["memory"].enqueue(self.rows.detach(), batch["label"], batch["index"])

    def configure_optimizers(self) -> Any:
        """As in the hand-written loop."""
        return {
            "optimizer": self.optimizer,
            "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"},
        }


def configuration(case: Case, folder: Path, steps: int, device: str) -> DictConfig:
    """The configuration of a training run of `steps` steps."""
    overrides = [
        "trainer=gpu" if device == "cuda" else "trainer=cpu",
        f"trainer.max_steps={steps}",
        "trainer.max_epochs=1",
        f"sampler.batches_per_epoch={steps}",
        "noise=none",
        "selector=keep_all",
        "model_choice=[last]",
        *case.overrides,
    ]
    config = compose("train", overrides)
    config.run_dir = str(folder)
    config.dataset = {"_target_": "__main__.RandomPhotos", **case.data}
    config.paths.cache = str(folder / "cache")
    config.name = case.name
    config.callbacks.checkpoint.best = {}
    return OmegaConf.create(OmegaConf.to_container(config, resolve=True))  # type: ignore[return-value]


def parts_of(assembly: Assembly, config: DictConfig, device: str) -> tuple[nn.ModuleDict, Any, Any]:
    """Copies of encoder, loss and memory, with an optimiser and a schedule of their own."""
    method: Any = assembly.method
    parts = nn.ModuleDict(
        {name: copy.deepcopy(getattr(method, name)) for name in ("encoder", "loss", "memory")}
    ).to(device)
    parameters = [p for name in ("encoder", "loss") for p in parts[name].parameters()]
    optimizer = build(config.optimizer)([p for p in parameters if p.requires_grad])
    scheduler = build(config.scheduler)(optimizer, total_steps=config.trainer.max_steps)
    return parts, optimizer, scheduler


def moved(batches: Any, device: str) -> Iterator[dict[str, Tensor]]:
    """The batches of a loader, on a device."""
    for batch in batches:
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def by_hand(
    assembly: Assembly, parts: nn.ModuleDict, optimizer: Any, scheduler: Any, device: str
) -> Iterator[None]:
    """The training loop as one would write it; hands over after each step."""
    encoder, loss, memory = parts["encoder"], parts["loss"], parts["memory"]
    parts.train()
    for number, batch in enumerate(moved(assembly.data.train_dataloader(), device), 1):
        rows = encoder(batch)
        cost = loss(rows, batch["label"], memory=memory)
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        scheduler.step()
        memory.enqueue(rows.detach(), batch["label"], batch["index"])
        if number % 10 == 0:
            cost.item()
        yield


def by_lightning(assembly: Assembly, config: DictConfig, turns: Turns) -> nn.Module:
    """The same step inside a trainer without callbacks of ours."""
    parts, optimizer, scheduler = parts_of(assembly, config, "cpu")
    trainer = lightning.Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        max_steps=config.trainer.max_steps,
        max_epochs=1,
        deterministic=config.trainer.deterministic,
        callbacks=[turns],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(PlainModule(parts, optimizer, scheduler), assembly.data.train_dataloader())
    return parts["encoder"]


def timed_trainer(config: DictConfig, method: Any, callbacks: list[Callback]) -> Any:
    """The trainer of `noisyml train` without loggers and validation."""
    leave_out_idle_hooks(method)
    return make_trainer(
        config.trainer,
        callbacks=callbacks,
        logger=False,
        default_root_dir=config.run_dir,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        enable_progress_bar=True,
    )


def by_noisyml(assembly: Assembly, config: DictConfig, turns: Turns) -> nn.Module:
    """Our loop, with the callbacks of the default configuration."""
    method = copy.deepcopy(assembly.method)
    callbacks = [build(node) for node in config.callbacks.values() if node is not None]
    for callback in callbacks:
        if hasattr(callback, "manifest"):
            callback.manifest = assembly.data.manifest
    trainer = timed_trainer(config, method, [*callbacks, turns])
    trainer.fit(method, assembly.data)
    return method.encoder


def embed_by_hand(assembly: Assembly, device: str, times: Times) -> np.ndarray:
    """Rows [N, D] of the training split, by a bare loop."""
    encoder = assembly.method.encoder.to(device).eval()
    loader = assembly.data.predict_dataloader("train")
    clock = Clock()
    clock.start()
    with torch.inference_mode():
        rows = [encoder(batch) for batch in moved(loader, device)]
        found = torch.cat(rows).cpu().numpy()
    clock.stop(times)
    return found


def embed_by_noisyml(
    assembly: Assembly, config: DictConfig, device: str, times: Times
) -> np.ndarray:
    """The same rows by our loop, read back from disk."""
    data, encoder = assembly.data, assembly.method.encoder
    with tempfile.TemporaryDirectory(dir=config.run_dir) as folder:
        plan = EmbeddingPlan(
            split="train",
            samples=len(data.splits["train"]),
            dim=encoder.out_features,
            dtype="float32",
            rows_per_shard=2048,
            batch_size=config.data.eval_batch_size,
            precision="32-true",
            data="",
            labels="",
            transform="",
            encoder="",
        )
        writer = SplitWriter(Path(folder) / "train", plan)
        writer.begin()
        loaders = ShardLoaders(data, {"train": writer})
        writing = ShardWriting(loaders, progress=True)
        trainer = make_trainer(
            config.trainer,
            callbacks=[writing, TimedPasses(times)],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        extractor = Extractor(encoder, writing.advance)
        trainer.predict(extractor, datamodule=loaders, return_predictions=False)
        shards = sorted(writer.folder.glob("*.npy"))
        return np.concatenate([np.load(shard, allow_pickle=False) for shard in shards])


def ratio(hand: Times, own: Times, device: str) -> dict[str, float]:
    """The share of the hand-written loop's throughput, and what both took at a time."""

    def share(kind: str) -> float:
        pairs = zip(getattr(hand, kind), getattr(own, kind), strict=True)
        return statistics.median(h / o for h, o in pairs)

    return {
        "share_of_throughput": share("wall" if device == "cuda" else "processor"),
        "share_by_wall_time": share("wall"),
        "processor_seconds": statistics.median(own.processor),
        "processor_seconds_by_hand": statistics.median(hand.processor),
        "pairs": len(own.wall),
    }


def measure(case: Case, rounds: int, device: str, folder: Path) -> dict[str, Any]:
    """Both comparisons of one case."""
    config = configuration(case, folder, case.warm_up + case.steps, device)
    lightning.seed_everything(0, verbose=False)
    assembly = assemble(config)
    # Cached features are mapped once, so that the hand-written loops find them too.
    assembly.data.prepare_data()
    assembly.data.setup("fit")
    contenders: dict[str, Callable[..., nn.Module]] = {
        "by_lightning": by_lightning,
        "by_noisyml": by_noisyml,
    }
    report: dict[str, Any] = {"training": {"batch": config.sampler.batch_size}}
    for name, contender in contenders.items():
        parts, optimizer, scheduler = parts_of(assembly, config, device)
        own, hand = Times(), Times()
        steps = by_hand(assembly, parts, optimizer, scheduler, device)
        trained = contender(assembly, config, Turns(steps, case.warm_up, own, hand))
        expected = parts["encoder"].cpu().state_dict()
        for key, tensor in trained.cpu().state_dict().items():
            if not torch.equal(tensor, expected[key]):
                raise SystemExit(f"{case.name}: {name} trained other weights ({key})")
        report["training"][name] = ratio(hand, own, device)
        print(f"{case.name}: trained {name}", flush=True)
    own, hand = Times(), Times()
    for number in range(rounds + 1):
        rows = embed_by_hand(assembly, device, hand)
        ours = embed_by_noisyml(assembly, config, device, own)
        if not np.array_equal(rows, ours):
            raise SystemExit(f"{case.name}: the embeddings differ")
        print(f"{case.name}: embedded {number} of {rounds}", flush=True)
    for times in (own, hand):
        # The first round pays for what both share: threads, allocators, imports.
        del times.wall[0], times.processor[0]
    report["embedding"] = {
        "samples": case.data["samples"],
        "batch": config.data.eval_batch_size,
        "by_noisyml": ratio(hand, own, device),
    }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=5, help="timed passes of embedding")
    parser.add_argument("--side", type=int, default=64, help="side of the photographs, pixels")
    parser.add_argument("--batch", type=int, default=32, help="training batch of the ResNet-18")
    parser.add_argument("--photo-steps", type=int, default=30, help="timed steps of training")
    parser.add_argument("--feature-steps", type=int, default=400, help="timed steps of training")
    parser.add_argument("--case", choices=["photographs", "features"], help="only this one")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    cases = [
        Case(
            "photographs",
            [
                "backbone=resnet18",
                "head.out_features=128",
                f"sampler.batch_size={options.batch}",
                "data.eval_batch_size=128",
                "memory.size=512",
            ],
            {"samples": 512, "side": options.side, "channels": 3, "classes": 64},
            options.photo_steps,
            3,
        ),
        Case(
            "features",
            [
                "backbone=mlp",
                "backbone.image_size=32",
                "backbone.hidden_features=[]",
                "backbone.frozen=true",
                "head=mlp",
                "head.hidden_features=[512]",
                "head.out_features=128",
                "sampler.batch_size=64",
                "memory.size=5000",
            ],
            {"samples": 16384, "side": 32, "channels": 1, "classes": 100},
            options.feature_steps,
            20,
        ),
    ]
    quiet()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    report: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
        },
        "setting": {key: str(v) if key == "out" else v for key, v in vars(options).items()},
    }
    for case in cases:
        if options.case in (None, case.name):
            with tempfile.TemporaryDirectory() as folder:
                report[case.name] = measure(case, options.rounds, options.device, Path(folder))
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
