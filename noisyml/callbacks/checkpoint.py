"""Checkpoints that survive a kill at any moment and from which a run continues bit for bit."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from noisyml import distributed
from noisyml.checks import Checked, Count
from noisyml.errors import UserError
from noisyml.methods.base import Method
from noisyml.metrics.base import is_lower_better
from noisyml.storage.files import atomic
from noisyml.storage.reading import reading

#: Stands for the metric that the method's first evaluator goes by.
HEADLINE = "headline"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a kill leaves the old file or the new one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`."""
        # The next attempt writes over what a kill left behind: checkpoints are large.
        with (
            atomic(Path(path), durable=True, sole_writer=True) as temporary,
            temporary.open("wb") as file,
        ):
            torch.save(checkpoint, file)

    def load_checkpoint(
        self,
        path: Any,
        map_location: Any = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """The content of a checkpoint of the run.

        Raises:
            DamagedFileError: it is cut off, empty, or no checkpoint.
        """
        with reading(Path(path), "put a copy of it there; without last.ckpt a run begins anew"):
            found: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
            missing = {"state_dict", "global_step", "epoch"} - set(found)
            if missing:
                raise ValueError(f"it lacks {min(missing)}")
        return found


def random_state() -> dict[str, Any]:
    """The states of all global generators, made of tensors and plain numbers."""
    _, key, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (torch.from_numpy(np.asarray(key).copy()), position, has_gauss, gauss),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    key, *rest = state["numpy"]
    np.random.set_state(("MT19937", key.numpy(), *rest))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def with_headline(metric: str, method: Method) -> str:
    """A metric by its own name, where ``headline`` stands for it: ``val/headline``."""
    split, slash, name = metric.rpartition("/")
    return f"{split}{slash}{method.headline}" if name == HEADLINE else metric


def _name(metric: str) -> str:
    """Name of a metric without its split: of ``val/accuracy/cat`` it is ``accuracy/cat``."""
    return metric.removeprefix("on_test/").partition("/")[2]


class RunCheckpoints(Checked, Checkpoint):
    """Keeps ``last.ckpt`` (to continue from), the best by chosen metrics, the last few epochs.

    Args:
        folder: where checkpoints go.
        every_n_steps: also write ``last.ckpt`` every so many steps inside an epoch; null: only at
            the end of epochs.
        best: file stem to the metric it follows, e.g. ``{best: val/map_at_r}``; ``headline`` in
            the place of a metric is the one that the method's first evaluator goes by.
        mode: ``max`` if larger metrics are better, else ``min``; None: as the evaluators say.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: Count | None = None,
        best: Mapping[str, str | None] | None = None,
        mode: Literal["max", "min"] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.best = {stem: metric for stem, metric in (best or {}).items() if metric}
        self.mode = mode
        #: Of how many last epochs the weights are kept, see `epoch_path`.
        self.last_epochs = 0
        #: Best value and the number of epochs done when it was reached, by file stem.
        self.reached: dict[str, tuple[float, int]] = {}
        #: The metric of each stem that was undefined when it was looked at last.
        self.undefined: dict[str, str] = {}
        self._random: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out which metric the headline is."""
        if isinstance(pl_module, Method):
            self.best = {
                stem: with_headline(metric, pl_module) for stem, metric in self.best.items()
            }

    @property
    def last(self) -> Path:
        """The checkpoint to continue from."""
        return self.folder / "last.ckpt"

    def path(self, stem: str) -> Path:
        """The checkpoint named `stem`."""
        return self.folder / f"{stem}.ckpt"

    def why_missing(self, stem: str) -> str:
        """The reason why there is no checkpoint named `stem`, as a clause."""
        if stem in self.undefined:
            return f"{self.undefined[stem]}, which it follows, was undefined in every epoch"
        if stem in self.best:
            return f"{self.best[stem]}, which it follows, was not computed"
        return f"callbacks.checkpoint.best.{stem} names no metric"

    def epoch_path(self, epochs_done: int) -> Path:
        """Weights as they were after so many epochs; kept for `last_epochs`."""
        return self.path(f"epoch_{epochs_done:04d}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let passes over a split before an epoch see the statistics that a checkpoint holds."""
        distributed.agree_on_statistics(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write ``last.ckpt`` inside an epoch; its end is left to `on_train_epoch_end`."""
        if (
            self.every_n_steps is not None
            and trainer.global_step % self.every_n_steps == 0
            and batch_idx + 1 < trainer.num_training_batches
        ):
            trainer.save_checkpoint(self.last)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the best and write ``last.ckpt``."""
        for stem, metric in self.best.items():
            split = metric.partition("/")[0] + "/"
            computed = sorted(n for n in trainer.callback_metrics if n.startswith(split))
            if not computed:
                continue
            if metric not in computed:
                raise UserError(
                    f"callbacks.checkpoint.best.{stem} follows {metric}, which the evaluator does "
                    f"not compute: set it to one of {', '.join(computed)}, or to null."
                )
            value = float(trainer.callback_metrics[metric])
            if math.isnan(value):
                self.undefined[stem] = metric
            sign = self._sign(metric, pl_module)
            before = self.reached.get(stem, (-sign * math.inf, 0))[0]
            if not math.isnan(value) and sign * value > sign * before:
                self.reached[stem] = (value, trainer.current_epoch + 1)
                trainer.save_checkpoint(self.path(stem))
        if self.last_epochs:
            # Before last.ckpt: what a run is continued from never lacks the epochs before it.
            done = trainer.current_epoch + 1
            trainer.save_checkpoint(self.epoch_path(done), weights_only=True)
            if trainer.is_global_zero:
                self.epoch_path(done - self.last_epochs).unlink(missing_ok=True)
        trainer.save_checkpoint(self.last)

    def _sign(self, metric: str, method: LightningModule) -> float:
        """1 if larger values of a metric are better, else -1."""
        if self.mode is not None:
            return 1.0 if self.mode == "max" else -1.0
        lower = isinstance(method, Method) and is_lower_better(method.evaluators, _name(metric))
        return -1.0 if lower else 1.0

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the states of the random generators."""
        checkpoint["random_state"] = random_state()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the states of the random generators until training starts."""
        self._random = checkpoint.get("random_state")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the generators last, after everything that may draw from them at start-up."""
        for metric in self.best.values():
            if trainer.limit_val_batches == 0:
                raise UserError(f"The best model by {metric} needs validation, which is off.")
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def state_dict(self) -> dict[str, Any]:
        """Best values reached so far."""
        return {"reached": {stem: list(pair) for stem, pair in self.reached.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.reached = {k: (float(v), int(e)) for k, (v, e) in state_dict["reached"].items()}
