"""``history.csv``: one row per logged step, one column per metric; loggers get the same rows."""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from noisyml.checks import Checked, Count
from noisyml.errors import UserError
from noisyml.storage.files import atomic, write_atomically

log = logging.getLogger(__name__)

#: A run has diverged whose loss is so many times that of its first step, or of 1 if that is more.
DIVERGED = 100.0
#: Name, without suffix, of the file that keeps the batch of a loss that is no number.
BAD_BATCH = "not_finite"


class History(Checked, Callback):
    """Writes metrics over steps and measures the time of a step.

    Args:
        file: the CSV file.
        every_n_steps: how often the training loss is logged, in steps; with it, as
            ``train/loss_NAME``, the ``terms`` of it that a method names.
    """

    #: Steps whose duration is not counted: they pay for allocations and caches.
    warmup_steps = 5

    def __init__(self, file: str, every_n_steps: Count = 10) -> None:
        self.file = Path(file)
        self.every_n_steps = every_n_steps
        self.rows: list[dict[str, Any]] = []
        self._steps_timed = 0
        self._seconds = 0.0
        self._samples_timed = 0
        self._steps_here = 0
        self._clock: float | None = None
        #: The loss of the first step that was looked at.
        self._first_loss: float | None = None

    @property
    def step_seconds(self) -> float:
        """Mean wall time of a training step in seconds, data loading included; NaN if unknown."""
        return self._seconds / self._steps_timed if self._steps_timed else float("nan")

    @property
    def samples_per_second(self) -> float:
        """Samples of the global batch a second, over the steps that count; NaN if unknown."""
        return self._samples_timed / self._seconds if self._steps_timed else float("nan")

    def latest(self, prefix: str) -> dict[str, float]:
        """The last logged values of the metrics whose names start with `prefix`."""
        values: dict[str, float] = {}
        for row in self.rows:
            values.update({k: v for k, v in row.items() if k.startswith(prefix)})
        return values

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up the rows of an interrupted run, up to the step it is continued from."""
        if self.file.is_file():
            with self.file.open(newline="", encoding="utf-8") as file:
                rows = [
                    {key: _number(value) for key, value in row.items() if value not in ("", None)}
                    for row in csv.DictReader(file)
                ]
            self.rows = [row for row in rows if row["step"] <= checkpoint["global_step"]]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; time between epochs (validation) does not count."""
        self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the loss now and then; a loss that is not a number ends the run."""
        now = time.perf_counter()
        self._steps_here += 1
        if self._clock is not None and self._steps_here > self.warmup_steps:
            self._seconds += now - self._clock
            self._steps_timed += 1
            self._samples_timed += len(batch["index"]) * trainer.world_size
        self._clock = now
        logged = (
            not trainer.global_step % self.every_n_steps
            or batch_idx + 1 >= trainer.num_training_batches
        )
        # A loss on the CPU is looked at in every step; reading one from a device would wait for it.
        if not logged and outputs["loss"].device.type != "cpu":
            return
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise UserError(self._not_finite(trainer, loss, batch))
        if self._first_loss is None:
            self._first_loss = loss
        if not logged:
            return
        row = {"train/loss": loss}
        row |= {f"train/loss_{name}": float(x) for name, x in outputs.get("terms", {}).items()}
        for number, group in enumerate(trainer.optimizers[0].param_groups):
            row[f"lr/{group.get('name', number)}"] = float(group["lr"])
        self.add(trainer, row)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics of the validation split."""
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("val/", "on_test/"))
        }
        if metrics and not trainer.sanity_checking:
            self.add(trainer, metrics)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the file: it must know what a checkpoint knows."""
        self.write()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rest; say so if the training diverged."""
        self.write()
        losses = [row["train/loss"] for row in self.rows if "train/loss" in row]
        first = self._first_loss
        if losses and first is not None and losses[-1] > DIVERGED * max(1.0, abs(first)):
            log.warning(
                "The training loss rose from %.4g in the first step to %.4g in the last: training "
                "diverged; lower optimizer.lr.",
                first,
                losses[-1],
            )

    def _not_finite(self, trainer: Trainer, loss: float, batch: Mapping[str, Any]) -> str:
        """The sentence for a loss that is no number, whose batch is kept beside the history."""
        rank = "" if trainer.world_size == 1 else f"_rank{trainer.global_rank}"
        file = self.file.with_name(f"{BAD_BATCH}{rank}.npz")
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        arrays = {
            name: (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
            for name, value in tensors.items()
        }
        with atomic(file) as temporary, temporary.open("wb") as opened:
            np.savez_compressed(opened, allow_pickle=False, **arrays)
        index = batch["index"].tolist()
        samples = ", ".join(map(str, index[:8])) + (", ..." if len(index) > 8 else "")
        return (
            f"The training loss became {loss} in epoch {trainer.current_epoch}, step "
            f"{trainer.global_step}, on the samples {samples} of the training split, which are "
            f"kept in {file}; lower optimizer.lr or check the data."
        )

    def add(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Add a row and hand it to the loggers."""
        step, epoch = trainer.global_step, trainer.current_epoch
        self.rows.append({"step": step, "epoch": epoch, **metrics})
        for logger in trainer.loggers:
            logger.log_metrics({**metrics, "epoch": epoch}, step=step)

    def write(self) -> None:
        """Write all rows so far."""
        columns = dict.fromkeys(["step", "epoch"])
        for row in self.rows:
            columns.update(dict.fromkeys(row))
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.file, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """The time measured so far, and the first loss."""
        return {
            "steps_timed": self._steps_timed,
            "seconds": self._seconds,
            "first_loss": self._first_loss,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue measuring."""
        self._steps_timed, self._seconds = state_dict["steps_timed"], state_dict["seconds"]
        self._first_loss = state_dict.get("first_loss")


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
