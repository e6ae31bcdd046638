"""Why there is no best model."""

import math
from types import SimpleNamespace

import pytest
import torch

from noisyml.callbacks.checkpoint import RunCheckpoints


def _epochs(callback, values):
    saved = []
    trainer = SimpleNamespace(current_epoch=0, is_global_zero=True, save_checkpoint=saved.append)
    for epoch, value in enumerate(values):
        trainer.current_epoch = epoch
        trainer.callback_metrics = {"val/map_at_r": torch.tensor(value)}
        callback.on_train_epoch_end(trainer, None)
    return [path.stem for path in saved]


def test_a_metric_that_was_never_defined_leaves_no_best_model(tmp_path):
    callback = RunCheckpoints(str(tmp_path), best={"best": "val/map_at_r"}, mode="max")
    assert _epochs(callback, [math.nan, math.nan]) == ["last", "last"]
    assert "best" not in callback.reached
    assert callback.why_missing("best") == (
        "val/map_at_r, which it follows, was undefined in every epoch"
    )
    assert _epochs(callback, [math.nan, 0.5]) == ["last", "best", "last"]
    assert callback.reached["best"] == (0.5, 2)


@pytest.mark.parametrize(
    ("best", "reason"),
    [
        ({"best": "val/map_at_r"}, "val/map_at_r, which it follows, was not computed"),
        ({"best": None}, "callbacks.checkpoint.best.best names no metric"),
    ],
)
def test_other_reasons(tmp_path, best, reason):
    assert RunCheckpoints(str(tmp_path), best=best).why_missing("best") == reason
