"""List of the images that could not be decoded, where a run was told to skip them."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from noisyml.storage.files import write_atomically

log = logging.getLogger(__name__)


class BrokenImages(Callback):
    """Writes ``broken_images.csv`` (split, index, key) if any image was skipped.

    Args:
        file: the CSV file.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.found: set[int] = set()
        self.elsewhere: dict[str, set[int]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note what the loader left out of the batch (known on the host, no transfer)."""
        if len(batch["broken"]):
            self.found.update(batch["broken"].tolist())

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
        if len(batch["broken"]):
            data = trainer.datamodule  # type: ignore[attr-defined]
            names = (["val"] if "val" in data.splits else []) + list(data.test_splits)
            self.elsewhere.setdefault(names[dataloader_idx], set()).update(batch["broken"].tolist())

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
        if len(batch["broken"]):
            name = list(trainer.datamodule.test_splits)[dataloader_idx]  # type: ignore[attr-defined]
            self.elsewhere.setdefault(name, set()).update(batch["broken"].tolist())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the list again: the test may have found more."""
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the list."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        broken = {name: set(positions) for name, positions in data.broken().items()}
        for name, positions in {"train": self.found, **self.elsewhere}.items():
            broken[name] = broken.get(name, set()) | positions
        rows = [
            (name, index, data.splits[name].keys[index])
            for name, positions in broken.items()
            for index in sorted(positions)
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

    def state_dict(self) -> dict[str, Any]:
        """Positions found so far."""
        return {"found": sorted(self.found)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with what was found."""
        self.found = set(state_dict["found"])
