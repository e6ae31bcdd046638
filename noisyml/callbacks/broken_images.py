"""Which images could not be decoded, where a run was told to skip them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from noisyml.runs import write_atomically


class BrokenImages(Callback):
    """Writes ``broken_images.csv`` (split, index, key) if any image was skipped.

    Args:
        file: the CSV file.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.found: set[int] = set()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note what the loader left out of the batch (known on the host, no transfer)."""
        if len(batch["broken"]):
            self.found.update(batch["broken"].tolist())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the list."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        broken = {name: set(positions) for name, positions in data.broken().items()}
        broken["train"] = broken.get("train", set()) | self.found
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

    def state_dict(self) -> dict[str, Any]:
        """What was found so far."""
        return {"found": sorted(self.found)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with what was found."""
        self.found = set(state_dict["found"])
