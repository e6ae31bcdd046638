"""Log of the selector's decisions per sample, and their agreement with the truth."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from noisyml.callbacks.history import History
from noisyml.metrics.label_trust import (
    class_selection,
    network_exclusions,
    selection_scores,
    suspicion_precision,
)
from noisyml.noise.manifest import NoiseManifest, SampleState
from noisyml.runs.folder import ADVICE
from noisyml.selectors.base import Facts, Selection
from noisyml.storage.files import atomic
from noisyml.storage.parquet import from_column, to_column
from noisyml.storage.reading import reading
from noisyml.targets.entries import as_judged, entry_classes

#: Scores are random to the last digit: their bytes compress one place at a time, by no dictionary.
STORED: dict[str, Any] = {
    "compression": "lz4",  # zstd: 3 to 7 % smaller in one and a half times the time
    "use_dictionary": ["epoch", "prediction"],
    "use_byte_stream_split": [
        *("index", "p_clean", "p_clean.list.element", "log_odds", "log_odds.list.element"),
        *("loss", "margin"),
    ],
}


#: What stands in the ledger for a sample of which nothing was noted, by column.
UNKNOWN: Mapping[str, float] = {"loss": float("nan"), "margin": float("nan"), "prediction": -1}
_TYPES = {"loss": torch.float32, "margin": torch.float32, "prediction": torch.int32}

#: So many numbers of batches wait until they are made columns of: 4 MiB.
AT_ONCE = 2**20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Judged:
    """Selection and facts of a batch of samples.

    Attributes:
        index: positions in the training split [B].
        selection: of these.
        facts: of these, if the method notes any.
    """

    index: Tensor
    selection: Selection
    facts: Facts | None

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for batches of which columns can be made together."""
        selection, facts = self.selection, self.facts
        named = None if facts is None else (facts.then, *facts.rows)
        return selection.log_odds is None, tuple(selection.extras), named

    @property
    def numbers(self) -> int:
        """Numbers that it holds."""
        rows = [] if self.facts is None else self.facts.rows.values()
        return 3 * self.selection.keep.numel() + sum(row.numel() for row in rows)


class SelectionLog(Callback):
    """Writes ``selection.parquet`` and logs ``selection/*`` once per epoch.

    The manifest enters here and nowhere in training: true labels score the selector, they never
    reach a gradient, a threshold or the choice of a model.

    Args:
        file: the Parquet file, columns ``index, p_clean, kept, epoch``; one row group per epoch.
            Of a selector that judges the entries of multi-label samples, ``p_clean`` and ``kept``
            are lists with a value per class. Where selections have them, ``log_odds`` stands beside
            ``p_clean``. Where a method suspects a class in each sample, its
            number is in ``suspected``; where two networks judge, what each keeps is in
            ``kept_first`` and ``kept_second``. What a method notes of every sample, whatever the
            selector, stands beside these, see `Facts`: ``loss``; ``margin`` (of class scores the
            own one less the largest other one, of several labels that of the entry which has the
            least, of embeddings see `batch_margin`); ``prediction`` of methods that classify. A
            method that judges no label has no such file.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.parts = self.file.with_name(f".{self.file.stem}.parts")
        self.manifest: NoiseManifest | None = None
        self._waiting: list[_Judged] = []
        self._numbers = 0
        self._seen: list[dict[str, Tensor]] = []
        self.last_metrics: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the judgement of the batch (on its device; it is read once per epoch)."""
        if "selection" not in outputs or not len(outputs["index"]):
            return
        judged = _Judged(outputs["index"], outputs["selection"], outputs.get("facts"))
        if self._waiting and self._waiting[-1].kind != judged.kind:
            self._work_out()
        self._waiting.append(judged)
        self._numbers += judged.numbers
        if self._numbers >= AT_ONCE:
            self._work_out()

    def _work_out(self) -> None:
        """Make columns of the batches that wait, all in one go."""
        if self._waiting:
            self._seen.append(_columns(self._waiting))
        self._waiting, self._numbers = [], 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score and store the epoch."""
        self._work_out()
        if not self._seen:
            return
        # What a checkpoint brought back lies on the host, what came since on the device.
        device = self._seen[-1]["index"].device
        judged = {
            name: torch.cat([_column(part, name).to(device) for part in self._seen]).cpu()
            for name in dict.fromkeys(name for part in self._seen for name in part)
        }
        self._seen = []
        self.last_metrics = self._metrics(judged)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, History):
                callback.add(trainer, self.last_metrics)
        if trainer.is_global_zero:
            columns = {name: to_column(values.numpy()) for name, values in judged.items()}
            epoch = np.full(len(judged["index"]), trainer.current_epoch, dtype=np.int32)
            part = self.parts / f"{trainer.current_epoch:06d}.parquet"
            table = pa.table({**columns, "epoch": epoch})
            with atomic(part, sole_writer=True) as temporary:
                pq.write_table(table, temporary, row_group_size=len(table), **STORED)

    def _metrics(self, judged: Mapping[str, Tensor]) -> dict[str, float]:
        kept = {"selection/kept": float(judged["kept"].double().mean())}
        if self.manifest is None:
            return kept
        # Of a set with real noise only the samples that were looked at by hand can be scored.
        known = torch.from_numpy(self.manifest.state != SampleState.UNKNOWN)[judged["index"]]
        if not known.any():
            return kept
        if not known.all():
            judged = {name: values[known] for name, values in judged.items()}
        index, keep = judged["index"], judged["kept"]
        trust = judged.get("log_odds", judged["p_clean"])
        # A sample of several labels is wrong if any of its entries is.
        changed = as_judged(self.manifest.changed, entry_classes(keep))
        wrong = torch.from_numpy(changed.copy())[index]
        scores = selection_scores(keep, trust, wrong)
        if "suspected" in judged:
            entries = torch.from_numpy(self.manifest.changed.copy())[index]
            scores["suspected_precision"] = suspicion_precision(keep, judged["suspected"], entries)
        networks = {
            name.removeprefix("kept_"): values
            for name, values in judged.items()
            if name.startswith("kept_")
        }
        if networks:
            scores |= network_exclusions(networks, wrong)
        if self.manifest.target.exclusive:
            labels = torch.from_numpy(self.manifest.observed.copy())[index]
            recall = class_selection(keep, wrong, labels, self.manifest.num_classes)["recall"]
            defined = recall[~recall.isnan()]
            scores["recall_min_class"] = float(defined.min()) if len(defined) else float("nan")
        return {f"selection/{name}": value for name, value in scores.items()} | kept

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the epochs into one file."""
        if not trainer.is_global_zero:
            return
        if not self.parts.is_dir():
            if not self.file.is_file():
                log.info(
                    "%s judges no label, so there is no ledger of its samples",
                    type(pl_module).__name__,
                )
            return
        parts = sorted(self.parts.glob("*.parquet"))
        if len(parts) == 1 and not self.file.is_file():
            parts.pop().replace(self.file)  # stored as the whole is
        elif parts:
            self._join(parts)
        for part in parts:
            part.unlink()
        self.parts.rmdir()

    def _join(self, parts: Sequence[Path]) -> None:
        """Write the epochs of `parts` to the file, after those that it has from before."""
        # Epochs of a warm-up alone have no log-odds; the last one has all columns there are.
        schema = _schema(parts[-1])
        # An interrupted run may have stored epochs that its checkpoint does not know: they were
        # trained again and overwritten, and nothing lies beyond the last epoch.
        with (
            atomic(self.file, sole_writer=True) as temporary,
            pq.ParquetWriter(temporary, schema, **STORED) as writer,
        ):
            if self.file.is_file():
                # A finished run that trains on keeps the epochs it had.
                first = int(parts[0].stem)
                with reading(self.file, ADVICE), pq.ParquetFile(self.file) as before:
                    for number in range(before.num_row_groups):
                        epoch = before.read_row_group(number)
                        if epoch["epoch"][0].as_py() < first:
                            writer.write_table(_whole(epoch, schema), row_group_size=len(epoch))
            for part in parts:
                with reading(part, ADVICE):
                    epoch = _whole(pq.read_table(part), schema)
                writer.write_table(epoch, row_group_size=len(epoch))

    def state_dict(self) -> dict[str, Any]:
        """The judgements of the epoch under way, and the scores of the last one."""
        self._work_out()
        return {
            "seen": [{name: t.cpu() for name, t in judged.items()} for judged in self._seen],
            "last_metrics": dict(self.last_metrics),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the epoch under way."""
        self._seen = [dict(judged) for judged in state_dict["seen"]]
        self.last_metrics = dict(state_dict["last_metrics"])


@torch.no_grad()
def _columns(batches: Sequence[_Judged]) -> dict[str, Tensor]:
    """The columns of batches of one kind."""
    selections = [judged.selection for judged in batches]
    columns = {
        "index": torch.cat([judged.index for judged in batches]).to(torch.int32),
        "p_clean": torch.cat([selection.p_clean for selection in selections]).to(torch.float32),
        "kept": torch.cat([selection.keep for selection in selections]),
    }
    odds = [selection.log_odds for selection in selections if selection.log_odds is not None]
    if odds:
        columns["log_odds"] = torch.cat(odds).to(torch.float32)
    for name in selections[0].extras:
        columns[name] = torch.cat([selection.extras[name] for selection in selections])
    facts = [judged.facts for judged in batches if judged.facts is not None]
    if facts:
        columns |= Facts.columns(facts)
    # Mixed precision notes some columns in types that tables do not have.
    halves = (torch.bfloat16, torch.float16)
    return {name: x.float() if x.dtype in halves else x for name, x in columns.items()}


def _schema(part: Path) -> pa.Schema:
    with reading(part, ADVICE):
        return pq.read_schema(part)


def _column(part: Mapping[str, Tensor], name: str) -> Tensor:
    """A column of a batch's judgements; what was not computed is NaN, a prediction -1."""
    if name in part:
        return part[name]
    if name == "log_odds":
        return torch.full_like(part["p_clean"], torch.nan)
    return torch.full((len(part["index"]),), UNKNOWN[name], dtype=_TYPES[name])


def _whole(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with all columns of a schema; what was not computed is NaN, a prediction -1."""
    for name in schema.names:
        if name in table.column_names:
            continue
        if name == "log_odds":
            unknown = np.full_like(from_column(table["p_clean"]), np.nan)
        else:
            unknown = np.full(
                len(table), UNKNOWN[name], dtype=schema.field(name).type.to_pandas_dtype()
            )
        table = table.append_column(name, to_column(unknown))
    return table.select(schema.names).cast(schema)
