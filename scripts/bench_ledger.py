"""Cost of the ledger: its share of the processor time of a training with a small network.

A run of `noisyml train` over `--samples` vectors of 64 random values with random labels, by a
perceptron 64-256-256-10 and `selector=keep_all`. All that the ledger does lies in one callback,
whose calls are timed: keeping each batch, the columns of many batches at once, their file at the
end of an epoch, and the files joined in the end; with `--rate` also the metrics of each epoch that
compare judgements with the truth (AUROC, precision, recall). What it adds to the step itself, a few
references to tensors, is not timed. A network that reads photographs takes many times longer for a
step, and the ledger the same.

    python scripts/bench_ledger.py --samples 1000000
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_training import timed_trainer
from lightning import Callback
from omegaconf import OmegaConf

from noisyml.apps._common.quiet import quiet
from noisyml.assembly.build import assemble
from noisyml.assembly.nodes import build
from noisyml.callbacks.selection_log import SelectionLog
from noisyml.command.config import compose


class TimedLog(SelectionLog):
    """The ledger, with the processor seconds of its calls by hook."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self.seconds: Counter[str] = Counter()

    def _timed(self, hook: str, *arguments: Any) -> None:
        began = time.process_time()
        getattr(super(), hook)(*arguments)
        self.seconds[hook] += time.process_time() - began

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Timed."""
        self._timed("on_train_batch_end", *arguments)

    def on_train_epoch_end(self, *arguments: Any) -> None:
        """Timed."""
        self._timed("on_train_epoch_end", *arguments)

    def on_train_end(self, *arguments: Any) -> None:
        """Timed."""
        self._timed("on_train_end", *arguments)


class Clock(Callback):
    """Processor seconds from the first step to the end of training, the ledger's included."""

    seconds = 0.0

    def on_train_start(self, *arguments: Any) -> None:
        """Begin."""
        self.began = time.process_time()

    def on_train_end(self, *arguments: Any) -> None:
        """End; placed after the ledger."""
        self.seconds = time.process_time() - self.began


def trained(
    folder: Path, samples: int, batch: int, epochs: int, rate: float
) -> tuple[TimedLog, float]:
    """The ledger of a run in `folder`, and the processor seconds of its training."""
    noise = ["noise=symmetric", f"noise.rate={rate}", "dataset.labels_are_true=true"]
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((samples, 64), dtype=np.float32)
    np.savez(folder / "vectors.npz", vectors=vectors, labels=rng.integers(0, 10, samples))
    np.savez(folder / "few.npz", vectors=vectors[:1000], labels=np.arange(1000) % 10)
    overrides = [
        "method=classification",
        "dataset=vectors",
        *(f"dataset.{name}={folder}/few.npz" for name in ("val", "test")),
        f"dataset.path={folder}/vectors.npz",
        "dataset.key=vectors",
        "backbone=vectors",
        "head=mlp",
        "head.hidden_features=[256]",
        "head.out_features=256",
        *noise,
        "selector=keep_all",
        "trainer=cpu",
        f"trainer.max_epochs={epochs}",
        f"sampler.batch_size={batch}",
        "model_choice=[last]",
    ]
    config = compose("train", overrides)
    config.run_dir, config.name = str(folder / "run"), "ledger"
    config.paths.cache = str(folder / "cache")
    config.callbacks.selection._target_ = "__main__.TimedLog"
    config.callbacks.checkpoint.best = {}
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assembly: Any = assemble(config)
    log = build(config.callbacks.selection)
    log.manifest = assembly.data.manifest if rate else None
    others = [
        build(node) for name, node in config.callbacks.items() if node and name != "selection"
    ]
    clock = Clock()
    trainer = timed_trainer(config, assembly.method, [*others, log, clock])
    trainer.fit(assembly.method, assembly.data)
    return log, clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0, help="of wrong labels; above 0: scored")
    typed = parser.parse_args()
    torch.set_num_threads(typed.threads)
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        log, whole = trained(Path(folder), typed.samples, typed.batch, typed.epochs, typed.rate)
        size = log.file.stat().st_size
    own = sum(log.seconds.values())
    print(
        json.dumps(
            {
                "samples": typed.samples,
                "epochs": typed.epochs,
                "rate": typed.rate,
                "training_seconds": round(whole - own, 2),
                "each_batch_seconds": round(log.seconds["on_train_batch_end"], 2),
                "each_epoch_seconds": round(log.seconds["on_train_epoch_end"], 2),
                "joining_seconds": round(log.seconds["on_train_end"], 2),
                "share_of_training": round(own / (whole - own), 4),
                "bytes_a_sample_and_epoch": round(size / typed.samples / typed.epochs, 1),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
