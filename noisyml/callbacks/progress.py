"""One live line per run: where it is, how fast, how long it will take, what it has reached."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from noisyml.callbacks.checkpoint import HEADLINE, with_headline
from noisyml.checks import Checked, NonNegative
from noisyml.methods.base import Method
from noisyml.runs.progress import bar


class LiveProgress(Checked, ProgressBar):
    """A bar over all steps of the run; where there is no terminal, a line now and then.

    Args:
        title: shown before the bar.
        metric: the validation metric to show; ``headline``: see `RunCheckpoints`.
        plain_every_seconds: seconds between lines where there is no terminal.
    """

    def __init__(
        self, title: str = "", metric: str = HEADLINE, plain_every_seconds: NonNegative = 30.0
    ) -> None:
        super().__init__()
        self.title = title
        self.metric = metric
        self.plain_every_seconds = plain_every_seconds
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._enabled = True
        self._last_line = 0.0
        self._loss = float("nan")

    def disable(self) -> None:
        """Show nothing (Lightning calls this on all ranks but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        if isinstance(pl_module, Method):
            self.metric = with_headline(self.metric, pl_module)
        if not self._enabled:
            return
        total = int(trainer.estimated_stepping_batches)
        self._began, self._began_at = time.monotonic(), trainer.global_step
        self._last_line = self._began
        if self.console.is_terminal:
            self._bar = bar("steps", self.console)
            self._task = self._bar.add_task(escape(self.title), total=total, note="")
            self._bar.start()
            self._bar.update(self._task, completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar."""
        if not self._enabled:
            return
        step = trainer.global_step
        if step % 10 == 0 or self._loss != self._loss:
            self._loss = float(outputs["loss"])
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=self._note(trainer))
        elif time.monotonic() - self._last_line > self.plain_every_seconds:
            self._last_line = time.monotonic()
            self._line(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar and leave one line."""
        self._close()
        if self._enabled:
            self._line(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _note(self, trainer: Trainer) -> str:
        epochs = trainer.max_epochs or 1
        parts = [
            f"epoch {min(trainer.current_epoch + 1, epochs)}/{epochs}",
            f"loss {self._loss:.3f}",
        ]
        value = trainer.callback_metrics.get(f"val/{self.metric}")
        if value is not None:
            parts.append(f"val/{self.metric} {float(value):.3f}")
        return "  ".join(parts)

    def _line(self, trainer: Trainer) -> None:
        done = trainer.global_step - self._began_at
        rate = done / max(time.monotonic() - self._began, 1e-9)
        total = int(trainer.estimated_stepping_batches)
        left = (total - trainer.global_step) / rate if rate else float("nan")
        self.console.print(
            f"{self.title}  step {trainer.global_step}/{total}  {rate:,.0f} steps/s  "
            f"{left:.0f} s left  {self._note(trainer)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
