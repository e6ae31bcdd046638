"""List of the images that could not be decoded, where a run was told to skip them."""

from __future__ import annotations

import csv
import io
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from noisyml import distributed
from noisyml.storage.files import write_atomically
from noisyml.storage.tables import for_spreadsheet

log = logging.getLogger(__name__)


class BrokenImages(Callback):
    """Writes ``broken_images.csv`` (split, index, key) if any image was skipped.

    Each process meets the broken images of its own batches; all of them are listed.

    Args:
        file: the CSV file.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        #: Positions by split; those of this process, until they are gathered.
        self.found: dict[str, set[int]] = defaultdict(set)
        self._splits: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Learn the names of the splits, in whose order processes compare notes."""
        self._splits = list(trainer.datamodule.splits)  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note what the loader left out of the batch (known on the host, no transfer)."""
        self._note("train", batch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note what is missing from validation."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = (["val"] if "val" in data.splits else []) + list(data.test_splits)
        self._note(names[dataloader_idx], batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note what is missing from the test."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._note(list(data.test_splits)[dataloader_idx], batch)

    def _note(self, split: str, batch: Any) -> None:
        if len(batch["broken"]):
            self.found[split].update(batch["broken"].tolist())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the list again: the test may have found more."""
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the list."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._gather()
        broken = {name: set(positions) for name, positions in data.broken().items()}
        for name, positions in self.found.items():
            broken[name] = broken.get(name, set()) | positions
        rows = [
            (name, index, for_spreadsheet(data.splits[name].keys[index]))
            for name in data.splits
            for index in sorted(broken.get(name, ()))
        ]
        if rows and trainer.is_global_zero:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["split", "index", "key"])
            writer.writerows(rows)
            write_atomically(self.file, text.getvalue())
            log.warning(
                "%d images could not be decoded; they are listed in %s", len(rows), self.file
            )

    def _gather(self) -> None:
        """Add what the other processes found; every process calls it."""
        for name in self._splits:
            mine = torch.tensor(sorted(self.found[name]), dtype=torch.int64)
            everywhere = distributed.gather(mine.to(distributed.collective_device()))
            self.found[name] = set(everywhere.tolist())

    def state_dict(self) -> dict[str, Any]:
        """Positions that all processes found so far: one of them writes the checkpoint."""
        self._gather()
        return {"found": {name: sorted(found) for name, found in self.found.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with what was found."""
        self.found = defaultdict(set)
        for name, positions in state_dict["found"].items():
            self.found[name] = set(positions)
