"""The trainer of all verbs: what does nothing is not called, what does something is."""

import lightning
import pytest
import torch
from lightning import Callback, LightningModule
from lightning.pytorch.profilers import SimpleProfiler
from omegaconf import OmegaConf

from noisyml.apps._common.trainer import BATCH_HOOKS, NoProfiler, leave_out_idle_hooks, make_trainer

NODE = OmegaConf.create(
    {"_target_": "lightning.Trainer", "accelerator": "cpu", "devices": 1, "max_epochs": 1}
)
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Counting(Callback):
    """Counts the ends of batches."""

    def __init__(self):
        self.batches = 0

    def on_train_batch_end(self, *arguments):
        self.batches += 1


class Line(LightningModule):
    """A line, fitted to zeros."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        self.after = 0

    def training_step(self, batch, batch_idx):
        return self.line(batch).square().mean()

    def on_after_backward(self):
        self.after += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_hooks_that_are_filled_in_are_called_and_the_others_are_gone():
    counting, line = Counting(), Line()
    leave_out_idle_hooks(line)
    trainer = make_trainer(NODE, [counting], **QUIET)
    trainer.fit(line, torch.utils.data.DataLoader(torch.ones(6, 1), batch_size=2))
    assert counting.batches == line.after == 3
    left = {hook for hook in BATCH_HOOKS if getattr(counting, hook) is not None}
    assert left == {"on_train_batch_end"}
    assert {h for h in BATCH_HOOKS if getattr(line, h) is not None} == {"on_after_backward"}


def test_every_hook_of_a_batch_is_one_of_lightnings():
    for hook in BATCH_HOOKS:
        assert callable(getattr(LightningModule, hook)), hook


def test_a_hook_given_as_a_function_stays():
    called = []
    callback = lightning.pytorch.callbacks.LambdaCallback(
        on_train_batch_end=lambda *arguments: called.append(1)
    )
    leave_out_idle_hooks(callback)
    callback.on_train_batch_end()
    assert called == [1]
    assert callback.on_train_batch_start is None


@pytest.mark.parametrize("chosen", [None, "simple"])
def test_a_profiler_that_was_chosen_stays(chosen):
    trainer = make_trainer(OmegaConf.merge(NODE, {"profiler": chosen}), [], **QUIET)
    assert isinstance(trainer.profiler, SimpleProfiler if chosen else NoProfiler)
