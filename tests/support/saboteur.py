"""Callbacks that end their own process, as a power cut or Ctrl-C would."""

import os
import signal
from pathlib import Path

from lightning import Callback


class KillAt(Callback):
    """SIGKILL after `step` optimiser steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Kill."""
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class InterruptAt(Callback):
    """Ctrl-C after `step` optimiser steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Interrupt."""
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


class KillOnceIn(Callback):
    """SIGKILL after `step` optimiser steps of the run in the folder `name`, the first time."""

    def __init__(self, step: int, name: str, marker: str) -> None:
        self.step = step
        self.name = name
        self.marker = Path(marker)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Kill, and leave the marker."""
        here = Path(trainer.default_root_dir).name == self.name
        if here and trainer.global_step == self.step and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class KillWhileLabelling(Callback):
    """SIGKILL after so many writes of pseudo-labels of the run in the folder `name`, once."""

    def __init__(self, writes: int, name: str, marker: str) -> None:
        self.writes = writes
        self.name = name
        self.marker = Path(marker)

    def on_fit_start(self, trainer, pl_module) -> None:
        """Lie in wait: the method labels after this."""
        from noisyml.methods.pseudo_label_files import PseudoLabelFolder

        if Path(trainer.default_root_dir).name != self.name or self.marker.exists():
            return
        write, left = PseudoLabelFolder._write, [self.writes]

        def last_write(file, content):
            write(file, content)
            left[0] -= 1
            if not left[0]:
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        PseudoLabelFolder._write = staticmethod(last_write)
