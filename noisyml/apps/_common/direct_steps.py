"""Training steps without the calls that do nothing.

Lightning walks through some forty hooks in a step: of the method, of every callback, of data
module, strategy and precision. On one device in full precision nearly all of them are empty, and on
cached features, where a step takes two milliseconds, that walk costs more than anything else beyond
the network (`scripts/bench_training.py`). What is computed, and what a checkpoint says of it, is
the same to the bit; where a hook is filled in, the walk is made as Lightning makes it.
"""

from __future__ import annotations

from collections import OrderedDict
from inspect import signature
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher, _PrefetchDataFetcher
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor
from torch.optim import Optimizer

#: Hooks of a method and its callbacks between fetching a batch and the end of its step.
STEP_HOOKS = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    "on_before_optimizer_step",
)
#: Further hooks of a method that must be Lightning's own. `on_after_backward` is called, whoever
#: wrote it.
METHOD_HOOKS = (
    *("optimizer_zero_grad", "backward", "configure_gradient_clipping", "optimizer_step"),
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward"),
    "on_before_optimizer_step",
)
#: Hooks of a method or data module on a batch before it is used.
BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class DirectSteps(_AutomaticOptimization):
    """Forward, backward and optimiser step of a batch, called one after the other.

    Args:
        trainer: whose steps they are.
    """

    is_direct = False

    def run(self, optimizer: Optimizer, batch_idx: int, kwargs: Any) -> dict[str, Any]:
        """One step.

        Args:
            optimizer: of the run.
            batch_idx: number of the batch in its epoch.
            kwargs: arguments of `training_step`, in order.

        Returns:
            What `training_step` returned, its loss without a graph.
        """
        if not self.is_direct:
            return super().run(optimizer, batch_idx, kwargs)
        module = self.trainer.lightning_module
        progress = self.optim_progress.optimizer
        output: dict[str, Any] = {}

        def closure() -> Tensor:
            module._current_fx_name = "training_step"  # what `self.log` wants to know
            found = module.training_step(*kwargs.values())
            output.update({"loss": found} if isinstance(found, Tensor) else found or {})
            loss: Tensor = output["loss"]
            output["loss"] = loss.detach()
            progress.zero_grad.increment_ready()
            progress.zero_grad.increment_started()
            optimizer.zero_grad()
            progress.zero_grad.increment_completed()
            loss.backward()
            if module.on_after_backward is not None:
                module._current_fx_name = "on_after_backward"
                module.on_after_backward()
            module._current_fx_name = None
            return output["loss"]

        progress.step.increment_ready()
        optimizer.step(closure)  # type: ignore[arg-type]
        progress.step.increment_completed()
        return output


class DirectEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, with `DirectSteps`.

    Args:
        trainer: whose loop it is.
        min_steps: of the run.
        max_steps: of the run; -1: no limit.
    """

    def __init__(self, trainer: Trainer, min_steps: int | None, max_steps: int) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.automatic_optimization = DirectSteps(trainer)
        self._moves_only = self._schedules_by_step = False

    @property
    def _steps(self) -> DirectSteps:
        # A second attribute would be saved as a loop of its own.
        assert isinstance(self.automatic_optimization, DirectSteps)
        return self.automatic_optimization

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Look once an epoch whether hooks are filled in."""
        super().on_run_start(data_fetcher)
        self._steps.is_direct = steps_can_be_direct(self.trainer)
        self._moves_only = self._steps.is_direct and (
            isinstance(data_fetcher, _PrefetchDataFetcher) and batches_are_moved_only(self.trainer)
        )
        self._schedules_by_step = self._moves_only and schedules_are_by_step(self.trainer)

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """One batch: fetched, moved to the device, trained on."""
        if self.restarting or not self._moves_only:
            super().advance(data_fetcher)
            return
        trainer = self.trainer
        self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        number = self.batch_idx + 1
        progress = self.batch_progress
        progress.is_last_batch = data_fetcher.done
        batch = move_data_to_device(batch, trainer.strategy.root_device)
        progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        progress.increment_started()
        arguments = OrderedDict(batch=batch, batch_idx=number)
        output = self._steps.run(trainer.optimizers[0], number, arguments)
        progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        module = trainer.lightning_module
        module._current_fx_name = "on_train_batch_end"
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if callback.on_train_batch_end is not None:
                callback.on_train_batch_end(trainer, module, output, batch, number)
        if module.on_train_batch_end is not None:
            module.on_train_batch_end(output, batch, number)
        module._current_fx_name = None
        if self._results:  # something called `self.log`
            trainer._logger_connector.on_batch_end()
            progress.increment_completed()
            trainer._logger_connector.update_train_step_metrics()
        else:
            self._results.batch = None
            progress.increment_completed()

    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        """The schedules that are due after a step, or an epoch.

        Args:
            interval: ``step`` or ``epoch``.
            update_plateau_schedulers: those that watch a metric, or the others.
        """
        if not self._schedules_by_step:
            super().update_lr_schedulers(interval, update_plateau_schedulers)
        elif interval == "step" and not update_plateau_schedulers:
            for config in self.trainer.lr_scheduler_configs:
                self.scheduler_progress.increment_ready()
                config.scheduler.step()  # type: ignore[call-arg]
                self.scheduler_progress.increment_completed()


def steps_can_be_direct(trainer: Trainer) -> bool:
    """True if a step calls nothing but the method, the gradients and the optimiser."""
    module = trainer.lightning_module
    return (
        type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.precision_plugin) is Precision
        and isinstance(trainer.profiler, PassThroughProfiler)  # type: ignore[attr-defined]
        and trainer.accumulate_grad_batches == 1
        and trainer.gradient_clip_val is None
        and module.automatic_optimization
        and len(signature(module.training_step).parameters) == 2
        and all(_is_unfilled(module, hook, LightningModule) for hook in METHOD_HOOKS)
        and all(
            _is_unfilled(callback, hook, Callback)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            for hook in STEP_HOOKS
        )
    )


def batches_are_moved_only(trainer: Trainer) -> bool:
    """True if nothing happens to a batch between the loader and the step but the move."""
    return all(
        _is_unfilled(trainer.lightning_module, hook, LightningModule)
        and (
            trainer.datamodule is None  # type: ignore[attr-defined]
            or _is_unfilled(trainer.datamodule, hook, LightningDataModule)  # type: ignore[attr-defined]
        )
        for hook in BATCH_HOOKS
    )


def schedules_are_by_step(trainer: Trainer) -> bool:
    """True if every schedule moves on after every step, by nothing but its own count."""
    return _is_unfilled(trainer.lightning_module, "lr_scheduler_step", LightningModule) and all(
        config.interval == "step" and config.frequency == 1 and not config.reduce_on_plateau
        for config in trainer.lr_scheduler_configs
    )


def _is_unfilled(part: object, hook: str, base: type) -> bool:
    """True if a hook is `base`'s own, or None."""
    own = getattr(part, hook)
    return own is None or getattr(own, "__func__", None) is getattr(base, hook)
