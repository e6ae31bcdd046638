"""Embedding whole splits: which process encodes which rows, and how they reach the disk.

The unit of work is a shard of consecutive positions, encoded in batches that start at its first
position. Neither depends on the number of processes or on what an earlier attempt has finished, so
every process feeds the network the batches that a single uninterrupted one would.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from noisyml import distributed
from noisyml.data.datamodule import DataModule
from noisyml.data.views import Batch
from noisyml.embeddings.store import SplitWriter
from noisyml.models.backbones.base import Backbone
from noisyml.runs.progress import bar
from noisyml.targets import Labels

#: Seconds between lines of progress where there is no terminal.
PLAIN_EVERY_SECONDS = 30.0


class BackboneOnly(nn.Module):
    """The features of a backbone, called like an `Encoder`.

    Args:
        backbone: uint8 images to features.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.out_features = backbone.out_features

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Features [B, F] of a batch with ``image``, ``vector`` or ``features``, see `Encoder`."""
        if "features" in batch:
            return self.backbone.finish(batch["features"].to(self.backbone.feature_mean.dtype))
        features: Tensor = self.backbone(batch["vector" if "vector" in batch else "image"])
        return features


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over a network's layout, settings, weights and buffers (saved ones and others).

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> before = fingerprint(layer)
        >>> nn.init.zeros_(layer.bias).sum().item()
        0.0
        >>> fingerprint(layer) == before, len(before)
        (False, 64)
    """
    digest = hashlib.sha256(repr(module).encode())
    for name, part in module.named_modules():
        settings = {
            key: value
            for key, value in sorted(vars(part).items())
            if isinstance(value, bool | int | float | str)
            and not key.startswith("_")
            and key != "training"
        }
        digest.update(repr((name, settings)).encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def observed_labels(data: DataModule, name: str) -> Labels:
    """The labels of a split ([N] int64 or [N, C] uint8) as a run observes them, with its noise."""
    if name == "train":
        return data.manifest.observed
    if name == "val" and data.val_labels is not None:
        return data.val_labels
    return data.splits[name].labels


class Shard(NamedTuple):
    """One shard to compute."""

    split: str
    number: int
    #: Positions in the split, one array per batch.
    batches: list[NDArray[np.int64]]


class OpenShard:
    """A shard with its batches, which are loaded while one goes through them.

    Args:
        shard: which it is.
        batches: as many as the shard has.
    """

    def __init__(self, shard: Shard, batches: Iterator[Batch]) -> None:
        self.shard = shard
        self.batches = batches


class ShardBatches:
    """The shards of this process, split after split.

    The trainer's loop sees whole shards, so that its hooks run once for thousands of samples.

    Args:
        shards: what to load, in order.
        loaders: one loader per split; the data set, collate function and workers are taken from it.
    """

    def __init__(self, shards: list[Shard], loaders: Mapping[str, DataLoader[Any]]) -> None:
        self.shards = shards
        self.loaders = loaders

    def __len__(self) -> int:
        return len(self.shards)

    def __iter__(self) -> Iterator[OpenShard]:
        for name, like in self.loaders.items():
            mine = [shard for shard in self.shards if shard.split == name]
            # A list of batches serves as a batch sampler.
            order: Any = [batch for shard in mine for batch in shard.batches]
            batches = iter(
                DataLoader(
                    like.dataset,
                    batch_sampler=order,
                    collate_fn=like.collate_fn,
                    num_workers=like.num_workers if mine else 0,
                    pin_memory=like.pin_memory,
                    generator=like.generator,
                )
            )
            for shard in mine:
                yield OpenShard(shard, itertools.islice(batches, len(shard.batches)))


class ShardLoaders(LightningDataModule):
    """Serves the shards that are still missing, dealt out to the processes in turn.

    Args:
        data: labels prepared.
        writers: by split.
    """

    def __init__(self, data: DataModule, writers: Mapping[str, SplitWriter]) -> None:
        super().__init__()
        # There may be fewer shards than processes.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.data = data
        self.writers = writers
        self.shards: list[Shard] = []

    def prepare_data(self) -> None:
        """Fill the feature cache, if there is one."""
        self.data.trainer = self.trainer
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Open the data and divide the work; no process has written anything yet."""
        self.data.trainer = self.trainer
        self.data.setup(stage)
        broken = self.data.broken()
        missing = [
            self._shard(name, number, broken.get(name, []))
            for name, writer in self.writers.items()
            for number in writer.pending()
        ]
        self.shards = missing[distributed.rank() :: distributed.world_size()]

    def _shard(self, name: str, number: int, broken: list[int]) -> Shard:
        """A shard cut into batches; positions known to be undecodable leave gaps, no shifts."""
        plan = self.writers[name].plan
        covered = plan.positions(number)
        batches = [
            np.setdiff1d(covered[start : start + plan.batch_size], broken)
            for start in range(0, len(covered), plan.batch_size)
        ]
        return Shard(name, number, batches)

    def predict_dataloader(self) -> ShardBatches:
        """The shards of this process."""
        nothing = np.empty(0, dtype=np.int64)
        loaders = {name: self.data.predict_dataloader(name, nothing) for name in self.writers}
        return ShardBatches(self.shards, loaders)


class Embedded(NamedTuple):
    """The rows of a shard, on the device that computed them, perhaps still being computed."""

    #: Positions of the samples that could be decoded [n] int64, on the host.
    positions: Tensor
    #: [n, D] float32.
    rows: Tensor


class Extractor(LightningModule):
    """Runs an encoder over shards.

    Args:
        encoder: batch to embeddings [b, D]; with ``out_features`` D.
        advance: called with the number of samples of each batch.
    """

    def __init__(self, encoder: nn.Module, advance: Callable[[int], None]) -> None:
        super().__init__()
        self.encoder = encoder
        self.advance = advance

    def predict_step(self, shard: OpenShard, batch_idx: int) -> Embedded:
        """Embed a shard, batch by batch."""
        dim = int(self.encoder.out_features)  # type: ignore[arg-type]
        positions = [torch.empty(0, dtype=torch.int64)]
        rows = [torch.empty((0, dim), device=self.device)]
        for batch in shard.batches:
            if len(batch["index"]):
                positions.append(batch["index"])
                rows.append(self.encoder(self._on_device(batch)).float())
            self.advance(len(batch["index"]))
        return Embedded(torch.cat(positions), torch.cat(rows))

    def _on_device(self, batch: Batch) -> Batch:
        """The batch as the trainer hands it to a step: converted and on the device."""
        converted = self.trainer.precision_plugin.convert_input(batch)
        moved: Batch = self.trainer.strategy.batch_to_device(converted)
        return moved


class ShardWriting(Callback):
    """Writes each shard beside the computation of the next, and shows how far it all is.

    Args:
        loaders: knows what there is to do.
        progress: show it; for one process of the run.
    """

    def __init__(self, loaders: ShardLoaders, progress: bool) -> None:
        self.loaders = loaders
        self.progress = progress
        #: Samples this process has encoded, and the seconds it took.
        self.samples = 0
        self.seconds = 0.0
        self._pool: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._bar: Progress | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the writing thread and the clock."""
        self._pool = ThreadPoolExecutor(1)
        self._began = self._last_line = time.perf_counter()
        self._total = sum(len(batch) for shard in self.loaders.shards for batch in shard.batches)
        self._title = "embedding"
        if trainer.world_size > 1:
            self._title += f" (process 1 of {trainer.world_size})"
        self._console = Console(stderr=True)
        if self.progress and self._console.is_terminal:
            self._bar = bar("images", self._console)
            self._task = self._bar.add_task(self._title, total=self._total, note="")
            self._bar.start()

    def advance(self, samples: int) -> None:
        """Count a batch."""
        self.samples += samples
        if not self.progress:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.samples)
            return
        now = time.perf_counter()
        if now - self._last_line > PLAIN_EVERY_SECONDS:
            self._last_line = now
            rate = self.samples / (now - self._began)
            left = (self._total - self.samples) / rate if rate else float("nan")
            self._console.print(
                f"{self._title}  {self.samples:,}/{self._total:,} images  {rate:,.0f} images/s  "
                f"{left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hand a shard to the writing thread."""
        self._wait()
        assert self._pool is not None
        shard = batch.shard
        writer = self.loaders.writers[shard.split]
        self._writing = self._pool.submit(_write, writer, shard.number, outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last shard."""
        self._wait()
        self.seconds = time.perf_counter() - self._began
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back; what was handed over is still written."""
        self._close()

    def _wait(self) -> None:
        """Wait for the shard before: at most two are in memory, and its error ends the run."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        if self._bar is not None:
            self._bar.stop()


def _write(writer: SplitWriter, number: int, embedded: Embedded) -> None:
    """Fetch a shard from the device, waiting for what is still computed, and write it."""
    writer.write(number, embedded.positions.numpy(), embedded.rows.cpu().numpy())
