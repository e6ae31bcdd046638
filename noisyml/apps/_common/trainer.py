"""Lightning's trainer for all verbs, without the calls that do nothing.

A trainer calls six hooks of every callback and of the method in each step, and wraps each call for
a profiler. On cached features, where a step takes two milliseconds, that is what a run spends most
beyond the network (`scripts/bench_training.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig

from noisyml.apps._common.direct_steps import DirectEpochLoop
from noisyml.assembly.nodes import build

#: Hooks that a trainer calls once a batch of training; those of evaluation must be functions.
BATCH_HOOKS = (
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward"),
    *("on_after_backward", "on_before_optimizer_step"),
)


class NoProfiler(PassThroughProfiler):
    """The profiler of a trainer that has none, with one context for all that it wraps."""

    _context = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        """A context that does nothing."""
        return self._context


def make_trainer(node: DictConfig, callbacks: Iterable[Callback], **settings: Any) -> Trainer:
    """Build the trainer of a configuration.

    Args:
        node: ``trainer`` of the configuration.
        callbacks: of the verb; those that Lightning brings join them.
        **settings: of the verb, on top of the node's.
    """
    if node.get("profiler") is None:
        settings["profiler"] = NoProfiler()
    trainer: Trainer = build(node, callbacks=list(callbacks), **settings)
    loop = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = DirectEpochLoop(trainer, loop.min_steps, loop.max_steps)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        leave_out_idle_hooks(callback)
    return trainer


def leave_out_idle_hooks(part: Callback | LightningModule) -> None:
    """Keep a trainer from calling the hooks of a batch that a part has not filled in."""
    base = Callback if isinstance(part, Callback) else LightningModule
    for hook in BATCH_HOOKS:
        if getattr(part, hook, None) is not None and _is_idle(part, hook, base):
            setattr(part, hook, None)


def _is_idle(part: Callback | LightningModule, hook: str, base: type) -> bool:
    mine = getattr(getattr(part, hook), "__func__", None)
    return mine is not None and mine is getattr(base, hook, None)
