"""A callback that kills its own process, as a power cut would."""

import os
import signal

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
