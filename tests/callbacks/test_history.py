"""The history of a run: what it says of its loss."""

from types import SimpleNamespace

import pytest
import torch

from noisyml.callbacks.history import History


def trained(history, losses, start=0):
    """Hand a history the losses of some steps."""
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    trainer = SimpleNamespace(
        num_training_batches=1000, current_epoch=0, optimizers=[optimizer], loggers=[]
    )
    for step, loss in enumerate(losses, start + 1):
        trainer.global_step = step
        history.on_train_batch_end(trainer, None, {"loss": torch.tensor(loss)}, {}, step)
    history.on_train_end(trainer, None)


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([2.0, 1.5], False),
        ([2.0, 199.0], False),
        ([2.0, 201.0], True),
        # What is near 0 at first, or negative, may rise to usual values.
        ([1e-6, 50.0], False),
        ([-3.0, 299.0], False),
        ([-3.0, 301.0], True),
    ],
)
def test_a_loss_that_rose_out_of_all_proportion_is_said(tmp_path, caplog, losses, diverged):
    trained(History(str(tmp_path / "history.csv"), every_n_steps=1), losses)
    assert ("training diverged" in caplog.text) is diverged


def test_the_first_loss_outlives_an_interruption(tmp_path, caplog):
    history = History(str(tmp_path / "history.csv"), every_n_steps=1)
    trained(history, [0.5])
    again = History(str(tmp_path / "history.csv"), every_n_steps=1)
    again.load_state_dict(history.state_dict())
    trained(again, [1e5], start=1)
    assert "rose from 0.5 in the first step to 1e+05" in caplog.text
