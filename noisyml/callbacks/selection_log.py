"""What the selector decided, kept per sample, and how right it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from noisyml.callbacks.history import History
from noisyml.columns import to_column
from noisyml.metrics.label_trust import (
    class_selection,
    entry_selection_metrics,
    selection_metrics,
    suspicion_precision,
)
from noisyml.noise.manifest import NoiseManifest, SampleState


class SelectionLog(Callback):
    """Writes ``selection.parquet`` and logs ``selection/*`` once per epoch.

    The manifest enters here and nowhere in training: true labels score the selector, they never
    reach a gradient, a threshold or the choice of a model.

    Args:
        file: the Parquet file, columns ``index, p_clean, kept, epoch``; one row group per epoch.
            Of a selector that judges the entries of multi-label samples, ``p_clean`` and ``kept``
            are lists with a value per class. Where a method suspects a class in each sample, its
            number is in ``suspected``.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.parts = self.file.with_name(f".{self.file.stem}.parts")
        self.manifest: NoiseManifest | None = None
        self._seen: list[tuple[Tensor, ...]] = []
        self.last_metrics: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the judgement of the batch (on its device; it is read once per epoch)."""
        if "selection" in outputs:
            selection = outputs["selection"]
            judged = [outputs["index"], selection.keep, selection.p_clean.to(torch.float32)]
            if selection.suspected is not None:
                judged.append(selection.suspected)
            self._seen.append(tuple(judged))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score and store the epoch."""
        if not self._seen:
            return
        # What a checkpoint brought back lies on the host, what came since on the device.
        index, keep, p_clean, *suspected = (
            torch.cat([part.to(column[-1].device) for part in column]).cpu()
            for column in zip(*self._seen, strict=True)
        )
        self._seen = []
        self.last_metrics = self._metrics(index, keep, p_clean, *suspected)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, History):
                callback.add(trainer, self.last_metrics)
        if trainer.is_global_zero:
            columns = {
                "index": index.numpy(),
                "p_clean": to_column(p_clean.numpy()),
                "kept": to_column(keep.numpy()),
                "epoch": pa.array([trainer.current_epoch] * len(index), pa.int32()),
            }
            if suspected:
                columns["suspected"] = suspected[0].numpy()
            table = pa.table(columns)
            self.parts.mkdir(parents=True, exist_ok=True)
            part = self.parts / f"{trainer.current_epoch:06d}.parquet"
            temporary = part.with_suffix(".tmp")
            pq.write_table(table, temporary)
            temporary.replace(part)

    def _metrics(
        self, index: Tensor, keep: Tensor, p_clean: Tensor, suspected: Tensor | None = None
    ) -> dict[str, float]:
        kept = {"selection/kept": float(keep.double().mean())}
        if self.manifest is None:
            return kept
        # Of a set with real noise only the samples that were looked at by hand can be scored.
        known = torch.from_numpy(self.manifest.state != SampleState.UNKNOWN)[index]
        if not known.any():
            return kept
        keep, p_clean, index = keep[known], p_clean[known], index[known]
        # A sample of several labels is wrong if any of its entries is.
        changed = self.manifest.changed if keep.ndim == 2 else self.manifest.wrong
        wrong = torch.from_numpy(changed.copy())[index]
        score = entry_selection_metrics if keep.ndim == 2 else selection_metrics
        scores = score(keep, p_clean, wrong)
        if suspected is not None:
            entries = torch.from_numpy(self.manifest.changed.copy())[index]
            scores["suspected_precision"] = suspicion_precision(keep, suspected[known], entries)
        if self.manifest.kind == "single":
            labels = torch.from_numpy(self.manifest.observed.copy())[index]
            recall = class_selection(keep, wrong, labels, self.manifest.num_classes)["recall"]
            defined = recall[~recall.isnan()]
            scores["recall_min_class"] = float(defined.min()) if len(defined) else float("nan")
        return {f"selection/{name}": value for name, value in scores.items()} | kept

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the epochs into one file."""
        if not (trainer.is_global_zero and self.parts.is_dir()):
            return
        parts = sorted(self.parts.glob("*.parquet"))
        # An interrupted run may have stored epochs that its checkpoint does not know: they were
        # trained again and overwritten, and nothing lies beyond the last epoch.
        temporary = self.file.with_suffix(".tmp")
        with pq.ParquetWriter(temporary, pq.read_schema(parts[0])) as writer:
            if self.file.is_file():
                # A finished run that trains on keeps the epochs it had.
                first = int(parts[0].stem)
                writer.write_table(pq.read_table(self.file, filters=[("epoch", "<", first)]))
            for part in parts:
                writer.write_table(pq.read_table(part))
        temporary.replace(self.file)
        for part in parts:
            part.unlink()
        self.parts.rmdir()

    def state_dict(self) -> dict[str, Any]:
        """The judgements of the epoch under way, and the scores of the last one."""
        return {
            "seen": [tuple(t.cpu() for t in judged) for judged in self._seen],
            "last_metrics": dict(self.last_metrics),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the epoch under way."""
        self._seen = [tuple(judged) for judged in state_dict["seen"]]
        self.last_metrics = dict(state_dict["last_metrics"])
