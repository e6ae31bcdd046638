"""Embedding whole splits: which process encodes which rows, and how they reach the disk.

The unit of work is a shard of consecutive positions, encoded in batches that start at its first
position. Neither depends on the number of processes or on what an earlier attempt has finished, so
every process feeds the network the batches that a single uninterrupted one would.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
from noisyml.callbacks.progress import bar
from noisyml.data.datamodule import DataModule
from noisyml.data.views import Batch
from noisyml.embeddings import SplitWriter
from noisyml.models.backbones import Backbone

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
        """Features [B, F] of a batch with ``image`` (uint8 [B, C, H, W]) or ``features``."""
        if "features" in batch:
            return self.backbone.finish(batch["features"].to(self.backbone.feature_mean.dtype))
        features: Tensor = self.backbone(batch["image"])
        return features


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over a network's layout, settings, weights and buffers (saved ones and others)."""
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


def observed_labels(data: DataModule, name: str) -> NDArray[np.int64]:
    """The labels [N] int64 of a split as a run observes them: with its noise, if it has any."""
    if name == "train":
        return data.manifest.observed
    if name == "val" and data.val_labels is not None:
        return data.val_labels
    return data.splits[name].labels


class Piece(NamedTuple):
    """One batch of the work: part of a shard of a split."""

    split: str
    shard: int
    positions: NDArray[np.int64]
    #: True for the last batch of the shard.
    closes: bool


class ShardBatches:
    """The batches of this process, split after split, shard after shard.

    Args:
        pieces: what to load, in order.
        loaders: one loader per split; the data set, collate function and workers are taken from it.
    """

    def __init__(self, pieces: list[Piece], loaders: Mapping[str, DataLoader[Any]]) -> None:
        self.pieces = pieces
        self.loaders = loaders

    def __len__(self) -> int:
        return len(self.pieces)

    def __iter__(self) -> Iterator[Batch]:
        for name, like in self.loaders.items():
            batches = [piece.positions for piece in self.pieces if piece.split == name]
            if batches:
                yield from DataLoader(
                    like.dataset,
                    batch_sampler=batches,  # type: ignore[arg-type]  # arrays serve as lists
                    collate_fn=like.collate_fn,
                    num_workers=like.num_workers,
                    pin_memory=like.pin_memory,
                    generator=like.generator,
                )


class ShardLoaders(LightningDataModule):
    """Serves the shards that are still missing, dealt out to the processes in turn.

    Args:
        data: labels prepared.
        writers: by split.
    """

    #: There may be fewer shards than processes.
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(self, data: DataModule, writers: Mapping[str, SplitWriter]) -> None:
        super().__init__()
        self.data = data
        self.writers = writers
        self.pieces: list[Piece] = []

    def prepare_data(self) -> None:
        """Fill the feature cache, if there is one."""
        self.data.trainer = self.trainer
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Open the data and divide the work; no process has written anything yet."""
        self.data.trainer = self.trainer
        self.data.setup(stage)
        missing = [(n, shard) for n, writer in self.writers.items() for shard in writer.pending()]
        mine = missing[distributed.rank() :: distributed.world_size()]
        broken = self.data.broken()
        self.pieces = [
            piece for name, shard in mine for piece in self._pieces(name, shard, broken.get(name))
        ]

    def _pieces(self, name: str, shard: int, broken: list[int] | None) -> Iterator[Piece]:
        plan = self.writers[name].plan
        covered = plan.positions(shard)
        cuts = range(0, len(covered), plan.batch_size)
        for start in cuts:
            batch = covered[start : start + plan.batch_size]
            if broken:
                batch = np.setdiff1d(batch, broken)
            yield Piece(name, shard, batch, closes=start == cuts[-1])

    def predict_dataloader(self) -> ShardBatches:
        """The batches of this process."""
        nothing = np.empty(0, dtype=np.int64)
        loaders = {name: self.data.predict_dataloader(name, nothing) for name in self.writers}
        return ShardBatches(self.pieces, loaders)


class Extractor(LightningModule):
    """Runs an encoder on batches.

    Args:
        encoder: batch to embeddings [b, D]; with ``out_features`` D.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Embeddings [b, D] float32; none if no image of the batch could be decoded."""
        if not len(batch["index"]):
            return torch.empty((0, int(self.encoder.out_features)), device=self.device)  # type: ignore[arg-type]
        embeddings: Tensor = self.encoder(batch)
        return embeddings.float()


@dataclass
class _OpenShard:
    """Batches of a shard that is not complete yet."""

    positions: list[Tensor]
    rows: list[Tensor]


class ShardWriting(Callback):
    """Collects embeddings and writes a shard when it is complete, beside the computation.

    Args:
        loaders: knows what the batches are.
        progress: show how far this process is.
    """

    def __init__(self, loaders: ShardLoaders, progress: bool) -> None:
        self.loaders = loaders
        self.progress = progress
        #: Samples this process has encoded, and the seconds it took.
        self.samples = 0
        self.seconds = 0.0
        self._open = _OpenShard([], [])
        self._pool: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._bar: Progress | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the writing thread and the clock."""
        self._pool = ThreadPoolExecutor(1)
        self._began = self._last_line = time.perf_counter()
        self._total = sum(len(piece.positions) for piece in self.loaders.pieces)
        self._title = "embedding"
        if trainer.world_size > 1:
            self._title += f" (process 1 of {trainer.world_size})"
        self._console = Console(stderr=True)
        if self.progress and self._console.is_terminal:
            self._bar = bar("images", self._console)
            self._task = self._bar.add_task(self._title, total=self._total, note="")
            self._bar.start()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch where it is; hand a complete shard to the writing thread."""
        piece = self.loaders.pieces[batch_idx]
        self._open.positions.append(batch["index"])
        self._open.rows.append(outputs)
        self.samples += len(piece.positions)
        if piece.closes and self._pool is not None:
            self._wait()
            writer = self.loaders.writers[piece.split]
            self._writing = self._pool.submit(_write, writer, piece.shard, self._open)
            self._open = _OpenShard([], [])
        if self.progress:
            self._show(piece.split)

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

    def _show(self, split: str) -> None:
        now = time.perf_counter()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.samples, note=split)
        elif now - self._last_line > PLAIN_EVERY_SECONDS:
            self._last_line = now
            rate = self.samples / (now - self._began)
            self._console.print(
                f"{self._title}  {split}  {self.samples:,}/{self._total:,} images  "
                f"{rate:,.0f} images/s  {(self._total - self.samples) / rate:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )


def _write(writer: SplitWriter, shard: int, complete: _OpenShard) -> None:
    """Fetch a shard from the device, where it may still be computed, and write it."""
    positions = torch.cat(complete.positions).cpu().numpy()
    writer.write(shard, positions, torch.cat(complete.rows).cpu().numpy())
