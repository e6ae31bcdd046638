"""A run that is a trial of a search reports after each validation, and stops if it is hopeless."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from noisyml.command.sweeps import objective_value
from noisyml.errors import SweepError, UserError
from noisyml.runs.trials import Reports, Trial


class TrialReports(Callback):
    """Reports the objective to the study, once an epoch, and ends training when told to.

    The last epoch is reported too, but nothing is asked then: there is nothing left to save. The
    answer lies in the run folder before the checkpoint that follows it, so that a run which is
    killed in between stops where it would have stopped.

    Args:
        folder: of the run.
        trial: of the run.
    """

    def __init__(self, folder: Path, trial: Trial) -> None:
        self.reports = Reports(folder, trial)
        #: True if the search has stopped the run.
        self.pruned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further what was stopped, and killed before it could say so."""
        pruned = self.reports.trial.pruned
        if pruned is not None and pruned <= trainer.current_epoch:
            self.pruned = trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and end training on all ranks if the search stops the trial.

        Raises:
            SweepError: validation computes no such metric.
        """
        if trainer.sanity_checking:
            return
        stop = trainer.is_global_zero and self._report(trainer)
        if trainer.strategy.broadcast(stop):
            self.pruned = trainer.should_stop = True

    def _report(self, trainer: Trainer) -> bool:
        """Report; True if the run is to stop."""
        computed = {name: float(value) for name, value in trainer.callback_metrics.items()}
        try:
            value = objective_value(computed, self.reports.trial.search.objective)
        except UserError as error:
            raise SweepError(str(error)) from error
        done = trainer.current_epoch + 1
        self.reports.report(done, value)
        return done != trainer.max_epochs and self.reports.stops(done, value)
