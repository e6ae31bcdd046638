"""Runs that are trials of a search: to what they report while they train, and whether they go on.

A job of a search has a file ``trial.json`` in its run folder. It names the study, which lies in the
folder of the search, so that the run reports to it wherever it is trained and gone on with.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from noisyml.errors import UserError
from noisyml.storage.files import write_atomically
from noisyml.storage.reading import read_json, reading

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import JournalStorage
    from optuna.trial import FrozenTrial

#: In the run folder of a trial.
TRIAL_FILE = "trial.json"
#: In the folder of a search: the study, and what came out of it.
JOURNAL_FILE, RESULTS_FILE = "study.journal", "search.json"
STUDY_NAME = "noisyml"
#: Attribute of a trial that was stopped: the epochs that it had done.
PRUNED = "pruned_after_epoch"
#: Of a status, and of a trial.
PRUNED_STATE = "pruned"

#: Rules by which a search stops trials.
PrunerName = Literal["median", "halving", "none"]

NEEDS_OPTUNA = "A search needs optuna: pip install 'noisyml[search]'."
#: A study lies in the folder of the run, or in one above it.
_JOURNAL = re.compile(rf"(\.\./)*{re.escape(JOURNAL_FILE)}")
_ADVICE = "remove it, and the run is no trial any more"


@dataclass(frozen=True)
class Search:
    """Settings of a search that its trials need.

    Attributes:
        objective: metric to go by, ``val/...``.
        pruner: ``median`` stops a trial whose best value so far is worse than the median of what
            the finished trials had after as many epochs; ``halving`` lets the best third of the
            trials go on after 1, 3, 9 ... epochs (asynchronous successive halving).
        startup_trials: with ``median``, trials that must have finished before one is stopped.
        warmup_epochs: epochs in which no trial is stopped.
    """

    objective: str
    pruner: PrunerName
    startup_trials: int
    warmup_epochs: int

    def make_pruner(self) -> BasePruner:
        """Optuna's pruner."""
        from optuna import pruners

        if self.pruner == "median":
            return pruners.MedianPruner(self.startup_trials, self.warmup_epochs + 1)
        if self.pruner == "halving":
            least = max(1, self.warmup_epochs)
            return pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=3)
        return pruners.NopPruner()


@dataclass(frozen=True)
class Trial:
    """A run as part of a search.

    Attributes:
        journal: of the study, relative to the run folder.
        number: of the trial in the study.
        search: settings of the search.
        pruned: epochs that were done when it was stopped; None while it was not.
        value: of the objective then; None where it was no number.
    """

    journal: str
    number: int
    search: Search
    pruned: int | None = None
    value: float | None = None

    @classmethod
    def of(cls, folder: Path, home: Path, number: int, search: Search) -> Trial:
        """The trial in a run folder, with what is known of it already.

        Args:
            folder: of the run.
            home: of the search.
            number: of the trial.
            search: settings of the search.
        """
        new = cls(os.path.relpath(home / JOURNAL_FILE, folder), number, search)
        before = cls.read(folder)
        return new if before is None else replace(new, pruned=before.pruned, value=before.value)

    @classmethod
    def read(cls, folder: Path) -> Trial | None:
        """The trial in a run folder; None if the run is none.

        Raises:
            UserError: its file is damaged.
        """
        file = folder / TRIAL_FILE
        if not file.is_file():
            return None
        content = read_json(file, _ADVICE)
        with reading(file, _ADVICE):
            trial = cls(**{**content, "search": Search(**content["search"])})
            if not _JOURNAL.fullmatch(trial.journal):
                raise ValueError("its study lies in no folder that it is in")
        return trial

    def write(self, folder: Path) -> None:
        """Write the trial into its run folder."""
        write_atomically(folder / TRIAL_FILE, json.dumps(asdict(self), indent=2) + "\n")

    def stopped(self, epochs: int, value: float) -> Trial:
        """The trial, pruned after so many epochs at a value of the objective."""
        return replace(self, pruned=epochs, value=value if math.isfinite(value) else None)

    @property
    def why(self) -> str:
        """Why it was stopped, in a sentence."""
        value = "no number" if self.value is None else f"{self.value:.4f}"
        return (
            f"Stopped after epoch {self.pruned} by the search ({self.search.pruner}): "
            f"{self.search.objective} was {value}."
        )


class Reports:
    """Reports of a trial to the study of its search, and the answers.

    Args:
        folder: of the run.
        trial: of the run.
    """

    def __init__(self, folder: Path, trial: Trial) -> None:
        self.folder, self.trial = folder, trial

    @cached_property
    def _storage(self) -> JournalStorage:
        return open_journal(self.folder / self.trial.journal)

    def current(self) -> FrozenTrial | None:
        """The trial as the study knows it, while it is under way; None otherwise.

        A folder that was moved away from its search has no study.
        """
        if not (self.folder / self.trial.journal).is_file():
            return None
        study = self._storage.get_study_id_from_name(STUDY_NAME)
        trials = self._storage.get_all_trials(study, deepcopy=False)
        known = trials[self.trial.number] if self.trial.number < len(trials) else None
        return None if known is None or known.state.is_finished() else known

    def report(self, epochs: int, value: float) -> None:
        """Tell the value after so many epochs, unless it was told before.

        Args:
            epochs: done.
            value: of the objective; one that is no number is none of the best.
        """
        known = self.current()
        if known is not None and epochs not in known.intermediate_values:
            self._storage.set_trial_intermediate_value(known._trial_id, epochs, value)

    def stops(self, epochs: int, value: float) -> bool:
        """True if the trial is to stop after so many epochs; written down before it is said."""
        import optuna

        if self.trial.pruned is not None:
            return epochs >= self.trial.pruned
        known = self.current()
        if known is None:
            return False
        study = optuna.load_study(study_name=STUDY_NAME, storage=self._storage)
        if not self.trial.search.make_pruner().prune(study, known):
            return False
        self._storage.set_trial_user_attr(known._trial_id, PRUNED, epochs)
        self.trial = self.trial.stopped(epochs, value)
        self.trial.write(self.folder)
        return True


def open_journal(file: Path) -> JournalStorage:
    """The storage of a study.

    Raises:
        UserError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(NEEDS_OPTUNA) from error
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.storages.JournalStorage(JournalFileBackend(str(file)))
